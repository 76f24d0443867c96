"""Who is in the demo cohort: subjects by center, class and sex as in the paper, and whose brains they are given."""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from travelling.errors import InputError

Row = dict[str, Any]  # a subject

CENTERS_FILE = Path(__file__).with_name("centers.csv")
CELLS = [("HC", "F"), ("HC", "M"), ("PD", "F"), ("PD", "M")]  # as in the column names of centers.csv
FEWEST_PEOPLE = 4  # whose brains --anatomies needs
TEST_SHARE = 1 / 3  # of these people


def largest_remainder(seats: int, counts: Sequence[int]) -> list[int]:
    """Divide `seats` in proportion to `counts` (both whole numbers); a tie goes to the earlier one."""
    total = sum(counts)
    if total == 0:
        return [0] * len(counts)
    shares = [seats * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -(seats * counts[i] % total))
    for i in by_remainder[: seats - sum(shares)]:
        shares[i] += 1
    return shares


def training_numbers(centers: pd.DataFrame, shrink: int) -> list[list[int]]:
    """Training images by center and cell, shape (83, 4): every center keeps at least one image."""
    counts = centers[[f"train_{group}_{sex}" for group, sex in CELLS]].to_numpy().tolist()
    return [largest_remainder(math.ceil(sum(row) / shrink), row) for row in counts]


def test_numbers(centers: pd.DataFrame, shrink: int) -> list[list[int]]:
    """Test images by center and cell, shape (83, 4): the balance of class and sex is kept first."""
    counts = centers[[f"test_{group}_{sex}" for group, sex in CELLS]].to_numpy().T.tolist()
    cell_totals = [sum(column) for column in counts]
    seats = largest_remainder((2 * sum(cell_totals) + shrink) // (2 * shrink), cell_totals)
    columns = [largest_remainder(n, column) for n, column in zip(seats, counts, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def plan_cohort(shrink: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Who is made: rows of the training, the test and the hold-out set: {Subject, Study, Group_bin, Sex, Scanner}.

    The hold-out set has others, as many of each center, class and sex as the test set. A subject is numbered by its
    place in the full-size center, so that its name, and with it its image, does not depend on `shrink`.
    """
    centers = pd.read_csv(CENTERS_FILE)
    tested = test_numbers(centers, shrink)
    parts = (("train", training_numbers(centers, shrink)), ("test", tested), ("test", tested))
    sets: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for i, center in enumerate(centers.to_dict("records")):
        first = 1
        about = {"Study": center["center"], "Scanner": center["scanner"]}
        for (part, numbers), rows in zip(parts, sets, strict=True):
            for (group, sex), images in zip(CELLS, numbers[i], strict=True):
                names = [f"demo_{center['center']}_{first + k:03d}" for k in range(images)]
                rows += [{"Subject": name, **about, "Group_bin": int(group == "PD"), "Sex": sex} for name in names]
                first += center[f"{part}_{group}_{sex}"]
    return sets


def generator(seed: int, name: str) -> np.random.Generator:
    """The random stream of one subject, center or scanner model: from the seed and its name alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


def find_people(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by person: {name: paths}; raises InputError for too few people or a wrong people.csv."""
    scans = {path.name: path for path in sorted(folder.glob("[!.]*.nii*"))}
    if not scans:
        raise InputError(f"--anatomies {folder}: holds no images (*.nii or *.nii.gz)")
    told = folder / "people.csv"
    persons: dict[str, str] = {}
    if told.exists():
        try:
            table = pd.read_csv(told, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            persons = dict(zip(table["File"], table["Participant"], strict=True))
        except (KeyError, ValueError):
            raise InputError(f"{told}: no table with columns File, Participant") from None
    if unknown := persons.keys() - scans.keys():
        raise InputError(f"{told}: there is no image '{min(unknown)}'")
    people: dict[str, list[Path]] = {}
    for name, path in scans.items():
        people.setdefault(persons.get(name) or name.split(".nii")[0], []).append(path)
    if len(people) < FEWEST_PEOPLE:
        raise InputError(f"--anatomies {folder}: {len(people)} people, at least {FEWEST_PEOPLE} are needed")
    return people


def choose_brains(training: list[Row], test: list[Row], people: dict[str, list[Path]], seed: int) -> None:
    """Add to every row Anatomy, a person, and Scan, a path: nobody is in both sets, whatever `shrink` was."""
    names = generator(seed, "anatomies").permutation(sorted(people)).tolist()
    tested = round(TEST_SHARE * len(names))
    for rows, part in ((test, names[:tested]), (training, names[tested:])):
        for row in rows:
            rng = generator(seed, f"anatomy {row['Subject']}")
            row["Anatomy"] = part[rng.integers(len(part))]
            row["Scan"] = people[row["Anatomy"]][rng.integers(len(people[row["Anatomy"]]))]
