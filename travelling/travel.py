"""The plain travelling model: training without quality control, wherever the trainer trains."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from travelling.console import progress_bar
from travelling.errors import VisitFailed
from travelling.options import DirtyBaseline, FromScratch
from travelling.order import batches, position, start_of_cycle, travelling_order
from travelling.protocol import PROTOCOLS
from travelling.run import Run
from travelling.stopping import stop_if_asked
from travelling.trainer import Trainer

if TYPE_CHECKING:
    from travelling.model import TravellingModel


def travel(
    trainer: Trainer,
    centers: dict[str, list[str]],
    cycles: Sequence[int],
    settings: FromScratch | DirtyBaseline,
    learning_rate: Callable[[int], float],
    files: PlainRun,
    resumed_at: dict | None = None,
) -> None:
    """In every cycle the model visits all centers and trains on all their images.

    ``centers`` maps each center to its subjects; ``settings`` has the options seed, epochs, batch_size and protocol;
    ``learning_rate(cycle)`` gives Adam's. ``files`` is a :class:`PlainRun`; ``resumed_at``, what its last checkpoint
    told, is where the run goes on. Where ``trainer.train`` raises VisitFailed, the rest of the visit is left out; the
    steps before it stay.
    """
    images = sum(map(len, centers.values()))
    trains_short_batch = PROTOCOLS[settings.protocol].trains_short_batch
    losses = resumed_at["losses"] if resumed_at else []
    with progress_bar(total=len(cycles) * settings.epochs * images, unit="image") as bar:
        for cycle, order, generator in travelling_order(centers, settings.seed, cycles, resumed_at):
            trainer.learning_rate = learning_rate(cycle)
            done = cycles.index(cycle) * images + sum(map(len, centers.values()))
            done -= sum(len(centers[center]) for center in order)
            bar.update(done * settings.epochs - bar.n)  # of earlier sessions
            for left, center in zip(reversed(range(len(order))), order, strict=True):
                trainer.expect(centers[order[-left]] if left else [])
                visit = [  # all at once, so that one that fails shuffles the same for those after it
                    batch
                    for _ in range(settings.epochs)
                    for batch in batches(centers[center], settings.batch_size, generator, trains_short_batch)
                ]
                with contextlib.suppress(VisitFailed):
                    for batch in visit:
                        losses.append(trainer.train(batch))
                        bar.set_postfix(cycle=cycle, center=center, loss=f"{losses[-1]:.3f}", refresh=False)
                        bar.update(len(batch))
                        stop_if_asked()
                files.checkpoint({**position(cycle, left, generator), "losses": losses})
            trainer.learning_rate = learning_rate(cycle + 1)  # before the model is saved, as published
            files.after_cycle(cycle, learning_rate(cycle), sum(losses) / len(losses) if losses else math.nan)
            losses = []
            files.checkpoint({**start_of_cycle(cycle + 1, centers), "losses": losses})


class PlainRun:
    """Keeps on disk what :func:`travel` makes: checkpoints, and the model of every cycle.

    ``run`` has begun; ``model`` is the trainer's.
    """

    def __init__(
        self,
        settings: FromScratch | DirtyBaseline,
        run: Run,
        model: TravellingModel,
        trainer: Trainer,
        centers: dict[str, list[str]],
    ):
        self._settings = settings
        self._run = run
        self._model = model
        self._trainer = trainer
        self._centers = centers

    def checkpoint(self, here: dict) -> None:
        """Save where the run stands."""
        self._run.checkpoint(here | {"subjects": self._centers}, self._trainer)

    def after_cycle(self, cycle: int, rate: float, loss: float) -> None:
        """Save the model of a cycle that was trained with a learning rate; ``loss`` is the mean of its steps."""
        known = self._trainer.known(sum(self._centers.values(), []))
        self._run.save(self._model, cycle, self._settings.batch_size, known)
        self._run.note_cycle(cycle)
        self._run.log.info("cycle %d: learning rate %.3g, mean loss %.4f", cycle, rate, loss)
