"""A run of quality control as its records tell it: what was decided about every image. The truth is not asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.method import rule
from travelling.method.extension import Extension, Finding
from travelling.method.quality_control import FAILURES, log_columns, methods
from travelling.method.settings import Control
from travelling.method.verification_log import LOG_COLUMNS, SEPARATOR
from travelling.words import some
from travelling_quality_control.auditing import Outcome
from travelling_quality_control.auditing.tables import read_table, refuse_rows
from travelling_quality_control.judging.checks import RATES, UNSEEN
from travelling_quality_control.judging.verdict import Verdict, judge

TEXT_COLUMNS = ("Subject", "Study", "Phase", "Subjects")  # of a log; all others are numbers
DECISIONS = {  # what was decided about an image at the end, in words
    "eliminated": "eliminated", "waiting": "waits for its revisit", "came_back": "came back", "kept": "kept",
}  # fmt: skip


@dataclass(kw_only=True)
class LoggedRun:
    """A run of quality control. ``record`` is its ``run.json``, ``outcome`` what its audit found (None: not audited).

    ``settings`` are its options, and ``extensions`` those that were used.

    ``table`` is the whole log (:func:`read_log`). Of it ``log`` has the baseline and one row per verification;
    ``screening`` the rows that tell what an extension decided about an image without a training step; ``failures``
    those of visits that failed. Of the first two are ``flags``, the rows that put an image aside, ``revisits``, and
    ``cycles``, those in which anything was decided. ``images`` has one row per training image, indexed by Subject, its
    columns those of the training set and Times_flagged, Flagged, First_flagged, Eliminated, Eliminated_cycle and
    Decision (one of ``DECISIONS``), and the last values of what extensions measured.
    ``words`` is the run's name for readers, ``place`` parts of it for names of
    files.
    """

    record: dict
    settings: Control
    extensions: Sequence[Extension]
    table: pd.DataFrame
    images: pd.DataFrame
    outcome: Outcome | None = None
    words = ""
    place = ()

    def __post_init__(self) -> None:
        """What follows from the fields."""
        self.options = self.record["options"]
        self.replaces_rule = any(extension.replaces_rule for extension in self.extensions)
        # Of rows about one image: what was done with it.
        self.phases = {"subject": "tried alone"}
        for extension in self.extensions:
            self.phases |= extension.phases
        self.image_columns = {name: one.image_columns[name] for one in self.extensions for name in one.image_columns}
        failed, trained = self.table["Phase"].isin(FAILURES), self.table["PFP"].notna()
        self.log, self.screening, self.failures = (
            self.table[rows].reset_index(drop=True) for rows in (trained & ~failed, ~trained & ~failed, failed)
        )
        rows = self.rows = pd.concat([self.log[1:], self.screening]).sort_values("Row")
        self.cycles = sorted(set(rows["Cycle"]))
        self.flags = rows[rows["Phase"].isin(self.phases) & (rows["Ignored"] == 1)]
        self.revisits = rows[rows["Phase"] == "revisit"]
        self._decide()

    def _decide(self):
        # The training set may be made of a log.
        images = self.images.drop(columns=list(self.image_columns.values()), errors="ignore")
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
        *aside, kept = DECISIONS
        images["Decision"] = np.select(marks, aside, kept)
        for column in self.image_columns.values():
            images[column] = self.rows.dropna(subset=column).groupby("Subject")[column].last()
        self.images = images

    def methods(self) -> str:
        """What was done, for a paper: sentences by all that ran, as its options say."""
        return methods(self.settings, self.extensions)

    def legend(self) -> str:
        """What readers of the rows about an image must know."""
        told = [] if self.replaces_rule else [rule.LEGEND]
        return " ".join(filter(None, [*told, *(extension.legend() for extension in self.extensions)]))

    def decided_by(self, subject: str) -> tuple[pd.Series, pd.Series | None]:
        """The rows that decided about a flagged image: its last flag, and the revisit after it, if one followed."""
        flag = self.flags[self.flags["Subject"] == subject].iloc[-1]
        later = self.revisits[(self.revisits["Subject"] == subject) & (self.revisits["Row"] > flag["Row"])]
        return flag, later.iloc[0] if len(later) else None

    def findings(self, subject: str) -> list[Finding]:
        """Why an image was flagged at last, by the rule and each extension that said so."""
        flag, _ = self.decided_by(subject)
        found = [extension.finding(flag) for extension in self.extensions]
        if not self.replaces_rule and pd.notna(flag["PFP"]):
            found.append(rule.finding(flag))
        return [one for one in found if one]

    def not_examined(self, why: Mapping[str, str]) -> list[str]:
        """What of images and labels nobody has examined, in words; ``why`` tells it by the option that is off."""
        told = []
        for option, what in UNSEEN.items():
            if not self.options.get(option):
                off = f"--{option.replace('_', '-')} is off"
                told.append(f"{what}: {why.get(option, off)}")
        return told + [words for extension in self.extensions for words in extension.not_examined(self.table)]

    @property
    def violations(self) -> list[str]:
        """What the audit found."""
        return self.outcome.violations if self.outcome else []

    @property
    def accepted(self) -> pd.DataFrame:
        """The baseline and the steps that were kept."""
        return self.log[self.log["Ignored"] == 0]

    @cached_property
    def size(self) -> dict[str, int]:
        """By FP and FN, the number of test subjects of which it is a count: HC and PD."""
        found = {}
        for count in RATES:
            some_are = self.log[self.log[count] > 0]
            found[count] = round((some_are[count] / some_are[f"P{count}"]).median()) if len(some_are) else 0
        if self.options["protocol"] == "published":  # the counts are divided by the other class
            found = {"FP": found["FN"], "FN": found["FP"]}
        # A class in which nobody was ever misdiagnosed: what the accuracy of another row leaves.
        wrong = self.log[self.log["ACC"] < 1]
        if len(wrong) and 0 in found.values():
            row = wrong.iloc[0]
            everybody = round((row["FP"] + row["FN"]) / (1 - row["ACC"]))
            found = {count: size or everybody - sum(found.values()) for count, size in found.items()}
        return found

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict on the run."""
        return judge(self, some(len(self.violations), "violation") if self.violations else "")


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


def read_log(path: Path, extensions: Sequence[Extension]) -> pd.DataFrame:
    """The log of a run with these extensions, and ``Row`` (in the file; row 1 is the header) and ``Images`` (how many).

    Raises InputError for what is no such log.
    """
    columns = log_columns(extensions)
    log = read_table(path, LOG_COLUMNS, [column for column in columns if column not in TEXT_COLUMNS])
    for column in columns:
        log[column] = log.get(column, np.nan)  # of a log that the audit refuses
    for column in ("Cycle", "Ignored", "Eliminated"):
        refuse_rows(path, log[column] % 1 != 0, f"{column} is not a whole number")
    log["Images"] = log["Subjects"].str.count(SEPARATOR) + 1
    log["Row"] = log.index + 2
    return log.astype({"Cycle": int, "Ignored": int, "Eliminated": int})
