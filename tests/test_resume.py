"""Runs that survive: interrupted and resumed equals uninterrupted, and a run folder has one run and one owner."""

import contextlib
import csv
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from conftest import Arguments, run_here
from fake_trainer import FakeTrainer, NoFiles, plain_settings, settings_of

from travelling import files
from travelling.errors import AlreadyDone, InputError
from travelling.images import itk
from travelling.method.metrics import evaluate
from travelling.method.quality_control import QualityControl, log_columns
from travelling.method.travel import travel
from travelling.runs import control_options, stopping
from travelling.runs.checkpoint import Checkpoints
from travelling.runs.controlled_run import ControlledRun, first_evaluation, open_run
from travelling.runs.log_file import LogFile
from travelling.runs.plain_run import PlainRun
from travelling.runs.record import differences
from travelling.runs.run import Run
from travelling_quality_control.enc_PD_quality_control import control_quality

CENTERS = {f"c{number}": [f"s{number}{i}" for i in range(size)] for number, size in enumerate((7, 1, 5, 3, 12, 2))}
HARM = {"s02": (9, 0), "s10": (30, 0), "s41": (0, 20), "s44": (4, 4), "s50": (7, 7)}
CYCLES = range(10, 14)
RESULTS = (".gz", ".csv")


class Killed(BaseException):
    """What a kill -9 is to the loop: nothing after it runs."""


class MortalTrainer(FakeTrainer):
    """A trainer whose state fits a checkpoint, and that dies at its n-th training step."""

    def __init__(self, dies_at=None):
        super().__init__(harm=HARM, start=(5, 8))
        self.strange = {"s43": 50, "s12": 9}
        self.dies_at = dies_at

    def train(self, subjects):
        if len(self.fitted) == self.dies_at:
            raise Killed
        return super().train(subjects) + len(self.fitted)

    def export_state(self):
        return [np.array(self.weight), np.array(self.misdiagnoses)]

    def import_state(self, arrays):
        self.weight, self.misdiagnoses = int(arrays[0]), arrays[1].copy()


def control(folder, dies_at=None, dies_saving=None, **changes):
    """One session of quality control, as the script does it; returns the trainer."""
    trainer = MortalTrainer(dies_at)
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.load()
    resumed_at = found[0] if found else None
    settings = settings_of(revisit=1, **changes)
    columns = log_columns(settings.extensions)
    log = LogFile(folder / "qc.csv", columns, resumed_at["log_length"] if resumed_at else 0)
    quality = QualityControl(settings, trainer, CENTERS, log, extensions=settings.extensions)
    if resumed_at:
        quality.import_state(resumed_at["control"])
        trainer.import_state(found[1])
    else:
        quality.start(trainer.evaluate())

    class Files(NoFiles):
        def checkpoint(self, here):
            state = {**here, "control": quality.export_state(), "log_length": log.length}
            if len(self.places) == dies_saving:
                with mock.patch.object(files.os, "replace", side_effect=Killed):
                    checkpoints.save(state, [np.zeros(2)])
            super().checkpoint(here)
            checkpoints.save(state, trainer.export_state())

    control_quality(quality, CYCLES, lambda cycle: 1 / cycle, Files(), resumed_at)
    log.close()
    quality.subject_table().to_csv(folder / "subjects.csv", index=False)
    return trainer


def results(folder):
    return [(folder / name).read_bytes() for name in ("qc.csv", "subjects.csv")]


SCREENED_GROUPS = {"screen": True, "false_alarms": 0.1, "verify_every": 4}


@pytest.mark.parametrize(("changes", "every"), [({}, 1), ({"protocol": "published"}, 5), (SCREENED_GROUPS, 20)])
def test_quality_control_killed_at_any_step_ends_as_if_it_had_not_been(changes, every, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    uninterrupted = control(whole, **changes)
    steps = len(uninterrupted.fitted)
    assert steps > 30
    eliminated = [row for row in csv.DictReader((whole / "qc.csv").open()) if row["Eliminated"] == "1"]
    assert eliminated
    for dies_at in range(0, steps, every):
        folder = tmp_path / str(dies_at)
        folder.mkdir()
        with pytest.raises(Killed):
            control(folder, dies_at, **changes)
        resumed = control(folder, **changes)
        assert results(folder) == results(whole)
        assert resumed.weight == uninterrupted.weight
        assert len(resumed.fitted) <= steps - dies_at + 11  # at most the work of one center, or group, is repeated


def test_quality_control_killed_again_and_again_and_while_saving(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    whole.mkdir()
    folder.mkdir()
    uninterrupted = control(whole)
    generator = random.Random(7)
    kills = 0
    for _ in range(200):
        try:
            resumed = control(folder, dies_at=generator.randint(6, 25), dies_saving=generator.randint(1, 4))
            break
        except Killed:
            kills += 1
    assert kills > 3
    assert results(folder) == results(whole)
    assert resumed.weight == uninterrupted.weight


def test_the_travelling_model_killed_at_any_step_ends_as_if_it_had_not_been(tmp_path):
    def session(dies_at=None, resumed_at=None, state=None):
        trainer, losses, kept = MortalTrainer(dies_at), [], {}
        if resumed_at:
            trainer.import_state(state)

        class Files(NoFiles):
            def checkpoint(self, here):
                kept.update(resumed_at=json.loads(json.dumps(here)), state=trainer.export_state())

        saving = Files(lambda cycle, rate, loss: losses.append((cycle, trainer.weight)))
        try:
            travel(trainer, CENTERS, CYCLES, plain_settings(epochs=2), lambda cycle: 1 / cycle, saving, resumed_at)
        except Killed:
            return trainer, losses, kept
        return trainer, losses, None

    uninterrupted, all_losses, _ = session()
    for dies_at in range(len(uninterrupted.fitted)):
        first, losses, kept = session(dies_at)
        second, more_losses, _ = session(**kept)
        assert losses + more_losses == all_losses
        repeated = dies_at + len(second.fitted) - len(uninterrupted.fitted)
        assert 0 <= repeated < 2 * 3  # steps of a visit to the largest center, two epochs
        assert first.fitted[: dies_at - repeated] + second.fitted == uninterrupted.fitted


def test_the_bar_of_plain_training_begins_where_the_run_goes_on():
    run = SimpleNamespace(taking_over=contextlib.nullcontext)
    about = plain_settings(epochs=2), run, None, None, CENTERS, CYCLES
    images = 2 * sum(map(len, CENTERS.values()))
    for place, done in ((None, 0), ({"cycle": 11, "centers_left": 3, "losses": []}, 1.5)):
        bar = PlainRun(*about, place)._bar
        assert (bar.n, bar.total) == (round(done * images), len(CYCLES) * images)
    stopping.end()


def test_the_last_two_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.load() is None
    for cycle in range(4):
        checkpoints.save({"cycle": cycle}, [np.full(3, cycle), np.array(cycle)])
    paths = sorted(checkpoints.folder.iterdir())
    assert len(paths) == 2
    record, arrays, warnings = checkpoints.load()
    assert (record, [array.tolist() for array in arrays], warnings) == ({"cycle": 3}, [[3, 3, 3], 3], [])


class PredictingTrainer(MortalTrainer):
    """Its predictions are wrong for as many test subjects of a class as are misdiagnosed."""

    def evaluate(self):
        wrong = (np.arange(50) < self.misdiagnoses[0], np.arange(100) >= self.misdiagnoses[1])
        return evaluate([0] * 50 + [1] * 100, np.concatenate(wrong).astype(float))


def test_the_end_is_compared_with_the_baseline_of_an_earlier_session(tmp_path):
    model = tmp_path / "encoder_x_09.h5"
    model.write_bytes(b"x")
    settings = control_options.QualityControl(
        en=model, pd=model, fn_test=model, fn_save=tmp_path / "qc", output_folder=tmp_path / "run", revisit=1
    )

    def session(cycles, harm):
        run, trainer = open_run(settings, (), {}), PredictingTrainer()
        trainer.harm = harm
        baseline, notices = first_evaluation(run, trainer, settings)
        run.begin("a device", [*notices, f"{len(harm)} images"])
        resumed_at = run.go_on(trainer)
        controlled = ControlledRun(settings, run, None, trainer, CENTERS, baseline, resumed_at)
        with mock.patch.object(run, "save"):
            control_quality(controlled.control, cycles, lambda cycle: 1, controlled, resumed_at)
        controlled.close()
        stopping.end()
        return controlled.changed(), run.record

    changed, _ = session(range(10, 12), {"s00": (1, 0)})
    assert changed == {"HC": (2, 0), "PD": (0, 0)}  # one a cycle, within the tolerance
    changed, record = session(range(12, 13), {"s00": (0, -3)})
    assert changed == {"HC": (2, 0), "PD": (0, 3)}
    assert [one["notices"] for one in record["sessions"]] == [["1 images"], ["1 images"]]


def test_a_log_that_is_not_its_checkpoints_is_refused(tmp_path):
    log = LogFile(tmp_path / "qc.csv")
    length = log.length
    log.close()
    with pytest.raises(InputError, match="shorter than when its run stopped"):
        LogFile(tmp_path / "qc.csv", length=10_000)
    with pytest.raises(InputError, match="other columns"):
        LogFile(tmp_path / "qc.csv", log_columns(settings_of(rule="evidence").extensions), length=length)


@pytest.mark.parametrize("kind", ["inverted", "noise"])
def test_a_harmful_experiment_killed_at_any_image_ends_as_if_it_had_not_been(kind, cohort, tmp_path):
    options = ("-fn_train", cohort / "training_set.csv", "--kind", kind, "--centers", 2, "--images", 2)

    def contents(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.suffix in RESULTS}

    whole, folder = tmp_path / "whole", tmp_path / "folder"
    assert run_here("generate", *options, "--output-folder", whole, cwd=tmp_path).returncode == 0
    written = []
    write_image = itk.write_image

    def write_or_die(image, path, like):
        if len(written) % 2:  # in every session the second image kills
            written.append(None)
            path.with_name(f".part_{path.name}").write_bytes(b"half")
            raise Killed
        written.append(path)
        write_image(image, path, like)

    with mock.patch.object(itk, "write_image", write_or_die):
        for _ in range(3):
            with pytest.raises(Killed):
                run_here("generate", *options, "--output-folder", folder, cwd=tmp_path)
            assert not (folder / "training_set.csv").exists()
        done = run_here("generate", *options, "--output-folder", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(written) == 4 + 3  # no image was written twice
    assert contents(folder) == contents(whole)
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 4
    again = run_here("generate", *options, "--output-folder", folder, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (0, 1)
    assert "done already" in again.stderr
    other = run_here("generate", *options, "--seed", 1, "--output-folder", folder, cwd=tmp_path)
    assert other.returncode == 2
    assert "seed is 42 there and 1 here" in other.stderr


# One run, one owner


@pytest.fixture
def new_run(tmp_path):
    """Function: a Run in the folder "run", with options and the content of its CSV."""
    source = tmp_path / "training.csv"

    def make(content="a", overwrite=False, **options):
        source.write_text(content)
        arguments = Arguments(fn_train=source, overwrite=overwrite, cache_gb=random.random(), **options)
        return Run(tmp_path / "run", "training.log", arguments, {"fn_train": source})

    yield make
    stopping.end()


def interrupted(run):
    """What a killed process leaves: everything but its lock."""
    run.begin("CPU")
    run._checkpoints.save({"cycle": 1, "centers_left": 2, "generator": None}, [np.zeros(1)])
    stopping.end()


def begun_or_refused(**paths):
    """A session of quality control whose options name these files: "resumes", "done", or why it is refused."""
    settings = Arguments(overwrite=False, error=0.02, **{name: Path(path) for name, path in paths.items()})
    try:
        return "resumes" if open_run(settings, (), {}).resumes else "new"
    except AlreadyDone:
        return "done"
    except InputError as error:
        return str(error)
    finally:
        stopping.end()


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_is_the_same_by_another_spelling_and_after_its_folder_moved(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("models").mkdir()
    settings = Arguments(
        overwrite=False, error=0.02, output_folder=Path("here/run"), fn_save=Path("here/log"), masks=Path("models")
    )
    run = open_run(settings, (), {})
    run.begin("CPU")
    for path in (*run.files, run.folder / "encoder_distributed_BS5_09.keras"):
        path.touch()
    if finished:
        run.finish()
    stopping.end()
    same = "done" if finished else "resumes"
    paths = {"output_folder": "here/run", "fn_save": "here/log", "masks": "models"}
    absolute = {name: tmp_path / path for name, path in paths.items()}
    assert begun_or_refused(**paths) == same
    assert begun_or_refused(**absolute) == same
    assert begun_or_refused(**paths | {"fn_save": "./here/../here/log"}) == same
    Path("link").symlink_to("here")
    assert begun_or_refused(**paths | {"fn_save": "link/log"}) == same
    monkeypatch.chdir("here")
    assert begun_or_refused(output_folder="run", fn_save="log", masks="../models") == same
    monkeypatch.chdir(tmp_path)
    Path("others").mkdir()
    assert "masks is models there and others here" in begun_or_refused(**paths | {"masks": "others"})
    assert "fn_save is here/log there and here/other here" in begun_or_refused(**paths | {"fn_save": "here/other"})
    # What is beside the run may move with it, or stay.
    Path("link").unlink()
    Path("there").mkdir()
    Path("here").rename("there/here")
    moved = {"output_folder": "there/here/run", "fn_save": "there/here/log", "masks": "models"}
    assert begun_or_refused(**moved) == same
    Path("models").rename("there/models")
    assert begun_or_refused(**moved | {"masks": "there/models"}) == same
    assert "masks is models there and others here" in begun_or_refused(**moved | {"masks": "others"})
    Path("there/here/log.csv").rename("there/log.csv")
    assert "fn_save is here/log there and there/log here" in begun_or_refused(**moved | {"fn_save": "there/log"})


def test_the_same_command_goes_on_and_is_done_once(new_run, tmp_path):
    interrupted(new_run(error=0.02))
    for overwrite in (False, True):
        run = new_run(error=0.02, overwrite=overwrite)
        assert run.resumes
        stopping.end()
    run = new_run(error=0.02)
    run.begin("CPU")
    trainer = MortalTrainer()
    trainer.import_state = lambda arrays: None
    assert run.go_on(trainer)["cycle"] == 1
    run.finish()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert len(record["sessions"]) == 2
    assert {"command_line", "packages", "python", "device", "git_commit"} <= set(record["sessions"][0])
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(AlreadyDone, match="done already"):
        new_run(error=0.02)
    stopping.end()
    assert not new_run(error=0.02, overwrite=True).resumes


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"error": 0.05}, "error is 0.02 there and 0.05 here"),
        ({"error": 0.02, "protocol": "published"}, "protocol is None there and published here"),
        ({"error": 0.02, "content": "b"}, "content of fn_train"),
    ],
)
def test_another_command_is_refused_with_the_difference(changes, difference, new_run):
    interrupted(new_run(error=0.02))
    with pytest.raises(InputError, match=difference):
        new_run(**changes)
    stopping.end()
    assert not new_run(**changes, overwrite=True).resumes


def test_a_run_folder_has_one_owner(new_run):
    owner = new_run(error=0.02)
    late = new_run(error=0.02)  # both see an empty folder
    owner.begin("CPU")
    for another in (lambda: new_run(error=0.02), lambda: late.begin("CPU")):
        with pytest.raises(InputError, match=f"process {os.getpid()} .* is writing to it"):
            another()
    owner.finish()
    with pytest.raises(AlreadyDone):  # the late one does not overwrite what the other has made in the meantime
        late.begin("CPU")


def test_a_damaged_record_is_one_error(new_run, tmp_path):
    interrupted(new_run(error=0.02))
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: not a record"):
        new_run(error=0.02)
    stopping.end()
    assert not new_run(error=0.02, overwrite=True).resumes


def test_what_is_not_used_beyond_the_method_makes_no_difference():
    """A run that names the published rule is the same one; one that goes beyond it is another, either way."""
    plain, named = settings_of().values(), settings_of(rule="published", verify_every=1, label_screen=False).values()
    assert plain == named
    assert not {"rule", "screen", "verify_every"} & plain.keys()
    used = settings_of(screen=True, verify_every=4).values()
    assert used == plain | {"screen": True, "false_alarms": 0.01, "verify_every": 4}
    for there, here, words in ((plain, used, "None there and 4 here"), (used, plain, "4 there and None here")):
        told = [{"script": "x", "options": told, "inputs_sha256": {}} for told in (there, here)]
        assert f"verify_every is {words}" in differences(*told)
