"""The verification log: what its rows are made of, and its file."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from travelling import label_screen
from travelling.cohort import SEPARATOR
from travelling.errors import InputError, name_file
from travelling.metrics import Evaluation
from travelling.protocol import Protocol
from travelling.rules import Rule
from travelling.screen import COMPONENTS

LOG_COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",  # as published
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
SCREEN_COLUMNS = ("Screen_score", "Screen_limit", *COMPONENTS)  # after those of the rule, where there is a screen


def log_columns(rule: Rule | type[Rule], screen: bool, labels: bool = False) -> tuple:
    """The columns of the log: the published ones, ours, and those of the options that are used.

    ``labels`` tells whether labels are screened, too.
    """
    return (*LOG_COLUMNS, *rule.columns, *(SCREEN_COLUMNS * screen), *(label_screen.COLUMNS * labels))


class VerificationLog:
    """Makes the rows of the log, one per verification, and hands them to ``write``, a dict of ``columns`` each.

    ``center_of`` maps subjects to their centers. ``reference`` is everywhere (FPR, FNR) of the last accepted
    evaluation; ``cells`` are those of the rule.
    """

    def __init__(self, write: Callable[[dict], None], columns: tuple, center_of: dict, protocol: Protocol):
        self._write = write
        self._columns = columns
        self._center_of = center_of
        self._protocol = protocol

    def baseline(self, evaluation: Evaluation, cells: dict) -> None:
        """The pre-trained model: the first reference."""
        self._row(
            {"Cycle": 0, "Subject": "n/a", "Study": "n/a", "Phase": "baseline", "Subjects": "", "Ignored": 0},
            self._measured(evaluation) | cells,
        )

    def step(
        self,
        cycle: int,
        phase: str,
        subjects: list,
        evaluation: Evaluation,
        tolerance: float,
        harmful: bool,
        cells: dict,
        reference: tuple,
    ) -> None:
        """A training step that was verified."""
        self._row(
            self._about(cycle, phase, subjects, harmful) | {"Tolerance": tolerance},
            self._measured(evaluation) | cells,
            reference,
        )

    def screened(self, cycle: int, phase: str, subject: str, cells: dict, suspect: bool, reference: tuple) -> None:
        """What the screen says of one subject, in ``cells``: no step was made, so no rate was measured."""
        self._row(self._about(cycle, phase, [subject], suspect), cells, reference)

    def failed(self, cycle: int, phase: str, center: str, subjects: list, tolerance: float, reference: tuple) -> None:
        """A step that a center did not make."""
        cells = {
            "Cycle": cycle,
            "Subject": "n/a",
            "Study": center,
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
        }
        self._row(cells | {"Ignored": 1, "Tolerance": tolerance}, {}, reference)

    def _about(self, cycle, phase, subjects, harmful):
        return {
            "Cycle": cycle,
            "Subject": phase if phase in ("batch", "group") else subjects[0],
            "Study": SEPARATOR.join(dict.fromkeys(self._center_of[subject] for subject in subjects)),
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
            "Ignored": int(harmful),
            "Eliminated": int(harmful and phase == "revisit"),
        }

    def _measured(self, evaluation):
        fpr, fnr = self._protocol.rates(evaluation)
        return {
            "ACC": evaluation.accuracy,
            "FP": evaluation.false_positives,
            "FN": evaluation.false_negatives,
            "PFP": fpr,
            "PFN": fnr,
        }

    def _row(self, about, measured, reference=(None, None)):
        references = dict(zip(("Reference_PFP", "Reference_PFN"), reference, strict=True))
        self._write(dict.fromkeys(self._columns) | {"Eliminated": 0} | references | about | measured)


class LogFile:
    """The verification log: a CSV whose rows are on disk as soon as they are written.

    ``length`` is what :attr:`length` (bytes) was when the run that goes on had last a checkpoint; later rows are cut
    off, because that work is done again.
    """

    def __init__(self, path: Path, columns: tuple = LOG_COLUMNS, length: int = 0):
        self._file = open(path, "r+" if length else "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        with name_file(path):
            self._begin(path, length)

    def _begin(self, path, length):
        if length:
            if self._file.seek(0, os.SEEK_END) < length:
                raise InputError(f"{path}: shorter than when its run stopped; --overwrite starts anew")
            self._file.seek(0)
            if self._file.readline().strip() != ",".join(self._writer.fieldnames):
                raise InputError(f"{path}: has other columns; --overwrite starts anew")
            self._file.truncate(length)
            self._file.seek(length)
        else:
            self._writer.writeheader()
        self._flush()

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def __call__(self, row: dict) -> None:
        """Append one row."""
        with name_file(self._file.name):
            self._writer.writerow(row)
            self._flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _flush(self):
        self._file.flush()
        os.fsync(self._file.fileno())
