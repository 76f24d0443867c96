"""Two checkouts and one environment: a script runs the package beside it, and the record says which code ran."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_cohort

from travelling import __version__
from travelling.runs import record

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (
        "standard_travelling_model", "dirty_baselines", "travelling_quality_control", "generate_harmful_samples",
        "inference", "prepare_images", "reproduce",
    )
    for path in (ROOT / folder).rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
    and path.name != "gate.py"  # a site's start.sh asks that of what is installed
)  # fmt: skip
FEDERATED = {f"travelling_quality_control/federated/{name}.py" for name in ("job", "simulate", "prepare_site")}


@pytest.fixture
def another(tmp_path):
    """The environment of a process that finds another package of our name first, which says so and ends it."""
    for name in ("travelling", "travelling_quality_control/auditing", "travelling_quality_control/federated"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('another package')")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def test_all_scripts_are_tried():
    assert len(SCRIPTS) == 16
    assert set(SCRIPTS) >= FEDERATED


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_the_package_of_its_own_checkout(script, another, tmp_path):
    words = [ROOT / "inference" / "inference_pd_distributed.py"] if script == "reproduce/steps.py" else []
    stdin, stays_open = os.pipe()  # steps.py ends a script where nobody is left who waits for it
    done = subprocess.run(
        [sys.executable, ROOT / script, *words, "--help"], cwd=tmp_path, env=another, capture_output=True, text=True,
        stdin=stdin, check=False,
    )  # fmt: skip
    os.close(stdin)
    os.close(stays_open)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_processes_of_flare_do_so_too(another):
    code = f"import os, runpy; runpy.run_path({str(ROOT / 'travelling_quality_control/federated/simulate.py')!r}, "
    code += "run_name='__main__')"
    ask = "import atexit, os; atexit.register(lambda: print(os.environ['PYTHONPATH']));"
    done = subprocess.run(
        [sys.executable, "-c", f"{ask}{code}", "--help"], env=another, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == os.pathsep.join([str(ROOT), another["PYTHONPATH"]])


def test_the_record_has_the_version_and_the_commit_of_the_code_that_ran(tmp_path):
    copy = tmp_path / "copy"
    for folder in ("travelling", "generate_harmful_samples"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / "travelling" / "__init__.py", "a", encoding="utf-8") as file:
        file.write('__version__ = "9.9.9"\n')
    git(copy, "init", "-q")
    git(copy, "add", ".")
    git(copy, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
    csv = make_cohort(tmp_path, "set", {"a": [0, 1]}, seed=1)
    script = copy / "generate_harmful_samples" / "generate_data.py"
    options = ["-fn_train", csv, "--kind", "noise", "--centers", "1", "--images", "1", "--maximum", "1"]
    subprocess.run([sys.executable, script, *options, "--output-folder", tmp_path / "out"], check=True)
    session = json.loads((tmp_path / "out" / "run.json").read_text())["sessions"][0]
    assert session["packages"]["travelling"] == "9.9.9" != __version__
    assert session["git_commit"] == git(copy, "rev-parse", "HEAD").strip()
    assert session["git_tree_was_dirty"] is False


def git(folder, *words):
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout


def test_an_installed_package_leaves_the_paths_of_its_process_alone(monkeypatch):
    """A server of a federation imports the script for its loop: from site-packages, where no checkout is."""
    before = [*sys.path]
    runpy.run_path(str(ROOT / "travelling_quality_control" / "enc_PD_quality_control.py"), run_name="imported")
    runpy.run_path(str(ROOT / "travelling_quality_control" / "federated" / "simulate.py"), run_name="imported")
    assert sys.path == before


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that stands for the package: its code is looked for there."""
    folder = tmp_path / "there" / "travelling"
    folder.mkdir(parents=True)
    (folder / "record.py").touch()
    monkeypatch.setattr(record, "__file__", str(folder / "record.py"))
    return folder


def test_code_that_git_does_not_know_has_no_commit(package):
    assert record.git_state()[:2] == (None, None)
    assert "not a git repository" in record.git_state()[2]
    git(package.parent, "init", "-q")  # of a project whose environment has the package
    (package.parent / "project.py").touch()
    git(package.parent, "add", "project.py")
    git(package.parent, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x")
    commit, is_dirty, why = record.git_state()
    assert (commit, is_dirty) == (None, None)
    assert "record.py" in why


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo \"fatal: detected dubious ownership in repository at 'there'\" >&2; exit 128", "dubious ownership"),
        ("printf 'fatal: \\377' >&2; exit 1", "fatal: "),
        ("exit 1", "git fails"),
        (None, "No such file"),
    ],
)
def test_a_git_that_does_not_answer_is_told_in_log_and_record(program, reason, tmp_path, monkeypatch):
    if program is not None:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    commit, is_dirty, why = record.git_state()
    assert (commit, is_dirty) == (None, None)
    assert reason in why
    about = record.Record(tmp_path / "run.json", {"options": {}})
    notices = about.start("CPU", {})
    assert notices == [f"the git commit of the code is not known ({why})"]
    session = json.loads((tmp_path / "run.json").read_text())["sessions"][0]
    assert (session["git_commit"], session["git_commit_unknown"], session["notices"]) == (None, why, notices)
    assert about.resume("CPU", {}) == notices


def test_the_notice_is_in_the_log_of_a_run(tmp_path, monkeypatch):
    from travelling.runs.options import Overwrite
    from travelling.runs.run import Run

    monkeypatch.setattr(record, "git_state", lambda: (None, None, "it refuses"))
    run = Run(tmp_path / "run", "a.log", Overwrite(), {}, models=False)
    run.begin("CPU")
    run.finish()
    told = (tmp_path / "run" / "a.log").read_text()
    assert "notice: the git commit of the code is not known (it refuses)" in told


def test_packages_that_tell_no_version_stop_no_run(monkeypatch):
    def broken(name):
        if name == "numpy":
            raise ValueError("damaged metadata")
        return "1.0"

    monkeypatch.setattr(record.importlib.metadata, "version", broken)
    assert np.setdiff1d(record.PACKAGES, [name for name, _ in record._versions()]).tolist() == ["numpy"]
