"""The table of a GPU in tests/benchmarks/RESULTS.md, with one command, by the backend that is set (KERAS_BACKEND).

Speed at full size in float32 and in bfloat16, what batch fits, and whether --deterministic gives equal bits. Every
column is measured in processes of its own, since a backend takes its settings once. On a CPU it runs, too, which shows
that it works (--size 40 48 40), but what batch fits is left out there: the system would end whoever asks for too much.

Example:
    KERAS_BACKEND=jax python tests/benchmarks/gpu.py
"""

import hashlib
import math
import multiprocessing
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from bench import PAPER_TEST_SET, fastest_product, flop, in_turns

from travelling.runs import command

BATCH = 5  # images of a training step, as published
LARGEST = 256  # images: batches are doubled until one does not fit, or up to this


def parse_arguments() -> Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("--size", type=count, nargs=3, default=[160, 192, 160], metavar="VOXELS", help="x, y, z")
    parser.add_argument("--width", type=command.number(float, 0.01, 8), default=1.0, metavar="FACTOR", help="filters")
    parser.add_argument("--volumes", type=count, default=40, metavar="N", help="test volumes")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="turns; the median counts")
    parser.add_argument("--steps", type=count, default=10, metavar="N", help="training steps of a --deterministic run")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the table as Markdown."""
    arguments = parse_arguments()
    columns = {}
    for precision in ("float32", "bfloat16"):
        print(f"measuring {precision} ...", file=sys.stderr, flush=True)
        column = columns[precision] = apart(speed, arguments, precision)
        if not column.setdefault("device", "n/a").startswith("CPU"):
            column |= apart(largest_batch, arguments, precision)
        runs = [apart(deterministic_run, arguments, precision) for _ in range(2)]
        first, second = (run.pop("state", None) for run in runs)
        same = "equal bits" if first == second else "different bits"
        column |= runs[0] | {"two runs with `--deterministic`": same if first and second else "failed"}
    print("\n| | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        values = [column.get(name, "") for column in columns.values()]
        print(f"| {name} | " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values) + " |")


def apart(function, arguments, precision):
    """The rows that a function returns in a process of its own, or one that says how it failed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, arguments, precision).result()
        except Exception as error:  # whatever the backend raises, the other rows are worth having
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return {f"{function.__name__} failed": reason.replace("|", "/")}


def start(arguments, precision, deterministic=False):
    """The device in words, and a model of the published network with some images and labels."""
    import numpy as np

    from travelling.network import backend
    from travelling.network.inference_network import EvaluatedModel

    device = backend.start(1, deterministic, precision)
    shape = tuple(reversed(arguments.size))  # z, y, x
    images = np.random.default_rng(0).random((BATCH, *shape, 1), np.float32)
    return device, EvaluatedModel.build(shape, arguments.width, 1e-5), images, np.arange(BATCH) % 2


def speed(arguments, precision):
    """The rows about speed, {name: value}."""
    import keras

    from travelling.images.local_trainer import images_at_once
    from travelling.network.backend import BACKEND

    device, model, images, labels = start(arguments, precision)
    at_once = min(images_at_once(images.shape[1:4]), BATCH)
    batches = math.ceil(arguments.volumes / at_once)
    volumes = batches * at_once
    in_memory = [images[:at_once]] * batches
    on_card = [keras.ops.convert_to_tensor(images[:at_once])] * batches

    def predict(some):
        for batch in some:
            model.predict(batch, at_once)

    seconds = in_turns(
        {
            "memory": partial(predict, in_memory),
            "card": partial(predict, on_card),
            "step": lambda: model.train(images, labels),
        },
        arguments.rounds,
    )
    per_second = flop(model) * volumes / seconds["card"]
    return {
        "device": device,
        "backend": f"{BACKEND}, Keras {keras.__version__}",
        "volumes at once": at_once,
        "test set in main memory, volumes/s": volumes / seconds["memory"],
        "test set kept on the card, volumes/s": volumes / seconds["card"],
        "TFLOP/s of the convolutions": per_second / 1e12,
        "share of a large matrix product's, measured here, %": 100 * per_second / fastest_product(),
        f"verification of {PAPER_TEST_SET} volumes, s": seconds["memory"] / volumes * PAPER_TEST_SET,
        f"training step of {BATCH}, ms": seconds["step"] * 1e3,
    }


def largest_batch(arguments, precision):
    """The row of the largest power of 2 of images that a training step takes."""
    import numpy as np

    _, model, images, _ = start(arguments, precision)
    number = 1
    while number <= LARGEST:
        try:
            model.train(np.resize(images, (number, *images.shape[1:])), np.arange(number) % 2)
        except Exception:  # whatever the backend raises where memory is short
            break
        number *= 2
    return {"largest batch that trains": f"{number // 2}{' or more' if number > LARGEST else ''}"}


def deterministic_run(arguments, precision):
    """The row of a training step, and ``state``, a digest of the model after some of them."""
    _, model, images, labels = start(arguments, precision, deterministic=True)
    seconds = in_turns({"step": lambda: model.train(images, labels)}, arguments.steps)
    state = hashlib.sha256(b"".join(array.tobytes() for array in model.export_state())).hexdigest()
    return {"state": state, f"training step of {BATCH} with `--deterministic`, ms": 1e3 * seconds["step"]}


if __name__ == "__main__":
    command.run(main)
