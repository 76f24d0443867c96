"""The travelling model: encoder, classifier and Adam, and all of their state that travels.

What travels is listed once, in :attr:`TravellingModel.state`: the weights, the moving statistics of
BatchNorm, Adam's moments and step count, the learning rate and the seed of the dropout. Train, keep,
restore and save use that list; :mod:`travelling.network.saved_model` reads what was saved.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Self

from travelling.errors import name_file
from travelling.network import backend  # first: it prepares Keras

# isort: split
import keras
import numpy as np
from numpy.typing import ArrayLike

from travelling.network.model_files import MODEL_SHA256, RANDOM_STATE, RECORD
from travelling.network.sfcn import build_classifier, build_encoder


class TravellingModel:
    """One network that is built and compiled once and then only changes its state."""

    def __init__(self, encoder: keras.Model, classifier: keras.Model, learning_rate: float):
        self.encoder = encoder
        self.classifier = classifier
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                backend.train_like_keras_2(layer)
        self.network = keras.Model(encoder.inputs, classifier(encoder.outputs[0]), name="travelling_model")
        self.network.compile(
            optimizer=self.optimizer(learning_rate),
            loss=keras.losses.BinaryCrossentropy(),
            jit_compile=backend.JIT_COMPILE,
        )
        self.network.optimizer.build(self.network.trainable_variables)
        self._training_step = backend.compile_training_step(self.network)
        self._keep, self._restore = backend.compile_keep_and_restore(self.state)

    @staticmethod
    def optimizer(learning_rate: float) -> keras.optimizers.Optimizer:
        """Adam, as published."""
        return keras.optimizers.Adam(learning_rate, name="adam")

    @property
    def state(self) -> list:
        """Everything that travels, a list of Keras variables."""
        return [*self.network.variables, *self.network.optimizer.variables]

    @property
    def filters(self) -> list[int]:
        """Filters of the encoder's convolutions, a list: with the shape of the images, all that defines the network."""
        return [layer.filters for layer in self.encoder.layers if isinstance(layer, keras.layers.Conv3D)]

    @property
    def random_state(self) -> list:
        """The variables of the dropout's generator: all that are not weights."""
        weights = {id(weight) for weight in self.network.weights}
        return [variable for variable in self.network.variables if id(variable) not in weights]

    @property
    def adam(self) -> keras.optimizers.Adam:
        """Adam itself: in float16, Keras wraps it in an optimizer that scales the loss."""
        return getattr(self.network.optimizer, "inner_optimizer", self.network.optimizer)

    @property
    def learning_rate(self) -> float:
        """Adam's current learning rate."""
        return float(self.adam.learning_rate)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.adam.learning_rate = rate

    def train(self, images: np.ndarray, labels: ArrayLike) -> float:
        """One step on one batch: images (batch, z, y, x, 1) float32, labels (batch,) 0 or 1. Returns the loss.

        Raises FloatingPointError where not all values of the state are finite any more.
        """
        loss, finite = self._training_step(images, np.asarray(labels, np.float32)[:, None])
        if not finite:
            raise FloatingPointError("not all that travels is finite any more")
        return loss

    def keep(self) -> list:
        """A copy of everything that travels, on the device."""
        return self._keep()

    def restore(self, kept: list) -> None:
        """Make everything that travels what it was at :meth:`keep`."""
        self._restore(kept)

    def export_state(self) -> list[np.ndarray]:
        """Everything that travels, as NumPy arrays: for a checkpoint."""
        return [keras.ops.convert_to_numpy(value) for value in self.keep()]

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """Take over what :meth:`export_state` gave."""
        for variable, array in zip(self.state, arrays, strict=True):
            variable.assign(array)

    def save(self, encoder_path: Path, classifier_path: Path, record: dict) -> None:
        """Write the two halves as ``.keras`` files, each with its part of Adam's state and with ``record``.

        ``record`` is a dict of plain values; ``cycle`` in it is the cycle that the model has just finished. As in the
        published files, its learning rate is that of the next one.
        """
        record = {
            **record,
            MODEL_SHA256: hashlib.sha256(b"".join(array.tobytes() for array in self.export_state())).hexdigest(),
            # Keras does not write the state of its random generators.
            RANDOM_STATE: [keras.ops.convert_to_numpy(seed).tolist() for seed in self.random_state],
        }
        optimizer_variables = self.adam.variables
        start = 2  # after Adam's step count and learning rate come two moments for each weight
        for part, path in ((self.encoder, encoder_path), (self.classifier, classifier_path)):
            adam = keras.optimizers.Adam(name="adam")
            part.compile(optimizer=adam, jit_compile=backend.JIT_COMPILE, auto_scale_loss=False)
            part.optimizer.build(part.trainable_variables)
            own = part.optimizer.variables
            end = start + len(own) - 2
            for target, source in zip(own, [*optimizer_variables[:2], *optimizer_variables[start:end]], strict=True):
                target.assign(source)
            start = end
            with name_file(path):
                part.save(path)
                with zipfile.ZipFile(path, "a") as archive:
                    archive.writestr(RECORD, json.dumps(record))

    @classmethod
    def build(cls, shape: tuple[int, ...], width: float, learning_rate: float) -> Self:
        """A new model for images of ``shape`` (z, y, x) in voxels."""
        encoder = build_encoder(shape, width)
        return cls(encoder, build_classifier(encoder.output_shape[1]), learning_rate)
