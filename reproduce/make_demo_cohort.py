"""Make the demo cohort: synthetic T1 volumes that any reader may have and share.

    python reproduce/make_demo_cohort.py --output-folder demo/cohort

NONE OF THIS IS PATIENT DATA. Every volume is the MNI152 template (the copy inside the nilearn wheel;
nothing is downloaded), deformed and recoloured by a random number generator. Only the number of
images by center, class and sex, and the scanner names, are those of the paper (centers.csv, beside this
script). What the volumes can show is that the programs work, not how Parkinson's disease (PD) looks.

With --anatomies FOLDER the template's place is taken by the brains in a folder of yours: skull-stripped, registered
to MNI152, any voxel size and intensities. Disease and acquisition are simulated all the same, but such images show
real people: what holds for the brains (license, privacy) holds for them. A third of the people are in the test set
alone. Who is in which file is told by people.csv in the folder (columns File, Participant); a file that it does not
name is a person of its own. Both CSVs then have a column Anatomy, the person.

Written to the output folder, the CSV files last:

    training_set.csv, test_set.csv, and of subjects that no run decides by (not with --anatomies) holdout_set.csv:
                                     Subject, Study, Path, Group_bin (1 = PD), Sex, Age (years), Scanner
    images/<Subject>.nii.gz          float32 in [0, 1], 0 outside the brain, MNI space, 160 x 192 x 160 mm

With --raw, whole heads instead, tilted, as six scanners might write them, five of them spoiled (raw_heads.py):

    bids/                            a BIDS folder, for prepare_images.py
    truth.csv                        which are spoiled; for tests alone

How an image comes about:

    anatomy      head size by sex, a smooth random deformation, ventricles and cortex by age
    disease      substantia nigra, putamen and caudate darker, by an amount that varies between subjects
    acquisition  gain, gamma, bias field and noise of the scanner model, plus a smaller part of the center

Each subject has its own random stream, made of the seed and the subject's name: a subject is the same
whatever else is made beside it, on any number of processes.
"""

import functools
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare_images.template import image_size
from travelling.errors import InputError
from travelling.network.sfcn import MINIMUM_VOXELS
from travelling.option import changed, from_command_line, number, option
from travelling.runs.command import run
from travelling.runs.options import Overwrite

COLUMNS = ["Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Scanner"]


@dataclass(kw_only=True)
class DemoCohort(Overwrite):
    """What is made."""

    output_folder: Path = option("where the cohort is written", Path, metavar="FOLDER")
    raw: bool = option("whole heads in a BIDS folder of six centers, as prepare_images.py takes them", None, False)
    anatomies: Path | None = option(
        "brains in MNI space, in the template's place (not with --raw)", Path, None, metavar="FOLDER"
    )
    spacing: float = option("size of a voxel in mm (default: 4; --raw: 2)", float, None, metavar="MM")
    shrink: int = option("divide the real numbers by this (default: 4; --raw: 16)", number(int, 1), None, metavar="N")
    effect: float = option("strength of the disease; 0: none", number(float, 0), 1.0, metavar="X")
    seed: int = option("of everything that is drawn at random", number(int, 0), 42, metavar="N")
    workers: int = option("processes", number(int, 1), min(os.cpu_count() or 1, 8), metavar="N")
    overwrite: bool = changed(Overwrite, "overwrite", words="replace a cohort that is already there")

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.option.Options.check`."""
        if self.raw and self.anatomies:
            raise ValueError(
                f"{spell('anatomies')}: not with {spell('raw')}, whose heads are drawn around the template"
            )
        if self.spacing is None:
            self.spacing = 2.0 if self.raw else 4.0
        self.shrink = self.shrink or (16 if self.raw else 4)


def check_spacing(spacing: float) -> None:
    """Refuse a voxel size (mm) with which no network could work."""
    if not spacing > 0:
        raise InputError(f"--spacing {spacing:g}: must be more than 0 mm")
    size = image_size(spacing)
    if min(size) < MINIMUM_VOXELS:
        raise InputError(
            f"--spacing {spacing:g}: the images would have {' x '.join(map(str, size))} voxels; "
            f"an axis must have at least {MINIMUM_VOXELS} voxels"
        )


def prepare_folder(folder: Path, overwrite: bool, *earlier: str) -> None:
    """Make the folder; with `overwrite`, take away what an earlier cohort left (patterns), and nothing else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not overwrite:
            raise InputError(f"--output-folder {folder}: is not empty (--overwrite replaces a cohort in it)")
        for path in [path for pattern in earlier for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise InputError(f"--output-folder {folder}: cannot be written: {error.strerror}") from error


def write_all(write: Callable, rows: list, arguments: DemoCohort) -> list:
    """What ``write`` returns of every row, on several processes."""
    from travelling.console import progress_bar

    told = {"spacing": arguments.spacing, "effect": arguments.effect, "seed": arguments.seed}
    write_one = functools.partial(write, folder=arguments.output_folder, **told)
    with ProcessPoolExecutor(arguments.workers) as pool:
        return list(progress_bar(pool.map(write_one, rows), total=len(rows), unit="image"))


def main() -> None:
    """Plan the cohort, and make it."""
    arguments = from_command_line(DemoCohort, __doc__)
    check_spacing(arguments.spacing)
    make_raw(arguments) if arguments.raw else make(arguments)


def make(arguments: DemoCohort) -> None:
    """Make the images, then the CSV files."""
    # Only now, so that --help answers at once.
    import pandas as pd
    from demo_images import brain_maps, write_subject
    from demo_subjects import choose_brains, find_people, plan_cohort

    from travelling.files import write_csv

    training, test, holdout = plan_cohort(arguments.shrink)
    if len({row["Group_bin"] for row in test}) < 2:
        raise InputError(f"--shrink {arguments.shrink}: the test set would not hold both classes")
    sets = {"training": training, "test": test, "holdout": holdout}
    columns, what = COLUMNS, "synthetic, no patient data"
    if arguments.anatomies:
        people = find_people(arguments.anatomies)
        for path in (path for paths in people.values() for path in paths):
            brain_maps(path, arguments.spacing)
        choose_brains(training, test, people, arguments.seed)
        del sets["holdout"]  # people are few
        columns, what = [*COLUMNS, "Anatomy"], f"simulated disease in the brains of {len(people)} people"
    folder = arguments.output_folder
    prepare_folder(folder, arguments.overwrite, *(f"{name}_set.csv" for name in sets), "images/*demo_*.nii.gz")
    (folder / "images").mkdir(exist_ok=True)

    made = iter(write_all(write_subject, [row for rows in sets.values() for row in rows], arguments))
    for name, rows in sets.items():
        write_csv(pd.DataFrame(itertools.islice(made, len(rows)), columns=columns), folder / f"{name}_set.csv")
    print(f"{', '.join(f'{len(rows)} {name}' for name, rows in sets.items())} images in {folder} ({what})")


def make_raw(arguments: DemoCohort) -> None:
    """Make the raw heads, then the tables about them."""
    from raw_heads import plan, write_head, write_tables  # only now, so that --help answers at once

    rows = plan(arguments.shrink, arguments.seed)
    prepare_folder(arguments.output_folder, arguments.overwrite, "bids", "truth.csv")
    write_tables(write_all(write_head, rows, arguments), arguments.output_folder)


if __name__ == "__main__":
    run(main)
