"""docs/extending.md: every recipe, added to the file that it names in a copy of the repository, does what it says."""

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, write_image

PAGE = ROOT / "docs" / "extending.md"
RECIPE = re.compile(r"^## (.+?)\n.*?\n(?:To|A file of its own,) `([^`]+)`[^\n]*:\n\n```python\n(.*?)```", re.M | re.S)
RECIPES = {title: (file, code) for title, file, code in RECIPE.findall(PAGE.read_text(encoding="utf-8"))}
FOLDERS = ("travelling", "travelling_quality_control", "generate_harmful_samples", "reproduce")

# What each is tried with, in the copy.
STOPPED_EARLY = """
import runpy
import sys
from travelling.runs import stopping

del sys.argv[0]
finish, steps = stopping.stop_if_asked, []

def stop_after_a_while():
    steps.append(1)
    if len(steps) == 17:
        stopping._asked.append(15)
    finish()

stopping.stop_if_asked = stop_after_a_while
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SERVER_AND_PLAN = """
from pathlib import Path
from travelling.option_values import from_json, to_command_line
from travelling.runs.control_options import LocalQualityControl
from travelling_quality_control.federated.options import QualityControlServer

files = dict.fromkeys(("en", "pd", "fn_test", "fn_save"), "x")
told = from_json(QualityControlServer, Path("server.json"), files | {"centers": ["a", "b"], "drift": 0.02})
(guard,) = told.extensions
assert (type(guard).__name__, guard.options.drift, told.values()["drift"]) == ("DriftGuard", 0.02, 0.02)
assert "drift" not in from_json(QualityControlServer, Path("server.json"), files | {"centers": ["a", "b"]}).values()
assert to_command_line(LocalQualityControl, drift=0.02) == ["--drift", "0.02"]
"""
SCREEN_LOG_AUDIT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pandas as pd
from test_audit import FakeScreen, consistent, make_run, read_rows
from travelling.network.inference_network import EvaluatedModel
from travelling.beyond.screen.eyes import Eyes
from travelling.beyond.screen.scores import Scores
from travelling.images.local_trainer import LocalTrainer

folder = Path(sys.argv[1])
make_run(folder, screen=FakeScreen(0))
assert all(row["Screen_grain"] for row in read_rows(folder / "log.csv") if row["Phase"] == "screen")
assert consistent(folder)

random = np.random.default_rng(0)
images = random.uniform(size=(12, 1, 9, 9, 9, 1)).astype(np.float32)
images = images.repeat(4, axis=2).repeat(4, axis=3).repeat(4, axis=4)
images += 0.1 * random.uniform(size=images.shape)
images[-1] = random.uniform(size=images[-1].shape)  # without the coarse pattern of the others
volumes = SimpleNamespace(shape=images.shape[2:5], upright=lambda image: image)
volumes.batch = lambda subjects: np.concatenate([images[subject] for subject in subjects])
volumes.batches = lambda groups: map(volumes.batch, groups)
cohort = pd.DataFrame({"Subject": range(12), "Group_bin": [0, 1] * 6})
model = EvaluatedModel.build(volumes.shape, 0.05, 0.001)
screen = Scores(Eyes(LocalTrainer(model, volumes, cohort, cohort[:10])), 0.2)
screen.calibrate()
usual, grainy = screen.cells([10, 11])[0]
assert usual["Screen_grain"] < 3 < grainy["Screen_grain"]
"""
TRAIN_SAVE_LOAD = """
import sys
from pathlib import Path
import numpy as np
from travelling.network.inference_network import can_fold
from travelling.network.inference_network import EvaluatedModel
from travelling.network.saved_model import load_model
from travelling.network.sfcn import MINIMUM_VOXELS, width_of

shape = (MINIMUM_VOXELS, 9, 10)
model = EvaluatedModel.build(shape, 0.5, 0.001)
images = np.random.default_rng(0).uniform(size=(4, *shape, 1)).astype(np.float32)
assert [layer for layer in model.encoder.layers if type(layer).__name__ == "Add"]
assert not can_fold(model.encoder)
assert width_of(model.filters) and model.filters == [8, 8, 16, 16, 32, 32]
kept, untrained = model.keep(), model.predict(images)
model.train(images, [0, 1, 0, 1])
trained = model.predict(images)
assert not np.allclose(trained, untrained)
np.testing.assert_allclose(trained, model.network.predict(images, verbose=0)[:, 0], rtol=1e-4)
paths = [Path(sys.argv[1]) / name for name in ("encoder_01.keras", "classifier_01.keras")]
model.save(*paths, {"cycle": 1})
loaded, record, notices = load_model(*paths, shape)
assert (record["cycle"], notices) == (1, [])
np.testing.assert_array_equal(loaded.predict(images), trained)
loss = loaded.train(images, [0, 1, 0, 1])
assert loss == model.train(images, [0, 1, 0, 1])  # Adam and the dropout have travelled, too
model.restore(kept)
np.testing.assert_array_equal(model.predict(images), untrained)
"""


def add(title, copy):
    """Add the code of a recipe to its file in a copy of the repository, instead of what has the same names there."""
    file, code = copy / RECIPES[title][0], RECIPES[title][1]
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    new = set().union(*map(names, ast.parse(code).body))
    for statement in ast.parse("\n".join(lines)).body[::-1]:
        if names(statement) & new:
            del lines[statement.lineno - 1 : statement.end_lineno]
    text = re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines).strip())
    file.write_text(f"{text}\n\n\n{code}".lstrip(), encoding="utf-8")


def names(statement):
    """What a statement of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.fixture
def extended(tmp_path):
    """Function: a recipe's code is added to its file in a copy of the repository. Returns a function that runs Python
    there."""

    def extend(title):
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, tmp_path / "copy" / folder, ignore=shutil.ignore_patterns("__pycache__"))
        add(title, tmp_path / "copy")
        return run

    def run(*arguments, status=0):
        places = os.pathsep.join(map(str, (tmp_path / "copy", ROOT / "tests")))
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path / "copy",
            env=os.environ | {"PYTHONPATH": places, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return extend


def test_every_recipe_is_tried():
    tests = re.findall(r"extended\(\"(.+?)\"\)", (ROOT / "tests" / "test_extending.py").read_text(encoding="utf-8"))
    assert sorted(tests) == sorted(RECIPES)
    assert len(tests) == 5
    assert PAGE.read_text(encoding="utf-8").count("```python") == 5


def test_all_recipes_together_pass_what_every_change_must_pass(tmp_path):
    """As make test asks; mypy's cache saves it most of its time."""
    for folder in (*FOLDERS, "standard_travelling_model", "dirty_baselines", "inference", "prepare_images"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / ".mypy_cache")
    for title in RECIPES:
        add(title, tmp_path)
    for tool in (["ruff", "check"], ["ruff", "format", "--check", "--diff"], ["mypy"]):
        done = subprocess.run([sys.executable, "-m", *tool], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_an_extension_is_one_file(extended, control_options, tmp_path):
    """It is told, judges, logs, goes on after a stop, is audited and reported; nothing else was changed for it."""
    run = extended("Add an extension")
    scripts = "travelling_quality_control"
    script = f"{scripts}/enc_PD_quality_control.py"
    assert "--drift" in run(script, "--help")
    run("-c", SERVER_AND_PLAN)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = [*control_options[: control_options.index("-fn_save")], "--learning-rate", 0.0005, "--drift", 0.02]
    options += ["-error", 1, "--allow-saturated"]  # the published rule alone would undo nothing
    run(script, *options, "-fn_save", whole / "qc")
    run("-c", STOPPED_EARLY, script, *options, "-fn_save", stopped / "qc", status=143)
    run(script, *options, "-fn_save", stopped / "qc")
    for name in ("qc.csv", "qc_subjects.csv"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert "going on in cycle" in (stopped / "qc.log").read_text()

    first, *rows = csv.DictReader((whole / "qc.csv").open())
    drifts = [max(abs(float(row[rate]) - float(first[rate])) for rate in ("PFP", "PFN")) for row in rows]
    assert [float(row["Drift"]) for row in rows] == pytest.approx(drifts)
    risen = [
        any(float(row[rate]) > float(row[f"Reference_{rate}"]) + float(row["Tolerance"]) for rate in ("PFP", "PFN"))
        for row in rows
    ]
    far = [drift > 0.02 for drift in drifts]
    assert [row["Ignored"] == "1" for row in rows] == [up or away for up, away in zip(risen, far, strict=True)]
    assert any(away and not up for up, away in zip(risen, far, strict=True))  # it has decided alone
    assert json.loads((whole / "qc_run" / "run.json").read_text())["options"]["drift"] == 0.02

    assert run(f"{scripts}/audit.py", whole / "qc.csv").startswith("consistent: ")
    run(f"{scripts}/report.py", whole / "qc.csv")
    page = (whole / "qc_report.html").read_text()
    assert "A step was rejected, too, where FPR or FNR was more than 0.02 from the first one." in page
    assert "Drift: distance of FPR or FNR, whichever is farther" in page
    assert '<button type="button">drift</button>' in page
    log = (whole / "qc.csv").read_text().splitlines()
    log[3] = log[3].rpartition(",")[0] + ",0.5"
    (whole / "qc.csv").write_text("\n".join(log) + "\n")
    assert "row 4: Drift is 0.5, should be " in run(f"{scripts}/audit.py", whole / "qc.csv", status=1)


def test_a_look_is_scored_logged_and_audited(extended, tmp_path):
    run = extended("Add a look of the screen")
    run("-c", SCREEN_LOG_AUDIT, tmp_path)


def test_a_kind_of_harm_makes_an_image(extended, tmp_path):
    from travelling.images.nifti import read_voxels

    run = extended("Add a kind of harm")
    good = write_image(tmp_path / "a.nii.gz", np.random.default_rng(0).uniform(1, 2, (9, 10, 11)).astype(np.float32))
    run("generate_harmful_samples/generate_data.py", "-i", good, "--kind", "stripes", "--output-folder", tmp_path)
    ratio = read_voxels(tmp_path / "a_stripes.nii.gz")[0] / read_voxels(good)[0]
    slices = ratio.mean(axis=(1, 2))
    assert sorted((slices[0], slices[1])) == pytest.approx([0.7, 1.0])
    np.testing.assert_allclose(slices[2:], slices[:-2], rtol=1e-5)


def test_another_network_trains_and_travels(extended, tmp_path):
    run = extended("Add another network")
    run("-c", TRAIN_SAVE_LOAD, tmp_path)


@pytest.mark.skipif(not (ROOT / "reproduce" / "evaluation" / "tables").is_dir(), reason="needs the evaluation's rooms")
def test_a_table_is_in_the_evaluation(extended, tmp_path):
    from study_maker import make_study

    run = extended("Add a table of the study")
    study = make_study(tmp_path / "study")
    run("reproduce/evaluate.py", study, "--resamples", 99)
    table = pd.read_csv(study / "tables" / "waiting.csv")
    assert table[["flagged", "revisits"]].to_numpy().tolist() == [[3, 3]]  # h1, h2 and, by mistake, b1
    assert "Images that were flagged at least once" in (study / "tables" / "waiting.tex").read_text(encoding="utf-8")
    assert "images flagged" in (study / "report.html").read_text(encoding="utf-8")
