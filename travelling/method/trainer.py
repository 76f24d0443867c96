"""What a trainer is, and where a run is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from travelling.method.metrics import Evaluation


class PlainTrainer(Protocol):
    """What plain training asks of a trainer; it speaks of subjects only, and never sees an image or a weight.

    :class:`travelling.images.plain_trainer.PlainTrainer` says of each what it is.
    """

    learning_rate: float

    def train_batches(self, batches: list[list[str]]) -> float:
        """As :meth:`PlainTrainer.train_batches`; raises VisitFailed where the center does not make the steps."""

    def expect(self, subjects: list[str]) -> None:
        """As :meth:`PlainTrainer.expect`."""

    def known(self, subjects: list[str]) -> dict:
        """As :meth:`PlainTrainer.known`."""

    def export_state(self) -> list[np.ndarray]:
        """As :meth:`PlainTrainer.export_state`."""

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """As :meth:`PlainTrainer.import_state`."""


class Trainer(PlainTrainer, Protocol):
    """What quality control asks of one: see :class:`travelling.images.local_trainer.LocalTrainer`."""

    def evaluate(self) -> Evaluation:
        """As :meth:`LocalTrainer.evaluate`."""

    def keep(self) -> Any:
        """As :meth:`LocalTrainer.keep`."""

    def restore(self, kept: Any) -> None:
        """As :meth:`LocalTrainer.restore`."""


class Files(Protocol):
    """Where a run is kept."""

    def checkpoint(self, place: dict) -> None:
        """Save where the run stands."""

    def after_cycle(self, cycle: int) -> None:
        """Save what a cycle has made."""
