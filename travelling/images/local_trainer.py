"""The trainer for the case that all images are on this machine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from travelling.errors import InputError
from travelling.method.metrics import Evaluation, evaluate
from travelling.network.model_files import SPACE

if TYPE_CHECKING:
    import pandas as pd

    from travelling.images.volumes import Volumes
    from travelling.network.model import TravellingModel

INTENSITY = "mean_intensity"  # key in a model's record: the median of the images that it has trained on
USUAL_SCALE = 1.5  # times by which that of a set of images may differ from it


def images_at_once(shape: tuple[int, ...]) -> int:
    """How many test images of ``shape`` (voxels) are evaluated at a time.

    Some 2 million voxels at once keep a GPU busy; more only takes memory.
    """
    return max(1, 2**21 // math.prod(shape))


class LocalTrainer:
    """A :class:`Trainer` that brings model and images together."""

    def __init__(
        self,
        model: TravellingModel,
        volumes: Volumes,
        training_set: pd.DataFrame | None = None,
        test_set: pd.DataFrame | None = None,
    ):
        self._model = model
        self._volumes = volumes
        self.labels: dict = {} if training_set is None else training_set["Group_bin"].to_dict()
        self.scanners: dict = {} if training_set is None else dict(training_set.get("Scanner", {}))
        self.test_set: Any = test_set  # None where nothing is evaluated
        self._evaluation_batch = images_at_once(volumes.shape)

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate."""
        return self._model.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._model.learning_rate = rate

    def train(self, subjects: list[str]) -> float:
        """One training step on the subjects as one batch, in this order. Returns the loss.

        Raises InputError where it makes the model worthless for good: values that are not finite stay so.
        """
        try:
            return self._model.train(self._volumes.batch(subjects), [self.labels[subject] for subject in subjects])
        except FloatingPointError:
            raise InputError(
                f"after a training step on {', '.join(subjects)} the model holds values that are not finite; look at "
                "their intensities, or lower the learning rate"
            ) from None

    def train_batches(self, batches: list[list[str]]) -> float:
        """:meth:`train` on batches of one center, one after another. Returns the loss of the last."""
        return [self.train(batch) for batch in batches][-1]

    def expect(self, subjects: list[str]) -> None:
        """Training on these subjects comes soon: their images may be fetched meanwhile."""
        self._volumes.expect(subjects)

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

    def known(self, subjects: list[str]) -> dict:
        """What a saved model tells of the images that it has trained on, those of ``subjects``: a dict for its record.

        Where they lie, and the median of their mean intensities.
        """
        return {SPACE: self._volumes.space} | ({INTENSITY: self._usual(subjects)} if subjects else {})

    def _usual(self, subjects):
        return float(np.median([self._volumes.means[subject] for subject in subjects]))

    def strange(self, record: dict) -> list[str]:
        """Notices where the intensities of images have another scale than those that a model has trained on.

        ``record`` is that of the model. Where it tells nothing of them, the images of the training set stand for them.
        """
        sets = {"training": list(self.labels), "test": [] if self.test_set is None else list(self.test_set["Subject"])}
        usual = {name: self._usual(subjects) for name, subjects in sets.items() if subjects}
        known = record.get(INTENSITY) or usual.get("training")
        return [
            f"the mean intensity of the {name} images is {mean:.3g}, that of those which the model has trained on "
            f"{known:.3g}: is their scale of intensities another?"
            for name, mean in usual.items()
            if known and not known / USUAL_SCALE <= mean <= known * USUAL_SCALE
        ]

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

    def export_state(self) -> list[np.ndarray]:
        """Everything that travels, a list of NumPy arrays: for a checkpoint."""
        return self._model.export_state()

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """Take over everything that travels from :meth:`export_state`."""
        self._model.import_state(arrays)
