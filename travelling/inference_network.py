"""The network as evaluation needs it: no dropout, and every BatchNorm folded into its convolution.

At inference, BatchNorm is a fixed scaling of the convolution's output channels by the moving statistics. With
``s = gamma / sqrt(variance + epsilon)`` it vanishes into ``kernel * s`` and ``(bias - mean) * s + beta``, which spares
two passes over the largest arrays of the network. Verification, which is almost all of the work of
quality control, runs on this network.
"""

from itertools import pairwise

import keras
from keras import layers, ops


def prediction_function(encoder, classifier):
    """A pure function of the travelling weights: (variables, f) with f(values, images) -> probabilities.

    ``values`` are those of ``variables``, in this order; images (batch, z, y, x, 1) give (batch, 1).
    """
    variables = [*encoder.variables, *classifier.variables]
    position = {id(variable): index for index, variable in enumerate(variables)}
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
        def value(variable):
            return values[position[id(variable)]]

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
