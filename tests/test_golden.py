"""Row for row what the published code decides: tests/golden/README.md says where the rows come from."""

import csv
import shutil
from pathlib import Path
from unittest import mock

from conftest import run_here

from travelling.network import sfcn

GOLDEN = Path(__file__).parent / "golden"
COLUMNS = ("Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored")


def rows(path):
    with open(path, newline="") as file:
        return [[row[column] for column in COLUMNS] for row in csv.DictReader(file)]


def test_the_published_protocol_decides_as_the_published_code(tmp_path):
    # The names are those of the published README; that they tell neither format nor cycle is part of the test.
    for part, name in (("encoder", "path_encoder"), ("classifier_PD", "path_classifier")):
        shutil.copy(GOLDEN / f"{part}_distributed_BS5_07.h5", tmp_path / name)
    with mock.patch.object(sfcn, "DROPOUT", 0.0):
        done = run_here(
            "dirty", "-fn_train", GOLDEN / "clean_set.csv", "-en", "./path_encoder", "-pd", "./path_classifier",
            "-cycles", 9, "-epochs", 1, "-batch_size", 5, "--first-cycle", 8, "--protocol", "published",
            "--learning-rate", 3.98e-5, "--output-folder", "dirty", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        done = run_here(
            "quality_control", "-fn_train", GOLDEN / "training_set.csv", "-fn_test", GOLDEN / "test_set.csv",
            "-cycles", 11, "-en", "dirty/encoder_distributed_BS5_08.keras",
            "-pd", "dirty/classifier_PD_distributed_BS5_08.keras", "-revisit", 1, "-error", 1 / 12, "-fn_save", "log",
            "--protocol", "published", "--learning-rate", 1e-5, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "log.csv") == rows(GOLDEN / "log.csv")
