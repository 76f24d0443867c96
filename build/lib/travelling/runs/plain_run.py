"""What a run without quality control keeps on disk, wherever its trainer trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from travelling.console import progress_bar
from travelling.method.trainer import Trainer
from travelling.runs import stopping
from travelling.runs.options import DirtyBaseline, FromScratch
from travelling.runs.run import Run

if TYPE_CHECKING:
    from tqdm import tqdm

    from travelling.network.model import TravellingModel


class PlainRun:
    """Keeps on disk what :func:`travelling.method.travel.travel` makes: checkpoints, and the model of every cycle.

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
        self._images = sum(map(len, centers.values()))
        self._bar: tqdm | None = None

    def begin_cycle(self, cycle: int, cycles: Sequence[int], order: list[str]) -> None:
        """As :meth:`travelling.method.travel.PlainFiles.begin_cycle`."""
        epochs = self._settings.epochs
        if self._bar is None:
            self._bar = progress_bar(total=len(cycles) * epochs * self._images, unit="image")
            stopping.at_end.append(self._bar.close)
        visited = self._images - sum(len(self._centers[center]) for center in order)
        self._bar.update((cycles.index(cycle) * self._images + visited) * epochs - self._bar.n)  # of earlier sessions

    def trained(self, cycle: int, center: str, subjects: list[str], loss: float) -> None:
        """As :meth:`travelling.method.travel.PlainFiles.trained`."""
        if self._bar:
            self._bar.set_postfix(cycle=cycle, center=center, loss=f"{loss:.3f}", refresh=False)
            self._bar.update(len(subjects))
        stopping.stop_if_asked()

    def checkpoint(self, here: dict) -> None:
        """Save where the run stands."""
        self._run.checkpoint(here | {"subjects": self._centers}, self._trainer)

    def after_cycle(self, cycle: int, rate: float, loss: float) -> None:
        """Save the model of a cycle that was trained with a learning rate; ``loss`` is the mean of its steps."""
        known = self._trainer.known(sum(self._centers.values(), []))
        self._run.save(self._model, cycle, self._settings.batch_size, known)
        self._run.note_cycle(cycle)
        self._run.log.info("cycle %d: learning rate %.3g, mean loss %.4f", cycle, rate, loss)
