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

from travelling.beyond.screen.looks import LOOKS
from travelling.network import backend
from travelling_quality_control.federated.center import PSEUDONYM_LETTERS
from travelling_quality_control.federated.step import CenterModel, export_network
from travelling_quality_control.federated.wire import digest, installed, pack

SIZES = {"4 mm": (40, 48, 40), "full size": (160, 192, 160)}  # z, y, x
IMAGES = 17  # of a center: 1,410 of the paper's cohort at 83


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
        image = np.random.default_rng(0).random(shape, np.float32)
        looks = {look: np.asarray(one.measure(image), float).tolist() for look, one in LOOKS.items() if one.measure}
        looks["channels"] = [0.5] * (2 * sum(model.channels))
        checksums = {subject: digest([np.zeros(1)]) for subject in subjects}
        columns[name] = {
            "subjects, answer": size([], {"subjects": subjects, "installed": installed()}),
            "prepare, answer": size([], {"means": [0.1, 0.2, 0.3], "checksums": checksums}),
            "train, question": size(network, about),
            "train, answer": size(half_step, {"loss": 0.5, "digest": digest(half_step)}),
            "look, answer for each image": size([], {"looks": {look: [row] for look, row in looks.items()}}),
        }
    print(pd.DataFrame(columns).map("{:,}".format).to_string())


def size(arrays: list[np.ndarray], meta: dict) -> int:
    """Bytes of a message."""
    return len(fobs.dumps(FLModelUtils.to_shareable(FLModel(params=pack(arrays), meta=meta))))


if __name__ == "__main__":
    main()
