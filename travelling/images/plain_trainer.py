"""The trainer of plain training: all images are on this machine, and nothing is evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from travelling.errors import InputError
from travelling.network.model_files import SPACE

if TYPE_CHECKING:
    import pandas as pd

    from travelling.images.volumes import Volumes
    from travelling.network.model import TravellingModel

INTENSITY = "mean_intensity"  # key in a model's record: the median of the images that it has trained on
USUAL_SCALE = 1.5  # times by which that of a set of images may differ from it


class PlainTrainer:
    """A :class:`travelling.method.trainer.PlainTrainer` that brings model and images together."""

    def __init__(self, model: TravellingModel, volumes: Volumes, training_set: pd.DataFrame | None):
        self._model = model
        self._volumes = volumes
        self.labels: dict = {} if training_set is None else training_set["Group_bin"].to_dict()

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

    def known(self, subjects: list[str]) -> dict:
        """What a saved model tells of the images that it has trained on, those of ``subjects``: a dict for its record.

        Where they lie, and the median of their mean intensities.
        """
        return {SPACE: self._volumes.space} | ({INTENSITY: self._usual(subjects)} if subjects else {})

    def _usual(self, subjects):
        return float(np.median([self._volumes.means[subject] for subject in subjects]))

    def other_scale(self, record: dict) -> list[str]:
        """Notices where the intensities of images have another scale than those that a model has trained on.

        ``record`` is that of the model. Where it tells nothing of them, the images of the training set stand for them.
        """
        usual = {name: self._usual(subjects) for name, subjects in self._sets().items() if subjects}
        known = record.get(INTENSITY) or usual.get("training")
        return [
            f"the mean intensity of the {name} images is {mean:.3g}, that of those which the model has trained on "
            f"{known:.3g}: is their scale of intensities another?"
            for name, mean in usual.items()
            if known and not known / USUAL_SCALE <= mean <= known * USUAL_SCALE
        ]

    def _sets(self):
        """The sets of images that there are, by name."""
        return {"training": list(self.labels)}

    def export_state(self) -> list[np.ndarray]:
        """Everything that travels, a list of NumPy arrays: for a checkpoint."""
        return self._model.export_state()

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """Take over everything that travels from :meth:`export_state`."""
        self._model.import_state(arrays)
