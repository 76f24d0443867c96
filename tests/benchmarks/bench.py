"""Benchmarks of quality control: what verification costs, beside the bare network and beside the published way.

Times on one machine differ from minute to minute, so what is compared is measured in turns within one run, and the
ratio is taken of the medians. Example:

    python tests/benchmarks/bench.py --output bench.json

The published way: for every image of every verification, the CSV is read, the NIfTI file is decoded, and a batch of
one is predicted by the encoder and by the classifier.
"""

import csv
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from travelling.option import add_to_parser
from travelling.runs import command, control_options
from travelling.runs.options import Device

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = {"33 x 33 x 33": (33, 33, 33), "40 x 48 x 40": (40, 48, 40), "80 x 96 x 80": (80, 96, 80)}
FULL_SIZE = "160 x 192 x 160"
PAPER_TEST_SET = 407  # volumes
METHOD = control_options.QualityControl(**dict.fromkeys(("en", "pd", "fn_test", "fn_save")), revisit=1)


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures to this file")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="turns; the median counts")
    parser.add_argument("--width", type=command.number(float, 0.01, 8), default=1.0, metavar="FACTOR", help="filters")
    parser.add_argument("--volumes", type=count, default=40, metavar="N", help="test volumes (at full size: a tenth)")
    parser.add_argument("--skip-full-size", action="store_true", help="leave out 160 x 192 x 160")
    parser.add_argument("--skip-cycle", action="store_true", help="leave out the whole cycle on the demo cohort")
    add_to_parser(parser, Device)
    return parser.parse_args()


def main():
    """Measure, and print a table."""
    arguments = parse_arguments()
    from travelling.network import backend

    device = backend.start(1, arguments.deterministic, arguments.precision)
    figures = {"device": device, "processor": processor(), "cores": os.cpu_count(), "backend": backend.BACKEND}
    figures |= {"precision": arguments.precision, "width": arguments.width}
    show("machine", figures)
    sizes = {"40 x 48 x 40": (SIZES["40 x 48 x 40"], arguments.volumes)}
    if not arguments.skip_full_size:
        sizes[FULL_SIZE] = ((160, 192, 160), max(2, arguments.volumes // 10))
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, volumes) in sizes.items():
            figures[name] = verification(Path(folder) / name, size, volumes, arguments)
            show(name, figures[name])
        figures["growth with the test set"] = growth_with_volumes(Path(folder) / "growth", arguments)
        show("growth with the test set", figures["growth with the test set"])
        figures["growth with the voxels"] = growth_with_voxels(Path(folder) / "voxels", arguments)
        show("growth with the voxels", figures["growth with the voxels"])
        figures["2,000 batches"] = long_run(Path(folder) / "long", arguments)
        show("2,000 batches", figures["2,000 batches"])
        if not arguments.skip_cycle:
            figures["cycle on the demo cohort"] = whole_cycle(Path(folder) / "demo", arguments)
            show("cycle on the demo cohort", figures["cycle on the demo cohort"])
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


def make_trainers(csv_path, size, width, decode=True):
    """The two ways to train and verify, on one model: (ours, published)."""
    from travelling.images.cohort import read_cohort
    from travelling.images.local_trainer import LocalTrainer
    from travelling.images.volumes import Volumes
    from travelling.network.model import TravellingModel

    cohort = read_cohort(csv_path)
    volumes = Volumes(None, csv_path.parent / "cache")
    volumes.add(cohort)
    if decode:
        volumes.decode()
    model = TravellingModel.build(size[::-1], width, 1e-5)
    return LocalTrainer(model, volumes, cohort, cohort), published_trainer(model, volumes, csv_path, csv_path)


def published_trainer(model, volumes, training_csv, test_csv):
    """A trainer that reads every image again whenever it is needed, and predicts one at a time."""
    import numpy as np
    import pandas as pd
    import SimpleITK as sitk

    from travelling.images.cohort import read_cohort
    from travelling.images.local_trainer import LocalTrainer

    def read(path, subject):
        table = pd.read_csv(path)
        row = table[table["Subject"] == subject].iloc[0]
        return sitk.GetArrayFromImage(sitk.ReadImage(str(path.parent / row["Path"]))).astype(np.float32), row

    class PublishedTrainer(LocalTrainer):
        def train(self, subjects):
            images, rows = zip(*(read(training_csv, subject) for subject in subjects), strict=True)
            return self._model.train(np.stack(images)[..., None], [row["Group_bin"] for row in rows])

        def predict(self):
            predictions = []
            for subject in self._test_set["Subject"]:
                image, _ = read(test_csv, subject)
                encoded = self._model.encoder.predict_on_batch(image[None, ..., None])
                predictions.append(float(self._model.classifier.predict_on_batch(encoded)[0, 0]))
            return predictions

    return PublishedTrainer(model, volumes, read_cohort(training_csv), read_cohort(test_csv))


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
    """(a) to (f): verification beside the bare network and the published way."""
    import numpy as np

    from travelling.method.quality_control import QualityControl
    from travelling.runs.log_file import LogFile

    csv_path = write_cohort(folder, size, volumes)
    ours, published = make_trainers(csv_path, size, arguments.width)
    batches = np.array_split(np.arange(volumes), -(-volumes // ours._evaluation_batch))
    images = ours._volumes.batch([f"s{number}" for number in batches[0]]).copy()

    control = QualityControl(METHOD, ours, {"c": ["s0"]}, LogFile(folder / "log.csv"))
    control.start(ours.evaluate())
    control.begin_cycle(1, [], np.random.RandomState(1))

    def bare():
        for batch in batches:
            ours._model.predict(images[: len(batch)], len(images))

    def verify():
        kept = ours.keep()
        evaluation = ours.evaluate()
        ours.restore(kept)
        control.note("batch", [["s0"]], 0.5, evaluation, True, {})

    def keep_and_restore():
        for _ in range(10):
            ours.restore(ours.keep())

    subjects = [f"s{number}" for number in range(training_batch(size))]
    seconds = in_turns(
        {
            "bare": bare,
            "verify": verify,
            "published": published.evaluate,
            "step": lambda: ours.train(subjects),
            "keep": keep_and_restore,
        },
        arguments.rounds,
    )
    per_volume = seconds["verify"] / volumes
    speed = flop(ours._model) * volumes / seconds["bare"]
    figures = {
        "test volumes, evaluation batch": f"{volumes}, {len(batches[0])}",
        "(a) bare network, volumes/s": volumes / seconds["bare"],
        "(a) TFLOP/s of its convolutions": speed / 1e12,
        "(a) share of a large matrix product's, measured here, %": 100 * speed / fastest_product(),
        "(b) verification, volumes/s": 1 / per_volume,
        "(c) published way, volumes/s": volumes / seconds["published"],
        "(b)/(a)": seconds["bare"] / seconds["verify"],
        "(b)/(c)": seconds["published"] / seconds["verify"],
        "verification of 407 volumes, s": per_volume * PAPER_TEST_SET,
        f"(d) training step of {len(subjects)}, ms": seconds["step"] * 1e3,
        "(e) keep and restore, ms": seconds["keep"] / 10 * 1e3,
        "(e) share of a verification of 407 volumes, %": seconds["keep"] / 10 / (per_volume * PAPER_TEST_SET) * 100,
    }
    for name, way in (("(b)", 0), ("(c)", 1)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_memory, (csv_path, size, arguments.width, way))
        figures[f"(f) peak memory of {name}, GB"] = peak
    return figures


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


def peak_memory(csv_path, size, width, way):
    """Peak memory (GB) of a process that trains a step and verifies once."""
    os.environ.pop("TF_CPP_MIN_LOG_LEVEL")  # the parent's: backend sets it, and is quiet
    from travelling.network import backend

    backend.start(1)
    trainer = make_trainers(csv_path, size, width, decode=way == 0)[way]
    trainer.train(list(trainer._labels)[: training_batch(size)])
    trainer.evaluate()
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak where that is higher
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1e6


def fit(xs, seconds):
    """Slope and R^2 of a line through the points."""
    import scipy.stats

    line = scipy.stats.linregress(xs, seconds)
    return float(line.slope), float(line.rvalue**2)


def growth_with_volumes(folder, arguments):
    """(g) How verification grows with the number of test volumes."""
    from travelling.images.local_trainer import LocalTrainer

    size = SIZES["40 x 48 x 40"]
    csv_path = write_cohort(folder, size, 40)
    ours, _ = make_trainers(csv_path, size, arguments.width)
    numbers = (10, 50, 100, 200, 400)
    trainers = {}
    for number in numbers:  # images that are in memory anyway, again and again
        cohort = ours._test_set.iloc[[row % 40 for row in range(number)]]
        trainers[number] = LocalTrainer(ours._model, ours._volumes, test_set=cohort)
    seconds = in_turns({number: trainers[number].evaluate for number in numbers}, 3)
    slope, r_squared = fit(numbers, [seconds[number] for number in numbers])
    return {f"{number} volumes, s": seconds[number] for number in numbers} | {
        "ms a volume": slope * 1e3,
        "R^2": r_squared,
    }


def growth_with_voxels(folder, arguments):
    """(g) How verification grows with the number of voxels."""
    sizes = dict(SIZES) if arguments.skip_full_size else {**SIZES, FULL_SIZE: (160, 192, 160)}
    trainers, voxels = {}, {}
    for name, size in sizes.items():
        trainers[name], _ = make_trainers(write_cohort(folder / name, size, 2), size, arguments.width)
        voxels[name] = size[0] * size[1] * size[2]
    seconds = in_turns({name: trainer.evaluate for name, trainer in trainers.items()}, 3)
    slope, r_squared = fit(list(voxels.values()), [seconds[name] / 2 for name in sizes])
    per_volume = {f"{name}, ms a volume": seconds[name] / 2 * 1e3 for name in sizes}
    return per_volume | {"ms a million voxels": slope * 1e9, "R^2": r_squared}


def long_run(folder, arguments):
    """Whether memory or time per batch grow over 2,000 batches of a narrow network."""
    size = SIZES["33 x 33 x 33"]
    ours, _ = make_trainers(write_cohort(folder, size, 7), size, 0.05)
    memory, seconds = [], []
    for batch in range(2000):
        start = time.perf_counter()
        if batch % 4:
            ours.evaluate()
        else:
            kept = ours.keep()
            ours.train([f"s{number}" for number in range(1 + batch // 4 % 5)])
            ours.restore(kept)
        seconds.append(time.perf_counter() - start)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append(pages * resource.getpagesize() / 1e6)
    settled = slice(400, None)
    number = range(2000)[settled]
    return {
        "memory after 400 and 2,000 batches, MB": f"{memory[400]:.0f}, {memory[-1]:.0f}",
        "memory, MB per 1,000 batches": fit(number, memory[settled])[0] * 1000,
        "time of an evaluation, % per 1,000 batches": fit(
            [n for n in number if n % 4], [seconds[n] for n in number if n % 4]
        )[0]
        / statistics.median(seconds[settled])
        * 1e5,
    }


def whole_cycle(folder, arguments):
    """(h) One cycle of quality control on the demo cohort with the demo's network, both ways."""
    import subprocess
    import sys

    from travelling.images.cohort import read_cohort, subjects_by_center
    from travelling.images.local_trainer import LocalTrainer
    from travelling.images.volumes import Volumes
    from travelling.method.quality_control import QualityControl
    from travelling.network import backend
    from travelling.network.model import TravellingModel
    from travelling_quality_control.enc_PD_quality_control import travel

    subprocess.run(
        [sys.executable, ROOT / "reproduce" / "make_demo_cohort.py", "--output-folder", folder, "--shrink", "16"],
        check=True, capture_output=True,
    )  # fmt: skip
    training_csv, test_csv = folder / "training_set.csv", folder / "test_set.csv"
    training_set, test_set = read_cohort(training_csv), read_cohort(test_csv)
    volumes = Volumes(None, folder / "cache")
    volumes.add(test_set)
    volumes.add(training_set)
    volumes.decode()
    logs, seconds = [], []
    for way in ("ours", "published"):
        backend.start(1, arguments.deterministic, arguments.precision)
        model = TravellingModel.build(volumes.shape, 0.125, 1e-5)
        if way == "ours":
            trainer = LocalTrainer(model, volumes, training_set, test_set)
        else:
            trainer = published_trainer(model, volumes, training_csv, test_csv)
        trainer.evaluate()  # compile
        rows = []
        control = QualityControl(METHOD, trainer, subjects_by_center(training_set), rows.append)
        no_files = SimpleNamespace(checkpoint=lambda here: None, after_cycle=lambda cycle: None)
        start = time.perf_counter()
        control.start(trainer.evaluate())
        travel(control, range(1), lambda cycle: 1e-5, no_files)
        seconds.append(time.perf_counter() - start)
        logs.append([(row["Subjects"], row["Ignored"], row["FP"], row["FN"]) for row in rows])
    return {
        "test volumes, verifications": f"{len(test_set)}, {len(logs[0])}",
        "ours, s": seconds[0],
        "published way, s": seconds[1],
        "(h) published way / ours": seconds[1] / seconds[0],
        "rows of the log that differ": sum(a != b for a, b in zip(*logs, strict=False)),
    }


if __name__ == "__main__":
    command.run(main)
