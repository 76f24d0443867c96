"""A small federation: three good centers, and one that holds only inverted images."""

import fcntl
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import make_cohort, run_here, toy_image, write_image

from travelling_quality_control.federated.center import Pseudonyms

FIRST_CYCLE, CYCLES, ERROR = 8, 11, 0.03
SALT = bytes(range(32))  # of all centers: their subjects are told in the order of this training set
SIZES = {"c0": 5, "c1": 6, "c2": 2}


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """f(name, make): a folder that ``make(folder)`` has filled, once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def once(name, make):
        folder, done = base / name, base / f"{name}.done"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def study(made_once):
    """Its training set, test set and pre-trained model: paths."""
    folder = made_once("study", make_study)
    return SimpleNamespace(
        folder=folder,
        training_set=folder / "training_set.csv",
        test_set=folder / "test_set.csv",
        encoder=folder / f"encoder_distributed_BS5_{FIRST_CYCLE - 1:02d}.keras",
        classifier=folder / f"classifier_PD_distributed_BS5_{FIRST_CYCLE - 1:02d}.keras",
        table=pd.read_csv(folder / "training_set.csv"),
    )


def plant_salt(folder):
    """Make a private folder with the salt of these tests; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "salt").write_bytes(SALT)
    return folder


def make_study(folder):
    """Write the images, the CSVs and the pre-trained model."""
    from toy import pretrain  # only now: it imports TensorFlow

    good = make_cohort(folder, "good", {center: [i % 2 for i in range(size)] for center, size in SIZES.items()}, 1)
    table = pd.read_csv(good)
    generator = np.random.default_rng(3)
    for number in range(3):
        path = write_image(folder / "images" / f"upside{number}.nii.gz", 255 - toy_image(generator, number % 2))
        table.loc[len(table)] = [f"upside{number}", "bad", f"images/{path.name}", number % 2, "F", 50]
    # What can be searched for in a stream of bytes must be unmistakable.
    table["Subject"] = [f"patient-{subject}-smith" for subject in table["Subject"]]
    table["Age"] = [40.123456789 + number for number in range(len(table))]
    names = list(Pseudonyms(plant_salt(folder / "private"), table["Subject"]).of)
    centers = [*SIZES, "bad"]
    table = table.sort_values(["Study", "Subject"], key=lambda column: column.map([*centers, *names].index))
    table.to_csv(folder / "training_set.csv", index=False)
    make_cohort(folder, "test_set", {"server": [0, 1] * 8}, seed=2, first=100)
    pretrain(good, folder, cycle=FIRST_CYCLE - 1)


@pytest.fixture(scope="session")
def options(study):
    """The command line of the script, but for the names of its results."""
    return (
        "-fn_train", study.training_set, "-fn_test", study.test_set, "-cycles", CYCLES, "-en", study.encoder,
        "-pd", study.classifier, "-revisit", 1, "-error", ERROR, "--learning-rate", 0.0005,
    )  # fmt: skip


@pytest.fixture(scope="session")
def in_one_process(options, made_once):
    """Folder of the script's own run, the results of which are named qc."""

    def run(folder):
        done = run_here("quality_control", *options, "-fn_save", "qc", cwd=folder)
        assert done.returncode == 0, done.stderr

    folder = made_once("script", run)
    log = pd.read_csv(folder / "qc.csv")
    assert len(set(log["Cycle"])) == 1 + CYCLES - FIRST_CYCLE
    assert {"batch", "subject", "revisit"} <= set(log["Phase"])
    assert log["Eliminated"].sum() == 3
    return folder


def server_settings(study, folder, **changes):
    """The configuration of the server for the same run, with results in a folder."""
    settings = {
        "centers": [*SIZES, "bad"], "fn_test": str(study.test_set), "en": str(study.encoder),
        "pd": str(study.classifier), "fn_save": str(folder / "qc"), "cycles": CYCLES, "revisit": 1, "error": ERROR,
        "learning_rate": 0.0005,
    }  # fmt: skip
    return json.dumps(settings | changes)


def read_log(path, names=None):
    """A log as text; pseudonyms replaced by the ids that ``names`` knows."""
    log = pd.read_csv(path, dtype=str, keep_default_na=False)
    if names:
        log["Subject"] = [names.get(name, name) for name in log["Subject"]]
        log["Subjects"] = [";".join(names.get(name, name) for name in cell.split(";")) for cell in log["Subjects"]]
    return log


def read_names(folders):
    """Pseudonym -> id, from the private folders of the centers."""
    tables = [pd.read_csv(folder / "pseudonyms.csv", dtype=str) for folder in folders]
    return {pseudonym: subject for table in tables for subject, pseudonym in table.itertuples(index=False)}


def read_weights(folder):
    """The weights and Adam's state of the last cycle's models."""
    import keras

    arrays = []
    for part in ("encoder", "classifier_PD"):
        model = keras.models.load_model(folder / f"{part}_distributed_BS5_{CYCLES - 1:02d}.keras")
        arrays += [np.asarray(variable) for variable in (*model.weights, *model.optimizer.variables)]
    return arrays
