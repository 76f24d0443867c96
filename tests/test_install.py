"""What `pip install .` gives: the wheel is whole, and the command ``travelling`` runs the scripts that are in it."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from conftest import ROOT

from travelling import __version__
from travelling.commands import COMMANDS


def tracked(*folders):
    """The files of the repository, or of some of its folders."""
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return [file for file in done.stdout.splitlines() if (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the unpacked wheel, as it would lie in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in tracked():  # setuptools writes into the folder that it builds from
        (folder / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / "source" / file)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, folder / "source"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_that_runs_and_names_what_it_needs(installed):
    folders = ["travelling", "travelling_quality_control", "prepare_images", "reproduce"]
    folders += sorted({path.split("/")[0] for path, _ in COMMANDS.values()} - set(folders))
    files = [file for file in tracked(*folders) if not file.endswith(".png")]
    assert len(files) > 80
    assert [file for file in files if not (installed / file).is_file()] == []
    (metadata,) = installed.glob("*.dist-info/METADATA")
    needed = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist")
    pinned = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [line.replace(" ", "") for line in needed] == pinned


def run(installed, tmp_path, *words):
    """The command, with the wheel's files alone."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "travelling.commands", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_its_script(command, installed, tmp_path):
    done = run(installed, tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {COMMANDS[command][0].split('/')[-1]} ")
    wrong = run(installed, tmp_path, command, "--no-such-option")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_an_unknown_command_is_one_line_and_no_command_is_help(installed, tmp_path):
    done = run(installed, tmp_path, "contrl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: contrl is no command of travelling; there are train, ")
    assert run(installed, tmp_path).stdout == run(installed, tmp_path, "--help").stdout
    assert run(installed, tmp_path, "--version").stdout == f"travelling {__version__}\n"
