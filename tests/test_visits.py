"""Visits that fail: what a center that is away, or answers nonsense, means for the loops."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT
from fake_trainer import HEALTHY, PATIENTS, FakeTrainer, NoFiles, control_over, plain_settings, run_cycles, settings_of
from study_maker import write_record

from travelling.errors import VisitFailed
from travelling.method.quality_control import QualityControl
from travelling.method.travel import travel
from travelling.method.verification_log import LOG_COLUMNS
from travelling.network.sfcn import FILTERS, filters, width_of
from travelling.runs.log_file import LogFile

CENTERS = {"a": ["a0", "a1"], "b": ["b0", "bad", "b2"], "c": ["c0"]}


class FailingTrainer(FakeTrainer):
    """Fails as ``failures`` says: (cycle, the first letter of a subject) -> phase; ``rate`` tells the cycle."""

    def __init__(self, failures, **options):
        super().__init__(**options)
        self.failures = failures
        self.cycle = None
        self.asked = []

    def train(self, subjects):
        self.asked.append((self.cycle, list(subjects)))
        self.weight += 100  # whatever a failing center leaves behind
        phase = self.failures.get((self.cycle, subjects[0][0]))
        if phase:
            raise VisitFailed(phase, "for a test")
        self.weight -= 100
        return super().train(subjects)


def run(control, trainer, cycles):
    for cycle in cycles:
        trainer.cycle = cycle
        run_cycles(control, [cycle])


@pytest.mark.parametrize("phase", ["unreachable", "invalid"])
def test_a_failed_visit_is_rejected_and_logged_and_made_up_for(phase):
    trainer = FailingTrainer({(10, "b"): phase})
    control, rows = control_over(CENTERS, trainer)
    run(control, trainer, [10, 11])
    assert trainer.weight == 2 + 3  # no trace of the failed one
    failed = [row for row in rows if row["Phase"] == phase]
    assert failed == [
        dict.fromkeys(LOG_COLUMNS)
        | {"Cycle": 10, "Subject": "n/a", "Study": "b", "Ignored": 1, "Phase": phase, "Eliminated": 0}
        | {"Subjects": failed[0]["Subjects"], "Tolerance": pytest.approx(0.06)}
        | {"Reference_PFP": 0.0, "Reference_PFN": 0.0}
    ]
    assert sorted(failed[0]["Subjects"].split(";")) == sorted(CENTERS["b"])
    assert {row["Study"] for row in rows if row["Cycle"] == 10} == {"a", "b", "c"}  # the cycle went on
    assert sum(row["Study"] == "b" and row["Phase"] == "batch" and row["Cycle"] == 11 for row in rows) == 1
    assert not control.waiting
    assert not any(control.flags.values())


def test_no_reply_is_never_harmful():
    trainer = FailingTrainer({(cycle, letter): "unreachable" for cycle in range(10, 15) for letter in "abc"})
    control, rows = control_over(CENTERS, trainer)
    run(control, trainer, range(10, 15))
    assert trainer.weight == 0
    assert [row["Phase"] for row in rows] == ["baseline"] + ["unreachable"] * 15  # once for each center and cycle
    assert not control.waiting
    assert not control.eliminated


def test_a_center_that_fails_amid_its_subjects_keeps_what_was_found():
    """It answers for the batch and two of its three subjects, and is away at the third and for the revisits."""

    class Leaving(FailingTrainer):
        def train(self, subjects):
            if len(self.asked) == 3:
                self.failures = {(10, "b"): "unreachable"}
            return super().train(subjects)

    trainer = Leaving({}, harm=dict.fromkeys(CENTERS["b"], (HEALTHY, 0)))
    control, rows = control_over({"b": CENTERS["b"]}, trainer, revisit=1)
    run(control, trainer, [10])
    batch, *alone, failed = rows[1:]
    assert [row["Phase"] for row in rows[1:]] == ["batch", "subject", "subject", "unreachable"]
    assert list(control.waiting) == [row["Subject"] for row in alone]
    assert failed["Subjects"] == batch["Subjects"].split(";")[2]
    run(control, trainer, [11])
    assert [row["Phase"] for row in rows[5:]] == ["batch", "subject", "revisit", "revisit"]


def test_a_revisit_that_fails_is_made_up_for_and_others_of_the_center_are_not_asked():
    centers = {"a": ["a0"], "b": ["bad", "b1"]}
    trainer = FailingTrainer({(11, "b"): "unreachable"}, harm={"bad": (HEALTHY, 0), "b1": (HEALTHY, 0)})
    control, rows = control_over(centers, trainer, revisit=1)
    run(control, trainer, [10, 11, 12])
    assert [(row["Cycle"], row["Phase"]) for row in rows if row["Study"] == "b"] == [
        *[(10, "batch"), (10, "subject"), (10, "subject")],
        (11, "unreachable"),  # the first revisit; the second is not tried
        *[(12, "revisit"), (12, "revisit")],
    ]
    assert control.eliminated == {"bad": 12, "b1": 12}
    assert control.revisits == {"a0": 0, "bad": 1, "b1": 1}


def test_a_center_that_was_not_there_is_logged_and_comes_later():
    trainer = FailingTrainer({})
    control, rows = control_over({"a": ["a0"], "b": []}, trainer)
    files = run_cycles(control, [10])
    assert [(row["Study"], row["Phase"]) for row in rows[1:] if row["Study"] == "b"] == [("b", "unreachable")]
    saved = json.loads(json.dumps(control.export_state()))
    later = {"a": ["a0"], "b": ["b0"]}
    control, rows = control_over(later, trainer)
    control.import_state(saved)
    run_cycles(control, [10, 11], files.places[-1])
    assert sorted(row["Subjects"] for row in rows[1:]) == ["a0", "b0"]
    assert len(control.subject_table()) == 2


@pytest.fixture
def failing_run(tmp_path):
    """Folder with the records of a run in which centers fail, one of which tells its subjects late."""
    sizes = {"a": 7, "never": 0, "b": 3, "c": 1, "d": 6}
    everyone = {center: [f"{center}{number}" for number in range(size)] for center, size in sizes.items()}
    failures = {(10, "b"): "invalid", (11, "a"): "unreachable", (12, "a"): "invalid", (13, "d"): "unreachable"}
    trainer = FailingTrainer(failures, harm={"a1": (30, 0), "b2": (30, 0), "d3": (30, 0)})
    log = LogFile(tmp_path / "log.csv")
    state, place = None, None
    for cycle in range(10, 16):
        centers = everyone | {"d": [] if cycle == 10 else everyone["d"]}
        trainer.cycle = cycle
        control = QualityControl(settings_of(revisit=1), trainer, centers, log)
        if state:
            control.import_state(state)
        else:
            control.start(trainer.evaluate())
        place = run_cycles(control, range(10, cycle + 1), place).places[-1]
        state = json.loads(json.dumps(control.export_state()))
    log.close()
    assert set(state["eliminated"]) == {"a1", "b2", "d3"}
    control.subject_table().to_csv(tmp_path / "log_subjects.csv", index=False)
    labels = [0] * HEALTHY + [1] * PATIENTS
    pd.DataFrame({"Subject": [f"t{i}" for i in range(len(labels))], "Group_bin": labels}).to_csv(tmp_path / "test.csv")
    return tmp_path


def audit(folder):
    options = {"fn_save": "log", "fn_test": str(folder / "test.csv"), "centers": ["a", "never", "b", "c", "d"]}
    write_record(folder / "run.json", error=0.02, **options)
    script = ROOT / "travelling_quality_control" / "audit.py"
    return subprocess.run([sys.executable, script, folder / "log.csv"], capture_output=True, text=True, check=False)


def test_the_audit_follows_visits_that_failed(failing_run):
    done = audit(failing_run)
    assert done.stdout.startswith("consistent: 6 cycles (10 to 15)"), done.stdout + done.stderr
    assert "visits failed" in done.stdout


@pytest.mark.parametrize(
    ("phase", "column", "value"),
    [("unreachable", "Ignored", 0), ("invalid", "FP", 3), ("invalid", "Reference_PFP", 0.5), ("invalid", "Study", "c")],
)
def test_the_audit_notices_a_failure_that_was_changed(phase, column, value, failing_run):
    log = pd.read_csv(failing_run / "log.csv", dtype=str, keep_default_na=False)
    row = log.index[(log["Phase"] == phase) & (log["Subjects"] != "")][0]
    log.loc[row, column] = str(value)
    log.to_csv(failing_run / "log.csv", index=False)
    done = audit(failing_run)
    assert done.returncode == 1
    assert f"log.csv, row {row + 2}: {column} is" in done.stdout


@pytest.mark.parametrize("center", ["d", "never"])
def test_a_failure_that_was_left_out_is_noticed(center, failing_run):
    log = pd.read_csv(failing_run / "log.csv", dtype=str, keep_default_na=False)
    row = log.index[(log["Phase"] == "unreachable") & (log["Study"] == center)][1]
    log.drop(row).to_csv(failing_run / "log.csv", index=False)
    done = audit(failing_run)
    assert done.returncode == 1
    assert f"log.csv, row {row + 2}: " in done.stdout


def test_the_travelling_model_goes_on_without_a_center_that_fails():
    batches = {}
    for failing in (None, "b"):
        trainer = FailingTrainer({(None, failing): "unreachable"})
        losses = []
        files = NoFiles(lambda cycle, rate, loss, seen=losses: seen.append(loss))
        travel(trainer, CENTERS, range(2), plain_settings(seed=40, epochs=2, batch_size=2), lambda cycle: 1, files)
        batches[failing] = trainer.fitted
        assert losses == [0.5, 0.5]
    # The order of the others is the same as if it had been there.
    assert batches["b"] == [batch for batch in batches[None] if batch[0][0] != "b"]


@pytest.mark.parametrize("width", [0.01, 0.03, 0.1, 0.125, 0.37, 0.5, 1.0, 1.7, 8])
def test_the_width_of_a_network_is_told_by_its_filters(width):
    assert filters(width_of(filters(width))) == filters(width)


def test_filters_of_no_network_are_refused():
    with pytest.raises(ValueError, match="no width"):
        width_of([*FILTERS[:-1], 17])
