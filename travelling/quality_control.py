"""Decentralized quality control: verification, revisit and elimination (Souza et al. 2025).

No image and no label of harmfulness is looked at: a training step is harmful if it raises the rates of
misdiagnosis (FPR or FNR) on the home's test set by more than a tolerance. The trainer (see
:mod:`travelling.trainer`) decides where training happens, in this process or at a hospital; the decisions are all
made here.
"""

import csv
import os
from dataclasses import dataclass

import pandas as pd

from travelling.cohort import SEPARATOR, batches, place, place_before, travelling_order
from travelling.errors import InputError, VisitFailed, name_file

LOG_COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",  # as published
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
_STATE = ("reference", "flags", "revisits", "waiting", "eliminated", "absent")
FAILURES = ("unreachable", "invalid")  # phases of a step to which a center gave no usable answer
ROUNDING = 1e-9  # rates are ratios of counts: a smaller difference is floating-point noise, not a misdiagnosis


@dataclass(frozen=True)
class Verification:
    """One training step and what it did to the test set."""

    phase: str  # batch, subject or revisit; one of FAILURES where nothing could be verified
    subjects: list
    loss: float | None
    rates: tuple | None  # (FPR, FNR) after the step
    harmful: bool  # then the step was undone

    @property
    def failed(self):
        """Whether the center gave no usable answer."""
        return self.phase in FAILURES


class QualityControl:
    """The state of quality control, and its moves: :meth:`start`, :meth:`visit`, :meth:`revisit`.

    ``centers`` maps each center to its subjects. ``error`` is the tolerated rise of FPR or FNR per image of
    a training step, ``wait`` the number of cycles that a flagged subject waits for its revisit. ``log`` is
    called with one row, a dict of LOG_COLUMNS, per verification.

    Where ``trainer.train`` raises VisitFailed, the step is undone and logged, not those of the visit that were accepted
    before, and the center is left alone for the rest of the cycle. Its subjects were not tried: none is flagged for it,
    and a revisit is made up for in the next cycle.
    """

    def __init__(self, trainer, centers, protocol, error, wait, log):
        self.trainer = trainer
        self.protocol = protocol
        self.error = error
        self.wait = wait
        self.log = log
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        self.reference = None  # (FPR, FNR) of the last accepted evaluation
        self.flags = {subject: [] for subject in self.center_of}  # the cycles in which it was flagged
        self.revisits = dict.fromkeys(self.center_of, 0)
        self.waiting = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated = {}  # subject -> cycle of its elimination
        self.absent = []  # centers that failed in this cycle

    def start(self, baseline):
        """Take the pre-trained model's evaluation as the first reference and the first row of the log."""
        self.reference = self.protocol.rates(baseline)
        self._log_row(0, "baseline", [], baseline)

    def visit(self, cycle, subjects, batch_size, generator):
        """A center's regular visit: verify its batches and, where a batch harms, its subjects one by one.

        Subjects that are eliminated or wait for their revisit stay out. Yields every verification.
        """
        training = [subject for subject in subjects if subject not in self.waiting | self.eliminated]
        for batch in batches(training, batch_size, generator, self.protocol.trains_short_batch):
            verification = self._verify(cycle, "batch", batch)
            yield verification
            if verification.failed:
                return
            if verification.harmful:
                for subject in batch:
                    alone = self._verify(cycle, "subject", [subject])
                    if alone.harmful:
                        self.flags[subject].append(cycle)
                        self.waiting[subject] = cycle
                    yield alone
                    if alone.failed:
                        return

    def revisit(self, cycle):
        """After a cycle's centers: verify alone every subject that was flagged ``wait`` or more cycles ago.

        It is more where its center failed in the cycle when it was due. One that harms again is eliminated; any other
        keeps its update and trains again from the next cycle on. In the order of the flags. Yields every verification.
        """
        for subject in [subject for subject, flagged in self.waiting.items() if flagged + self.wait <= cycle]:
            if self.center_of[subject] in self.absent:
                continue
            verification = self._verify(cycle, "revisit", [subject])
            if not verification.failed:
                self.revisits[subject] += 1
                del self.waiting[subject]
            if verification.harmful:
                self.eliminated[subject] = cycle
            yield verification
        self.absent = []

    def travel(
        self,
        centers,
        cycles,
        seed,
        batch_size,
        learning_rate,
        hand_on,
        reached=None,
        checkpoint=lambda reached: None,
    ):
        """Quality control over all cycles; yields (cycle, center, verification), center "revisits" at a cycle's end.

        ``centers`` maps each center to its subjects, none where it has not told them yet; ``learning_rate(cycle)``
        gives Adam's; ``hand_on(cycle)`` is called after every cycle. After every center, revisit and cycle
        ``checkpoint`` is called with a dict of plain values, from which, as ``reached``, the travelling goes on.
        """
        for cycle, order, generator in travelling_order(centers, seed, cycles, reached):
            self.trainer.learning_rate = learning_rate(cycle)
            for left, center in zip(reversed(range(len(order))), order, strict=True):
                self.trainer.expect(centers[order[-left]] if left else [])
                if not centers[center]:
                    yield cycle, center, self._fail(cycle, "unreachable", center, [])
                for verification in self.visit(cycle, centers[center], batch_size, generator):
                    yield cycle, center, verification
                checkpoint(place(cycle, left, generator))
            for verification in self.revisit(cycle):
                yield cycle, "revisits", verification
                checkpoint(place(cycle, 0, generator))
            hand_on(cycle)
            checkpoint(place_before(cycle + 1, centers))

    def export_state(self):
        """All that decides how quality control goes on, as plain values: for a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def import_state(self, state):
        """Take over what :meth:`export_state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        for subject in self.center_of:  # of a center that has told its subjects since
            self.flags.setdefault(subject, [])
            self.revisits.setdefault(subject, 0)

    def subject_table(self):
        """One row per training subject: what happened to it so far."""
        return pd.DataFrame(
            {
                "Subject": subject,
                "Study": center,
                "Times_flagged": len(self.flags[subject]),
                "First_flagged_cycle": min(self.flags[subject], default=None),
                "Revisits": self.revisits[subject],
                "Eliminated": int(subject in self.eliminated),
                "Eliminated_cycle": self.eliminated.get(subject),
            }
            for subject, center in self.center_of.items()
        ).astype({"First_flagged_cycle": "Int64", "Eliminated_cycle": "Int64"})

    def summary(self):
        """The state in words, for the plain log."""
        fpr, fnr = self.reference
        return (
            f"FPR {fpr:.3f}, FNR {fnr:.3f}; {len(self.waiting)} subjects wait for their revisit, "
            f"{len(self.eliminated)} eliminated"
        )

    def _verify(self, cycle, phase, subjects):
        """One training step, kept unless it harms."""
        kept = self.trainer.keep()
        try:
            loss = self.trainer.train(subjects)
        except VisitFailed as failure:
            self.trainer.restore(kept)
            return self._fail(cycle, failure.phase, self.center_of[subjects[0]], subjects)
        evaluation = self.trainer.evaluate()
        rates = self.protocol.rates(evaluation)
        tolerance = len(subjects) * self.error
        harmful = any(
            rate > reference + tolerance + ROUNDING for rate, reference in zip(rates, self.reference, strict=True)
        )
        if harmful:
            self.trainer.restore(kept)
        self._log_row(cycle, phase, subjects, evaluation, tolerance, harmful)
        if not harmful:
            self.reference = rates
        return Verification(phase, subjects, loss, rates, harmful)

    def _fail(self, cycle, phase, center, subjects):
        """Log a step that a center did not make."""
        self.absent.append(center)
        row = dict.fromkeys(LOG_COLUMNS)  # empty: nothing was measured
        self.log(
            row
            | {"Cycle": cycle, "Subject": "n/a", "Study": center, "Ignored": 1, "Phase": phase, "Eliminated": 0}
            | {"Subjects": SEPARATOR.join(subjects), "Tolerance": len(subjects) * self.error}
            | dict(zip(("Reference_PFP", "Reference_PFN"), self.reference, strict=True))
        )
        return Verification(phase, subjects, None, None, harmful=False)

    def _log_row(self, cycle, phase, subjects, evaluation, tolerance=None, harmful=False):
        fpr, fnr = self.protocol.rates(evaluation)
        reference = (None, None) if phase == "baseline" else self.reference
        row = {
            "Cycle": cycle,
            "Subject": {"baseline": "n/a", "batch": "batch"}.get(phase) or subjects[0],
            "Study": self.center_of[subjects[0]] if subjects else "n/a",
            "ACC": evaluation.accuracy,
            "FP": evaluation.false_positives,
            "FN": evaluation.false_negatives,
            "PFP": fpr,
            "PFN": fnr,
            "Ignored": int(harmful),
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
            "Tolerance": tolerance,
            "Reference_PFP": reference[0],
            "Reference_PFN": reference[1],
            "Eliminated": int(harmful and phase == "revisit"),
        }
        self.log(row)


def blind_directions(baseline, protocol, tolerance):
    """In words, the rates of the pre-trained model that are so high that no step could exceed the tolerance."""
    return [
        f"{name} {rate:.3f} + tolerance {tolerance:.3f} >= {most:.3f}"
        for name, rate, most in zip(
            ("FPR", "FNR"), protocol.rates(baseline), protocol.largest_rates(baseline), strict=True
        )
        if rate + tolerance >= most - ROUNDING
    ]


class LogFile:
    """The verification log: a CSV whose rows are on disk as soon as they are written.

    ``length`` is what :attr:`length` (bytes) was when the run that goes on had last a checkpoint; later rows are cut
    off, because that work is done again.
    """

    def __init__(self, path, length=0):
        self._file = open(path, "r+" if length else "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, LOG_COLUMNS, lineterminator="\n")
        with name_file(path):
            self._begin(path, length)

    def _begin(self, path, length):
        if length:
            if self._file.seek(0, os.SEEK_END) < length:
                raise InputError(f"{path}: shorter than when its run stopped; --overwrite starts anew")
            self._file.truncate(length)
            self._file.seek(length)
        else:
            self._writer.writeheader()
        self._flush()

    @property
    def length(self):
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def __call__(self, row):
        """Append one row."""
        with name_file(self._file.name):
            self._writer.writerow(row)
            self._flush()

    def close(self):
        """Close the file."""
        self._file.close()

    def _flush(self):
        self._file.flush()
        os.fsync(self._file.fileno())
