"""What decentralized quality control remembers: who was flagged, who waits, who is eliminated, what was accepted last.

The method itself is on one screen in ``travelling_quality_control/enc_PD_quality_control.py``; this has its memory, its
log, and the look of the screen. No label of harmfulness is known. The trainer (see :mod:`travelling.trainer`) decides
where training happens, in this process or at a hospital.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from travelling.errors import VisitFailed
from travelling.metrics import Evaluation
from travelling.protocol import PROTOCOLS
from travelling.rules import RULES
from travelling.screen import Screen, is_sure, is_suspect
from travelling.trainer import Trainer
from travelling.verification_log import VerificationLog, log_columns

_STATE = (
    "flags", "revisits", "waiting", "eliminated", "absent", "counts", "queue", "group_size", "suspects", "looks",
)  # fmt: skip
FAILURES = ("unreachable", "invalid")  # phases of a step to which a center gave no usable answer


@dataclass(frozen=True)
class Step:
    """What was done with some subjects, and what it did to the test set: for a progress bar."""

    cycle: int
    phase: str  # batch, group, subject, revisit or screen; one of FAILURES where nothing could be verified
    center: str  # of a group: of its last batch
    subjects: list
    loss: float | None = None
    rates: tuple | None = None  # (FPR, FNR) after the step; None where none was made
    harmful: bool = False  # then the step was undone, or not made


class QualityControl:
    """The state of quality control over ``centers``, which maps each of them to its subjects, none where it has not
    told them yet.

    ``settings`` has the options of the method by their names (:class:`travelling.options.QualityControl`).
    ``write_row`` is called with one row of the log, a dict, per verification, and ``on_step`` with a :class:`Step`.

    With ``settings.screen`` every image that is to train in a cycle, or to be revisited, is looked at before the first
    step of the cycle. A suspect is flagged like one that harms alone, and a flagged image, whoever flagged it, is
    eliminated if the looks of its flag and of its revisit are sure (:func:`travelling.screen.is_sure`). Both without a
    training step, and therefore without rates in the log.

    A step that a center does not make (VisitFailed) is undone and logged, and the center is left alone for the rest of
    the cycle. What was accepted before stays; nobody is flagged for it, and a revisit is made up for in the next cycle.
    """

    def __init__(
        self,
        settings: Any,
        trainer: Trainer,
        centers: dict,
        write_row: Callable[[dict], None],
        on_step: Callable[[Step], None] = lambda step: None,
    ):
        self.settings = settings
        self.trainer = trainer
        self.centers = centers
        self.protocol = PROTOCOLS[settings.protocol]
        self.rule = RULES[settings.rule]()
        self.screen: Any = Screen(trainer, settings.false_alarms, settings.label_screen) if settings.screen else None
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        columns = log_columns(self.rule, settings.screen, settings.label_screen)
        self._log = VerificationLog(write_row, columns, self.center_of, self.protocol)
        self._on_step = on_step
        self.cycle = -1
        self.accepted: Evaluation  # the last that was, from start() or import_state() on
        self.flags: dict[str, list[int]] = {
            subject: []
            for subject in self.center_of  # the cycles in which it was flagged
        }
        self.revisits = dict.fromkeys(self.center_of, 0)
        self.waiting: dict[str, int] = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated: dict[str, int] = {}  # subject -> cycle of its elimination
        self.absent: list[str] = []  # centers that failed in this cycle
        self.counts: list[dict] = []  # of batches and screened images, a dict for every cycle
        self.queue: list[list] = []  # batches of centers that are visited, in the order in which they train
        self.group_size = settings.verify_every  # batches that are verified together, at most
        self.looks: dict[str, list] = {}  # subject -> cells of its last look, while it waits of the second, too
        self.suspects = 0  # batches at the head of the queue of which one did harm in a larger group

    @property
    def reference(self) -> tuple:
        """(FPR, FNR) of the last accepted evaluation."""
        return self.protocol.rates(self.accepted)

    def start(self, baseline: Evaluation) -> None:
        """Take the pre-trained model's evaluation as the first reference and the first row of the log."""
        self.accepted = baseline
        self._log.baseline(baseline, self.rule.describe(baseline))

    def begin_cycle(self, cycle: int, order: list) -> bool:
        """Note the cycle and, once in it, look at all images with the model as it is now: whether that was done.

        ``order`` is that of the centers.
        """
        self.cycle = cycle
        if not self.screen or self.screen.cycle == cycle:
            return False
        self.screen.calibrate(cycle, self.accepted, len(order))
        for number, center in enumerate(order):
            self.trainer.expect(self.centers[order[number + 1]] if number + 1 < len(order) else [])
            with suppress(VisitFailed):
                self._look(center)
        return True

    def training(self, subjects: Iterable[str]) -> list:
        """Those of the subjects that neither wait for their revisit nor are eliminated."""
        out = self.waiting | self.eliminated
        return [subject for subject in subjects if subject not in out]

    def _look(self, center):
        """The screen's look at who would train at a center, and who is to be revisited; raises VisitFailed."""
        self._refuse_untold(center)
        due = [subject for subject in self.due() if self.center_of[subject] == center]
        training = self.training(self.centers[center])
        if not training + due:
            return
        try:
            cells = dict(zip(training + due, self.screen.cells(training + due), strict=True))
        except VisitFailed as failure:
            raise self.failed(failure, center, training + due) from None
        for subject in due:
            self.looks[subject] = [*self.looks[subject][:1], cells[subject]]
        for subject in training:
            suspect = is_suspect(cells[subject])
            self.looks[subject] = [cells[subject]]
            self._count("screened", "suspected", suspect)
            if suspect:
                self.flag(subject)
            self._screened("screen", subject, suspect)

    def subjects_to_train(self, center: str) -> list:
        """Who trains at a center in this visit: who is not out, nobody where the screen could not look.

        Raises VisitFailed where the center has not told its subjects.
        """
        if center in self.absent:
            return []
        self._refuse_untold(center)
        return self.training(self.centers[center])

    def _refuse_untold(self, center):
        if not self.centers[center]:
            raise self.failed(VisitFailed("unreachable", "it has not told its subjects yet"), center, [])

    def look_again(self, subject: str) -> tuple[bool, dict]:
        """Whether a subject's two looks are enough to eliminate it, and the second's cells for the log of its step."""
        if not self.screen:
            return False, {}
        sure = is_sure(self.looks[subject])
        if sure:
            self._screened("revisit", subject, sure)
        return sure, self.looks[subject][-1]

    def group(self) -> list:
        """The batches that are trained and verified next, together; the first of the queue."""
        return self.queue[: min(self.group_size, self.suspects or self.group_size)]

    def settle(self, group: list, harmful: bool) -> bool:
        """Draw the consequences of a group's verification; returns whether its subjects must be tried one by one.

        One of several batches that did harm together is looked for in half of them. What did no harm leaves the queue,
        and groups grow again once no batch is under suspicion.
        """
        if harmful and len(group) > 1:
            self.group_size, self.suspects = len(group) // 2, len(group)
            return False
        self.queue = self.queue[len(group) :]
        if harmful:
            self.group_size, self.suspects = 1, 0
            return True
        self.suspects = max(0, self.suspects - len(group))
        if not self.suspects:
            self.group_size = min(self.settings.verify_every, 2 * self.group_size)
        return False

    def judge(self, batches: list, evaluation: Evaluation) -> tuple[bool, dict]:
        """Whether the training steps on some batches did harm, by the rule, and the rule's cells of the log."""
        decide = self.rule.judge if len(batches) == 1 else self.rule.suspect
        return decide(self.accepted, evaluation, self._tolerance(batches), self.protocol)

    def note(self, phase: str, batches: list, loss: float, evaluation: Evaluation, harmful: bool, cells: dict) -> None:
        """Log what was verified, before its evaluation becomes the reference."""
        subjects: list[str] = sum(batches, [])
        tolerance = self._tolerance(batches)
        self._log.step(self.cycle, phase, subjects, evaluation, tolerance, harmful, cells, self.reference)
        if phase == "batch" or (phase == "group" and not harmful):
            self._count("verified", "undone", harmful, len(batches))
        rates = self.protocol.rates(evaluation)
        self._on_step(Step(self.cycle, phase, self.center_of[subjects[-1]], subjects, loss, rates, harmful))

    def failed(self, failure: VisitFailed, center: str, subjects: list) -> VisitFailed:
        """Note a step that a center did not make, and leave the center alone for the rest of the cycle."""
        self.absent.append(center)
        there = [self.center_of[batch[0]] != center for batch in self.queue]
        self.suspects = sum(there[: self.suspects])
        self.queue = [batch for batch, stays in zip(self.queue, there, strict=True) if stays]
        tolerance = len(subjects) * self.settings.error
        self._log.failed(self.cycle, failure.phase, center, subjects, tolerance, self.reference)
        self._on_step(Step(self.cycle, failure.phase, center, subjects))
        return failure

    def flag(self, subject: str) -> None:
        """Put a subject aside until its revisit."""
        self.flags[subject].append(self.cycle)
        self.waiting[subject] = self.cycle

    def due(self) -> Iterator[str]:
        """Who is revisited at this cycle's end, in the order of the flags: flagged ``-revisit`` or more cycles ago.

        It is more where its center failed in the cycle when it was due; those of a center that is away stay out.
        """
        for subject, flagged in list(self.waiting.items()):
            if flagged + self.settings.revisit <= self.cycle and self.center_of[subject] not in self.absent:
                yield subject

    def eliminate(self, subject: str) -> None:
        """A revisited subject harmed again: it is out for good."""
        self.release(subject)
        self.eliminated[subject] = self.cycle

    def release(self, subject: str) -> None:
        """A revisited subject did no harm: it trains again from the next cycle on."""
        self.revisits[subject] += 1
        del self.waiting[subject]

    def end_cycle(self) -> None:
        """Centers that failed are visited again, and groups are as large as they may be."""
        self.absent = []
        self.group_size, self.suspects = self.settings.verify_every, 0

    def export_state(self) -> dict:
        """All that decides how quality control goes on, as plain values: for a checkpoint."""
        state = {name: getattr(self, name) for name in _STATE} | {"accepted": asdict(self.accepted)}
        return state | {"screen": self.screen.export_state() if self.screen else None}

    def import_state(self, state: dict) -> None:
        """Take over what :meth:`export_state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.accepted = Evaluation(**state["accepted"])
        if self.screen:
            self.screen.import_state(state["screen"])
        for subject in self.center_of:  # of a center that has told its subjects since
            self.flags.setdefault(subject, [])
            self.revisits.setdefault(subject, 0)

    def subject_table(self) -> pd.DataFrame:
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

    def summary(self) -> str:
        """The state in words, for the plain log."""
        fpr, fnr = self.reference
        return (
            f"FPR {fpr:.3f}, FNR {fnr:.3f}; {len(self.waiting)} subjects wait for their revisit, "
            f"{len(self.eliminated)} eliminated"
        )

    def locked_up(self, cycle: int) -> str | None:
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
                "(another preparation or scale of intensities?)"
            )
        return None

    def _tolerance(self, batches):
        """Of a group it is that of its smallest batch: summed over all of them, it would let the harm of one pass."""
        return min(map(len, batches)) * self.settings.error

    def _count(self, what, hit, happened, number=1):
        """Count batches or images of a cycle, and whether they were undone or suspected."""
        if not self.counts or self.counts[-1]["cycle"] != self.cycle:
            self.counts.append({"cycle": self.cycle, "verified": 0, "undone": 0, "screened": 0, "suspected": 0})
        self.counts[-1][what] += number
        self.counts[-1][hit] += number * bool(happened)

    def _screened(self, phase, subject, suspect):
        self._log.screened(self.cycle, phase, subject, self.looks[subject][-1], suspect, self.reference)
        self._on_step(Step(self.cycle, phase, self.center_of[subject], [subject], harmful=suspect))
