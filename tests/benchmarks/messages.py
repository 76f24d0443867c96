"""What goes between the server and a center: bytes of every message, as FLARE serializes it.

Measured on the messages themselves, with a network of the published width, at 4 mm and at full size, and no training.

Example:
    python tests/benchmarks/messages.py
"""

import hashlib

import numpy as np
import pandas as pd
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import fobs_initialize

from travelling.beyond.screen.looks import LOOKS, Mirrored
from travelling.network import backend
from travelling_quality_control.federated.center import PSEUDONYM_LETTERS
from travelling_quality_control.federated.step import CenterModel, export_network
from travelling_quality_control.federated.trainer import numbers_of_looks
from travelling_quality_control.federated.wire import digest, installed, pack

SIZES = {"4 mm": (40, 48, 40), "full size": (160, 192, 160)}  # z, y, x
CENTERS, IMAGES = 83, 17  # of the paper's cohort: 1,410 images


def main() -> None:
    """Print the table."""
    fobs_initialize()
    backend.start(seed=0)
    subjects = [hashlib.sha256(bytes([number])).hexdigest()[:PSEUDONYM_LETTERS] for number in range(IMAGES)]
    columns = {}
    for name, shape in SIZES.items():
        model = CenterModel.build(shape, 1.0, 0.0)
        preparation = {"filters": model.filters, "space": {"shape": list(shape), "affine": np.eye(4).tolist()}}
        network, half_step = export_network(model), model.half_step()
        about = {"digest": digest(network), "subjects": subjects[:5], **preparation}
        weights = {name: np.ones(look.numbers) for name, look in LOOKS.items() if look.yardstick is Mirrored}
        about_looks = about | {"subjects": subjects, "weights": list(weights), "labels": None}
        asked = size([*weights.values()], about_looks)
        with_network = size([*weights.values(), *network], about_looks)
        seen = [size(*answer(number, weights)) for number in (0, IMAGES)]
        first_cycle = CENTERS * (asked + seen[1])
        checksums = {subject: digest([np.zeros(1)]) for subject in subjects}
        columns[name] = {
            "subjects, answer": size([], {"subjects": subjects, "installed": installed()}),
            "prepare, answer": size([], {"means": [0.1, 0.2, 0.3], "checksums": checksums}),
            "train, question": size(network, about),
            "train, answer": size(half_step, {"loss": 0.5, "digest": digest(half_step)}),
            "look, question": asked,
            "look, question of labels, too": with_network,
            "look, answer for no image": seen[0],
            "look, answer for each image": (seen[1] - seen[0]) // IMAGES,
            f"looks at {CENTERS} centers": first_cycle,
        }
    print(pd.DataFrame(columns).map("{:,}".format).to_string())


def answer(images: int, weights: dict) -> tuple:
    """A center's answer to a look at so many images: (arrays, meta)."""
    rows = np.random.default_rng(0).random((images, sum(numbers_of_looks(weights, labels=False).values())))
    return [rows], {"digest": digest([rows])}


def size(arrays: list[np.ndarray], meta: dict) -> int:
    """Bytes of a message."""
    return len(fobs.dumps(FLModelUtils.to_shareable(FLModel(params=pack(arrays), meta=meta))))


if __name__ == "__main__":
    main()
