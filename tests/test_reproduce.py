"""The study by one command: what it plans, what runs again, and how it stops, goes on and fails."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest
from conftest import ROOT, SCRIPTS, make_cohort
from study_maker import CLEAN, LAST_CYCLE, make_clean_control, make_study, write_inference

sys.path.insert(0, str(ROOT / "reproduce"))
import judge
import plan
from steps import missing

import reproduce
from travelling.errors import InputError
from travelling.option import from_command_line
from travelling.runs import command, options
from travelling_quality_control.auditing import run_record
from travelling_quality_control.reporting import one_run

STUBS = ("cohort", "train", "harm", "dirty", "control", "infer")
# For a process of its own: reproduce.py with scripts that only note that they ran, and nothing to evaluate.
DRIVER = f"""
from pathlib import Path
import plan, reproduce
from travelling.runs import command
from travelling.images import harm

reproduce.evaluate = lambda folder, arguments: print("evaluated")
plan.SCRIPTS.update((name, Path(__file__).with_name(f"{{name}}.py")) for name in {STUBS})
if __name__ == "__main__":
    command.run(reproduce.main)
"""
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from travelling.runs import command, stopping
from travelling.images import harm
from travelling.errors import Stopped

name, words = Path(sys.argv[0]).stem, sys.argv[1:]
options = dict(zip(words, words[1:]))
target = Path(options["-o" if name == "infer" else "--output-folder"])
journal, orders = (Path(__file__).with_name(file) for file in ("journal", "orders.json"))
orders = json.loads(orders.read_text())
order = orders.get(str(target), "")

def note(what):
    with open(journal, "a") as file:
        file.write(f"{what} {target}\\n")

def main():
    if order == "read":  # as a script that still reads its images
        note("begin")
        try:
            time.sleep(60)
        finally:
            note("leave")
    stopping.finish_steps_on_signals()
    note("begin")
    while order and any(f"begin {other}\\n" not in journal.read_text() for other in orders):
        time.sleep(0.02)  # what is to happen beside the others
    while order == "wait":
        time.sleep(0.3)  # a step that must not be cut short, be there one signal or two
        try:
            stopping.stop_if_asked()
        except Stopped:
            note("stop")
            raise
    if order == "die":
        os.kill(os.getpid(), 9)
    if order == "crash":
        raise ValueError("no luck at all")
    if order:
        print(f"error: {order}", file=sys.stderr)
        sys.exit(2)
    if name == "infer":
        for ending in ("_run.json", "_metrics.csv", "_predictions.csv"):
            target.with_name(target.name + ending).write_text("x")
    else:
        target.mkdir(parents=True, exist_ok=True)
        (target / "run.json").write_text(" ".join(words))
        for part in ("encoder", "classifier_PD"):
            (target / f"{part}_distributed_BS5_09.keras").write_text("x")
        for file in ("log.csv", "log_subjects.csv", "training_set.csv", "test_set.csv", "holdout_set.csv", "truth.csv"):
            (target / file).write_text("x")
    note("end")

command.run(main)
"""


class Study:
    """A place to run reproduce.py with such scripts."""

    def __init__(self, folder, cohort, monkeypatch, capsys):
        self.folder, self.out, self._monkeypatch, self._capsys = folder, folder / "my study", monkeypatch, capsys
        (folder / "driver.py").write_text(DRIVER)
        for name in STUBS:
            (folder / f"{name}.py").write_text(SCRIPT)
            monkeypatch.setitem(plan.SCRIPTS, name, folder / f"{name}.py")
        monkeypatch.setattr(reproduce, "evaluate", lambda folder, arguments: print("evaluated"))
        self.options = [
            "--train",
            cohort / "training_set.csv",
            "--test",
            cohort / "test_set.csv",
            "--output-folder",
            self.out,
        ]
        self.options += ["--centers", 2, "--images", 3]
        self.order()

    def order(self, **orders):
        """Tell scripts to misbehave: {folder of the results (with __ for /): what to do}."""
        orders = {name.replace("__", "/"): what for name, what in orders.items()}
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def start(self, *options):
        """Start it, in a process group of its own as a shell does."""
        path = os.pathsep.join([str(ROOT / "reproduce"), str(ROOT)])
        return subprocess.Popen(
            [sys.executable, self.folder / "driver.py", *map(str, [*self.options, *options])],
            env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, cwd=self.folder,
        )  # fmt: skip

    def run(self, *options):
        """Run it here: (exit status, stdout, stderr, what the scripts noted since)."""
        before = len(self.journal())
        self._monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, [*self.options, *options])])
        with pytest.raises(SystemExit) as end:
            command.run(reproduce.main)
        return end.value.code, *self._capsys.readouterr(), self.journal()[before:]

    def journal(self):
        path = self.folder / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, line):
        for _ in range(1000):
            if line in self.journal():
                return
            time.sleep(0.02)
        raise AssertionError(f"{line} never came")


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small_cohort")
    make_cohort(folder, "training_set", {"a": [0, 1, 0, 1, 0, 1], "b": [1], "c": [0, 0, 1]}, seed=1)
    make_cohort(folder, "test_set", {"home": [0, 1]}, seed=2, first=100)
    return folder


@pytest.fixture
def study(tmp_path, small_cohort, monkeypatch, capsys):
    return Study(tmp_path, small_cohort, monkeypatch, capsys)


def planned(monkeypatch, *options):
    """(arguments, steps by name) of a command line."""
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, options)])
    arguments = from_command_line(plan.Study, "")
    cohort = reproduce.demo_cohort(arguments) if arguments.demo else reproduce.read_cohort(arguments)
    return arguments, {step.name: step for step in plan.plan(arguments, cohort)}


def option(step, name, values=1):
    words = step.command()
    first = words.index(name) + 1
    return words[first] if values == 1 else words[first : first + values]


CONDITIONS = [f"{experiment}_{kind}" for experiment in ("whole_centers", "single") for kind in ("inverted", "noise")]
DEMO_CONDITIONS = ["whole_centers_inverted", "whole_centers_noise_in_range", "single_noise"]
RECOMMENDED = "quality_control_recommended"


def in_order(conditions, parts=("dirty_baseline", "quality_control"), tests=("inference",)):
    """The steps of these experiments, in their order."""
    harmful = [f"{condition}/harmful" for condition in conditions if condition != "clean"]
    trained = ["clean", *(f"{condition}/{part}" for condition in conditions for part in parts)]
    steps = [f"{name}{end}" for name in trained for end in ("", *(f"/{test}" for test in tests))]
    return [*harmful, "pretrained", *(name for name in steps if not name.endswith("dirty_baseline/holdout"))]


IN_ORDER = in_order(CONDITIONS)
DEMO = in_order(DEMO_CONDITIONS, ("dirty_baseline", "quality_control", RECOMMENDED), ("inference", "holdout"))


def test_the_plan_is_the_papers(monkeypatch, study):
    _, steps = planned(monkeypatch, *study.options)
    assert list(steps) == IN_ORDER
    assert option(steps["pretrained"], "-cycles") == "10"
    assert option(steps["pretrained"], "--learning-rate") == option(steps["clean"], "--learning-rate") == "0.0001"
    assert option(steps["pretrained"], "--width") == "1.0"
    control = steps["single_noise/quality_control"]
    assert [option(control, name) for name in ("-revisit", "-error", "-cycles", "--batch-size", "--seed")] == [
        "2", "0.02", "30", "5", "42",
    ]  # fmt: skip
    for name in ("clean", "whole_centers_noise/dirty_baseline", "whole_centers_noise/quality_control"):
        assert option(steps[name], "-en") == "pretrained/encoder_distributed_BS5_09.keras"
        assert option(steps[name], "-pd") == "pretrained/classifier_PD_distributed_BS5_09.keras"
    assert option(steps["single_noise/dirty_baseline"], "-fn_train") == "single_noise/harmful/training_set.csv"
    assert option(steps["clean"], "-fn_train") == str(study.options[1])
    test_csv, pretrained = study.options[3], Path("pretrained/run.json")
    assert control.reads == (Path("single_noise/harmful/training_set.csv"), test_csv, pretrained)
    assert steps["clean/inference"].reads == (test_csv, Path("clean/run.json"))
    overwriting = {name for name, step in steps.items() if "--overwrite" in step.command()}
    assert overwriting == {name for name in IN_ORDER if name.endswith("/inference")}
    assert all("--overwrite" in step.command(overwrite=True) for step in steps.values())


def test_a_step_comes_after_those_whose_results_it_reads(monkeypatch, tmp_path):
    _, steps = planned(monkeypatch, "--demo", "--output-folder", tmp_path)
    made = set()
    for step in steps.values():
        assert set(step.reads) <= made, step.name
        made |= set(step.results)
    assert list(steps) == ["cohort", *DEMO]
    held = steps["single_noise/quality_control/holdout"]
    assert option(held, "-fn") == "cohort/holdout_set.csv"
    assert option(held, "--only-cycles", 2) == ["11", "11"]
    assert option(steps["clean"], "-cycles") == "12"
    assert option(steps["pretrained"], "--learning-rate") == "0.001"
    assert option(steps["single_noise/quality_control"], "-revisit") == "1"
    assert option(steps["cohort"], "--shrink") == "4"
    for condition in DEMO_CONDITIONS:  # both settings see the same images
        published, recommended = (steps[f"{condition}/{part}"] for part in ("quality_control", RECOMMENDED))
        assert published.reads == recommended.reads
        words = [word.replace(RECOMMENDED, "quality_control") for word in recommended.command()]
        added = ["--rule", "evidence", "--screen", "--verify-every", "16"]
        place = words.index("--rule")
        assert words[place : place + len(added)] == added
        assert words[:place] + words[place + len(added) :] == published.command()


def test_a_demo_of_other_kinds_or_experiments_is_what_was_asked_for(monkeypatch, tmp_path):
    for asked, conditions in (
        (["--kinds", "blur"], ["whole_centers_blur", "single_blur"]),
        (["--experiments", "single"], ["single_inverted", "single_noise"]),
    ):
        _, steps = planned(monkeypatch, "--demo", "--output-folder", tmp_path, *asked, "--settings", "published")
        assert list(steps) == ["cohort", *in_order(conditions, tests=("inference", "holdout"))]


@pytest.mark.parametrize(
    ("setting", "given", "size"),
    [("recommended", (), "16"), ("recommended", (8,), "8"), ("recommended", (1,), "1"), ("evidence", (8,), "8")],
)
def test_batches_that_are_verified_together_go_before_what_a_setting_has(setting, given, size, monkeypatch, tmp_path):
    told = ["--demo", "--output-folder", tmp_path, "--settings", setting]
    _, steps = planned(monkeypatch, *told, *(word for every in given for word in ("--verify-every", every)))
    words = steps[f"single_noise/quality_control_{setting}"].command()
    assert words.count("--verify-every") == 1
    assert option(steps[f"single_noise/quality_control_{setting}"], "--verify-every") == size


def test_options_reach_the_scripts_that_know_them(monkeypatch, small_cohort, tmp_path):
    _, steps = planned(
        monkeypatch, "--train", small_cohort / "training_set.csv", "--test", small_cohort / "test_set.csv",
        "--output-folder", tmp_path, "--precision", "bfloat16", "--deterministic", "--reorient", "--protocol",
        "published", "--error", 0.05, "--revisit", 3, "--maximum", 4000,
        "--kinds", "noise", "--experiments", "single", "--allow-saturated",
    )  # fmt: skip
    assert list(steps) == [name for name in IN_ORDER if "/" not in name or name.startswith(("clean", "single_noise"))]
    for step in steps.values():
        monkeypatch.setattr(sys, "argv", step.command())
        script = runpy.run_path(str(step.line[0]), run_name="script")
        (told_by,) = [it for it in script.values() if isinstance(it, type) and issubclass(it, options.Options)]
        parsed = vars(from_command_line(told_by, ""))
        for name, value in {
            "precision": "bfloat16", "deterministic": True, "reorient": True, "protocol": "published", "error": 0.05,
            "revisit": 3, "allow_saturated": True, "maximum": 4000,
        }.items():  # fmt: skip
            assert parsed.get(name, value) == value, (step.name, name)


def test_settings_of_quality_control_have_folders_and_options_of_their_own(monkeypatch, study):
    _, published = planned(monkeypatch, *study.options, "--kinds", "inverted", "--experiments", "single")
    settings = ("published", "evidence", "screen", "evidence_screen", "evidence_screen_labels")
    options = ["--kinds", "inverted", "--experiments", "single", "--settings", *settings, "published"]
    _, steps = planned(monkeypatch, *study.options, *options)
    assert {name: step for name, step in steps.items() if name in published} == published  # so that none runs again
    assert list(steps) == [
        *published,
        *(f"single_inverted/quality_control_{setting}{run}" for setting in settings[1:] for run in ("", "/inference")),
    ]
    before = published["single_inverted/quality_control"].command()
    both = ["--rule", "evidence", "--screen"]
    for setting, added in zip(
        settings[1:], (["--rule", "evidence"], ["--screen"], both, [*both, "--label-screen"]), strict=True
    ):
        step = steps[f"single_inverted/quality_control_{setting}"]
        words = [word.replace(f"quality_control_{setting}", "quality_control") for word in step.command()]
        place = words.index(added[0])
        assert words[place : place + len(added)] == added
        assert words[:place] + words[place + len(added) :] == before
        assert option(steps[f"{step.name}/inference"], "-en") == step.name
        assert steps[f"{step.name}/inference"].results[0] == step.results[0].parent / "inference_run.json"
    _, steps = planned(monkeypatch, *study.options, *options[:5], "evidence")
    assert "single_inverted/quality_control" not in steps
    assert "single_inverted/quality_control_evidence" in steps


def test_more_kinds_of_harm_the_clean_images_and_no_dirty_baseline(monkeypatch, study):
    options = ["--kinds", "blur", "swapped_label", "--settings", "screen", "--without-dirty", "--false-alarms", "0.02"]
    _, steps = planned(monkeypatch, *study.options, *options, "--experiments", "whole_centers", "clean")
    conditions = ["whole_centers_blur", "whole_centers_swapped_label", "clean"]
    assert list(steps) == in_order(conditions, ["quality_control_screen"])
    assert option(steps["whole_centers_swapped_label/harmful"], "--kind") == "swapped_label"
    controlled = steps["clean/quality_control_screen"]
    assert option(controlled, "-fn_train") == option(steps["clean"], "-fn_train") == str(study.options[1])
    assert "--screen" in controlled.command()
    assert option(controlled, "--false-alarms") == "0.02"
    made = {file for step in steps.values() for file in step.results}
    assert all(set(step.reads) <= made | {study.options[1], study.options[3]} for step in steps.values())


def test_seeds_have_folders_and_seeds_of_their_own(monkeypatch, tmp_path):
    _, steps = planned(monkeypatch, "--demo", "--output-folder", tmp_path, "--seeds", 3)
    assert list(steps) == ["cohort", *(f"seed_{seed}/{name}" for seed in (1, 2, 3) for name in DEMO)]
    assert [option(steps[f"seed_{seed}/pretrained"], "--seed") for seed in (1, 2, 3)] == ["40", "1040", "2040"]
    for name in ("clean", "single_noise/harmful", "single_noise/quality_control", "single_noise/dirty_baseline"):
        assert [option(steps[f"seed_{seed}/{name}"], "--seed") for seed in (1, 2, 3)] == ["42", "1042", "2042"]
    assert option(steps["seed_2/clean"], "-en").startswith("seed_2/pretrained/")
    assert option(steps["seed_2/clean"], "-fn_train") == "cohort/training_set.csv"
    assert "--seed" not in steps["cohort"].command()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--demo", "--train", "x.csv"], "--train: --demo makes its own cohort"),
        (["--train", "x.csv", "--output-folder", "x"], "--test: is needed"),
        (["--train", "x.csv", "--test", "y.csv"], "--output-folder: is needed"),
        (
            ["--train", "x.csv", "--test", "y.csv", "--output-folder", "x", "--shrink", "2"],
            "--shrink: with --demo only",
        ),
        (["--demo", "--cycles", "10"], "--cycles: is the total"),
    ],
)
def test_options_that_do_not_go_together(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *options])
    with pytest.raises(SystemExit) as end:
        from_command_line(plan.Study, "")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_one_layout_in_one_folder(tmp_path):
    (tmp_path / "pretrained").mkdir()
    reproduce.refuse_other_layout(tmp_path, 1)
    with pytest.raises(InputError, match="a study of one seed"):
        reproduce.refuse_other_layout(tmp_path, 2)
    (tmp_path / "pretrained").rename(tmp_path / "seed_1")
    reproduce.refuse_other_layout(tmp_path, 2)
    with pytest.raises(InputError, match="a study of several seeds"):
        reproduce.refuse_other_layout(tmp_path, 1)


def test_a_study_runs_in_order_and_once(study):
    status, out, err, journal = study.run()
    assert status == 0, err
    assert journal == [f"{what} {name}" for name in IN_ORDER for what in ("begin", "end")]
    assert out.startswith(f"23 of 23 steps to run, 1 at a time, in {study.out}\n  whole_centers_inverted/harmful\n")
    assert "evaluated" in out
    text = (study.out / "steps" / "clean_inference.txt").read_text()
    assert text.startswith(f"cd '{study.out}'\n{sys.executable} {study.folder}/infer.py -fn ")

    status, out, err, journal = study.run()
    assert (status, journal) == (0, [])
    assert "all steps are done" in out


def test_a_bar_counts_the_steps_that_are_done_and_names_those_that_run(study, monkeypatch):
    bar = mock.MagicMock()
    bar.return_value.__enter__.return_value = shown = mock.Mock(n=0)
    monkeypatch.setattr("travelling.console.progress_bar", bar)
    study.run("--jobs", 2)
    assert bar.call_args.kwargs == {"total": 23, "initial": 0, "unit": "step"}
    assert shown.update.call_args == mock.call(23)  # all but n, which this bar does not change
    running = [call.args[0].split(", ") for call in shown.set_postfix_str.call_args_list if call.args[0]]
    assert {name for names in running for name in names} == set(IN_ORDER)
    assert max(map(len, running)) == 2
    assert all(names == ["pretrained"] for names in running if "pretrained" in names)  # it gets all cores
    (study.out / "clean" / "inference_metrics.csv").unlink()
    study.run()
    assert bar.call_args.kwargs["initial"] == 22


def test_what_was_made_with_other_options_is_the_scripts_to_refuse(study, monkeypatch):
    monkeypatch.setitem(plan.SCRIPTS, "harm", SCRIPTS["generate"])
    options = ["--kinds", "noise", "--experiments", "whole_centers"]
    assert study.run(*options)[0] == 0
    status, _, err, journal = study.run(*options, "--images", 2)
    assert (status, journal) == (2, [])
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "steps/whole_centers_noise_harmful.txt: step 'whole_centers_noise/harmful': " in line
    assert "images is 3 there and 2 here" in line
    status, _, err, journal = study.run(*options, "--images", 2, "--overwrite")
    assert status == 0, err
    assert journal == [
        f"{what} whole_centers_noise/{name}{run}"
        for name in ("dirty_baseline", "quality_control")
        for run in ("", "/inference")
        for what in ("begin", "end")
    ]


def test_a_result_that_is_gone_or_read_anew_runs_again(study):
    options = ["--experiments", "single", "--kinds", "noise"]
    study.run(*options)
    (study.out / "clean" / "inference_metrics.csv").unlink()
    assert study.run(*options)[3] == ["begin clean/inference", "end clean/inference"]
    (study.out / "single_noise" / "quality_control" / "run.json").write_text("another")
    assert study.run(*options)[3] == [f"{what} single_noise/quality_control/inference" for what in ("begin", "end")]


def test_a_dry_run_prints_what_can_be_run_and_runs_nothing(study):
    status, out, _, journal = study.run("--dry-run", "--kinds", "noise", "--experiments", "single")
    assert (status, journal) == (0, [])
    assert not study.out.exists()
    assert "# single_noise/quality_control\n" in out
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(["sh"], input=out, text=True, check=True, env=environment, capture_output=True)
    scripts = [name for name in IN_ORDER if "/" not in name or name.startswith(("clean", "single_noise"))]
    assert [line for line in study.journal() if line.startswith("end")] == [f"end {name}" for name in scripts]


@pytest.mark.parametrize(
    ("order", "status", "message"),
    [("the disk is odd", 2, "the disk is odd"), ("crash", 1, "ValueError: no luck at all"), ("die", 1, "died")],
)
def test_a_failed_step_is_named_in_one_line_and_runs_again(order, status, message, study):
    study.order(single_noise__quality_control=order)
    options = ["--experiments", "single", "--kinds", "noise"]
    ended, out, err, journal = study.run(*options)
    assert ended == status
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "steps/single_noise_quality_control.txt: step 'single_noise/quality_control'" in line
    assert message in line
    assert "Traceback" not in err
    assert "evaluated" not in out
    assert "begin single_noise/quality_control/inference" not in journal
    study.order()
    ended, _, err, journal = study.run(*options)
    assert ended == 0, err
    assert journal[::2] == ["begin single_noise/quality_control", "begin single_noise/quality_control/inference"]


@pytest.mark.parametrize(("order", "status", "message"), [("no luck", 2, "no luck"), ("die", 1, "died")])
def test_where_one_step_fails_the_one_beside_it_is_stopped(order, status, message, study):
    study.order(single_noise__quality_control=order, clean="wait")
    ended, _, err, journal = study.run("--experiments", "single", "--kinds", "noise", "--jobs", 2)
    assert ended == status
    assert message in err
    assert journal[-1] == "stop clean"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_after_an_interruption_the_same_command_goes_on(number, status, study):
    options = ["--experiments", "single", "--kinds", "noise", "--jobs", 2]
    waiting = ["single_noise/dirty_baseline", "single_noise/quality_control"]
    study.order(**{name.replace("/", "__"): "wait" for name in waiting})
    process = study.start(*options)
    for name in waiting:
        study.wait_for(f"begin {name}")
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert err.endswith("interrupted; the same command goes on from here\n")
    for name in waiting:  # the scripts stop on their own where nobody is left to tell them
        study.wait_for(f"stop {name}")
    before = len(study.journal())
    study.order()
    ended, out, err, journal = study.run(*options)
    assert ended == 0, err
    assert "evaluated" in out
    assert not [line for line in journal if line.endswith((" pretrained", " clean"))]
    assert {f"end {name}" for name in waiting} <= set(journal)
    assert before == len(study.journal()) - len(journal)


def test_a_script_that_has_not_begun_to_train_stops_at_once(study):
    study.order(clean="read")
    process = study.start()
    study.wait_for("begin clean")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    assert study.journal()[-1] == "leave clean"
    assert "Traceback" not in err
    assert err.endswith("interrupted; the same command goes on from here\n")


def test_a_cohort_is_not_lost_to_other_options(study):
    study.options = ["--demo", "--output-folder", study.out, "--experiments", "single", "--kinds", "noise", "--jobs", 1]
    study.options += ["--settings", "published"]
    assert study.run("--shrink", 16)[3][:2] == ["begin cohort", "end cohort"]
    status, _, err, journal = study.run("--shrink", 8)
    assert (status, journal) == (2, [])
    assert "cohort: made by other options" in err
    assert study.run("--shrink", 16)[3] == []
    assert study.run("--shrink", 8, "--overwrite")[3][0] == "begin cohort"


def test_bad_input_is_found_before_anything_runs(study, small_cohort):
    training, test = (small_cohort / f"{name}_set.csv" for name in ("training", "test"))
    for given, message in (
        (["--test", training], f"{training}, row 2: Subject is in {training}, too"),
        (["--holdout", test], f"{test}, row 2: Subject is in {test}, too"),
        (["--holdout", training], f"{training}, row 2: Subject is in {training}, too"),
        (["--holdout", small_cohort / "other.csv"], "other.csv: no such file"),
    ):
        status, out, err, journal = study.run(*given)
        assert (status, out, journal, err.count("\n")) == (2, "", [], 1)
        assert message in err
    assert not study.out.exists()


def test_a_hold_out_set_is_read_and_the_last_models_are_tested_on_it(study, tmp_path, monkeypatch):
    held = make_cohort(tmp_path, "held", {"home": [0, 1]}, seed=3, first=200)
    status, _, err, journal = study.run("--holdout", held, "--experiments", "single", "--kinds", "noise")
    assert status == 0, err
    assert journal[::2] == [f"begin {name}" for name in in_order(["single_noise"], tests=("inference", "holdout"))]
    _, steps = planned(monkeypatch, *study.options, "--holdout", held)
    step = steps["single_noise/quality_control/holdout"]
    assert (option(step, "-fn"), option(step, "--only-cycles")) == (str(held), "29")
    assert step.reads == (held, Path("single_noise/quality_control/run.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--experiments", "single", "--centers", "4"], "--centers: 4, but the training set has 3"),
        (["--centers", "3", "--images", "5"], "15 sources are needed, the training set has 10 subjects"),
        (["--settings", "published", "screen"], "--screen: a test set of 2 subjects is too small"),
        (["--false-alarms", "0.1"], "--false-alarms: is an option of the screen"),
        (["--maximum", "0"], "'0' is not a number of at least 1e-06"),
    ],
)
def test_what_a_script_would_refuse_later_is_refused_at_once(options, message, study):
    status, out, err, journal = study.run(*options)
    assert (status, out, journal) == (2, "", [])
    assert message in err


def test_images_beyond_the_maximum_are_found_before_anything_trains(study, monkeypatch):
    monkeypatch.setitem(plan.SCRIPTS, "harm", SCRIPTS["generate"])
    status, _, err, journal = study.run("--kinds", "noise", "--maximum", 0.01)
    assert (status, journal) == (2, [])
    assert "beyond 0 to 0.01 (see --maximum)" in err


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_like_another(small_cohort, tmp_path):
    def command_line(out):
        options = [
            "--train", small_cohort / "training_set.csv", "--test", small_cohort / "test_set.csv",
            "--output-folder", out, "--cycles", 3, "--pretrained-cycles", 1, "--width", 0.1,
            "--pretraining-rate", 0.002, "--allow-saturated",
            "--kinds", "inverted", "--experiments", "whole_centers", "--centers", 2, "--images", 3,
        ]  # fmt: skip
        return [sys.executable, str(ROOT / "reproduce" / "reproduce.py"), *map(str, options)]

    whole, torn = tmp_path / "whole", tmp_path / "torn"
    subprocess.run(command_line(whole), check=True, capture_output=True)
    ends = []
    for seconds in (10, 15, 20, 25, 30, 35, 40, 600):
        process = subprocess.Popen(command_line(torn), stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal((signal.SIGTERM, signal.SIGKILL)[len(ends) % 2])
        assert "Traceback" not in process.communicate()[1]
        ends.append(process.returncode)
        if not ends[-1]:
            break
    assert ends[-1] == 0
    assert len(ends) > 2
    for name in (
        "quality_control/log.csv",
        *(f"{run}/inference_predictions.csv" for run in ("dirty_baseline", "quality_control")),
    ):
        path = f"whole_centers_inverted/{name}"
        assert (torn / path).read_bytes() == (whole / path).read_bytes(), name


@pytest.fixture
def judged(study, monkeypatch):
    """The study's place for judge.py: ``judged(*options)`` gives what :meth:`Study.run` does, and what was reported."""
    reports = []

    def write_report(record, log, train, test, subjects_csv, page, with_images, ratings, why_not, further):
        reports.append([log, train, test, page, subjects_csv, with_images, ratings, sorted(why_not), *further])
        return SimpleNamespace(violations=violations), [page]

    violations = []
    monkeypatch.setattr(one_run, "write_report", write_report)
    monkeypatch.setattr(one_run, "in_one_line", lambda run: "28 images")
    monkeypatch.setattr(run_record, "read_run_record", lambda path: {})
    study.options = study.options[:6]
    monkeypatch.setattr(reproduce, "main", judge.main)  # which is what study.run() runs
    return study, reports, violations


def test_a_cohort_is_judged_by_two_steps_and_reported(judged, small_cohort):
    study, reports, violations = judged
    status, out, err, journal = study.run("--cycles", 12, "--width", 0.5)
    assert status == 0
    target = "clean/quality_control_evidence"
    assert journal == ["begin pretrained", "end pretrained", f"begin {target}", f"end {target}"]
    assert out.index("2 of 2 steps to run") < out.index("28 images")
    assert "notice: the screen is off (--screen: a test set of 2 subjects is too small" in err
    folder = study.out / target
    (files,) = reports
    assert files == [
        folder / "log.csv", small_cohort / "training_set.csv", small_cohort / "test_set.csv",
        study.out / "report.html", folder / "log_subjects.csv", True, None, ["label_screen", "screen"],
    ]  # fmt: skip
    assert "report.html shows slices of flagged images" in out
    words = (folder / "run.json").read_text()
    assert "-cycles 12 " in words
    assert "--rule evidence --verify-every 16" in words
    assert "--screen" not in words
    assert "--width 0.5" in (study.out / "pretrained" / "run.json").read_text()
    # The same command does nothing again, but reports; what the audit refuses is exit status 1.
    violations.append("log.csv, row 7: ...")
    subject = pd.read_csv(small_cohort / "training_set.csv")["Subject"][0]
    (study.folder / "mine.tsv").write_text(f"participant_id\trating\tnote\n{subject}\tkeep\t\n")
    options = ["--without-images", "--ratings", study.folder / "mine.tsv"]
    status, out, _, journal = study.run("--cycles", 12, "--width", 0.5, *options)
    assert (status, journal, len(reports)) == (1, [], 2)
    assert reports[1][5:7] == [False, study.folder / "mine.tsv"]
    assert "slices" not in out
    assert "all steps are done" in out


def test_what_was_judged_is_compared_with_a_hold_out_set(judged, tmp_path, monkeypatch):
    study, reports, _ = judged
    monkeypatch.setattr(judge, "compare_with_holdout", lambda folder: (f"in {folder}", pd.DataFrame({"AUROC": [0.9]})))
    held = make_cohort(tmp_path, "held", {"home": [0, 1]}, seed=3, first=200)
    status, out, err, journal = study.run("--holdout", held)
    assert status == 0, err
    assert reports[0][8][0] == f"in {study.out}"
    assert f"in {study.out}\n\n AUROC\n" in out
    target = "clean/quality_control_evidence"
    assert journal[2::2] == [f"begin {target}{test}" for test in ("", "/inference", "/holdout")]
    monkeypatch.undo()
    folder = make_study(tmp_path / "made", settings=())
    make_clean_control(folder, "published")
    write_inference(folder / "clean" / "quality_control", CLEAN, (LAST_CYCLE,), "holdout")
    caption, view = judge.compare_with_holdout(folder)
    assert [path.name for path in sorted((folder / "tables").iterdir())] == ["holdout.csv", "holdout.tex"]
    assert caption == "The set that decides, and a hold-out set: AUROC"
    assert view.set_index("model").loc["quality-controlled", "deciding set"].startswith("0.896 [")


def test_a_study_in_the_same_folder_goes_on_where_judging_ended(judged, monkeypatch):
    study, _, _ = judged
    study.run("--cycles", 12)
    monkeypatch.undo()
    options = ["--cycles", 12, "--experiments", "clean", "--settings", "published", "evidence"]
    options += ["--width", 0.125, "--pretraining-rate", 0.001, "--verify-every", 16]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, [*study.options, *options])])
    arguments = from_command_line(plan.Study, "")
    for name in STUBS:
        monkeypatch.setitem(plan.SCRIPTS, name, study.folder / f"{name}.py")
    steps = plan.plan(arguments, reproduce.read_cohort(arguments))
    left = [step.name for step in missing(steps, arguments.output_folder)]
    assert "pretrained" not in left
    assert "clean/quality_control_evidence" not in left
    assert "clean/quality_control" in left


def test_a_bids_app_call_judges_what_was_prepared(study, monkeypatch):
    def judgement_of(*words):
        monkeypatch.setattr(sys, "argv", ["judge.py", *map(str, words)])
        return from_command_line(judge.Judgement, "")

    prepared, out = study.folder / "prepared", study.folder / "judged"
    same = judgement_of("--cohort", prepared / "prepared.csv", "--output-folder", out)
    assert judgement_of(prepared, out, "group", "--other-half").cohort == prepared / "prepared.csv"
    assert judgement_of(prepared, out, "group").study("evidence") == same.study("evidence")
    with pytest.raises(SystemExit):
        judgement_of(prepared, out, "participant")


def test_a_plan_of_judging_runs_and_writes_nothing(judged):
    study, reports, _ = judged
    status, out, _, journal = study.run("--dry-run")
    assert (status, journal, reports) == (0, [], [])
    assert out.startswith("#!/bin/sh")
    assert out.count("\n# ") == 3
    assert not study.out.exists()


@pytest.mark.parametrize(
    ("subjects", "setting", "rate", "words"),
    [
        (99, "recommended_labels", None, ""),
        (98, "recommended_labels", 0.02, "it needs 99 test subjects, and this set has 98"),
        (9, "recommended_labels", 0.1, "notice: --false-alarms 0.1 is taken"),
        (8, "evidence", None, "notice: the screen is off (--screen: at a false-alarm rate of 0.1 it needs 9 "),
    ],
)  # fmt: skip
def test_a_cohort_is_judged_at_the_smallest_rate_that_its_test_set_tells(
    subjects, setting, rate, words, judged, monkeypatch, capsys
):
    study, _, _ = judged
    monkeypatch.setattr(sys, "argv", ["judge.py", *map(str, study.options)])
    judgement = from_command_line(judge.Judgement, "")
    monkeypatch.setattr("travelling.images.cohort.read_cohort", lambda path: [None] * subjects)
    found, why_not = judge.setting_for(judgement)
    assert found == setting
    assert ("too small for the screen" in why_not.get("screen", "")) == (setting == "evidence")
    assert judgement.false_alarms == rate
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == bool(words)
    judgement.false_alarms = 0.25  # the user's own goes first
    assert judge.setting_for(judgement) == ("recommended_labels", {})
    assert judgement.false_alarms == 0.25
    assert judgement.study(setting).verify_every == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cycles", 10], "--cycles: is the total, and must be above --pretrained-cycles (10)"),
        (["--test", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--false-alarms", 0.3], "a test set of 2 subjects is too small"),
        (["--kinds", "noise"], "unrecognized arguments: --kinds"),
        (["--ratings", "nowhere.tsv"], "nowhere.tsv: no such file"),
    ],
)
def test_what_cannot_be_judged_is_one_line(judged, options, message):
    study, reports, _ = judged
    status, _, err, journal = study.run(*options)
    assert (status, journal, reports) == (2, [], [])
    assert message in err
    assert err.count("\n") == 1
