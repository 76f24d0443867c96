"""The plain travelling model: training without quality control, wherever the trainer trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from travelling.errors import VisitFailed
from travelling.method.order import batches, position, start_of_cycle, travelling_order
from travelling.method.protocol import PROTOCOLS
from travelling.method.settings import WithoutControl
from travelling.method.trainer import PlainTrainer


class PlainFiles(Protocol):
    """Where a run is kept, and shown."""

    def trained(self, cycle: int, center: str, subjects: list[str], loss: float) -> None:
        """A step was made."""

    def checkpoint(self, place: dict) -> None:
        """Save where the run stands."""

    def after_cycle(self, cycle: int, rate: float, loss: float) -> None:
        """Save the model of a cycle, of its learning rate and the mean loss of its steps."""


def travel(
    trainer: PlainTrainer,
    centers: dict[str, list[str]],
    cycles: Sequence[int],
    settings: WithoutControl,
    learning_rate: Callable[[int], float],
    files: PlainFiles,
    resumed_at: dict | None = None,
) -> None:
    """In every cycle the model visits all centers and trains on all their images.

    ``centers`` maps each center to its subjects; ``learning_rate(cycle)`` gives Adam's. ``resumed_at``, what the last
    checkpoint of ``files`` told, is where the run goes on. Where a step raises VisitFailed, the rest of the
    visit is left out; the steps before it stay.
    """
    trains_short_batch = PROTOCOLS[settings.protocol].trains_short_batch
    losses = resumed_at["losses"] if resumed_at else []
    for cycle, order, generator in travelling_order(centers, settings.seed, cycles, resumed_at):
        trainer.learning_rate = learning_rate(cycle)
        for left, center in zip(reversed(range(len(order))), order, strict=True):
            trainer.expect(centers[order[-left]] if left else [])
            visit = [  # all at once, so that one that fails shuffles the same for those after it
                batch
                for _ in range(settings.epochs)
                for batch in batches(centers[center], settings.batch_size, generator, trains_short_batch)
            ]
            with contextlib.suppress(VisitFailed):
                for batch in visit:
                    losses.append(trainer.train_batches([batch]))
                    files.trained(cycle, center, batch, losses[-1])
            files.checkpoint({**position(cycle, left, generator), "losses": losses})
        trainer.learning_rate = learning_rate(cycle + 1)  # before the model is saved, as published
        files.after_cycle(cycle, learning_rate(cycle), sum(losses) / len(losses) if losses else math.nan)
        losses = []
        files.checkpoint({**start_of_cycle(cycle + 1, centers), "losses": losses})
