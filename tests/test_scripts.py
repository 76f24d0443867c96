"""The five command lines, run as a user runs them, end to end."""

import importlib.util
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import ROOT, SCRIPTS, run_here, run_script

from travelling.images import cache

QC_COLUMNS = [
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
]  # fmt: skip


FRONTS = (ROOT / "travelling_quality_control" / "report.py", ROOT / "reproduce" / "judge.py")


@pytest.mark.parametrize("script", [*SCRIPTS.values(), *FRONTS], ids=lambda script: script.name)
def test_help_answers_at_once(script):
    """Nothing is imported for it that takes long."""
    line = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Example" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "travelling" in imported
    assert not imported & {"numpy", "pandas", "SimpleITK", "sklearn", "keras", "tensorflow", "matplotlib"}


def options_shown(text):
    """The options that a help text lists, in its order, without -h."""
    return [name for name in re.findall(r"^  (-[^\s,]+)", text, re.MULTILINE) if name != "-h"]


def test_options_are_few_enough_to_hold(tmp_path):
    shown = {name: options_shown(run_here(name, "--help", cwd=tmp_path).stdout) for name in SCRIPTS}
    assert len(shown) == 5
    assert sum(map(len, shown.values())) <= 70
    for name in ("standard", "dirty", "quality_control", "inference"):
        published = [option.startswith("--") for option in shown[name]]
        assert published == sorted(published), name  # the published ones, which have one dash, come first


def test_help_of_a_study_fits_a_screen(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    script = ROOT / "reproduce" / "reproduce.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--spacing" in options_shown(done.stdout)
    assert len(done.stdout.splitlines()) <= 100


def test_standard_run_saves_every_cycle_and_a_log(pretrained):
    names = {path.name for path in pretrained.iterdir()}
    for cycle in range(8):
        assert {
            f"encoder_distributed_BS5_{cycle:02d}.keras",
            f"classifier_PD_distributed_BS5_{cycle:02d}.keras",
        } <= names
    assert len(names) == 19  # and training.log, run.json, .run.lock
    log = (pretrained / "training.log").read_text()
    assert "-fn_train" in log
    assert "cycle 7: " in log


def test_dirty_baseline_goes_on_after_the_checkpoint(dirty_cohort, last_model, tmp_path):
    done = run_here(
        "dirty", "-fn_train", dirty_cohort / "training_set.csv", *last_model,
        "-cycles", 10, "-epochs", 1, "-batch_size", 5, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    models = sorted(path.name for path in (tmp_path / "dirty_baseline_run").glob("encoder*"))
    assert models == ["encoder_distributed_BS5_08.keras", "encoder_distributed_BS5_09.keras"]


def test_quality_control_eliminates_harmful_centers_and_no_good_image(controlled, dirty_cohort):
    truth = pd.read_csv(dirty_cohort / "truth.csv")
    subjects = pd.read_csv(controlled / "qc_subjects.csv", index_col="Subject")
    eliminated = subjects[subjects["Eliminated"] == 1]
    assert set(eliminated.index) == set(truth["Subject"])
    assert set(eliminated["Study"]) == {"harmful_01", "harmful_02"}
    assert len(subjects) == len(pd.read_csv(dirty_cohort / "training_set.csv"))


def test_quality_control_writes_log_and_models_in_their_places(controlled):
    """What the rows must say is what the audit checks, below."""
    log = pd.read_csv(controlled / "qc.csv", keep_default_na=False)
    assert list(log.columns) == QC_COLUMNS
    assert log.loc[0, ["Cycle", "Subject", "Study", "Phase"]].to_list() == [0, "n/a", "n/a", "baseline"]
    assert {path.name for path in controlled.iterdir()} == {"qc.csv", "qc_subjects.csv", "qc.log", "qc_run"}
    assert len(list((controlled / "qc_run").glob("*.keras"))) == 6


def test_inference_evaluates_the_chosen_cycles(cohort, pretrained, tmp_path):
    done = run_here(
        "inference", "-fn", cohort / "test_set.csv", "-en", pretrained, "-pd", pretrained, "-o", "result",
        "--only-cycles", 6, 7, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = pd.read_csv(tmp_path / "result_metrics.csv")
    assert metrics["cycle"].to_list() == [6, 7]
    assert metrics["AUC_ROC"].iloc[-1] > 0.95  # the toy classes are easy to tell apart
    assert {"male AUC_ROC", "female_sensitivity", "age_60_to_70_F1_SCORE"} <= set(metrics.columns)
    predictions = pd.read_csv(tmp_path / "result_predictions.csv")
    assert predictions.groupby("cycle").size().to_dict() == {6: 40, 7: 40}
    last = predictions[predictions["cycle"] == 7]
    accuracy = np.mean(last["preds"] == last["ground_truth"])
    assert metrics["accuracy"].iloc[-1] == pytest.approx(accuracy)
    assert "Path" not in predictions.columns


def test_one_image_becomes_two_harmful_ones_with_its_geometry(cohort, tmp_path):
    source = cohort / "images" / "s001.nii.gz"
    done = run_script("generate", "-i", source, "--output-folder", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    original = sitk.ReadImage(str(source))
    intensities = sitk.GetArrayFromImage(original)
    inverted = sitk.ReadImage(str(tmp_path / "out" / "s001_inv.nii.gz"))
    noise = sitk.ReadImage(str(tmp_path / "out" / "s001_clip.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(inverted), np.float32(255) - intensities)
    assert noise.GetPixelID() == sitk.sitkUInt8
    added = sitk.GetArrayFromImage(noise).astype(float)
    # N(0, 25) clipped at 0: half of the voxels are 0, the others' mean is 25 sqrt(2 / pi)
    assert np.mean(added == 0) == pytest.approx(0.5, abs=0.03)
    assert added[added > 0].mean() == pytest.approx(25 * np.sqrt(2 / np.pi), rel=0.03)
    for image in (inverted, noise):
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, geometry)() == pytest.approx(getattr(original, geometry)())


def test_single_experiment_adds_one_image_to_each_of_n_centers(cohort, tmp_path):
    good = pd.read_csv(cohort / "training_set.csv").assign(Source="study 7", Source_path="scanner disk")
    good["Path"] = [str(cohort / path) for path in good["Path"]]
    good.to_csv(tmp_path / "good.csv", index=False)
    arguments = ("-fn_train", "good.csv", "--experiment", "single", "--kind", "noise", "--centers", 3)
    for name in ("one", "two"):
        assert run_script("generate", *arguments, "--output-folder", name, cwd=tmp_path).returncode == 0
    truth = pd.read_csv(tmp_path / "one" / "truth.csv")
    assert list(truth.columns) == ["Subject", "Study", "Kind", "Experiment", "Source"]
    assert set(truth["Kind"]) == {"noise"}
    assert truth["Study"].nunique() == 3
    good = good.set_index("Subject")
    training_set = pd.read_csv(tmp_path / "one" / "training_set.csv", index_col="Subject")
    assert list(training_set.index[: len(good)]) == list(good.index)  # the source subjects stay
    assert set(training_set["Source"]) == {"study 7"}  # the user's own column, and it does not tell the truth
    for _, row in truth.iterrows():
        assert good.loc[row["Source"], "Study"] == row["Study"] == training_set.loc[row["Subject"], "Study"]
        assert good.loc[row["Source"], "Group_bin"] == training_set.loc[row["Subject"], "Group_bin"]
    assert all((tmp_path / "one" / path).is_file() for path in training_set["Path"])
    for path in (tmp_path / "one" / "images").iterdir():  # seeded
        same = tmp_path / "two" / "images" / path.name
        assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (path, same)))


# Runs that survive (tests/test_resume.py kills at every step, with a fake trainer)


def start(name, *arguments, cwd):
    return subprocess.Popen(
        [sys.executable, SCRIPTS[name], *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def rows(path):
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for(condition):
    while not condition():
        time.sleep(0.01)


def models(folder):
    """Everything in the models of a run but the date of their saving, and addresses in memory, which Keras saves."""
    contents = {}
    for path in sorted(folder.glob("*.keras")):
        with zipfile.ZipFile(path) as archive:
            contents[path.name] = {n: archive.read(n) for n in archive.namelist() if n != "metadata.json"}
        config = contents[path.name]["config.json"]
        contents[path.name]["config.json"] = re.sub(rb'"shared_object_id": \d+', b"", config)
    return contents


def test_quality_control_killed_and_resumed_equals_uninterrupted(controlled, control_options, tmp_path):
    log = tmp_path / "qc.csv"
    process = start("quality_control", *control_options, cwd=tmp_path)
    wait_for(lambda: rows(log) > 12 or process.poll() is not None)
    process.kill()
    _, errors = process.communicate()
    assert (process.returncode, b"Traceback" in errors) == (-signal.SIGKILL, False)

    done = run_script("quality_control", *control_options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "going on in cycle" in done.stderr
    for name in ("qc.csv", "qc_subjects.csv"):
        assert (tmp_path / name).read_bytes() == (controlled / name).read_bytes()
    assert models(tmp_path / "qc_run") == models(controlled / "qc_run")


def test_the_audit_of_a_run_needs_the_name_of_its_log_alone(controlled):
    script = SCRIPTS["quality_control"].with_name("audit.py")
    audit = subprocess.run([sys.executable, script, controlled / "qc.csv"], capture_output=True, text=True, check=False)
    assert audit.returncode == 0, audit.stdout
    assert audit.stdout.startswith("consistent: 3 cycles (8 to 10)")


@pytest.mark.slow  # JAX compiles every script's functions anew: minutes on a CPU
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs requirements-jax.txt")
def test_all_scripts_run_on_jax_and_diagnose_as_on_tensorflow(cohort, pretrained, tmp_path):
    def run(name, *arguments, backend="jax"):
        line = [sys.executable, SCRIPTS[name], *map(str, arguments)]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    for name, rows in (("training", 4), ("test", 6)):
        table = pd.read_csv(cohort / f"{name}_set.csv")[:rows]
        table["Path"] = [cohort / path for path in table["Path"]]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    model = ("-en", pretrained / "encoder_distributed_BS5_07.keras")
    model += ("-pd", pretrained / "classifier_PD_distributed_BS5_07.keras")
    run("standard", "-fn_train", "training.csv", "-cycles", 1, "--width", 0.05)
    run("dirty", "-fn_train", "training.csv", *model, "-cycles", 9)
    run("generate", "-fn_train", "training.csv", "--kind", "inverted", "--centers", 1, "--images", 2)
    run(
        "quality_control", "-fn_train", "harmful_samples/training_set.csv", "-fn_test", "test.csv", *model,
        "-cycles", 10, "-revisit", 1, "-fn_save", "qc",
    )  # fmt: skip
    log = pd.read_csv(tmp_path / "qc.csv")
    assert log["Study"][log["Eliminated"] == 1].to_list() == ["harmful_01"] * 2
    for backend in ("jax", "tensorflow"):
        run(
            "inference", "-fn", "test.csv", "-en", pretrained, "-pd", pretrained, "--only-cycles", 6, 7, "-o", backend,
            backend=backend,
        )  # fmt: skip
    for ending in ("metrics", "predictions"):
        one, other = (pd.read_csv(tmp_path / f"{backend}_{ending}.csv") for backend in ("jax", "tensorflow"))
        pd.testing.assert_frame_equal(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.slow
def test_a_signal_finishes_the_step_and_says_how_to_go_on(number, status, control_options, tmp_path):
    process = start("quality_control", *control_options, cwd=tmp_path)
    wait_for(lambda: rows(tmp_path / "qc.csv") > 4 or process.poll() is not None)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status, errors
    assert errors.splitlines()[-1].startswith(b"interrupted; the same command goes on")


def test_a_script_removes_its_cache(cohort, pretrained, tmp_path, monkeypatch):
    results = []
    for name, share in (("memory", 0.5), ("files", 0)):
        monkeypatch.setattr(cache, "SHARE", share)
        done = run_here(
            "inference", "-fn", cohort / "test_set.csv", "-en", pretrained, "-pd", pretrained, "--only-cycles", 7, 7,
            "-o", tmp_path / name, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("0 decoded images are in memory, " in done.stderr) == (name == "files")
        results.append((tmp_path / f"{name}_predictions.csv").read_bytes())
    assert results[0] == results[1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_inference_skips_what_it_has_finished(cohort, controlled, tmp_path):
    folder = controlled / "qc_run"
    arguments = ("-fn", cohort / "test_set.csv", "-en", folder, "-pd", folder, "-o", "result")
    assert run_here("inference", *arguments, cwd=tmp_path).returncode == 0
    results = [tmp_path / "result_metrics.csv", tmp_path / "result_predictions.csv"]
    whole = [path.read_bytes() for path in results]

    record = tmp_path / "result_run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "finished": None}))
    results[0].write_bytes(b"".join(whole[0].splitlines(keepends=True)[:2]))  # killed after the second predictions
    results[1].write_bytes(b"".join(whole[1].splitlines(keepends=True)[:81]))
    done = run_here("inference", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [f"cycle {cycle}: AUROC" in done.stderr for cycle in (8, 9, 10)] == [False, True, True]
    assert [path.read_bytes() for path in results] == whole


@pytest.mark.slow
def test_quality_control_survives_fifty_kills(controlled, control_options, tmp_path):
    """Killed at any moment: while it starts, trains, verifies, saves; also again before it has got any further."""
    generator = random.Random(50)
    kills, runs, folder = 0, 0, tmp_path / "0"
    folder.mkdir()
    while kills < 50 or not runs:
        process = start("quality_control", *control_options, cwd=folder)
        if kills < 50:
            target = rows(folder / "qc.csv") + generator.choice([-99, 0, 1, 3, 5, 8, 13])
            while rows(folder / "qc.csv") <= target and process.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0, 1))
            process.kill()
        _, errors = process.communicate()
        assert b"Traceback" not in errors, errors
        kills += process.returncode != 0
        if process.returncode == 0:  # the next kills hit another run
            for name in ("qc.csv", "qc_subjects.csv"):
                assert (folder / name).read_bytes() == (controlled / name).read_bytes()
            assert models(folder / "qc_run") == models(controlled / "qc_run")
            runs += 1
            folder = tmp_path / str(runs)
            folder.mkdir()
    print(f"{kills} kills, {runs} runs, every one equal to an uninterrupted one")


@pytest.mark.slow
def test_the_table_of_a_gpu_is_made_on_a_cpu_too():
    script = ROOT / "tests" / "benchmarks" / "gpu.py"
    options = ["--size", 33, 33, 33, "--width", 0.05, "--volumes", 2, "--rounds", 1, "--steps", 1]
    made = subprocess.run([sys.executable, script, *map(str, options)], capture_output=True, text=True, check=True)
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in made.stdout.strip().splitlines()]
    assert {len(row) for row in table} == {3}
    rows = {name: values for name, *values in table}
    assert not [name for name in rows if "failed" in name]
    assert rows["two runs with `--deterministic`"] == ["equal bits"] * 2
    assert all(float(value) > 0 for value in rows["test set kept on the card, volumes/s"])


@pytest.mark.slow
def test_harm_is_screened_on_people_whom_the_test_set_lacks(cohort, tmp_path, monkeypatch, capsys):
    script, output = ROOT / "tests" / "benchmarks" / "screen.py", tmp_path / "out.csv"
    line = [script, cohort / "training_set.csv", cohort / "test_set.csv", "--people", 40, "--draws", 3, "--harmed", 1]
    line += ["--kinds", "inverted", "blur", "swapped_label", "--levels", 0.5, 1, "--false-alarms", 0.05]
    monkeypatch.setattr(sys, "argv", list(map(str, [*line, "--output", output])))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    table = pd.read_csv(output)
    people = sum(len(pd.read_csv(cohort / f"{name}_set.csv")) for name in ("training", "test"))
    assert (table["images"] == people - 40).all()
    kinds = {("good", 1.0), ("inverted", 1.0), ("blur", 0.5), ("blur", 1.0), ("swapped_label", 1.0)}
    assert set(zip(table["kind"], table["level"], strict=True)) == kinds
    found = table.groupby(["kind", "level"])[["suspects", "eliminated"]].sum()
    assert found.loc[("inverted", 1.0), "suspects"] == found.loc[("blur", 1.0), "suspects"] == 3 * (people - 40)
    assert (found.loc[("good", 1.0)] == found.loc[("swapped_label", 1.0)]).all()  # the same images
    assert (found["eliminated"] <= found["suspects"]).all()
    assert "blur" in capsys.readouterr().out
