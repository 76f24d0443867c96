"""Files of models: their names, and the keys of the record that they carry."""

import re
from pathlib import Path

MODEL_FILE = re.compile(r"(encoder|classifier)_.*_(\d+)\.(keras|h5)")  # ..._<cycle>.<format>
SPACE = "space"  # key in a model's record: where its images lie (travelling.images.volumes.Volumes.space)
RECORD = "travelling.json"  # in a .keras file, beside what Keras writes: what else a model must carry
RANDOM_STATE = "random_state"  # key in a model's record: of the dropout's generator
MODEL_SHA256 = "model_sha256"  # key: of all that travels; the same in two halves that belong together


def model_files(folder: Path, batch_size: int, cycle: int) -> list[Path]:
    """Where a run in ``folder`` saves its model of a cycle: [encoder, classifier]."""
    return [folder / f"{part}_distributed_BS{batch_size}_{cycle:02d}.keras" for part in ("encoder", "classifier_PD")]
