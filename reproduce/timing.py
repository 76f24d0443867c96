"""How long a study will take: one training step, one evaluation and one image are timed, the rest is multiplication.

Everything is counted in units: training an image, evaluating one (``predict``), reading one from its file, and making
one (``make``, for the demo, or ``harm``). It is an estimate: other work on the machine, larger batches on a slower
disk or many steps undone make it longer.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from travelling.errors import InputError

QUICK = 1.0  # seconds: what takes less is timed several times
SHARE_TRIED_ALONE = 0.1  # verifications of single images, as a share of those of batches


def measure(
    shape: tuple, batch_size: int, width: float, precision: str, deterministic: bool, image: Path | None, spacing: float
) -> dict:
    """Seconds per unit on this machine, ``start``, those until a script has built its network, and the ``device``.

    ``shape`` is that of the images (z, y, x); ``image`` is one of them, or None where they are yet to be made, with
    ``spacing`` mm. Raises InputError where a training step fails, as it does where memory is short.
    """
    import numpy as np

    from travelling import backend
    from travelling.local_trainer import images_at_once
    from travelling.model import TravellingModel

    seconds = {"device": backend.start(0, deterministic, precision), **_seconds_of_files(image, spacing)}
    begun = time.monotonic()
    try:
        model = TravellingModel.build(shape, width, 1e-4)
        images, labels = np.zeros((batch_size, *shape, 1), np.float32), np.zeros(batch_size)
        many = np.zeros((images_at_once(shape), *shape, 1), np.float32)
        model.train(images[:1], labels[:1])
        model.predict(many)
        seconds["start"] = time.monotonic() - begun
        seconds["train"] = _time(lambda: model.train(images[:1], labels[:1]))
        if seconds["train"] < QUICK:
            seconds["train"] = _time(lambda: model.train(images, labels), warm=True) / batch_size
        seconds["predict"] = _time(lambda: model.predict(many)) / len(many)
    except Exception as error:  # whatever the backend raises, the study would meet it, too
        raise InputError(f"training fails on this machine: {str(error).splitlines()[0]}") from None
    return seconds


def _seconds_of_files(image, spacing):
    """Seconds to read an image and to make one, with all cores at work."""
    import pandas as pd
    from make_demo_cohort import CENTERS_FILE, plan_cohort, write_subject

    from travelling.nifti import read_voxels

    with tempfile.TemporaryDirectory() as folder:
        make = 0.0
        if image is None:
            (Path(folder) / "images").mkdir()
            row = plan_cohort(pd.read_csv(CENTERS_FILE), 1)[0][0]
            make = _time(lambda: write_subject(row, Path(folder), spacing, effect=1.0, seed=0), warm=True)
            (image,) = (Path(folder) / "images").iterdir()
        read = _time(lambda: read_voxels(image))
    cores = os.cpu_count() or 1
    # A harmful image is read twice, and written, which takes about as long as reading it thrice.
    return {"read": read / cores, "make": make / min(cores, 8), "harm": 5 * read}


def _time(function: Callable, warm: bool = False) -> float:
    """Seconds that a call takes: the median of five, or of one where it is slow; ``warm``: after one that may be."""
    if warm:
        function()
    seconds: list[float] = []
    while len(seconds) < 5 and sum(seconds) < QUICK:
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def training_work(centers: list, cycles: int) -> dict:
    """The work of training in ``cycles`` at ``centers``, of which each is its number of images."""
    return {"start": 1, "read": sum(centers), "train": sum(centers) * cycles}


def inference_work(tested: int, cycles: int) -> dict:
    """The work of evaluating the models of ``cycles`` on ``tested`` subjects."""
    return {"start": 1, "read": tested, "predict": tested * cycles}


def control_work(centers: list, batch_size: int, tested: int, cycles: int) -> dict:
    """The work of quality control: as in training, and an evaluation for every batch, and some for single images."""
    images, batches = sum(centers), sum(-(-center // batch_size) for center in centers)
    tries = (1 + SHARE_TRIED_ALONE) * cycles
    return {"start": 1, "read": images + tested, "train": tries * images, "predict": tested * (tries * batches + 1)}


def estimate(steps: list, seconds: dict) -> dict:
    """Estimated seconds of every step, by its name."""
    return {step.name: sum(seconds[unit] * number for unit, number in step.work.items()) for step in steps}
