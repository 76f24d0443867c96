"""A pre-trained model for the toy cohort, in seconds."""

import numpy as np
import pandas as pd
import SimpleITK as sitk

from travelling.network import backend  # before Keras: it sets what the backends read at their import
from travelling.network.inference_network import EvaluatedModel

# isort: split
from keras.layers import BatchNormalization


def pretrain(csv, folder, width=0.1, steps=40, cycle=7):
    """Train on all images of a CSV at once, and save; returns the files of encoder and classifier."""
    backend.start(seed=1)
    table = pd.read_csv(csv)
    images = np.stack([sitk.GetArrayFromImage(sitk.ReadImage(str(csv.parent / path))) for path in table["Path"]])
    labels = table["Group_bin"].to_numpy()
    model = EvaluatedModel.build(images.shape[1:], width, learning_rate=0.003)
    norms = [layer for layer in model.encoder.layers if isinstance(layer, BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.8  # so few steps would hardly move the statistics otherwise
    generator = np.random.default_rng(0)
    for _ in range(steps):
        chosen = generator.choice(len(labels), 8, replace=False)
        model.train(images[chosen, ..., None].astype(np.float32), labels[chosen])
    for norm in norms:
        norm.momentum = 0.99
    paths = [folder / f"{part}_distributed_BS5_{cycle:02d}.keras" for part in ("encoder", "classifier_PD")]
    model.save(*paths, {"cycle": cycle})
    return paths
