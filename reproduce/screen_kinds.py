"""What one look of the screen sees: of every kind of harm, and of the good images at every scanner and center.

Takes the pre-trained models of a study, makes images of the training set harmful in memory, and screens them as
`enc_PD_quality_control.py --screen` does in its first cycle. Much faster than quality control itself, and no more than
its first decision. Examples:

    python reproduce/screen_kinds.py demo
    python reproduce/screen_kinds.py demo_seeds --images 100 --output kinds.csv
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.layout import CENTER_SIZES

from travelling import command
from travelling.harm import KINDS
from travelling.options import FALSE_ALARMS

if TYPE_CHECKING:  # slow to import
    import pandas as pd

    from travelling.model import TravellingModel
    from travelling.trainer import LocalTrainer
    from travelling.volumes import Volumes

LARGE_SCANNER = 20  # images, from which on a scanner has a row of its own


def parse_arguments() -> Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("study", type=Path, metavar="FOLDER", help="folder of a study on the demo cohort")
    parser.add_argument(
        "--images", type=command.number(int, 1), default=50, metavar="N", help="to make harmful, of each"
    )
    parser.add_argument(
        "--false-alarms", type=command.number(float, 1e-6, 0.5), default=FALSE_ALARMS, metavar="RATE",
        help="as of the script",
    )  # fmt: skip
    parser.add_argument("--maximum", type=command.number(float, 0), default=255.0, help="of the two published kinds")
    parser.add_argument("--seed", type=command.number(int, 0), default=42, help="of the choice and of the harm")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write one row per seed and group of images")
    return parser.parse_args()


def main() -> None:
    """Screen, and print the share of suspects: mean over seeds, smallest and largest."""
    arguments = parse_arguments()
    import pandas as pd

    from travelling import backend
    from travelling.cohort import read_cohort
    from travelling.console import progress_bar
    from travelling.errors import InputError
    from travelling.files import write_csv
    from travelling.volumes import Volumes

    cohort = arguments.study / "cohort"
    pretrained = sorted(arguments.study.glob("seed_*/pretrained")) or [arguments.study / "pretrained"]
    if not (cohort / "training_set.csv").is_file() or not pretrained[0].is_dir():
        raise InputError(f"{arguments.study}: no study on a demo cohort (reproduce.py --demo)")
    training_set, test_set = read_cohort(cohort / "training_set.csv"), read_cohort(cohort / "test_set.csv")
    volumes = Volumes(None, arguments.study / "image_cache")
    volumes.add(test_set)
    volumes.add(training_set)
    backend.start(arguments.seed)
    volumes.decode()
    rows = []
    for folder in progress_bar(pretrained, desc="screening", unit="model"):
        rows += screen(folder, training_set, test_set, volumes, arguments)
    table = pd.DataFrame(rows)
    if arguments.output:
        write_csv(table, arguments.output)
    shares = table.assign(share=100 * table["suspects"] / table["images"])
    shares = shares.groupby(["group", "name"], sort=False).agg(
        images=("images", "first"), mean=("share", "mean"), least=("share", "min"), most=("share", "max")
    )
    print(f"Suspects in % of the images, over {len(pretrained)} model(s)\n\n{shares.round(1).to_string()}")


def screen(
    folder: Path, training_set: pd.DataFrame, test_set: pd.DataFrame, volumes: Volumes, arguments: Namespace
) -> list[dict]:
    """Rows of one pre-trained model: model, group, name, images, suspects."""
    import numpy as np

    from travelling.model import TravellingModel
    from travelling.model_files import model_pairs
    from travelling.screen import Screen
    from travelling.trainer import LocalTrainer

    pairs = model_pairs(folder, folder)
    model, _, _ = TravellingModel.load(*pairs[max(pairs)], volumes.shape)
    trainer = LocalTrainer(model, volumes, training_set, test_set)
    good = Screen(trainer, arguments.false_alarms)
    good.calibrate(0)
    suspect = np.array([good.suspects(score) for score in good.scores(list(training_set["Subject"]))])
    sizes = training_set.groupby("Study")["Subject"].transform("size")
    groups: dict[tuple[str, str], np.ndarray] = {("good", "all"): np.full(len(suspect), True)}
    for name, bounds in CENTER_SIZES.items():
        groups["good", f"center of {name}"] = sizes.between(*bounds).to_numpy()
    if "Scanner" in training_set:
        for scanner, number in training_set["Scanner"].value_counts().items():
            if number >= LARGE_SCANNER:
                groups["scanner", str(scanner)] = (training_set["Scanner"] == scanner).to_numpy()
    found = {key: (int(members.sum()), int(suspect[members].sum())) for key, members in groups.items()}
    for kind in KINDS:
        scores = Screen(Harmed(trainer, model, training_set, kind, arguments), arguments.false_alarms)
        scores.import_state(good.export_state())
        chosen = np.random.default_rng(arguments.seed).permutation(training_set["Subject"])[: arguments.images]
        found["harmful", kind] = len(chosen), sum(map(scores.suspects, scores.scores(list(chosen))))
    return [
        {"model": folder.parent.name, "group": group, "name": name, "images": images, "suspects": suspects}
        for (group, name), (images, suspects) in found.items()
    ]


class Harmed:
    """The trainer of a screen that looks at the harmful versions of the images."""

    def __init__(
        self, trainer: LocalTrainer, model: TravellingModel, training_set: pd.DataFrame, kind: str, arguments: Namespace
    ):
        self._trainer, self._model = trainer, model
        self._paths, self._kind, self._arguments = training_set["Path"], kind, arguments

    def distances(self, subjects: list[str] | None = None) -> list[list[float]]:
        """As :meth:`travelling.trainer.LocalTrainer.distances`."""
        import numpy as np

        from travelling.harm import make_harmful
        from travelling.nifti import read_image, to_array

        rows: list[list[float]] = []
        for number, subject in enumerate(subjects or []):
            seed = (self._arguments.seed, number)
            image = make_harmful(read_image(Path(self._paths[subject])), self._kind, self._arguments.maximum, seed)
            rows += self._model.distances(np.asarray(to_array(image), np.float32)[None, ..., None]).tolist()
        return rows


if __name__ == "__main__":
    command.run(main)
