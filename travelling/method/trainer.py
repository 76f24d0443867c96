"""What a trainer is, and where a run is kept."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from travelling.method.metrics import Evaluation


class Trainer(Protocol):
    """What the travel loops ask of a trainer; they speak of subjects only, and never see an image or a weight.

    :class:`travelling.images.local_trainer.LocalTrainer` says of each what it is.
    """

    learning_rate: float

    def train_batches(self, batches: list[list[str]]) -> float:
        """As :meth:`LocalTrainer.train_batches`; raises VisitFailed where the center does not make the steps."""

    def expect(self, subjects: list[str]) -> None:
        """As :meth:`LocalTrainer.expect`."""

    def evaluate(self) -> Evaluation:
        """As :meth:`LocalTrainer.evaluate`."""

    def known(self, subjects: list[str]) -> dict:
        """As :meth:`LocalTrainer.known`."""

    def keep(self) -> Any:
        """As :meth:`LocalTrainer.keep`."""

    def restore(self, kept: Any) -> None:
        """As :meth:`LocalTrainer.restore`."""

    def export_state(self) -> list[np.ndarray]:
        """As :meth:`LocalTrainer.export_state`."""

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """As :meth:`LocalTrainer.import_state`."""


class Files(Protocol):
    """Where a run is kept."""

    def checkpoint(self, place: dict) -> None:
        """Save where the run stands."""

    def after_cycle(self, cycle: int) -> None:
        """Save what a cycle has made."""
