"""Reads CSV files, and what an audit needs of them: the training and the test set, the log, the table of subjects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from travelling.errors import InputError
from travelling.method.auditor import Auditor

if TYPE_CHECKING:
    import pandas as pd

LIMITS = ("Tolerance", "Reference_PFP", "Reference_PFN")  # empty in the baseline row
COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
TABLE_COLUMNS = (
    "Subject", "Study", "Times_flagged", "First_flagged_cycle", "Revisits", "Eliminated", "Eliminated_cycle",
)  # fmt: skip
FAILURES = ("unreachable", "invalid")  # phases of a step that a center did not make: its row has no rates
LARGEST = 2**31  # of a cycle: NumPy takes seeds below 2**32


def read_table(path: Path, columns: Sequence[str], numeric: Sequence[str] = (), separator: str = ",") -> pd.DataFrame:
    """Read a CSV that must have ``columns``; those in ``numeric`` as numbers (empty: NaN), all others as text.

    Rows are numbered from 0 as they are in the file, and empty ones left out. Raises InputError that names file and row
    for anything that is wrong.
    """
    import pandas as pd  # only now, so that --help answers at once

    try:
        table = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).strip()})") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{path}, row 2: has more cells than the header")
    table = table.fillna("")
    table = table[(table != "").any(axis=1)]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path}: missing column(s) {', '.join(missing)}")
    if table.empty:
        raise InputError(f"{path}: has no rows")
    for column in table.columns.intersection(list(numeric)):
        text, table[column] = table[column], pd.to_numeric(table[column], errors="coerce")
        refuse_rows(path, table[column].isna() & ~text.str.lower().isin(["", "nan"]), f"{column} is not a number")
    return table


def refuse_rows(path: Path, bad: pd.Series, reason: str) -> None:
    """Raise InputError for the first row marked in ``bad``, a boolean Series indexed by the rows of the file."""
    if bad.any():
        first: Any = bad.idxmax()
        raise InputError(f"{path}, row {first + 2}: {reason}")


class Table(NamedTuple):
    """What an audit checks cell by cell: ``rows`` are dicts; ``"row"`` is the number in the file, the header is 1."""

    path: Path
    header: list[str]
    rows: list[dict[str, Any]]

    def convert(
        self, columns: Sequence[str], kind: Callable[[str], float], optional: Callable[[dict], bool] = lambda row: False
    ) -> None:
        """Turn cells into numbers, in those ``columns`` that there are; empty ones into None where ``optional``."""
        for row, column in itertools.product(self.rows, [name for name in self.header if name in columns]):
            text = row[column]
            try:
                row[column] = None if text == "" and optional(row) else kind(text)
            except ValueError:
                word = "a whole number of at least 0" if kind is _whole else "a number"
                raise InputError(f"{self.path}, row {row['row']}: {column} '{text}' is not {word}") from None


def _read(path, columns):
    table = read_table(path, columns)
    rows: list = table.assign(row=table.index + 2).to_dict("records")
    return Table(path, list(table.columns), rows)


def _whole(text: str) -> int:
    if not 0 <= int(text) < LARGEST:
        raise ValueError
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def _always(row: dict) -> bool:
    return True


def read_cohorts(train: Path, test: Path, centers: Sequence[str] | None = None) -> tuple[dict, tuple[int, int]]:
    """The two CSVs: each center's subjects, in order of first appearance, and the test set's numbers of HC and PD.

    ``centers`` are all of them, in that order: some may have told no subjects. Read here and not by
    travelling.images.cohort, which wants to see the images.
    """
    training_set, test_set = read_table(train, ("Subject", "Study")), read_table(test, ("Subject",), ("Group_bin",))
    seen: dict[str, str] = {}
    for path, table in ((train, training_set), (test, test_set)):
        for number, subject in zip(table.index + 2, table["Subject"].str.strip(), strict=True):
            reason = f"'{subject}' is in {seen.get(subject)}, too" if subject else "is empty"
            if subject in seen or not subject:
                raise InputError(f"{path}, row {number}: Subject {reason}")
            seen[subject] = f"{path}, row {number}"
    subjects_of: dict[str, list] = {name: [] for name in centers or ()}
    for index, subject, center in training_set[["Subject", "Study"]].itertuples():
        if centers and center.strip() not in subjects_of:
            raise InputError(f"{train}, row {index + 2}: {center} is none of the centers that run.json names")
        subjects_of.setdefault(center.strip(), []).append(subject.strip())
    groups = list(test_set.get("Group_bin", ()))
    if set(groups) != {0, 1}:
        raise InputError(f"{test}: Group_bin must be 0 (HC) and 1 (PD), and both must be there")
    return subjects_of, (groups.count(0), groups.count(1))


def read_log(path: Path, auditors: Sequence[Auditor], train: Path, subjects_of: dict) -> Table:
    """The log of a run with these extensions, with its numbers as numbers and its subjects as lists.

    ``train`` is its CSV. ``"kind"`` of a row is "step"; or "failure", of a step that its center did not make; or
    "decision", where an extension decided about an image without a step. The first row is always a "step".
    """
    log = _read(path, COLUMNS)
    for row in log.rows:
        decided = any(auditor.is_decision(row) for auditor in auditors)
        row["kind"] = "failure" if row["Phase"] in FAILURES else "decision" if decided else "step"
        row["Subjects"] = row["Subjects"].split(";") if row["Subjects"] else []
    log.rows[0]["kind"] = "step"
    log.convert(("Cycle", "Ignored", "Eliminated"), _whole)
    log.convert(("FP", "FN"), _whole, optional=lambda row: row["kind"] != "step")
    log.convert(("ACC", "PFP", "PFN"), _finite, optional=lambda row: row["kind"] != "step")
    log.convert(LIMITS, _finite, optional=_always)
    for auditor in auditors:
        log.convert([name for name in auditor.columns if name not in auditor.may_be_nan], _finite, optional=_always)
        log.convert(auditor.may_be_nan, float, optional=_always)
    known = set(itertools.chain(*subjects_of.values()))
    if len(log.rows) > 1 and known.isdisjoint(subject for row in log.rows for subject in row["Subjects"]):
        raise InputError(f"{path}: no subject is in {train}; it is another training set's log")
    return log


def read_subject_table(path: Path) -> Table:
    """The table of subjects, with its numbers as numbers."""
    table = _read(path, TABLE_COLUMNS)
    table.convert(("Times_flagged", "Revisits", "Eliminated"), _whole)
    table.convert(("First_flagged_cycle", "Eliminated_cycle"), _whole, optional=_always)
    return table
