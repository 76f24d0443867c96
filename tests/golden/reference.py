"""Quality control as the published code decides it, on the Keras that it used: how log.csv came about.

Written from the description of the method alone, sharing no line with this project, and much slower. README.md, beside
this file, says what it was checked with, and how it is run.
"""

import argparse
import collections
import csv
import inspect
import math
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
inspect.ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")  # gone from Python 3.11

import keras
import numpy as np
import pandas as pd
import SimpleITK as sitk
import tensorflow as tf
from keras import layers

parser = argparse.ArgumentParser()
for name in ("train", "test", "start", "save", "log"):
    parser.add_argument(f"--{name}", type=Path)
for name, kind, default in (
    ("first-cycle", int, 0), ("cycles", int, None), ("epochs", int, 1), ("revisit", int, None), ("error", float, None),
    ("rate", float, None), ("width", float, None), ("saved-rate", float, None),
):  # fmt: skip
    parser.add_argument(f"--{name}", type=kind, default=default)
options = parser.parse_args()
assert keras.__version__ == "2.10.0"
tf.keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()


def read(path):
    table = pd.read_csv(path, dtype={"Subject": str, "Study": str})
    table["image"] = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(path.parent / file))).astype("float32")[..., None]
        for file in table["Path"]
    ]
    return table


train = read(options.train)
image, label, study = (dict(zip(train["Subject"], train[column])) for column in ("image", "Group_bin", "Study"))


def build(shape, width):
    """The published layers, with dropout 0: so that no random number decides."""
    x = images = keras.Input(shape, name="images")
    for block, filters in enumerate((32, 64, 128, 256, 256), start=1):
        x = layers.Conv3D(round(filters * width), 3, padding="same", name=f"conv{block}")(x)
        x = layers.BatchNormalization(name=f"norm{block}")(x)
        x = layers.MaxPooling3D(2, strides=2, padding="same", name=f"maxpool{block}")(x)
        x = layers.ReLU(name=f"relu{block}")(x)
    x = layers.Conv3D(round(64 * width), 1, padding="same", name="conv6")(x)
    x = layers.BatchNormalization(name="norm6")(x)
    x = layers.ReLU(name="relu6")(x)
    x = layers.AveragePooling3D(2, name="average_pool")(x)
    x = layers.Flatten(name="features")(layers.Dropout(0, name="dropout")(x))
    encoder = keras.Model(images, x, name="encoder")
    encoded = keras.Input(encoder.output_shape[1:], name="encoded")
    return encoder, keras.Model(encoded, layers.Dense(1, activation="sigmoid", name="pd")(encoded), name="classifier")


names = ("encoder", "classifier_PD")
if options.start:
    parts = [keras.models.load_model(options.start.with_name(f"{name}_{options.start.name}.h5")) for name in names]
else:
    parts = build(image[train["Subject"].iloc[0]].shape, options.width)
    for part in parts:
        part.compile(keras.optimizers.Adam(options.rate))
encoder, classifier = parts
for part in parts:
    part.optimizer._create_all_weights(part.trainable_variables)
state = [variable for part in parts for variable in (*part.variables, *part.optimizer.variables())]
loss_of = keras.losses.BinaryCrossentropy()


@tf.function(input_signature=[tf.TensorSpec([None, *encoder.input_shape[1:]]), tf.TensorSpec([None, 1])])
def step(images, labels):
    with tf.GradientTape() as tape:
        loss = loss_of(labels, classifier(encoder(images, training=True), training=True))
    gradients = tape.gradient(loss, [part.trainable_variables for part in parts])
    for part, own in zip(parts, gradients):
        part.optimizer.apply_gradients(zip(own, part.trainable_variables))


@tf.function(input_signature=[tf.TensorSpec([1, *encoder.input_shape[1:]])])
def predict(images):
    return classifier(encoder(images, training=False), training=False)


def train_on(subjects):
    step(
        np.stack([image[subject] for subject in subjects]),
        np.array([[label[subject]] for subject in subjects], "float32"),
    )


def batches(subjects, generator):
    subjects = np.array(subjects, dtype=object)
    generator.shuffle(subjects)
    size = min(5, len(subjects))
    return [list(subjects[at : at + size]) for at in range(0, len(subjects) - size + 1, size)] if size else []


def evaluate():
    """Accuracy, FP, FN, and the two published rates."""
    truth = test["Group_bin"].to_numpy()
    called = np.array([float(predict(volume[None])) >= 0.5 for volume in test["image"]])
    positives, negatives = int((called & (truth == 0)).sum()), int((~called & (truth == 1)).sum())
    patients = int(truth.sum())
    accuracy = (len(truth) - positives - negatives) / len(truth)
    return accuracy, positives, negatives, positives / patients, negatives / (len(truth) - patients)


def verify(cycle, name, subjects):
    global reference
    kept = [variable.numpy() for variable in state]
    train_on(subjects)
    found = evaluate()
    tolerance = len(subjects) * options.error
    harmful = found[3] > reference[0] + tolerance or found[4] > reference[1] + tolerance
    log.writerow([cycle, name, study[subjects[0]], *found, int(harmful)])
    if harmful:
        for variable, value in zip(state, kept):
            variable.assign(value)
    else:
        reference = found[3:]
    return harmful


def set_rate(rate):
    for part in parts:
        part.optimizer.learning_rate = rate


control = options.log is not None
seed = 42 if options.start else 40
waiting, eliminated = {}, set()
if control:
    test = read(options.test)
    log = csv.writer(open(options.log, "w", newline=""), lineterminator="\n")
    log.writerow(["Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored"])
    baseline = evaluate()
    reference = baseline[3:]
    log.writerow([0, "n/a", "n/a", *baseline, 0])
centers = np.array(list(dict.fromkeys(train["Study"])), dtype=object)
np.random.RandomState(seed).shuffle(centers)
for cycle in range(options.first_cycle, options.cycles):
    generator = np.random.RandomState(seed + cycle)
    generator.shuffle(centers)
    for center in centers:
        there = [name for name in train["Subject"] if study[name] == center]
        there = [name for name in there if name not in {*waiting, *eliminated}]
        for batch in [batch for _ in range(options.epochs) for batch in batches(there, generator)]:
            if not control:
                train_on(batch)
            elif verify(cycle, "batch", batch):
                waiting.update({name: cycle for name in batch if verify(cycle, name, [name])})
    for name in [name for name, flagged in waiting.items() if flagged + options.revisit == cycle]:
        del waiting[name]
        if verify(cycle, name, [name]):
            eliminated.add(name)
    set_rate(options.rate * math.exp(-0.1 * (cycle + 1 - options.first_cycle)))
if options.saved_rate:
    set_rate(options.saved_rate)
if options.save:
    for name, part in zip(names, parts):
        part.save(options.save.with_name(f"{name}_{options.save.name}.h5"))
