"""The trainer for the case that all images are on this machine, with a test set that is evaluated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from travelling.images.plain_trainer import PlainTrainer
from travelling.method.metrics import Evaluation, evaluate

if TYPE_CHECKING:
    import pandas as pd

    from travelling.images.volumes import Volumes
    from travelling.network.inference_network import EvaluatedModel


def images_at_once(shape: tuple[int, ...]) -> int:
    """How many test images of ``shape`` (voxels) are evaluated at a time.

    Some 2 million voxels at once keep a GPU busy; more only takes memory.
    """
    return max(1, 2**21 // math.prod(shape))


class LocalTrainer(PlainTrainer):
    """A :class:`travelling.method.trainer.Trainer`: it can evaluate, undo, and look at single images."""

    _model: EvaluatedModel

    def __init__(
        self,
        model: EvaluatedModel,
        volumes: Volumes,
        training_set: pd.DataFrame | None = None,
        test_set: pd.DataFrame | None = None,
    ):
        super().__init__(model, volumes, training_set)
        self.scanners: dict = {} if training_set is None else dict(training_set.get("Scanner", {}))
        self.test_set: Any = test_set  # None where nothing is evaluated
        self._evaluation_batch = images_at_once(volumes.shape)

    def _sets(self):
        return super()._sets() | {"test": [] if self.test_set is None else list(self.test_set["Subject"])}

    def predict(self) -> list[float]:
        """Probability of PD for every subject of the test set, in its order: a list of floats."""
        return self._per_subject(self.test_set["Subject"], self._model.predict)

    def predict_training(self, subjects: list[str]) -> list[float]:
        """Probability of PD for some subjects of the training set, in their order: a list of floats."""
        # Centers have many sizes: a backend that compiles for each of them would do nothing else.
        return self._per_subject(subjects, lambda images, _: self._model.predict(images, self._evaluation_batch))

    def upright(self, subject: str) -> np.ndarray:
        """The image of a subject, its axes running up, to the front and to the right: (z, y, x)."""
        return self._volumes.upright(self._volumes.batch([subject])[0, ..., 0])

    def _per_subject(self, subjects, function):
        """What a function of (images, largest batch) gives for each subject: a list, in their order."""
        # Batches of nearly one size: where a backend pads the last one, it computes little in vain.
        number = math.ceil(len(subjects) / self._evaluation_batch)
        batches = [list(some) for some in np.array_split(np.array(subjects, dtype=object), number)]
        return [
            value for images in self._volumes.batches(batches) for value in function(images, len(batches[0])).tolist()
        ]

    def evaluate(self) -> Evaluation:
        """Misdiagnoses on the test set: a :class:`travelling.method.metrics.Evaluation`."""
        return evaluate(self.test_set["Group_bin"], self.predict())

    def keep(self) -> list:
        """Everything that travels, to :meth:`restore` later."""
        return self._model.keep()

    def restore(self, kept: list) -> None:
        """Undo every step since :meth:`keep`."""
        self._model.restore(kept)
