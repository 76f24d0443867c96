"""Quality control without a model: which step must come next, after what happened in those before."""

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from travelling.method.auditor import Auditor, Step, Steps
from travelling.method.settings import Control
from travelling_quality_control.auditing.tables import FAILURES


class Replay:
    """Quality control as a log tells it: :attr:`step` must come next in this cycle (None: it is over).

    After every row call :meth:`happened` or :meth:`failed`. ``untold`` holds (cycle, center) where a center had not
    told its subjects yet; ``auditors`` are those of the extensions that the run used.
    """

    def __init__(
        self, subjects_of: dict, first_cycle: int, settings: Control, untold: set, auditors: Sequence[Auditor]
    ):
        self.subjects_of = subjects_of
        self.center_of = {subject: center for center, subjects in subjects_of.items() for subject in subjects}
        self.untold = untold
        self.settings = settings
        self.auditors = auditors
        self.flags: dict[str, list[int]] = {subject: [] for subject in self.center_of}  # cycles
        self.revisits = dict.fromkeys(self.center_of, 0)
        self.waiting: dict[str, int] = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated: dict[str, int] = {}  # subject -> cycle
        self._cycles = cycles_of(subjects_of, settings.seed, first_cycle)
        self.begin_cycle()

    def begin_cycle(self) -> None:
        """Go on to the next cycle."""
        self.table_before = self.subject_table()
        self.cycle, order, generator = next(self._cycles)
        self.absent: set[str] = set()  # centers that failed in this cycle
        self._steps = self._steps_of_cycle(order, generator)
        self.step = next(self._steps, None)

    def next_step(self, failed: list) -> Step | None:
        """The step that must come next, in a later cycle if this one is over; None if nothing can follow.

        ``failed`` are the subjects of the next row, if it is that of a center that failed.
        """
        self.pass_over(failed)
        for _ in range(self.settings.revisit):
            if self.step:
                break
            self.begin_cycle()  # a cycle without a step is one in which every subject waits or is eliminated
            self.pass_over(failed)
        return self.step

    def pass_over(self, failed: list) -> None:
        """Go on past what has left no row."""
        while self.step and self.step.only_if_failed and self.step.subjects != failed:
            self._go_on(False)

    def happened(self, harmful: bool) -> None:
        """The step was made, or the image looked at: ``harmful`` if it was rejected, or flagged."""
        assert self.step
        for subject in self.step.subjects:
            if self.step.phase == "revisit":
                self.revisits[subject] += 1
                del self.waiting[subject]
                if harmful:
                    self.eliminated[subject] = self.cycle
            elif harmful and self.step.phase in ("subject", *(name for one in self.auditors for name in one.flagging)):
                self.flags[subject].append(self.cycle)
                self.waiting[subject] = self.cycle
        self._go_on(harmful)

    def failed(self, center: str) -> None:
        """A center did not make its step, and is left alone for the rest of the cycle."""
        self.absent.add(center)
        self._go_on(None)

    def _go_on(self, harmful):
        try:
            self.step = self._steps.send(harmful) if self.step else None
        except StopIteration:
            self.step = None

    def _steps_of_cycle(self, order: list[str], generator: Any) -> Steps:
        """The method: yields every step of a cycle and is sent whether it was harmful (None: the center failed)."""
        for auditor in self.auditors:
            yield from auditor.before_cycle(self, order)
        others = filter(None, (auditor.train(self, order, generator) for auditor in self.auditors))
        yield from next(others, None) or self._visits(order, generator)
        for subject in self.due():
            if self.center_of[subject] not in self.absent:
                yield Step("revisit", [subject])

    def _visits(self, order, generator):
        """The published way: batch by batch, and image by image where one did harm."""
        for center in order:
            for batch in (yield from self.batches_of(center, generator)):
                if center in self.absent:
                    break
                harmful = yield Step("batch", batch)
                for subject in batch if harmful else ():
                    if (yield Step("subject", [subject])) is None:
                        break

    def batches_of(self, center: str, generator: Any) -> Generator[Step, bool | None, list[list[str]]]:
        """Returns a center's batches, none where it has failed; yields where it has not told its subjects."""
        if center in self.absent:
            return []
        if self.is_untold(center):
            yield Step(FAILURES[0], [])
            return []
        return self._cut(self.present(center), generator)

    def is_untold(self, center: str) -> bool:
        """Whether a center has not told its subjects in this cycle."""
        return (self.cycle, center) in self.untold or not self.subjects_of[center]

    def due(self) -> list[str]:
        """Who is to be revisited at the end of this cycle."""
        return [
            subject
            for subject, flagged in self.waiting.items()
            if flagged + self.settings.revisit <= self.cycle and self.center_of[subject] not in self.absent
        ]

    def present(self, center: str) -> list[str]:
        """Who trains at a center."""
        return [name for name in self.subjects_of[center] if name not in self.waiting and name not in self.eliminated]

    def _cut(self, present, generator):
        """A center's batches."""
        import numpy as np

        shuffled = np.array(present, dtype=object)
        generator.shuffle(shuffled)
        size = self.settings.batch_size
        batches = [list(shuffled[first : first + size]) for first in range(0, len(shuffled), size)]
        whole = min(size, len(present))
        return [batch for batch in batches if self.settings.protocol == "corrected" or len(batch) == whole]

    def subject_table(self) -> dict[str, dict]:
        """What the table of subjects must say now: subject -> its cells."""
        return {
            subject: {
                "Study": center,
                "Times_flagged": len(self.flags[subject]),
                "First_flagged_cycle": min(self.flags[subject], default=None),
                "Revisits": self.revisits[subject],
                "Eliminated": int(subject in self.eliminated),
                "Eliminated_cycle": self.eliminated.get(subject),
            }
            for subject, center in self.center_of.items()
        }


def cycles_of(centers: dict, seed: int, first_cycle: int) -> Iterator[tuple]:
    """For cycle after cycle, without end: the cycle, its centers in visiting order, its random generator."""
    import numpy as np  # only now, so that --help answers at once

    order = np.array(list(centers), dtype=object)
    np.random.RandomState(seed).shuffle(order)
    for cycle in itertools.count(first_cycle):
        generator = np.random.RandomState(seed + cycle)
        generator.shuffle(order)
        yield cycle, list(order), generator
