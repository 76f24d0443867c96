"""What one look of the screen sees: of every kind and strength of harm, and of good images at every scanner.

Takes the pre-trained models of a study, makes images of the training set harmful in memory, and looks at them as
`enc_PD_quality_control.py --screen` does in its first cycle. With --unseen, a larger test set of the same kind that no
model has trained on, as many of it as the study has test subjects are drawn to set the limit, again and again, and the
others are looked at: how often good images are suspected, on average and by scanner.

Examples:
    python tests/benchmarks/screen.py demo --levels 0.1 0.25 0.5 1 --output kinds.csv
    python tests/benchmarks/screen.py demo --kinds --unseen larger/test_set.csv --calibrations 60
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from travelling.beyond.screen import FALSE_ALARMS
from travelling.images.harm import KINDS
from travelling.runs import command

LARGE_SCANNER = 20  # images, from which on a scanner has a row of its own


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("study", type=Path, metavar="FOLDER", help="with cohort/ and pretrained/ or seed_*/pretrained/")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), help="of harm")
    parser.add_argument("--levels", nargs="+", type=command.number(float, 1e-6), default=[1.0], metavar="X")
    parser.add_argument("--images", type=count, default=50, metavar="N", help="to make harmful, of each")
    parser.add_argument("--unseen", type=Path, metavar="CSV", help="good images that no model has trained on")
    parser.add_argument("--calibrations", type=count, default=60, metavar="N", help="test sets drawn of them")
    parser.add_argument("--false-alarms", type=command.number(float, 1e-6, 0.5), default=FALSE_ALARMS, metavar="RATE")
    parser.add_argument("--maximum", type=command.number(float, 0), default=255.0, help="of the two published kinds")
    parser.add_argument("--seed", type=command.number(int, 0), default=42, help="of the choice and of the harm")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write one row per model and group of images")
    return parser.parse_args()


def main() -> None:
    """Look, and print the share of suspects: mean over models, smallest and largest."""
    arguments = parse_arguments()
    import pandas as pd

    from travelling.console import progress_bar
    from travelling.files import write_csv
    from travelling.images.cohort import read_cohort
    from travelling.images.volumes import Volumes
    from travelling.network import backend

    cohort = arguments.study / "cohort"
    sets = [read_cohort(cohort / f"{name}_set.csv") for name in ("training", "test")]
    sets += [read_cohort(arguments.unseen)] if arguments.unseen else []
    volumes = Volumes(None, arguments.study / "image_cache")
    for some in sets:
        volumes.add(some)
    backend.start(arguments.seed)
    volumes.decode()
    pretrained = sorted(arguments.study.glob("seed_*/pretrained")) or [arguments.study / "pretrained"]
    rows = []
    for folder in progress_bar(pretrained, desc="screening", unit="model"):
        rows += [{"model": folder.parent.name} | row for row in look_with(folder, volumes, arguments, *sets)]
    table = pd.DataFrame(rows)
    if arguments.output:
        write_csv(table, arguments.output)
    table["share"] = 100 * table["suspects"] / table["images"]
    shares = table.groupby(["group", "name", "level"], sort=False)["share"]
    shown = shares.agg(mean="mean", least="min", most="max").round(1)
    print(f"Suspects in % of the images, over {len(pretrained)} model(s)\n\n{shown.to_string()}")


def look_with(folder: Path, volumes: Any, arguments: argparse.Namespace, training_set, test_set, unseen=None) -> list:
    """Rows of one pre-trained model: group, name, level, images, suspects; of cohorts as DataFrames."""
    import numpy as np

    from travelling.beyond.screen import is_strange
    from travelling.beyond.screen.eyes import Eyes
    from travelling.beyond.screen.scores import Scores
    from travelling.images.local_trainer import LocalTrainer
    from travelling.network.model import TravellingModel
    from travelling.network.model_files import model_pairs

    pairs = model_pairs(folder, folder)
    model, _, _ = TravellingModel.load(*pairs[max(pairs)], volumes.shape)
    eyes = SimpleNamespace(of=Eyes(LocalTrainer(model, volumes, training_set, test_set)))
    eyes.look, eyes.related = lambda *asked: eyes.of.look(*asked), eyes.of.related
    screen = Scores(eyes, arguments.false_alarms)
    screen.calibrate()

    def suspects(subjects):
        return np.array([is_strange(cells) for cells in screen.cells(list(subjects))[0]])

    rows = by_scanner("trained on", training_set, suspects(training_set["Subject"]))
    chosen = list(np.random.default_rng(arguments.seed).permutation(training_set["Subject"])[: arguments.images])
    for kind in arguments.kinds:
        for level in arguments.levels if KINDS[kind].strength else [1.0]:
            harmed = Harmed(volumes, training_set, chosen, kind, level, arguments)
            eyes.of = Eyes(LocalTrainer(model, harmed, training_set))
            found = suspects(harmed.possible)
            rows.append(row("harmful", kind, found, level))
    if unseen is not None:
        rows += calibrations(Eyes(LocalTrainer(model, volumes, test_set=unseen)), unseen, len(test_set), arguments)
    return rows


def calibrations(eyes: Any, unseen: Any, number: int, arguments: argparse.Namespace) -> list:
    """Rows of ``unseen``, a cohort, of which so many set the limit and the others are looked at, again and again."""
    import numpy as np

    from travelling.beyond.screen import is_strange
    from travelling.beyond.screen.scores import Scores

    looks, related = eyes.look(), eyes.related()[0]
    rows = []
    for draw in range(arguments.calibrations):
        order = np.random.default_rng([arguments.seed, draw]).permutation(len(unseen))
        test, others = order[:number], order[number:]
        recorded = SimpleNamespace(
            look=lambda some=test, labels=None: {name: values[some] for name, values in looks.items()},
            related=lambda test=test: (related[np.ix_(test, test)], ""),
        )
        screen = Scores(recorded, arguments.false_alarms)
        screen.calibrate()
        rows += by_scanner(
            "unseen", unseen.iloc[others], np.array([is_strange(one) for one in screen.cells(others)[0]])
        )
    return rows


def by_scanner(group: str, cohort: Any, suspects: Any) -> list:
    """Rows of all images of a cohort, and of each scanner with many."""
    rows = [row(group, "all", suspects)]
    for scanner, number in cohort["Scanner"].value_counts().items() if "Scanner" in cohort else ():
        if number >= LARGE_SCANNER:
            rows.append(row(group, scanner, suspects[(cohort["Scanner"] == scanner).to_numpy()]))
    return rows


def row(group: str, name: str, suspects: Any, level: float = 1.0) -> dict:
    """A row of the table, of an array that tells of each image whether it is a suspect."""
    return {"group": group, "name": name, "level": level, "images": len(suspects), "suspects": int(suspects.sum())}


class Harmed:
    """The volumes of a trainer that sees the harmful versions of some images; ``possible`` are those that there are."""

    def __init__(self, volumes: Any, cohort: Any, subjects: list, kind: str, level: float, arguments: Any):
        import numpy as np

        from travelling.errors import InputError
        from travelling.images.harm import make_harmful
        from travelling.images.nifti import read_image, to_array

        self.shape, self.upright = volumes.shape, volumes.upright
        self._images = {}
        for number, subject in enumerate(subjects):
            try:
                image = make_harmful(
                    read_image(cohort["Path"][subject]), kind, arguments.maximum, (arguments.seed, number),
                    level if KINDS[kind].strength else None,
                )  # fmt: skip
            except InputError:  # so weak that nothing changes
                continue
            self._images[subject] = np.asarray(to_array(image), np.float32)[..., None]
        self.possible = list(self._images)

    def batch(self, subjects: list) -> Any:
        """As :meth:`travelling.images.volumes.Volumes.batch`."""
        import numpy as np

        return np.stack([self._images[subject] for subject in subjects])

    def batches(self, groups: list) -> Any:
        """As :meth:`travelling.images.volumes.Volumes.batches`."""
        return map(self.batch, groups)


if __name__ == "__main__":
    command.run(main)
