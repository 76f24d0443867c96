"""Decentralized quality control: verification, revisit and elimination (Souza et al. 2025).

No label of harmfulness is known: a training step is harmful if it raises the rates of misdiagnosis (FPR or FNR) on
the home's test set by more than a tolerance (:mod:`travelling.rules` has that rule, and another;
:mod:`travelling.screen` what looks at images before they train). The trainer (see :mod:`travelling.trainer`) decides
where training happens, in this process or at a hospital; the decisions are all made here.
"""

from dataclasses import asdict, dataclass

import pandas as pd

from travelling.cohort import batches, position, start_of_cycle, travelling_order
from travelling.errors import VisitFailed
from travelling.metrics import Evaluation
from travelling.rules import PublishedRule
from travelling.verification_log import VerificationLog, log_columns, screen_cells

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
        self.rule = rule or PublishedRule()
        self.screen = screen
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        self.log = VerificationLog(log, log_columns(self.rule, screen), self.center_of, protocol)
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
        self.log.baseline(baseline, self.rule.describe(baseline))

    def visit(self, cycle, subjects, batch_size, generator):
        """A center's regular visit: verify its batches and, where a batch harms, its subjects one by one.

        Subjects that are eliminated or wait for their revisit stay out. Yields every verification.
        """
        training = self.training(subjects)
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
        after_cycle,
        resumed_at=None,
        checkpoint=lambda resumed_at: None,
    ):
        """Quality control over all cycles; yields (cycle, center, verification), center "revisits" at a cycle's end.

        ``centers`` maps each center to its subjects, none where it has not told them yet; ``learning_rate(cycle)``
        gives Adam's; ``after_cycle(cycle)`` is called after every cycle. After every center, revisit and cycle
        ``checkpoint`` is called with a dict of plain values, from which, as ``resumed_at``, the travelling goes on.
        """
        for cycle, order, generator in travelling_order(centers, seed, cycles, resumed_at):
            self.trainer.learning_rate = learning_rate(cycle)
            if self.screen and self.screen.cycle != cycle:
                self.screen.calibrate(cycle)
            for left, center in zip(reversed(range(len(order))), order, strict=True):
                self.trainer.expect(centers[order[-left]] if left else [])
                if not centers[center]:
                    yield cycle, center, self._fail(cycle, "unreachable", center, [])
                for verification in self.visit(cycle, centers[center], batch_size, generator):
                    yield cycle, center, verification
                checkpoint(position(cycle, left, generator))
            for verification in self.revisit(cycle):
                yield cycle, "revisits", verification
                checkpoint(position(cycle, 0, generator))
            self.trainer.learning_rate = learning_rate(cycle + 1)  # before the model is saved, as published
            after_cycle(cycle)
            checkpoint(start_of_cycle(cycle + 1, centers))

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

    def training(self, subjects):
        """Those of the subjects that neither wait for their revisit nor are eliminated, a list."""
        out = self.waiting | self.eliminated
        return [subject for subject in subjects if subject not in out]

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
            self.log.screened(cycle, "screen", subject, score, self.screen.limit, suspect, self.reference)
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
        self.log.screened(cycle, "revisit", subject, score, self.screen.limit, True, self.reference)
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
            cells |= screen_cells(score, self.screen.limit)
        self.log.step(cycle, phase, subjects, evaluation, tolerance, harmful, cells, self.reference)
        if not harmful:
            self.accepted = evaluation
        return Verification(phase, subjects, loss, rates, harmful)

    def _fail(self, cycle, phase, center, subjects):
        """Note a step that a center did not make."""
        self.absent.append(center)
        self.log.failed(cycle, phase, center, subjects, len(subjects) * self.error, self.reference)
        return Verification(phase, subjects, None, None, harmful=False)
