"""What decentralized quality control remembers: who was flagged, who waits, who is eliminated, what was accepted last.

The method itself is on one screen in ``travelling_quality_control/enc_PD_quality_control.py``; this has its memory and
its log. No label of harmfulness is known. The trainer (see :mod:`travelling.method.trainer`) decides where training
happens, in this process or at a hospital. Whatever goes beyond the published method is an
:class:`travelling.method.extension.Extension`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from travelling.errors import VisitFailed
from travelling.method import rule
from travelling.method.extension import Extension, Verify
from travelling.method.metrics import Evaluation
from travelling.method.order import batches, position
from travelling.method.protocol import PROTOCOLS
from travelling.method.settings import Control
from travelling.method.trainer import Files, Trainer
from travelling.method.verification_log import LOG_COLUMNS, SEPARATOR
from travelling.words import some, was

_STATE = ("flags", "revisits", "waiting", "eliminated", "absent", "counts")
FAILURES = ("unreachable", "invalid")  # phases of a step to which a center gave no usable answer


@dataclass(frozen=True)
class Progress:
    """What was done with some subjects, and what it did to the test set: for a progress bar."""

    cycle: int
    phase: str  # batch, subject, revisit, or an extension's; one of FAILURES where nothing could be verified
    center: str  # where it was done; the last, where it was done at several
    subjects: list
    loss: float | None = None
    rates: tuple | None = None  # (FPR, FNR) after the step; None where none was made
    harmful: bool = False  # then the step was rejected, or not made
    done: int = 0  # images that the cycle has done with, but for their trial one by one


def log_columns(extensions: Iterable[Extension]) -> tuple[str, ...]:
    """The columns of the log: the published ones, ours, and those of the extensions that are used."""
    return (*LOG_COLUMNS, *(column for extension in extensions for column in extension.columns))


class QualityControl:
    """The state of quality control over ``centers``, which maps each of them to its subjects, none where it has not
    told them yet.

    ``write_row`` is called with one row of the log, a dict, per verification, and ``on_step`` with a :class:`Progress`.

    A step that a center does not make (VisitFailed) is rejected and logged, and the center is left alone for the rest
    of the cycle. What was accepted before stays; nobody is flagged for it, and a revisit is made up for in the next
    one.
    """

    def __init__(
        self,
        settings: Control,
        trainer: Trainer,
        centers: dict[str, list[str]],
        write_row: Callable[[dict], None],
        on_step: Callable[[Progress], None] = lambda step: None,
        extensions: Sequence[Extension] = (),
    ):
        self.settings = settings
        self.trainer = trainer
        self.centers = centers
        self.extensions = extensions
        self.protocol = PROTOCOLS[settings.protocol]
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        self._write_row = write_row
        self._on_step = on_step
        self.cycle = -1
        self.order: list[str] = []  # centers that are still to be visited in this cycle
        self._generator: np.random.RandomState  # of the cycle's batches, from begin_cycle() on
        self.accepted: Evaluation  # the last that was, from start() or import_state() on
        self.flags: dict[str, list[int]] = {subject: [] for subject in self.center_of}  # cycles of its flags
        self.revisits = dict.fromkeys(self.center_of, 0)
        self.waiting: dict[str, int] = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated: dict[str, int] = {}  # subject -> cycle of its elimination
        self.absent: list[str] = []  # centers that failed in this cycle
        self.counts = {"cycle": -1, "verified": 0, "rejected": 0}  # batches of the last cycle that had any

    @property
    def reference(self) -> tuple[float, float]:
        """(FPR, FNR) of the last accepted evaluation."""
        return self.protocol.rates(self.accepted)

    def start(self, baseline: Evaluation) -> None:
        """Take the pre-trained model's evaluation as the first reference and the first row of the log."""
        self.accepted = baseline
        cells: dict = {}
        for extension in self.extensions:
            cells |= extension.start(self)
        about = {"Cycle": 0, "Subject": "n/a", "Study": "n/a", "Reference_PFP": None, "Reference_PFN": None}
        self._log("baseline", [], False, about | self._measured(baseline) | cells)

    def begin_cycle(self, cycle: int, order: list[str], generator: np.random.RandomState) -> bool:
        """Note the cycle, the centers that are to be visited in it, in order, and the generator of its batches.

        Whether an extension has done something before the first visit.
        """
        self.cycle, self.order, self._generator = cycle, order, generator
        done = [extension.before_cycle(self, list(order)) for extension in self.extensions]
        return any(done)

    def position(self) -> dict:
        """Where the run is in the travelling order: for a checkpoint."""
        return position(self.cycle, len(self.order), self._generator)

    def visits(self) -> Iterator[list[list[str]]]:
        """The batches of each center in turn, which train there now; none where it cannot be visited."""
        while self.order:
            center = self.order.pop(0)
            self.trainer.expect(self.centers[self.order[0]] if self.order else [])
            training: list[str] = []
            with suppress(VisitFailed):  # which is noted
                if center not in self.absent:
                    self.refuse_untold(center)
                    training = self.training(self.centers[center])
            size, short = self.settings.batch_size, self.protocol.trains_short_batch
            yield batches(training, size, self._generator, short)

    def train_otherwise(self, visits: Iterator[list], verify: Verify, files: Files) -> bool:
        """Whether an extension has trained the batches of all visits, see :meth:`Extension.train`."""
        return any(extension.train(self, visits, verify, files) for extension in self.extensions)

    def training(self, subjects: Iterable[str]) -> list:
        """Those of the subjects that neither wait for their revisit nor are eliminated."""
        out = self.waiting | self.eliminated
        return [subject for subject in subjects if subject not in out]

    def refuse_untold(self, center: str) -> None:
        """Raise VisitFailed, which is noted, where a center has not told its subjects."""
        if not self.centers[center]:
            raise self.failed(VisitFailed("unreachable", "it has not told its subjects yet"), center, [])

    def at_revisit(self, subject: str) -> tuple[bool, dict]:
        """Whether an extension is sure that a subject must be eliminated, and cells for the log of its step."""
        return self._ask(lambda extension: extension.at_revisit(self, subject))

    def judge(self, batches: list, evaluation: Evaluation) -> tuple[bool, dict]:
        """Whether the training steps on some batches did harm, and cells of the log."""
        harmful, cells = self._ask(lambda extension: extension.judge(self, batches, evaluation))
        if not any(extension.replaces_rule for extension in self.extensions):
            harmful |= any(rule.risen(self.accepted, evaluation, self.tolerance(batches), self.protocol))
        return harmful, cells

    def _ask(self, question: Callable[[Extension], tuple[bool, dict]]) -> tuple[bool, dict]:
        """What all extensions answer: whether one says yes, and the cells of all."""
        answers = [question(extension) for extension in self.extensions]
        return any(yes for yes, _ in answers), {name: cell for _, cells in answers for name, cell in cells.items()}

    def note(self, phase: str, batches: list, loss: float, evaluation: Evaluation, harmful: bool, cells: dict) -> None:
        """Log what was verified, before its evaluation becomes the reference."""
        subjects: list[str] = sum(batches, [])
        tolerance, done = self.tolerance(batches), 0
        alone = phase in ("subject", "revisit")
        about = {"Subject": subjects[0] if alone else phase, "Tolerance": tolerance}
        self._log(phase, subjects, harmful, about | self._measured(evaluation) | cells)
        if not alone and not (harmful and len(batches) > 1):  # which are tried in parts
            if self.counts["cycle"] != self.cycle:
                self.counts = {"cycle": self.cycle, "verified": 0, "rejected": 0}
            self.counts["verified"] += len(batches)
            self.counts["rejected"] += len(batches) * harmful
            done = len(subjects)
        rates = self.protocol.rates(evaluation)
        self._on_step(Progress(self.cycle, phase, self.center_of[subjects[-1]], subjects, loss, rates, harmful, done))

    def decided(self, phase: str, subject: str, cells: dict, harmful: bool) -> None:
        """Log what an extension has decided about a subject without a training step: no rate was measured."""
        self._log(phase, [subject], harmful, {"Subject": subject} | cells)
        self._on_step(Progress(self.cycle, phase, self.center_of[subject], [subject], harmful=harmful))

    def failed(self, failure: VisitFailed, center: str, subjects: list) -> VisitFailed:
        """Note a step that a center did not make, and leave the center alone for the rest of the cycle."""
        self.absent.append(center)
        for extension in self.extensions:
            extension.failed(self, center)
        about = {"Subject": "n/a", "Study": center, "Tolerance": len(subjects) * self.settings.error}
        self._log(failure.phase, subjects, True, about)
        self._on_step(Progress(self.cycle, failure.phase, center, subjects))
        return failure

    def flag(self, subject: str) -> None:
        """A subject is out until its revisit."""
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
        """Centers that failed are visited again."""
        self.absent = []
        for extension in self.extensions:
            extension.end_cycle()

    def export_state(self) -> dict:
        """All that decides how quality control goes on, as plain values: for a checkpoint."""
        state = {name: getattr(self, name) for name in _STATE} | {"accepted": asdict(self.accepted)}
        return state | {"extensions": {type(one).__name__: one.export_state() for one in self.extensions}}

    def import_state(self, state: dict) -> None:
        """Take over what :meth:`export_state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])
        self.accepted = Evaluation(**state["accepted"])
        for extension in self.extensions:
            extension.import_state(state["extensions"][type(extension).__name__])
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
            f"FPR {fpr:.3f}, FNR {fnr:.3f}; {some(len(self.waiting), 'subject')} waiting for revisit, "
            f"{len(self.eliminated)} eliminated"
        )

    def locked_up(self, cycle: int) -> str | None:
        """In words, why most batches of this cycle were rejected, or most images flagged; None where they were not."""
        rejected, verified = self.counts["rejected"], self.counts["verified"]
        if self.counts["cycle"] == cycle and rule.locks_up(rejected, verified):
            rules = [extension.cause_of_lock_up for extension in self.extensions if extension.replaces_rule]
            explain = rules[0] if rules else rule.cause_of_lock_up
            return (
                f"lock-up: {rejected} of {some(verified, 'batch')} of cycle {cycle} {was(rejected)} rejected. "
                f"Unless most images are harmful, {explain(self.accepted, self.protocol)}"
            )
        return next(filter(None, (extension.locked_up(cycle) for extension in self.extensions)), None)

    def tolerance(self, batches: list) -> float:
        """What FPR and FNR may rise by.

        Of several batches it is that of the smallest: summed over all of them, it would let the harm of one pass.
        """
        return min(map(len, batches)) * self.settings.error

    def _log(self, phase, subjects, ignored, cells):
        """Write a row of the log: what is in all of them, and ``cells``."""
        fpr, fnr = self.reference
        row = {
            "Cycle": self.cycle,
            "Study": SEPARATOR.join(dict.fromkeys(self.center_of[subject] for subject in subjects)),
            "Ignored": int(ignored),
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
            "Reference_PFP": fpr,
            "Reference_PFN": fnr,
            "Eliminated": int(ignored and phase == "revisit"),
        }
        self._write_row(dict.fromkeys(log_columns(self.extensions)) | row | cells)

    def _measured(self, evaluation):
        fpr, fnr = self.protocol.rates(evaluation)
        counts = {"FP": evaluation.false_positives, "FN": evaluation.false_negatives}
        return {"ACC": evaluation.accuracy, **counts, "PFP": fpr, "PFN": fnr}


def methods(settings: Control, extensions: Sequence[Extension]) -> str:
    """What quality control does, for a paper: sentences."""
    rise = f"raised FPR or FNR by more than {settings.error:g} per image"
    rules = [extension.judged(rise) for extension in extensions if extension.replaces_rule] or [rise]
    steps = next(
        (extension.steps_verified for extension in extensions if extension.steps_verified), "every training step"
    )
    published = (
        f"Decentralized quality control (protocol '{settings.protocol}') verified {steps} on the test set: a step "
        f"that {' or '.join(rules)} was rejected and its images were tried one by one; those that did so alone were "
        f"flagged, revisited {some(settings.revisit, 'cycle')} later, and eliminated if they did so again (Souza et "
        "al., 2025)."
    )
    return " ".join(filter(None, [published, *(extension.methods(extensions) for extension in extensions)]))
