"""The network as evaluation needs it: no dropout, and every BatchNorm folded into its convolution where that can be.

At inference, BatchNorm is a fixed scaling of the convolution's output channels by the moving statistics. With
``s = gamma / sqrt(variance + epsilon)`` it vanishes into ``kernel * s`` and ``(bias - mean) * s + beta``, which spares
two passes over the largest arrays of the network. Verification, which is almost all of the work of
quality control, runs on this network.
"""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any

from travelling.network import backend  # first: it prepares Keras

# isort: split
import keras
import numpy as np
from keras import layers, ops

from travelling.network.model import TravellingModel

Tensor = Any  # of the backend
Function = Callable[[list, Tensor], Tensor]  # of the values of variables, and images


class EvaluatedModel(TravellingModel):
    """A travelling model that can tell the diagnoses of a test set."""

    @cached_property
    def _prediction(self):
        """Compiled when first asked for."""
        made = prediction_function(self.encoder, self.classifier)
        return backend.compile_prediction(*made, self.network.input_shape[1:])

    def predict(self, images: np.ndarray, largest_batch: int | None = None) -> np.ndarray:
        """Probability of PD for each of images (batch, z, y, x, 1): float32 of shape (batch,).

        ``largest_batch`` is that of the evaluation that these images are a part of (None: they are all).
        """
        return self._prediction(images, largest_batch)[:, 0]


def prediction_function(encoder: keras.Model, classifier: keras.Model) -> tuple[list, Function]:
    """A pure function of the travelling weights: (variables, f) with f(values, images) -> probabilities.

    ``values`` are those of ``variables``, in this order; images (batch, z, y, x, 1) give (batch, 1).
    """
    variables = [*encoder.variables, *classifier.variables]
    if not (can_fold(encoder) and can_fold(classifier)):
        return variables, _pure(keras.Model(encoder.inputs[0], classifier(encoder.outputs[0])), variables)
    norm_after = {
        layer: follower if isinstance(follower, layers.BatchNormalization) else None
        for layer, follower in pairwise(encoder.layers)
        if isinstance(layer, layers.Conv3D)
    }
    folded = [norm for norm in norm_after.values() if norm]

    images = x = keras.Input(encoder.input_shape[1:])
    for layer in [*encoder.layers[1:], *classifier.layers[1:]]:  # a chain, each after its input layer
        if layer not in folded and not isinstance(layer, layers.Dropout):
            x = layer.__class__.from_config(layer.get_config())(x)
    network = keras.Model(images, x)

    def predict(values, images):
        value = _lookup(variables, values)
        weights = []
        for layer in [*encoder.layers, *classifier.layers]:
            norm = norm_after.get(layer)
            if norm:
                scale = value(norm.gamma) / ops.sqrt(value(norm.moving_variance) + norm.epsilon)
                weights.append(value(layer.kernel) * scale)
                weights.append((value(layer.bias) - value(norm.moving_mean)) * scale + value(norm.beta))
            elif layer not in folded:
                weights.extend(value(weight) for weight in layer.trainable_weights)
        return network.stateless_call(weights, [], images, training=False)[0]

    return variables, predict


def can_fold(part: keras.Model) -> bool:
    """Whether each layer takes what the one before it gives, and each BatchNorm follows a convolution that can take it.

    So it is in the published network; another one need not be so, and is evaluated as it stands.
    """
    return all(
        follower.input is layer.output
        and (not isinstance(follower, layers.BatchNormalization) or _fold(layer, follower))
        for layer, follower in pairwise(part.layers)
    )


def _fold(layer, norm):
    """Whether a layer and the BatchNorm after it are as the folding supposes."""
    if not isinstance(layer, layers.Conv3D):
        return False
    return layer.use_bias and layer.activation is keras.activations.linear and norm.scale and norm.center


def _lookup(variables, values):
    """A function that gives the value of one of some variables."""
    found = {id(variable): value for variable, value in zip(variables, values, strict=True)}
    return lambda variable: found[id(variable)]


def _pure(network, variables):
    """What a network gives at inference, as a function of the values of ``variables``, in this order, and images."""

    def call(values, images):
        value = _lookup(variables, values)
        states = [list(map(value, kind)) for kind in (network.trainable_variables, network.non_trainable_variables)]
        return network.stateless_call(*states, images, training=False)[0]

    return call
