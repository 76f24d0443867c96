"""A toy cohort small enough to train on in seconds: PD is a bright blob in a dim cube."""

import contextlib
import io
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "standard": ROOT / "standard_travelling_model" / "enc_PD_train_distributed.py",
    "dirty": ROOT / "dirty_baselines" / "enc_PD_train_dirt_baseline.py",
    "generate": ROOT / "generate_harmful_samples" / "generate_data.py",
    "quality_control": ROOT / "travelling_quality_control" / "enc_PD_quality_control.py",
    "inference": ROOT / "inference" / "inference_pd_distributed.py",
}
SIZE = (33, 34, 35)  # x, y, z: all different, so that a mixed-up axis shows


class Arguments(Namespace):
    """Any options of a run."""

    def values(self):
        return vars(self)


def run_script(name, *arguments, cwd):
    """Run a script as a user does; returns the finished process (returncode, stdout, stderr)."""
    return subprocess.run(
        [sys.executable, SCRIPTS[name], *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def run_here(name, *arguments, cwd="."):
    """The same as run_script, in this process; also of the script at another path."""
    command_line = [str(SCRIPTS.get(name, name)), *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", command_line),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_path(command_line[0], run_name="__main__")
    return subprocess.CompletedProcess(command_line, end.value.code, out.getvalue(), err.getvalue())


def write_image(path, array, spacing=(4.0, 4.0, 4.5)):
    """Write an array (z, y, x) as NIfTI."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-10.0, 5.0, 7.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def toy_image(generator, patient):
    """A noisy dim cube, (z, y, x) in [0, 1], with a bright blob for a patient."""
    image = generator.uniform(0.1, 0.3, tuple(reversed(SIZE)))
    if patient:
        image[10:22, 8:20, 12:24] += 0.5
    return image.astype(np.float32)


def make_cohort(folder, name, centers, seed, first=0):
    """Write images and a CSV; ``centers`` maps a center to its labels. Returns the path of the CSV."""
    generator = np.random.default_rng(seed)
    rows = []
    for center, labels in centers.items():
        for label in labels:
            subject = f"s{first + len(rows):03d}"
            write_image(folder / "images" / f"{subject}.nii.gz", toy_image(generator, label))
            rows.append(
                {
                    "Subject": subject,
                    "Study": center,
                    "Path": f"images/{subject}.nii.gz",
                    "Group_bin": label,
                    "Sex": "MF"[len(rows) % 3 == 0],
                    "Age": 50 + len(rows) % 30,
                }
            )
    path = folder / f"{name}.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Folder with training_set.csv (8 centers of 1 to 7 subjects) and test_set.csv (20 HC, 20 PD)."""
    folder = tmp_path_factory.mktemp("cohort")
    training = {f"c{number}": [i % 2 for i in range(size)] for number, size in enumerate((5, 7, 6, 5, 1, 4, 5, 6))}
    make_cohort(folder, "training_set", training, seed=1)
    make_cohort(folder, "test_set", {"home": [0, 1] * 20}, seed=2, first=100)
    return folder


@pytest.fixture(scope="session")
def pretrained(cohort, tmp_path_factory):
    """Run folder of the standard script: cycles 0 to 7, the last of which tells the classes apart."""
    folder = tmp_path_factory.mktemp("standard")
    done = run_script(
        "standard", "-fn_train", cohort / "training_set.csv", "-cycles", 8, "-epochs", 6, "-batch_size", 5,
        "--width", 0.1, "--learning-rate", 0.002, "--output-folder", folder, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def last_model(pretrained):
    """Encoder and classifier of the last pre-trained cycle, as arguments."""
    return (
        "-en", pretrained / "encoder_distributed_BS5_07.keras",
        "-pd", pretrained / "classifier_PD_distributed_BS5_07.keras",
    )  # fmt: skip


@pytest.fixture(scope="session")
def dirty_cohort(cohort, tmp_path_factory):
    """An experiment of the toy cohort: two new centers of three inverted images each."""
    folder = tmp_path_factory.mktemp("harmful")
    done = run_script(
        "generate", "-fn_train", cohort / "training_set.csv", "--experiment", "whole_centers", "--kind", "inverted",
        "--centers", 2, "--images", 3, "--output-folder", folder, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def control_options(cohort, last_model, dirty_cohort):
    """Arguments of the quality-control run that ``controlled`` holds."""
    return (
        "-fn_train", dirty_cohort / "training_set.csv", "-fn_test", cohort / "test_set.csv",
        "-cycles", 11, *last_model, "-revisit", 1, "-error", 0.02, "-fn_save", "qc", "--learning-rate", 0.0005,
    )  # fmt: skip


@pytest.fixture(scope="session")
def controlled(control_options, tmp_path_factory):
    """Folder of a quality-control run over cycles 8 to 10."""
    folder = tmp_path_factory.mktemp("qc")
    done = run_script("quality_control", *control_options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder
