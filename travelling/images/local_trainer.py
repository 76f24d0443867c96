"""The trainer for the case that all images are on this machine."""

from __future__ import annotations

import contextlib
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

KNOWN = "distances_of_training_images"  # key in a model's record
DISTANCES = 2  # numbers that it holds
_SAMPLE = 30  # images that stand for a set
_STRANGE = 0.3  # of them: more, and it is not this or that image


def images_at_once(shape: tuple[int, ...]) -> int:
    """How many test images of ``shape`` (voxels) are evaluated at a time.

    Some 2 million voxels at once keep a GPU busy; more only takes memory.
    """
    return max(1, 2**21 // math.prod(shape))


def _some(subjects):
    """A few of the subjects, spread over all of them."""
    return subjects[:: -(-len(subjects) // _SAMPLE)] if subjects else []


class LocalTrainer:
    """A :class:`Trainer` that brings model and images together."""

    def __init__(
        self,
        model: TravellingModel,
        volumes: Volumes,
        training_set: pd.DataFrame | None = None,
        test_set: pd.DataFrame | None = None,
        evaluation_batch: int | None = None,
    ):
        self._model = model
        self._volumes = volumes
        self.labels: dict = {} if training_set is None else training_set["Group_bin"].to_dict()
        self.scanners: dict = {} if training_set is None else dict(training_set.get("Scanner", {}))
        self.test_set: Any = test_set  # None where nothing is evaluated
        self._evaluation_batch = evaluation_batch or images_at_once(volumes.shape)

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

    def seen(self, subjects: list[str]) -> np.ndarray:
        """What the network sees of the subjects' images, see :meth:`travelling.network.model.TravellingModel.look`.

        (subjects, numbers), of which the last is the probability of PD.
        """
        # Centers have many sizes: a backend that compiles for each of them would do nothing else.
        return np.array(self._per_subject(subjects, lambda images, _: self._model.look(images, self._evaluation_batch)))

    def upright(self, subject: str) -> np.ndarray:
        """The image of a subject, its axes running up, to the front and to the right: (z, y, x)."""
        return self._volumes.upright(self._volumes.batch([subject])[0, ..., 0])

    def known(self, subjects: list[str]) -> dict:
        """What a saved model tells of the images that it has trained on, those of ``subjects``: a dict for its record.

        Where they lie, and the largest distances of a few of them, at the first BatchNorm layer, if they can be
        measured: only a notice rests on these.
        """
        about: dict = {SPACE: self._volumes.space}
        with contextlib.suppress(Exception):
            about |= {KNOWN: self._farthest(subjects)} if subjects else {}
        return about

    def _farthest(self, subjects):
        return np.max(self._first_distances(subjects), axis=0).tolist()

    def _first_distances(self, subjects):
        """Mean and spread of a few images beside what the first BatchNorm layer knows; intensities decide them."""
        first = self._model.channels[0]
        means, log_ratios = np.split(self.seen(_some(subjects))[:, : 2 * first], 2, axis=1)
        return np.stack([np.square(means).mean(axis=1), np.abs(log_ratios).mean(axis=1)], axis=1)

    def strange(self, record: dict) -> list[str]:
        """Notices where images lie further from what a model knows than those that it has trained on: a list of lines.

        ``record`` is that of the model. Where it tells nothing of these distances, the images of the training set stand
        for them. A measurement that fails is a notice, too: nothing rests on it.
        """
        try:
            return self._strange(record)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return [f"how far images lie from what the model has learned of could not be measured ({reason})"]

    def _strange(self, record):
        trained = list(self.labels)
        looked_at = {} if self.test_set is None else {"test": list(self.test_set["Subject"])}
        known = record.get(KNOWN) or []
        if len(known) == DISTANCES:
            looked_at |= {"training": trained} if trained else {}
        elif trained and looked_at:
            known = self._farthest(trained)
        else:
            return []
        notices = []
        for name, subjects in looked_at.items():
            beyond = ~(self._first_distances(subjects) <= known).all(axis=1)
            if beyond.sum() > _STRANGE * len(beyond):
                notices.append(
                    f"{beyond.sum()} of {len(beyond)} {name} images that were looked at lie further from what the "
                    "model has learned of than those it has trained on: is their scale of intensities another?"
                )
        return notices

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
