"""What a run without quality control keeps on disk, wherever its trainer trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from travelling.console import progress_bar
from travelling.method.trainer import PlainTrainer
from travelling.runs import stopping
from travelling.runs.options import FromScratch
from travelling.runs.run import Run

if TYPE_CHECKING:
    from travelling.network.model import TravellingModel
    from travelling.runs.pretrained_options import DirtyBaseline


class PlainRun:
    """Keeps on disk what :func:`travelling.method.travel.travel` makes: checkpoints, and the model of every cycle.

    ``run`` has begun, and ``resumed_at`` is what its :meth:`travelling.runs.run.Run.go_on` gave; ``model`` is the
    trainer's, ``cycles`` are all of the run.
    """

    def __init__(
        self,
        settings: FromScratch | DirtyBaseline,
        run: Run,
        model: TravellingModel,
        trainer: PlainTrainer,
        centers: dict[str, list[str]],
        cycles: Sequence[int],
        resumed_at: dict | None,
    ):
        self._settings = settings
        self._run = run
        self._model = model
        self._trainer = trainer
        self._centers = centers
        self._last = cycles[-1]
        images = settings.epochs * sum(map(len, centers.values()))  # of a cycle
        here = resumed_at or {"cycle": cycles[0], "centers_left": len(centers), "losses": []}
        with run.taking_over():
            _ = here["losses"]  # with which travel() goes on
        done = here["cycle"] - cycles[0] + 1 - here["centers_left"] / len(centers)  # cycles, of earlier sessions
        self._bar = progress_bar(total=len(cycles) * images, initial=round(done * images), unit="image")
        stopping.at_end.append(self._bar.close)

    def trained(self, cycle: int, center: str, subjects: list[str], loss: float) -> None:
        """As :meth:`travelling.method.travel.PlainFiles.trained`."""
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
        if cycle == self._last:  # the last line on the terminal says what came of it
            self._bar.close()
        self._run.log.info("cycle %d: learning rate %.3g, mean loss %.4f", cycle, rate, loss)
