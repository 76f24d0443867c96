"""Decentralized quality control: verification, revisit and elimination (Souza et al. 2025).

No label of harmfulness is known: a training step is harmful if it raises the rates of misdiagnosis (FPR or FNR) on
the home's test set by more than a tolerance (:mod:`travelling.rules` has that rule, and another;
:mod:`travelling.screen` what looks at images before they train). The trainer (see :mod:`travelling.trainer`) decides
where training happens, in this process or at a hospital; the decisions are all made here.
"""

import csv
import os
from dataclasses import asdict, dataclass

import pandas as pd

from travelling.cohort import SEPARATOR, batches, place, place_before, travelling_order
from travelling.errors import InputError, VisitFailed, name_file
from travelling.metrics import Evaluation
from travelling.rules import PublishedRule

LOG_COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",  # as published
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
SCREEN_COLUMNS = ("Screen_score", "Screen_limit")  # after those of the rule, where there is a screen
_STATE = ("flags", "revisits", "waiting", "eliminated", "absent", "counts")
FAILURES = ("unreachable", "invalid")  # phases of a step to which a center gave no usable answer


@dataclass(frozen=True)
class Verification:
    """One training step and what it did to the test set."""

    phase: str  # batch, subject, revisit or screen; one of FAILURES where nothing could be verified
    subjects: list
    loss: float | None
    rates: tuple | None  # (FPR, FNR) after the step; None where none was made
    harmful: bool  # then the step was undone, or not made

    @property
    def failed(self):
        """Whether the center gave no usable answer."""
        return self.phase in FAILURES


class QualityControl:
    """The state of quality control, and its moves: :meth:`start`, :meth:`visit`, :meth:`revisit`.

    ``centers`` maps each center to its subjects. ``error`` is the tolerated rise of FPR or FNR per image of
    a training step, ``wait`` the number of cycles that a flagged subject waits for its revisit. ``log`` is
    called with one row, a dict of ``columns``, per verification.

    ``rule`` is one of :mod:`travelling.rules`. With a ``screen`` (:class:`travelling.screen.Screen`), every image is
    looked at before it trains, in each visit and at its revisit: a suspect is flagged like one that harms alone, and a
    flagged image, whoever flagged it, is eliminated if it is a suspect at its revisit. Both without a training step,
    and therefore without rates in the log.

    Where ``trainer.train`` raises VisitFailed, the step is undone and logged, not those of the visit that were accepted
    before, and the center is left alone for the rest of the cycle. Its subjects were not tried: none is flagged for it,
    and a revisit is made up for in the next cycle.
    """

    def __init__(self, trainer, centers, protocol, error, wait, log, rule=None, screen=None):
        self.trainer = trainer
        self.protocol = protocol
        self.error = error
        self.wait = wait
        self.log = log
        self.rule = rule or PublishedRule()
        self.screen = screen
        self.columns = log_columns(self.rule, screen)
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        self.accepted = None  # the last accepted evaluation
        self.flags = {subject: [] for subject in self.center_of}  # the cycles in which it was flagged
        self.revisits = dict.fromkeys(self.center_of, 0)
        self.waiting = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated = {}  # subject -> cycle of its elimination
        self.absent = []  # centers that failed in this cycle
        self.counts = []  # of batches and screened images, a dict for every cycle

    @property
    def reference(self):
        """(FPR, FNR) of the last accepted evaluation."""
        return self.protocol.rates(self.accepted)

    def start(self, baseline):
        """Take the pre-trained model's evaluation as the first reference and the first row of the log."""
        self.accepted = baseline
        self._log_row(0, "baseline", [], baseline, cells=self.rule.describe(baseline))

    def visit(self, cycle, subjects, batch_size, generator):
        """A center's regular visit: verify its batches and, where a batch harms, its subjects one by one.

        Subjects that are eliminated or wait for their revisit stay out. Yields every verification.
        """
        out = self.waiting | self.eliminated
        training = [subject for subject in subjects if subject not in out]
        if self.screen and training:
            for screened in self._screen(cycle, training):
                yield screened
                if screened.failed:
                    return
            training = [subject for subject in training if subject not in self.waiting]
        for batch in batches(training, batch_size, generator, self.protocol.trains_short_batch):
            verification = self._verify(cycle, "batch", batch)
            yield verification
            if verification.failed:
                return
            self._count(cycle, "verified", "undone", verification.harmful)
            if verification.harmful:
                for subject in batch:
                    alone = self._verify(cycle, "subject", [subject])
                    if alone.harmful:
                        self._flag(cycle, subject)
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
            verification = self._revisit(cycle, subject)
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
            if self.screen and self.screen.cycle != cycle:
                self.screen.calibrate(cycle)
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
            self.trainer.learning_rate = learning_rate(cycle + 1)  # before the model is saved, as published
            hand_on(cycle)
            checkpoint(place_before(cycle + 1, centers))

    def export_state(self):
        """All that decides how quality control goes on, as plain values: for a checkpoint."""
        state = {name: getattr(self, name) for name in _STATE} | {"accepted": asdict(self.accepted)}
        return state | {"screen": self.screen.export_state() if self.screen else None}

    def import_state(self, state):
        """Take over what :meth:`export_state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.accepted = Evaluation(**state["accepted"])
        if self.screen:
            self.screen.import_state(state["screen"])
        for subject in self.center_of:  # of a center that has told its subjects since
            self.flags.setdefault(subject, [])
            self.revisits.setdefault(subject, 0)

    def training(self):
        """The subjects that neither wait for their revisit nor are eliminated, a list."""
        return [subject for subject in self.center_of if subject not in self.waiting | self.eliminated]

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

    def locked_up(self, cycle):
        """In words, why most batches of this cycle were undone, or most images suspected; None where they were not."""
        counts = self.counts[-1] if self.counts and self.counts[-1]["cycle"] == cycle else {}
        if 2 * counts.get("undone", 0) > counts.get("verified", 0):
            return (
                f"lock-up: {counts['undone']} of {counts['verified']} batches of cycle {cycle} were undone. "
                f"Unless most images are harmful, {self.rule.locked_up(self.accepted, self.protocol)}"
            )
        if 2 * counts.get("suspected", 0) > counts.get("screened", 0):
            return (
                f"lock-up: {counts['suspected']} of {counts['screened']} images that were screened in cycle {cycle} "
                "are suspects. Unless most images are harmful, those of the test set are not like those of the centers "
                "(another preparation or scale of intensities?), or the model has moved far since the cycle began"
            )
        return None

    def _count(self, cycle, what, hit, happened):
        """Count a batch or an image of a cycle, and whether it was undone or suspected."""
        if not self.counts or self.counts[-1]["cycle"] != cycle:
            self.counts.append({"cycle": cycle, "verified": 0, "undone": 0, "screened": 0, "suspected": 0})
        self.counts[-1][what] += 1
        self.counts[-1][hit] += bool(happened)

    def _flag(self, cycle, subject):
        """Put a subject aside until its revisit."""
        self.flags[subject].append(cycle)
        self.waiting[subject] = cycle

    def _screen(self, cycle, subjects):
        """Score a center's subjects, and flag the suspects; yields a Verification for each subject."""
        try:
            scores = self.screen.scores(subjects)
        except VisitFailed as failure:
            yield self._fail(cycle, failure.phase, self.center_of[subjects[0]], subjects)
            return
        for subject, score in zip(subjects, scores, strict=True):
            suspect = self.screen.suspects(score)
            self._count(cycle, "screened", "suspected", suspect)
            if suspect:
                self._flag(cycle, subject)
            self._log_screened(cycle, "screen", subject, score, suspect)
            yield Verification("screen", [subject], None, None, suspect)

    def _revisit(self, cycle, subject):
        """Screen, then verify a subject alone; returns the Verification that decides."""
        if not self.screen:
            return self._verify(cycle, "revisit", [subject])
        try:
            (score,) = self.screen.scores([subject])
        except VisitFailed as failure:
            return self._fail(cycle, failure.phase, self.center_of[subject], [subject])
        if not self.screen.suspects(score):
            return self._verify(cycle, "revisit", [subject], score)
        self._log_screened(cycle, "revisit", subject, score, suspect=True)
        return Verification("revisit", [subject], None, None, harmful=True)

    def _verify(self, cycle, phase, subjects, score=None):
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
        harmful, cells = self.rule.judge(self.accepted, evaluation, tolerance, self.protocol)
        if harmful:
            self.trainer.restore(kept)
        if score is not None:
            cells |= dict(zip(SCREEN_COLUMNS, (score, self.screen.limit), strict=True))
        self._log_row(cycle, phase, subjects, evaluation, tolerance, harmful, cells)
        if not harmful:
            self.accepted = evaluation
        return Verification(phase, subjects, loss, rates, harmful)

    def _fail(self, cycle, phase, center, subjects):
        """Log a step that a center did not make."""
        self.absent.append(center)
        tolerance = len(subjects) * self.error
        self._log_unmeasured(
            {"Cycle": cycle, "Subject": "n/a", "Study": center, "Ignored": 1, "Phase": phase, "Eliminated": 0}
            | {"Subjects": SEPARATOR.join(subjects), "Tolerance": tolerance}
        )
        return Verification(phase, subjects, None, None, harmful=False)

    def _log_screened(self, cycle, phase, subject, score, suspect):
        """Log what the screen says of one subject: no step was made, so no rate was measured."""
        self._log_unmeasured(
            {"Cycle": cycle, "Subject": subject, "Study": self.center_of[subject], "Ignored": int(suspect)}
            | {"Phase": phase, "Subjects": subject, "Eliminated": int(suspect and phase == "revisit")}
            | dict(zip(SCREEN_COLUMNS, (score, self.screen.limit), strict=True))
        )

    def _log_unmeasured(self, cells):
        """Log a row without rates."""
        reference = dict(zip(("Reference_PFP", "Reference_PFN"), self.reference, strict=True))
        self.log(dict.fromkeys(self.columns) | reference | cells)

    def _log_row(self, cycle, phase, subjects, evaluation, tolerance=None, harmful=False, cells=()):
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
        self.log(dict.fromkeys(self.columns) | row | dict(cells))


def log_columns(rule, screen):
    """The columns of the log: the published ones, ours, and those of the options that are used."""
    return (*LOG_COLUMNS, *rule.columns, *(SCREEN_COLUMNS if screen else ()))


class LogFile:
    """The verification log: a CSV whose rows are on disk as soon as they are written.

    ``length`` is what :attr:`length` (bytes) was when the run that goes on had last a checkpoint; later rows are cut
    off, because that work is done again.
    """

    def __init__(self, path, columns=LOG_COLUMNS, length=0):
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
                raise InputError(f"{path}: has other columns (of another version?); --overwrite starts anew")
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
