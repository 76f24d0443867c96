"""What may go beyond the published method, as far as the method knows it: hooks that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from travelling.method.auditor import Auditor
from travelling.option import Options

if TYPE_CHECKING:
    from travelling.method.metrics import Evaluation
    from travelling.method.protocol import Protocol
    from travelling.method.quality_control import QualityControl
    from travelling.method.trainer import Files, Trainer

Verify = Callable[..., bool]  # of the loop: verify(control, phase, batches, cells of the log)


class Finding(NamedTuple):
    """Why an image was flagged: the reason in words, and the cells of a report that go with it."""

    reason: str
    score: str
    limit: str
    look: str  # what found it


class Extension:
    """What goes beyond the published method. A subclass overrides what it needs; nothing else is touched for it.

    It lies in :mod:`travelling.beyond`, beside its options (:class:`travelling.beyond.ExtensionOptions`), which make
    one of it where a user asks for it. All hooks of the loop get the :class:`QualityControl`.
    """

    columns: tuple[str, ...] = ()  # of the log, numbers: after the published ones, filled by the cells that hooks give
    replaces_rule = False  # whether the published rule is not asked
    options: Options

    # Before the run.

    def check(self, others: Sequence[Extension], spell: Callable[[str], str]) -> None:
        """Refuse (ValueError) what does not go together with the other extensions, as :meth:`Options.check`."""

    def refuse_test_set(self, subjects: int) -> None:
        """Raise InputError where a test set of so many subjects is too small."""

    def saturation(self, baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
        """In words, why this rule would undo no step after this baseline, whatever it did; where it replaces the rule.

        ``tolerance`` is that of a whole batch.
        """
        return []

    def notice(self, trainer: Trainer) -> str | None:
        """What a user is told at the beginning."""

    # The loop.

    def start(self, control: QualityControl) -> dict:
        """The cells of the log's first row, of the pre-trained model: ``control.accepted`` is its evaluation."""
        return {}

    def before_cycle(self, control: QualityControl, order: list) -> bool:
        """Do something before the first step of a cycle, once: whether it was done. ``order`` is that of the centers.

        Called again where a run goes on within the cycle.
        """
        return False

    def train(self, control: QualityControl, visits: Iterator[list], verify: Verify, files: Files) -> bool:
        """Train and verify the batches of all visits otherwise than published: whether that was done."""
        return False

    def judge(self, control: QualityControl, batches: list, after: Evaluation) -> tuple[bool, dict]:
        """Whether the steps on some batches, as a rule one, between ``control.accepted`` and ``after`` did harm.

        And the cells of the log. One judge that says so is enough.
        """
        return False, {}

    def at_revisit(self, control: QualityControl, subject: str) -> tuple[bool, dict]:
        """Whether to eliminate a subject without trying it, which is then logged; and cells for the log of its step."""
        return False, {}

    def failed(self, control: QualityControl, center: str) -> None:
        """A center did not make a step, and is left alone for the rest of the cycle."""

    def end_cycle(self) -> None:
        """A cycle is over."""

    def locked_up(self, cycle: int) -> str | None:
        """In words, that it has put most images of a cycle aside."""

    def cause_of_lock_up(self, accepted: Evaluation, protocol: Protocol) -> str:
        """In words, how it can come to undo most batches, and what avoids it; where it replaces the rule."""
        return "this rule refuses them"

    # Checkpoints.

    def export_state(self) -> dict:
        """All that decides how it goes on, as plain values."""
        return {}

    def import_state(self, state: dict) -> None:
        """Take over what :meth:`export_state` gave."""

    # What audit and report say.

    def auditor(self) -> Auditor:
        """What checks its part of a log, apart from how it decides."""
        return Auditor(self.columns)

    def methods(self, extensions: Sequence[Extension]) -> str:
        """Sentences for a paper's methods; ``extensions`` are all that were used."""
        return ""

    steps_verified = ""  # there, which steps are verified, where it is not every one
    judged_together = ""  # there, how it judges several batches, where it is not as one

    def judged(self, rise: str) -> str:
        """There, what a harmful step did, where it replaces the rule: goes on after "a step that".

        ``rise`` is what the published rule says of it: "raised FPR or FNR by more than 0.02 per image".
        """
        return rise

    def legend(self) -> str:
        """What :meth:`explain` shows, for readers of a report."""
        return ""

    def explain(self, row: Any) -> dict[str, str]:
        """What a row of the log says of an image, by the name of a column of the report: why it was flagged, or not.

        ``row`` maps columns of the log to numbers, NaN where a cell is empty.
        """
        return {}

    def finding(self, row: Any) -> Finding | None:
        """What put the image of such a row aside, for those who read images; None where it was not this."""
        return None

    def not_examined(self, rows: Any) -> list[str]:
        """Which images or labels it did not examine in a log, and why, in words; ``rows`` is a table of all of them."""
        return []

    phases: ClassVar[dict[str, str]] = {}  # of rows without a step: what the image was then, in words
    image_columns: ClassVar[dict[str, str]] = {}  # of the log, by what the mean of images' last values is called
