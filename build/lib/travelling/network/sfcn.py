"""The network: a simple fully convolutional network (SFCN) for 3-D brain images.

Source: Peng et al., "Accurate brain age prediction with lightweight deep neural networks", Medical Image
Analysis 68 (2021), doi 10.1016/j.media.2020.101871; order of the layers as in Souza et al. 2025.

Keras is imported where the network is built: what it needs of the images is asked long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

FILTERS = (32, 64, 128, 256, 256, 64)  # of the convolutions, in the order of the encoder's layers
# Along every axis: the poolings by 2, rounded up, must leave 2 voxels for the average pooling at the end.
MINIMUM_VOXELS = 2 ** (len(FILTERS) - 1) + 1
DROPOUT = 0.2


def filters(width: float) -> list[int]:
    """Filters of the six convolutions for a width relative to the published network (1.0)."""
    return [max(1, round(number * width)) for number in FILTERS]


def width_of(counts: Sequence[int]) -> float:
    """The width whose :func:`filters` are ``counts``; raises ValueError where there is none."""
    if len(counts) != len(FILTERS):
        raise ValueError(f"{len(counts)} convolutions, should be {len(FILTERS)}")
    most = [(count + 0.5) / number for count, number in zip(counts, FILTERS, strict=True)]
    least = [(count - 0.5) / number for count, number in zip(counts, FILTERS, strict=True) if count > 1]
    width = (max(least, default=0.0) + min(most)) / 2
    if filters(width) != list(counts):
        raise ValueError(f"{counts} filters are those of no width of the network")
    return width


def build_encoder(shape: tuple[int, ...], width: float = 1.0) -> keras.Model:
    """Image (batch, z, y, x, 1) -> features (batch, features); ``shape`` is (z, y, x) in voxels."""
    import keras
    from keras import layers

    *block_filters, last_filters = filters(width)
    images = keras.Input((*shape, 1), name="images")
    x = images
    for block, number in enumerate(block_filters, start=1):
        x = layers.Conv3D(number, 3, padding="same", name=f"conv{block}")(x)
        x = layers.BatchNormalization(name=f"norm{block}")(x)
        x = layers.MaxPooling3D(2, strides=2, padding="same", name=f"maxpool{block}")(x)
        x = layers.ReLU(name=f"relu{block}")(x)
    x = layers.Conv3D(last_filters, 1, padding="same", name="conv6")(x)
    x = layers.BatchNormalization(name="norm6")(x)
    x = layers.ReLU(name="relu6")(x)
    x = layers.AveragePooling3D(2, name="average_pool")(x)
    x = layers.Dropout(DROPOUT, name="dropout")(x)
    x = layers.Flatten(name="features")(x)
    return keras.Model(images, x, name="encoder")


def build_classifier(features: int) -> keras.Model:
    """Features (batch, features) -> probability of PD (batch, 1), in float32 whatever the encoder's precision."""
    import keras
    from keras import layers

    inputs = keras.Input((features,), name="encoded")
    return keras.Model(
        inputs, layers.Dense(1, activation="sigmoid", dtype="float32", name="pd")(inputs), name="classifier"
    )
