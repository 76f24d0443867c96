"""Benchmarks of quality control: what verification costs, beside the bare network and beside the published way.

Times on one machine differ from minute to minute, so what is compared is measured in turns within one run, and the
ratio is taken of the medians. Examples:

    python tests/benchmarks/bench.py --output bench.json
    ONEDNN_MAX_CPU_ISA=AVX2 python tests/benchmarks/bench.py    # as a CPU without AVX-512 would

What a training step spends in convolutions is read from ONEDNN_VERBOSE, in a process of its own (TensorFlow on a CPU).
Where PyTorch is installed, the same network takes the same steps there.

The published way: for every image of every verification, the CSV is read, the NIfTI file is decoded, and a batch of
one is predicted by the encoder and by the classifier.
"""

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from travelling.option import add_to_parser
from travelling.runs import command
from travelling.runs.options import Device

PAPER_TEST_SET = 407  # volumes


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures to this file")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="turns; the median counts")
    parser.add_argument("--width", type=command.number(float, 0.01, 8), default=1.0, metavar="FACTOR", help="filters")
    parser.add_argument("--volumes", type=count, default=40, metavar="N", help="test volumes (at full size: a tenth)")
    parser.add_argument("--skip-full-size", action="store_true", help="leave out 160 x 192 x 160")
    parser.add_argument("--steps-alone", type=count, nargs=3, metavar="VOXELS", help=argparse.SUPPRESS)
    add_to_parser(parser, Device)
    return parser.parse_args()


def main():
    """Measure, and print a table."""
    arguments = parse_arguments()
    from travelling.network import backend

    if arguments.steps_alone:
        return steps_alone(arguments)

    device = backend.start(1, arguments.deterministic, arguments.precision)
    figures = {"device": device, "processor": processor(), "cores": os.cpu_count(), "backend": backend.BACKEND}
    figures |= {"precision": arguments.precision, "width": arguments.width}
    show("machine", figures)
    sizes = {"40 x 48 x 40": ((40, 48, 40), arguments.volumes)}
    if not arguments.skip_full_size:
        sizes["160 x 192 x 160"] = ((160, 192, 160), max(2, arguments.volumes // 10))
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, volumes) in sizes.items():
            figures[name] = verification(Path(folder) / name, size, volumes, arguments)
            show(name, figures[name])
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


def show(title, figures):
    """Print figures as lines of a table."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name:<58}{value:>14.4g}" if isinstance(value, float) else f"  {name:<58}{value!s:>14}", flush=True)


def processor():
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def write_cohort(folder, size, volumes):
    """Random volumes of ``size`` (x, y, z) as float32 NIfTI files, and their CSV; returns its path."""
    import numpy as np
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    with open(folder / "cohort.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Subject", "Study", "Path", "Group_bin", "Sex", "Age"])
        for number in range(volumes):
            # Values as of a normalised 8-bit image: they compress as real ones do.
            array = generator.integers(0, 256, size[::-1]).astype(np.float32) / 255
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"{number}.nii.gz"))
            writer.writerow([f"s{number}", f"c{number % 7}", f"{number}.nii.gz", number % 2, "MF"[number % 3 == 0], 60])
    return folder / "cohort.csv"


def make_trainers(csv_path, size, width):
    """The two ways to train and verify, on one model: ours, and one that reads and predicts image by image."""
    import numpy as np
    import pandas as pd
    import SimpleITK as sitk

    from travelling.images.cohort import read_cohort
    from travelling.images.local_trainer import LocalTrainer
    from travelling.images.volumes import Volumes
    from travelling.network.inference_network import EvaluatedModel

    class PublishedTrainer(LocalTrainer):
        def predict(self):
            predictions = []
            for subject in self.test_set["Subject"]:
                table = pd.read_csv(csv_path)
                name = table[table["Subject"] == subject].iloc[0]["Path"]
                image = sitk.GetArrayFromImage(sitk.ReadImage(str(csv_path.parent / name))).astype(np.float32)
                encoded = model.encoder.predict_on_batch(image[None, ..., None])
                predictions.append(float(model.classifier.predict_on_batch(encoded)[0, 0]))
            return predictions

    cohort = read_cohort(csv_path)
    volumes = Volumes(None, csv_path.parent)
    volumes.add(cohort)
    volumes.decode()
    model = EvaluatedModel.build(size[::-1], width, 1e-5)
    return LocalTrainer(model, volumes, cohort, cohort), PublishedTrainer(model, volumes, cohort, cohort)


def in_turns(functions, rounds):
    """Median seconds of each function, called in turns ``rounds`` times after a first call that is not counted."""
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def verification(folder, size, volumes, arguments):
    """(a) to (e): verification beside the bare network and the published way."""
    import numpy as np

    from travelling.method.protocol import PROTOCOLS

    csv_path = write_cohort(folder, size, volumes)
    ours, published = make_trainers(csv_path, size, arguments.width)
    batches = np.array_split(np.arange(volumes), -(-volumes // ours._evaluation_batch))
    images = ours._volumes.batch([f"s{number}" for number in batches[0]]).copy()

    def bare():
        for batch in batches:
            ours._model.predict(images[: len(batch)], len(images))

    def verify():
        kept = ours.keep()
        PROTOCOLS["corrected"].rates(ours.evaluate())
        ours.restore(kept)

    def keep_and_restore():
        for _ in range(10):
            ours.restore(ours.keep())

    subjects = [f"s{number}" for number in range(min(volumes, training_batch(size)))]
    batch = ours._volumes.batch(subjects).copy()
    others = {"keras": keras_step(batch, arguments.width), "torch": torch_step(batch, arguments.width)}
    seconds = in_turns(
        {
            "bare": bare,
            "verify": verify,
            "published": published.evaluate,
            "step": lambda: ours.train(subjects),
            "keep": keep_and_restore,
            **{name: step for name, step in others.items() if step},
        },
        arguments.rounds,
    )
    per_volume = seconds["verify"] / volumes
    product = fastest_product()
    speed = flop(ours._model) * volumes / seconds["bare"]
    training = 3 * flop(ours._model) * len(subjects) / seconds["step"]  # forward, and backward by weights and by data
    return {
        "test volumes, evaluation batch": f"{volumes}, {len(batches[0])}",
        "(a) bare network, volumes/s": volumes / seconds["bare"],
        "(a) TFLOP/s of its convolutions": speed / 1e12,
        "(a) share of a large matrix product's, measured here, %": 100 * speed / product,
        "(b) verification, volumes/s": 1 / per_volume,
        "(c) published way, volumes/s": volumes / seconds["published"],
        "(b)/(a)": seconds["bare"] / seconds["verify"],
        "(b)/(c)": seconds["published"] / seconds["verify"],
        "verification of 407 volumes, s": per_volume * PAPER_TEST_SET,
        f"(d) training step of {len(subjects)}, ms": seconds["step"] * 1e3,
        "(d) TFLOP/s of its convolutions": training / 1e12,
        "(d) share of the matrix product's, %": 100 * training / product,
        "(d) share of its time in convolutions, %": share_in_convolutions(size, arguments),
        "(d) Keras' own train_on_batch, times (d)": seconds["keras"] / seconds["step"],
        "(d) PyTorch, times (d)": seconds["torch"] / seconds["step"] if "torch" in seconds else "not installed",
        "(e) keep and restore, ms": seconds["keep"] / 10 * 1e3,
        "(e) share of a verification of 407 volumes, %": seconds["keep"] / 10 / (per_volume * PAPER_TEST_SET) * 100,
    }


def steps_alone(arguments):
    """Some training steps on noise, and their seconds in all, for :func:`share_in_convolutions`."""
    import numpy as np

    from travelling.network.model import TravellingModel

    size = tuple(arguments.steps_alone)
    model = TravellingModel.build(size[::-1], arguments.width, 1e-5)
    images = np.random.default_rng(0).uniform(size=(training_batch(size), *size[::-1], 1)).astype(np.float32)
    labels = np.arange(len(images)) % 2
    for begin in (True, False):  # the first steps compile, and are not counted
        if not begin:
            print("begin", flush=True)
        start = time.perf_counter()
        for _ in range(3):
            model.train(images, labels)
    print(f"seconds {time.perf_counter() - start}", flush=True)


def share_in_convolutions(size, arguments):
    """Percent of a training step in oneDNN's convolutions; words where it does not tell."""
    words = [sys.executable, __file__, "--steps-alone", *map(str, size), "--width", str(arguments.width)]
    words += ["--precision", arguments.precision]
    environment = os.environ | {"ONEDNN_VERBOSE": "profile_exec", "TF_NUM_INTEROP_THREADS": "1"}  # one after another
    told = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    _, counted = told.split("begin\n")
    seconds = float(counted.split("seconds ")[1])
    lines = [line.split(",") for line in counted.splitlines() if line.startswith("onednn_verbose")]
    spent = sum(float(cells[-1]) for cells in lines if "convolution" in cells) / 1e3
    return 100 * spent / seconds if spent else "oneDNN tells nothing"


def keras_step(images, width):
    """A training step of the same network by Keras alone."""
    import keras
    import numpy as np

    from travelling.network.backend import JIT_COMPILE
    from travelling.network.sfcn import build_classifier, build_encoder

    encoder = build_encoder(images.shape[1:4], width)
    network = keras.Model(encoder.inputs, build_classifier(encoder.output_shape[1])(encoder.outputs[0]))
    network.compile("adam", "binary_crossentropy", jit_compile=JIT_COMPILE)
    labels = np.arange(len(images))[:, None] % 2
    return lambda: network.train_on_batch(images, labels)


def torch_step(images, width):
    """A training step of the same network in PyTorch, on the CPU in float32; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from travelling.network.sfcn import DROPOUT, filters

    layers, last = [], 1
    *blocks, top = filters(width)
    for number in blocks:
        layers += [torch.nn.Conv3d(last, number, 3, padding="same"), torch.nn.BatchNorm3d(number)]
        layers += [torch.nn.MaxPool3d(2, ceil_mode=True), torch.nn.ReLU()]
        last = number
    layers += [torch.nn.Conv3d(last, top, 1), torch.nn.BatchNorm3d(top), torch.nn.ReLU(), torch.nn.AvgPool3d(2)]
    layers += [torch.nn.Dropout(DROPOUT), torch.nn.Flatten(), torch.nn.LazyLinear(1)]
    network = torch.nn.Sequential(*layers)
    volumes = torch.from_numpy(images).permute(0, 4, 1, 2, 3)  # whose layout in memory is channels last
    labels = torch.arange(len(images)).reshape(-1, 1) % 2
    network(volumes)
    network.to(memory_format=torch.channels_last_3d)
    adam, loss = torch.optim.Adam(network.parameters()), torch.nn.BCEWithLogitsLoss()

    def step():
        adam.zero_grad()
        loss(network(volumes), labels.float()).backward()
        adam.step()

    return step


def flop(model):
    """Floating-point operations of the encoder's convolutions for one volume."""
    import keras

    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, keras.layers.Conv3D)]
    return sum(2 * math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in convolutions)


def fastest_product():
    """Operations per second of a product of two large matrices, in the precision of the run."""
    import keras

    number = 4096
    matrix = keras.ops.ones((number, number), keras.config.dtype_policy().compute_dtype) / number
    best, products = math.inf, 1
    while True:
        for _ in range(4):
            begun, product = time.perf_counter(), matrix
            for _ in range(products):
                product = keras.ops.matmul(product, matrix)
            keras.ops.convert_to_numpy(product[:1, :1])
            seconds = time.perf_counter() - begun
            best = min(best, seconds / products)
        if seconds > 0.1:  # of less, asking and fetching would be a part
            return 2 * number**3 / best
        products *= 8


def training_batch(size):
    """Images of a training step that fit into the memory of a small machine: at full size five would take 18 GB."""
    return 5 if size[0] * size[1] * size[2] < 1e6 else 1


if __name__ == "__main__":
    command.run(main)
