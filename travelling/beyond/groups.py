"""Groups: several batches train before the test set is evaluated; one that does harm is searched by halves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from travelling.beyond import ExtensionOptions
from travelling.errors import VisitFailed
from travelling.method.auditor import Auditor, Replayed, Step, Steps
from travelling.method.extension import Extension, Verify
from travelling.option import BEYOND, number, option

if TYPE_CHECKING:
    from travelling.method.quality_control import QualityControl
    from travelling.method.trainer import Files


@dataclass(kw_only=True)
class GroupOptions(ExtensionOptions):
    """How many batches are verified together."""

    verify_every: int = option(
        "batches that are trained before the test set is evaluated; a group that harms is searched by halves "
        "(advised: 16 with --rule evidence)",
        number(int, 1),
        1,
        metavar="BATCHES",
        group=BEYOND,
    )

    def extension(self) -> Groups | None:
        """As :meth:`ExtensionOptions.extension`."""
        return Groups(self) if self.verify_every > 1 else None


class Groups(Extension):
    """Batches of one center or several wait in a queue, and are verified together, as many as :attr:`size`."""

    steps_verified = "training steps"

    def __init__(self, options: GroupOptions):
        self.options: GroupOptions = options
        self.queue: list[list[str]] = []  # batches of centers that are visited, in the order in which they train
        self.size = options.verify_every  # batches that are verified together, at most
        self.suspects = 0  # batches at the head of the queue of which one did harm in a larger group

    def train(self, control: QualityControl, visits: Iterator[list], verify: Verify, files: Files) -> bool:
        """As :meth:`Extension.train`."""
        while True:
            while len(self.queue) < self.size and (batches := next(visits, None)) is not None:
                self.queue += batches
            if not self.queue:
                return True
            group = self.queue[: min(self.size, self.suspects or self.size)]
            with suppress(VisitFailed):
                harmful = verify(control, "group" if len(group) > 1 else "batch", group)
                if self._settle(group, harmful):
                    for subject in group[0]:
                        if verify(control, "subject", [[subject]]):
                            control.flag(subject)
            files.checkpoint(control.position())

    def _settle(self, group: list, harmful: bool) -> bool:
        """Draw the consequences of a group's verification; returns whether its subjects must be tried one by one.

        One of several batches that did harm together is looked for in half of them. What did no harm leaves the queue,
        and groups grow again once no batch is under suspicion.
        """
        if harmful and len(group) > 1:
            self.size, self.suspects = len(group) // 2, len(group)
            return False
        self.queue = self.queue[len(group) :]
        if harmful:
            self.size, self.suspects = 1, 0
            return True
        self.suspects = max(0, self.suspects - len(group))
        if not self.suspects:
            self.size = min(self.options.verify_every, 2 * self.size)
        return False

    def failed(self, control: QualityControl, center: str) -> None:
        """As :meth:`Extension.failed`: its batches leave the queue."""
        there = [control.center_of[batch[0]] != center for batch in self.queue]
        self.suspects = sum(there[: self.suspects])
        self.queue = [batch for batch, stays in zip(self.queue, there, strict=True) if stays]

    def end_cycle(self) -> None:
        """As :meth:`Extension.end_cycle`: groups are as large as they may be."""
        self.size, self.suspects = self.options.verify_every, 0

    def export_state(self) -> dict:
        """As :meth:`Extension.export_state`."""
        return {"queue": self.queue, "size": self.size, "suspects": self.suspects}

    def import_state(self, state: dict) -> None:
        """As :meth:`Extension.import_state`."""
        self.queue, self.size, self.suspects = state["queue"], state["size"], state["suspects"]

    def auditor(self) -> Auditor:
        """As :meth:`Extension.auditor`."""
        return GroupAuditor(self.options.verify_every)

    def methods(self, extensions: Sequence[Extension]) -> str:
        """As :meth:`Extension.methods`."""
        how = "".join(extension.judged_together for extension in extensions)
        return (
            f"Up to {self.options.verify_every} batches were trained before the test set was evaluated; where they "
            f"together did so{how}, they were rejected, and halves of them verified, down to single batches."
        )


class GroupAuditor(Auditor):
    """Which batches must be verified together, and how one that harms is searched."""

    phases = ("group",)

    def __init__(self, most: int):
        super().__init__(())
        self._most = most

    def train(self, replayed: Replayed, order: list[str], generator: Any) -> Steps:
        """As :meth:`Auditor.train`."""
        waiting: list[list[str]] = []
        size, suspects = self._most, 0
        while order or waiting:
            while order and len(waiting) < size:
                waiting += yield from replayed.batches_of(order.pop(0), generator)
            group = waiting[: min(size, suspects or size)]
            if not group:
                continue
            harmful = yield self._step(replayed, group)
            if harmful and len(group) > 1:
                size, suspects = len(group) // 2, len(group)
                continue
            if harmful is not None:
                del waiting[: len(group)]
                suspects = 0 if harmful else max(0, suspects - len(group))
                size = 1 if harmful else size if suspects else min(self._most, 2 * size)
            for subject in group[0] if harmful else ():
                if (yield Step("subject", [subject])) is None:
                    break
            # The batches of a center that has failed are dropped.
            stays = [replayed.center_of[batch[0]] not in replayed.absent for batch in waiting]
            suspects = sum(stays[:suspects])
            waiting = [batch for batch, kept in zip(waiting, stays, strict=True) if kept]

    def _step(self, replayed, group):
        """The verification of one batch or several."""
        subjects = list(itertools.chain(*group))
        if len(group) == 1:
            return Step("batch", subjects)
        of_center: dict[str, list[str]] = {}
        for subject in subjects:
            of_center.setdefault(replayed.center_of[subject], []).append(subject)
        return Step("group", subjects, of_center, min(map(len, group)))
