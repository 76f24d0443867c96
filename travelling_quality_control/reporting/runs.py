"""A run of quality control as its records tell it: what was decided about every image. The truth is not asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from travelling.rules import RULES

from travelling.errors import InputError
from travelling.quality_control import FAILURES, log_columns
from travelling.verification_log import LOG_COLUMNS, SEPARATOR

SCORE = "Screen_score"  # column of a log
SCREEN = "screen"  # the phase of a row that tells of a screened image: nothing was trained
TEXT_COLUMNS = ("Subject", "Study", "Phase", "Subjects")  # of a log; all others are numbers
DECISIONS = ("eliminated", "waiting", "came_back", "kept")


@dataclass(kw_only=True)
class LoggedRun:
    """A run of quality control. ``record`` is its ``run.json``.

    ``log`` is the verification log, the baseline and one row per verification, with ``Row`` (in the file; row 1 is the
    header) and ``Images`` (their number); ``screening`` has the rows that tell of an image
    without a training step: those of the screen, and revisits of images that it still suspected; ``failures`` those of
    visits that failed. Of the first two are ``flags``, the rows that put an image aside, ``revisits``, and ``cycles``,
    those in which anything was verified or screened. ``images`` has one row per training image, indexed by Subject, its
    columns those of the training set and Times_flagged, Flagged, First_flagged, Eliminated, Eliminated_cycle and
    Decision (one of ``DECISIONS``), with the screen also its last Screen_score. ``rule`` is the class that judged its
    steps, ``words`` the run's name for readers, ``place`` parts of it for names of files.
    """

    record: dict
    log: pd.DataFrame
    screening: pd.DataFrame
    failures: pd.DataFrame
    images: pd.DataFrame
    words = ""
    place = ()

    def __post_init__(self) -> None:
        """What follows from the fields."""
        self.options = self.record["options"]
        self.rule = RULES[self.options["rule"]]
        self.screens, self.labels = self.options["screen"], self.options["label_screen"]
        rows = self.rows = pd.concat([self.log[1:], self.screening]).sort_values("Row")
        self.cycles = sorted(set(rows["Cycle"]))
        self.flags = rows[rows["Phase"].isin(["subject", SCREEN]) & (rows["Ignored"] == 1)]
        self.revisits = rows[rows["Phase"] == "revisit"]
        self.locked_up = _locked_up(rows, self.options["batch_size"])
        self._decide()

    def _decide(self):
        images = self.images.drop(columns=SCORE, errors="ignore")  # of the training set, which may be made of a log
        cycles = self.flags.groupby("Subject")["Cycle"]
        images["Times_flagged"] = cycles.size().reindex(images.index, fill_value=0)
        images["Flagged"] = images["Times_flagged"] > 0
        images["First_flagged"] = cycles.min().reindex(images.index).astype("Int64")
        eliminated = self.rows[self.rows["Eliminated"] == 1].groupby("Subject")["Cycle"].first()
        images["Eliminated_cycle"] = eliminated.reindex(images.index).astype("Int64")
        images["Eliminated"] = images["Eliminated_cycle"].notna()
        flag, revisit = (
            rows.groupby("Subject")["Row"].max().reindex(images.index) for rows in (self.flags, self.revisits)
        )
        marks = [images["Eliminated"], images["Flagged"] & ~(revisit > flag), images["Flagged"]]
        images["Decision"] = np.select(marks, DECISIONS[:-1], DECISIONS[-1])
        if self.screens:
            images[SCORE] = self.rows.dropna(subset=SCORE).groupby("Subject")[SCORE].last()
        self.images = images

    def decided_by(self, subject: str) -> tuple[pd.Series, pd.Series | None]:
        """The rows that decided about a flagged image: its last flag, and the revisit after it, if one followed."""
        flag = self.flags[self.flags["Subject"] == subject].iloc[-1]
        later = self.revisits[(self.revisits["Subject"] == subject) & (self.revisits["Row"] > flag["Row"])]
        return flag, later.iloc[0] if len(later) else None


def _locked_up(rows, batch_size):
    """In words, the cycles in which most batches were undone, or most screened images suspected."""
    words = {"batch": "batches of cycle {} were undone", SCREEN: "images screened in cycle {} were suspected"}
    # A group that was kept stands for its batches; one that was undone was looked through.
    in_groups = (rows["Phase"] == "group") & (rows["Ignored"] == 0)
    number = np.where(in_groups, np.ceil(rows["Images"] / batch_size), 1)
    counts = rows.assign(size=number, sum=rows["Ignored"], Phase=rows["Phase"].mask(in_groups, "batch"))
    counts = counts[counts["Phase"].isin(words)].groupby(["Cycle", "Phase"])[["sum", "size"]].sum().astype(int)
    most = counts[2 * counts["sum"] > counts["size"]]
    return [f"{number} of {of} {words[phase].format(cycle)}" for (cycle, phase), number, of in most.itertuples()]


def read_table(path: Path, columns: Sequence[str], numeric: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV that must have ``columns``; those in ``numeric`` as numbers (empty: NaN), all others as text.

    Rows are numbered from 0 as they are in the file, and empty ones left out. Raises InputError that names file and row
    for anything that is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).strip()})") from None
    table = table.fillna("")
    table = table[(table != "").any(axis=1)]
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path}: missing column(s) {', '.join(missing)}")
    if table.empty:
        raise InputError(f"{path}: no rows")
    for column in table.columns.intersection(list(numeric)):
        text, table[column] = table[column], pd.to_numeric(table[column], errors="coerce")
        refuse_rows(path, table[column].isna() & ~text.str.lower().isin(["", "nan"]), f"{column} is not a number")
    return table


def refuse_rows(path: Path, bad: pd.Series, reason: str) -> None:
    """Raise InputError for the first row marked in ``bad``, a boolean Series indexed by the rows of the file."""
    if bad.any():
        first: Any = bad.idxmax()
        raise InputError(f"{path}, row {first + 2}: {reason}")


def read_images(path: Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """The training images, indexed by Subject, from a CSV that has Subject, Study and ``columns``.

    Group_bin and Age (years) are numbers, NaN where not known; Path is absolute and not checked.
    """
    images = read_table(path, ("Subject", "Study", *columns), ("Group_bin", "Age"))
    for column in images.columns[~images.columns.isin(("Group_bin", "Age"))]:
        images[column] = images[column].str.strip()
    refuse_rows(path, images["Subject"].duplicated(), "Subject appears before, too")
    if "Age" not in images.columns:
        images["Age"] = np.nan
    if "Path" in images.columns:
        images["Path"] = [str((path.parent / name).resolve()) for name in images["Path"]]
    return images.set_index("Subject")


def read_log(path: Path, options: dict) -> dict:
    """The parts of a log of a run with these options: ``log``, ``screening`` and ``failures`` of a LoggedRun."""
    columns = log_columns(RULES[options["rule"]], options["screen"], options["label_screen"])
    log = read_table(path, LOG_COLUMNS, [column for column in columns if column not in TEXT_COLUMNS])
    for column in columns:
        log[column] = log.get(column, np.nan)  # of a log that the audit refuses
    for column in ("Cycle", "Ignored", "Eliminated"):
        refuse_rows(path, log[column] % 1 != 0, f"{column} is not a whole number")
    log["Images"] = log["Subjects"].str.count(SEPARATOR) + 1
    log["Row"] = log.index + 2
    log = log.astype({"Cycle": int, "Ignored": int, "Eliminated": int})
    failed, trained = log["Phase"].isin(FAILURES), log["PFP"].notna()
    parts = {"log": trained & ~failed, "screening": ~trained & ~failed, "failures": failed}
    return {name: log[rows].reset_index(drop=True) for name, rows in parts.items()}
