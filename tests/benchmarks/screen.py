"""What the screen sees of people whom it does not know: of every kind and strength of harm, and of good images.

Takes a cohort with several images of each person (column Anatomy), as `make_demo_cohort.py --anatomies` makes it. Again
and again the images of some people, drawn by chance, are the test set, and the others are looked at: as they are, and
made harmful in memory as `generate_data.py` does it. No model is needed.

Example:
    python reproduce/make_demo_cohort.py --anatomies brains --shrink 2 --output-folder cohort
    python tests/benchmarks/screen.py cohort/training_set.csv cohort/test_set.csv --people 4 8 12 --output look.csv
"""

import argparse
from pathlib import Path
from typing import Any

from travelling.beyond.screen import FALSE_ALARMS
from travelling.errors import InputError
from travelling.images.harm import KINDS, PUBLISHED
from travelling.runs import command


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("cohorts", type=Path, nargs="+", metavar="CSV", help="good images")
    parser.add_argument("--people", nargs="+", type=count, default=[4, 8, 12], metavar="N", help="in the test set")
    parser.add_argument("--test-images", type=count, default=102, metavar="N", help="of them, at most")
    parser.add_argument("--draws", type=count, default=12, metavar="N", help="of a test set")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), metavar="KIND", default=list(KINDS), help="of harm")
    parser.add_argument("--levels", nargs="+", type=command.number(float, 1e-6), default=[1.0, 0.5, 0.25], metavar="X")
    parser.add_argument("--together", type=count, default=3, metavar="N", help="images of a center, all of a kind")
    parser.add_argument("--harmed", type=count, default=12, metavar="N", help="images of each person")
    parser.add_argument("--false-alarms", type=command.number(float, 1e-6, 0.5), default=FALSE_ALARMS, metavar="RATE")
    parser.add_argument("--maximum", type=command.number(float, 0), default=255.0, help="of the two published kinds")
    parser.add_argument("--seed", type=command.number(int, 0), default=42, help="of the draws and of the harm")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write one row per draw and kind")
    return parser.parse_args()


def main() -> None:
    """Look, and print the shares of images that are suspected and eliminated."""
    arguments = parse_arguments()
    import pandas as pd

    from travelling.files import write_csv
    from travelling.images.cohort import read_cohort

    cohort = pd.concat([read_cohort(path) for path in arguments.cohorts])
    images, looks = measure(cohort, arguments)
    rows = [row for people in arguments.people for row in draws(images, looks, people, arguments)]
    table = pd.DataFrame(rows)
    if arguments.output:
        write_csv(table, arguments.output)
    groups = table.groupby(["kind", "level", "people"], sort=False)
    shares = groups[["suspects", "eliminated"]].sum().div(groups["images"].sum(), axis=0)
    shares["worst draw"] = groups.apply(lambda some: (some["suspects"] / some["images"]).max())
    print("In % of the images, by people in the test set\n")
    print((100 * shares).unstack("people").round(2).to_string())


def measure(cohort: Any, arguments: argparse.Namespace) -> tuple:
    """Images, good and harmful, a DataFrame, and their looks by name, arrays (images, numbers)."""
    import numpy as np
    import pandas as pd
    import SimpleITK as sitk

    from travelling.beyond.screen.looks import LOOKS
    from travelling.console import progress_bar
    from travelling.images.harm import make_harmful
    from travelling.images.itk import read_image, to_array

    cohort = cohort.assign(Person=cohort.get("Anatomy", cohort["Subject"]))
    place = cohort.sample(frac=1, random_state=arguments.seed).groupby("Person").cumcount().to_dict()
    rows, looks = [], {name: [] for name in LOOKS}
    for number, row in enumerate(progress_bar(cohort.to_dict("records"), desc="looking", unit="image")):
        original = read_image(row["Path"])
        harms = [("good", 1.0)]
        if place[row["Subject"]] < arguments.harmed:
            harms += [(k, v) for k in arguments.kinds for v in (arguments.levels if KINDS[k].strength else [1.0])]
        for kind, level in harms:
            image = original
            if kind != "good":
                maximum = arguments.maximum if kind in PUBLISHED else None
                strength = level if KINDS[kind].strength else None
                try:
                    image = make_harmful(original, kind, maximum, (arguments.seed, number), strength)
                except InputError:  # so weak that nothing changes
                    continue
            array = to_array(sitk.DICOMOrient(image, "RAS")).astype(np.float32)
            rows.append(row | {"kind": kind, "level": level})
            for name, look in LOOKS.items():
                looks[name].append(look.measure(array).astype(np.float32))
    return pd.DataFrame(rows), {name: np.array(some) for name, some in looks.items()}


def draws(images: Any, looks: dict, people: int, arguments: argparse.Namespace) -> list:
    """Rows of each draw of so many people for the test set: kind, level, and how many images the screen suspects."""
    import numpy as np

    from travelling.beyond.screen import is_strange, is_surely_strange
    from travelling.beyond.screen.scores import Scores

    persons, good = images["Person"].unique(), images["kind"] == "good"
    if people >= len(persons):
        raise InputError(f"--people: {people}, but the cohort has {len(persons)}")
    rows = []
    for draw in range(arguments.draws):
        generator = np.random.default_rng([arguments.seed, people, draw])
        known = images["Person"].isin(generator.permutation(persons)[:people])
        test = generator.permutation(np.flatnonzero(known & good))[: arguments.test_images]
        screen = Scores(Recorded(looks, test, images, people), arguments.false_alarms)
        screen.calibrate()
        others = generator.permutation(np.flatnonzero(~known))
        found = images.iloc[others][["kind", "level"]].assign(images=1, place=others)
        places = [of.to_numpy() for _, of in found.groupby(["kind", "level"], sort=False)["place"]]
        centers = [
            part for of in places for part in np.split(of, range(arguments.together, len(of), arguments.together))
        ]
        found = found.set_index("place").loc[np.concatenate(centers)]
        cells = [one for center in centers for one in screen.cells(center)[0]]
        found["suspects"], found["eliminated"] = ([*map(judge, cells)] for judge in (is_strange, is_surely_strange))
        counts = found.groupby(["kind", "level"], sort=False).sum().reset_index()
        rows += counts.assign(people=people, draw=draw).to_dict("records")
    return rows


class Recorded:
    """Looks that were taken before: eyes, whose subjects are numbers of images."""

    def __init__(self, looks: dict, test: Any, images: Any, people: int):
        self._looks, self._test, self._images, self._people = looks, test, images, people

    def look(self, subjects: Any = None, labels: None = None, weights: dict | None = None) -> dict:
        """As :meth:`travelling.beyond.screen.eyes.Eyes.look`."""
        from travelling.beyond.screen.eyes import summed

        looks = {name: rows[self._test if subjects is None else subjects] for name, rows in self._looks.items()}
        return summed(looks, weights)

    def related(self, scanners: bool = True) -> tuple:
        """As :meth:`travelling.beyond.screen.eyes.Eyes.related`."""
        from travelling.beyond.screen.eyes import related

        test_set = self._images.iloc[self._test]
        return related(test_set if scanners else test_set.drop(columns="Scanner", errors="ignore"))

    def knows_scanners(self, subjects: Any) -> list:
        """As :meth:`travelling.beyond.screen.eyes.Eyes.knows_scanners`."""
        scanners = self._images.get("Scanner")
        known = [] if scanners is None else scanners.iloc[self._test]
        return [scanners is not None and scanners.iloc[subject] in set(known) for subject in subjects]

    def people(self) -> int:
        """As :meth:`travelling.beyond.screen.eyes.Eyes.people`."""
        return self._people


if __name__ == "__main__":
    command.run(main)
