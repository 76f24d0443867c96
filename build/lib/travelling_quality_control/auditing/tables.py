"""Reads what an audit needs: the training and the test set, the log, and the table of subjects."""

import csv
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from travelling.errors import InputError
from travelling.method.auditor import Auditor

LIMITS = ("Tolerance", "Reference_PFP", "Reference_PFN")  # empty in the baseline row
COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
TABLE_COLUMNS = (
    "Subject", "Study", "Times_flagged", "First_flagged_cycle", "Revisits", "Eliminated", "Eliminated_cycle",
)  # fmt: skip
FAILURES = ("unreachable", "invalid")  # phases of a step that a center did not make: its row has no rates
LARGEST = 2**31  # of seed and of cycle: NumPy takes seeds below 2**32


class Table:
    """A CSV file: its ``path``, its ``header`` and its ``rows``, dicts; ``"row"`` is the number in the file."""

    def __init__(self, path: Path, columns: Sequence[str], strip: bool = False):
        self.path = path
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                records = list(csv.reader(file, strict=True))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a CSV file ({error})") from None
        self.header = records[0] if records else []
        missing = [column for column in columns if column not in self.header]
        if missing:
            raise InputError(f"{path}: missing column(s) {', '.join(missing)}; needed are {', '.join(columns)}")
        self.rows: list[dict[str, Any]] = []
        for number, cells in enumerate(records[1:], start=2):
            if len(cells) > len(self.header):
                raise InputError(f"{path}, row {number}: has more cells than the header")
            if any(cells):
                cells = [cell.strip() if strip else cell for cell in cells]
                values = dict(itertools.zip_longest(self.header, cells, fillvalue=""))
                self.rows.append(values | {"row": number})
        if not self.rows:
            raise InputError(f"{path}: has no rows")

    def convert(
        self, columns: Sequence[str], kind: Callable[[str], float], optional: Callable[[dict], bool] = lambda row: False
    ) -> None:
        """Turn cells into numbers, in those ``columns`` that there are; empty ones into None where ``optional``."""
        for row, column in itertools.product(self.rows, [name for name in self.header if name in columns]):
            text = row[column]
            try:
                row[column] = None if text == "" and optional(row) else kind(text)
            except ValueError:
                word = "a whole number of at least 0" if kind is whole else "a number"
                raise InputError(f"{self.path}, row {row['row']}: {column} '{text}' is not {word}") from None


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not 0 <= int(text) < LARGEST:
        raise ValueError
    return int(text)


def finite(text: str) -> float:
    """A number, neither infinite nor NaN."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def always(row: dict) -> bool:
    """Of cells that may be empty in every row."""
    return True


def read_cohorts(train: Path, test: Path, centers: Sequence[str] | None = None) -> tuple[dict, tuple[int, int]]:
    """The two CSVs: each center's subjects, in order of first appearance, and the test set's numbers of HC and PD.

    ``centers`` are all of them, in that order: some may have told no subjects. Read here and not by
    travelling.images.cohort, which wants to see the images.
    """
    training_set = Table(train, ("Subject", "Study"), strip=True)
    test_set = Table(test, ("Subject", "Group_bin"), strip=True)
    test_set.convert(["Group_bin"], finite)
    subjects_of: dict[str, list] = {name: [] for name in centers or ()}
    seen: dict[str, str] = {}
    for table in (training_set, test_set):
        for row in table.rows:
            if not row["Subject"] or row["Subject"] in seen:
                reason = f"'{row['Subject']}' is in {seen[row['Subject']]}, too" if row["Subject"] else "is empty"
                raise InputError(f"{table.path}, row {row['row']}: Subject {reason}")
            seen[row["Subject"]] = f"{table.path}, row {row['row']}"
    for row in training_set.rows:
        if centers and row["Study"] not in subjects_of:
            raise InputError(f"{train}, row {row['row']}: {row['Study']} is none of the centers that run.json names")
        subjects_of.setdefault(row["Study"], []).append(row["Subject"])
    groups = [row["Group_bin"] for row in test_set.rows]
    if set(groups) != {0, 1}:
        raise InputError(f"{test}: Group_bin must be 0 (HC) and 1 (PD), and both must be there")
    return subjects_of, (groups.count(0), groups.count(1))


def read_log(path: Path, auditors: Sequence[Auditor], train: Path, subjects_of: dict) -> Table:
    """The log of a run with these extensions, with its numbers as numbers and its subjects as lists.

    ``train`` is its CSV. ``"kind"`` of a row is "step"; or "failure", of a step that its center did not make; or
    "decision", where an extension decided about an image without a step. The first row is always a "step".
    """
    log = Table(path, COLUMNS)
    for row in log.rows:
        decided = any(auditor.is_decision(row) for auditor in auditors)
        row["kind"] = "failure" if row["Phase"] in FAILURES else "decision" if decided else "step"
        row["Subjects"] = row["Subjects"].split(";") if row["Subjects"] else []
    log.rows[0]["kind"] = "step"
    log.convert(("Cycle", "Ignored", "Eliminated"), whole)
    log.convert(("FP", "FN"), whole, optional=lambda row: row["kind"] != "step")
    log.convert(("ACC", "PFP", "PFN"), finite, optional=lambda row: row["kind"] != "step")
    log.convert(LIMITS, finite, optional=always)
    for auditor in auditors:
        log.convert([name for name in auditor.columns if name not in auditor.may_be_nan], finite, optional=always)
        log.convert(auditor.may_be_nan, float, optional=always)
    known = set(itertools.chain(*subjects_of.values()))
    if len(log.rows) > 1 and known.isdisjoint(subject for row in log.rows for subject in row["Subjects"]):
        raise InputError(f"{path}: no subject is in {train}; it is another training set's log")
    return log


def read_subject_table(path: Path) -> Table:
    """The table of subjects, with its numbers as numbers."""
    table = Table(path, TABLE_COLUMNS)
    table.convert(("Times_flagged", "Revisits", "Eliminated"), whole)
    table.convert(("First_flagged_cycle", "Eliminated_cycle"), whole, optional=always)
    return table
