"""Server and centers in one process, every message through FLARE's own serialization."""

import contextlib
import functools
import json
import resource
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_here
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from federation import (
    CYCLES,
    ERROR,
    FIRST_CYCLE,
    SIZES,
    in_one_process,
    made_once,
    options,
    plant_salt,
    read_log,
    read_names,
    read_weights,
    server_settings,
    study,
)
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import fobs_initialize

from travelling.beyond.screen.looks import LOOKS
from travelling.beyond.screen.metrics import MEANINGS
from travelling.errors import AlreadyDone, InputError, VisitFailed
from travelling_quality_control.federated.center import CenterExecutor, Pseudonyms
from travelling_quality_control.federated.gate import CENTER_RIGHTS
from travelling_quality_control.federated.job import refuse_complete, run_jobs
from travelling_quality_control.federated.prepare_site import allow, configure_center
from travelling_quality_control.federated.server import (
    ERROR_FILE,
    TravellingController,
    refuse_bad_images,
    refuse_bad_subjects,
)
from travelling_quality_control.federated.settings import SERVER_FILE, read_server_settings
from travelling_quality_control.federated.trainer import numbers_of_looks, refuse_bad_looks
from travelling_quality_control.federated.wire import digest, pack, unpack

CENTERS = [*SIZES, "bad"]
AUDIT = ROOT / "travelling_quality_control" / "audit.py"


@pytest.fixture(scope="module")
def hospitals(study, tmp_path_factory):
    """Folder with the CSV and the private folder of every center, and the centers themselves.

    All tests share them: a center keeps its compiled network, and has no other state.
    """
    fobs_initialize()
    folder = tmp_path_factory.mktemp("hospitals")
    table = study.table.assign(Path=[str(study.folder / path) for path in study.table["Path"]])
    for center in CENTERS:
        table[table["Study"] == center].to_csv(folder / f"{center}.csv", index=False)
        configure_center(folder, center, folder / f"{center}.csv", plant_salt(folder / center), {})
    allow(folder, CENTER_RIGHTS)
    from travelling_quality_control.federated.step import CenterModel  # only now: it imports TensorFlow

    # One network for all centers, as compiling takes seconds; each takes over a whole network before every step.
    build = mock.patch.object(CenterModel, "build", functools.cache(CenterModel.build))
    return SimpleNamespace(folder=folder, executors={center: CenterExecutor() for center in CENTERS}, build=build)


class Message:
    """A question to a center and its answer: as FLARE's models (``asked``, ``answer``), and as bytes."""

    def __init__(self, center, question, sent, answered):
        self.center, self.question = center, question
        self.sent, self.answered = sent, answered
        self.asked, self.answer = read(sent), read(answered)


def read(sent):
    return FLModelUtils.from_shareable(fobs.loads(sent))


def write(model):
    return fobs.dumps(FLModelUtils.to_shareable(model))


class Federation:
    """The centers of the study, and ``job``: one job on them, as FLARE would run it."""

    def __init__(self, study, hospitals, folder):
        self.folder = folder
        self.hospitals = hospitals.folder
        self.build = hospitals.build
        self.executors = dict(hospitals.executors)
        self.private = {center: hospitals.folder / center for center in CENTERS}
        self.messages = []
        self.away = set()
        self.dead = set()  # centers whose process of the job has ended
        self.tamper = lambda center, question, answer: answer
        self.before = lambda controller, question: None
        allow(folder, CENTER_RIGHTS)
        self.configure(study)

    def configure(self, study, **changes):
        """Write the server's configuration; returns it as the server reads it."""
        (self.folder / SERVER_FILE).write_text(server_settings(study, self.folder, **changes))
        return self

    @property
    def settings(self):
        """The server's configuration."""
        return read_server_settings(self.folder / SERVER_FILE)

    def job(self, cycles=1):
        """Run one job; returns its controller, whose ``panics`` are why FLARE would end it."""
        controller = TravellingController(task_timeout=5, cycles=cycles)
        controller.panics = []
        controller.panic = controller.panics.append
        controller.info = controller.warning = lambda text: None
        controller.abort_signal = Signal()
        controller.communicator = SimpleNamespace(get_client_disconnect_time=lambda center: center in self.dead)
        workspace = SimpleNamespace(get_site_config_dir=lambda: str(self.folder))
        there = [SimpleNamespace(name=center) for center in CENTERS if center not in self.away]
        controller.engine = SimpleNamespace(get_workspace=lambda: workspace, get_clients=lambda: there)
        controller.send_model_and_wait = lambda targets, task_name, data, **_: [
            answer for center in targets for answer in self.send(controller, center, task_name, data)
        ]
        controller.run()
        return controller

    def jobs(self, number, **options):
        """Run some jobs that FLARE does not end; returns the log."""
        for _ in range(number):
            assert self.job(**options).panics == []
        return self.log()

    def send(self, controller, center, question, data):
        """What FLARE's controller does: a list with the answer, empty where there is none."""
        assert center not in self.dead, "it would be waited for"
        self.before(controller, question)
        if controller.abort_signal.triggered or center in self.dead:
            return []
        answer = self.tamper(center, question, self.deliver(center, question, data))
        if not answer:
            return []
        try:
            answer = read(write(answer))
        except Exception:  # what cannot be sent or read is no answer
            return []
        answer.meta |= {"client_name": center, "props": data.meta}
        return [answer]

    def deliver(self, center, question, data):
        """A center's answer to a question."""
        sent = write(data)
        context = mock.Mock()
        context.get_engine().get_workspace().get_site_config_dir.return_value = str(self.hospitals)
        context.get_identity_name.return_value = center
        with self.build:
            answer = self.executors[center].execute(question, fobs.loads(sent), context, Signal())
        self.messages.append(Message(center, question, sent, fobs.dumps(answer)))
        return read(fobs.dumps(answer))

    def asked(self, question):
        """The messages of one question."""
        return [message for message in self.messages if message.question == question]

    def spoil(self, center, question, change):
        """Change every answer of a center to a question: ``change(answer)`` does, or returns what comes instead."""

        def tamper(of, asked, answer):
            return change(answer) or answer if (of, asked) == (center, question) else answer

        self.tamper = tamper

    def log(self):
        """The server's log with the pseudonyms resolved."""
        return read_log(self.folder / "qc.csv", read_names(self.private.values()))

    def text_log(self):
        """The server's plain log."""
        return (self.folder / "qc.log").read_text()


@pytest.fixture(scope="module")
def loaded(study):
    """The pre-trained model, and its state: compiling it takes seconds, and every job would do it anew."""
    from travelling.network.saved_model import load_model

    model, record, notices = load_model(study.encoder, study.classifier, (35, 34, 33))
    return model, model.export_state(), record, notices


@pytest.fixture
def federation(study, hospitals, loaded, tmp_path, monkeypatch):
    from travelling.network import saved_model

    def load(*_):
        model, state, record, notices = loaded
        model.import_state(state)
        return model, dict(record), list(notices)

    monkeypatch.setattr(saved_model, "load_model", load)
    return Federation(study, hospitals, tmp_path)


def test_one_algorithm_two_engines(federation, in_one_process):
    log = federation.jobs(CYCLES - FIRST_CYCLE)  # one for each cycle
    pd.testing.assert_frame_equal(log, read_log(in_one_process / "qc.csv"))
    for mine, other in zip(
        read_weights(federation.folder / "qc_run"), read_weights(in_one_process / "qc_run"), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    assert json.loads((federation.folder / "qc_run" / "run.json").read_text())["finished"]
    check_messages(federation)
    check_lists(federation)


def test_a_group_of_batches_goes_from_center_to_center(federation, study, options, tmp_path):
    """The same decisions as in the script; a center trains all its batches of a group before the model goes on."""
    grouped = ("--rule", "evidence", "--verify-every", 4)
    done = run_here("quality_control", *options, *grouped, "-fn_save", "script", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = federation.configure(study, rule="evidence", verify_every=4).jobs(CYCLES - FIRST_CYCLE)
    pd.testing.assert_frame_equal(log, read_log(tmp_path / "script.csv"))
    assert log[log["Phase"] == "group"]["Study"].str.contains(";").any()
    check_messages(federation)
    check_lists(federation)


def check_messages(federation):
    """What went between the sites: the fields of questions and answers, one by one, and none of what must stay."""
    about = {"filters", "space"}
    fields = {
        "subjects": (set(), {"subjects", "installed"}),
        "prepare": (about, {"means", "checksums"}),
        "train": (about | {"digest", "subjects"}, {"loss", "digest"}),
        "report": ({"subjects", "rows"}, set()),
    }
    assert {message.question for message in federation.messages} == set(fields)
    for message in federation.messages:
        table = pd.read_csv(federation.hospitals / f"{message.center}.csv")
        asked, answer = message.asked, message.answer
        assert (set(asked.meta), set(answer.meta)) == fields[message.question]
        assert bool(asked.params) == bool(answer.params) == (message.question == "train")
        if message.question == "subjects":
            assert len(answer.meta["subjects"]) == len(table)
        if message.question == "train":
            # Weights, moving statistics, the dropout's seed: nothing of Adam. Gradients and statistics come back.
            *floats, seed = sorted(asked.params.values(), key=lambda array: array.dtype.kind != "f")
            assert ({array.dtype.kind for array in floats}, seed.shape) == ({"f"}, (2,))
            assert seed.dtype.kind != "f"
            assert (len(floats), len(answer.params)) == (26 + 12, 26 + 12)
            assert type(answer.meta["loss"]) is float
        secrets = [*table["Subject"], *table["Path"], "smith", "nii", str(federation.hospitals), "Sex", "Age"]
        secrets = [secret.encode() for secret in [*secrets, "Group_bin", *(f"{age:.6f}"[:8] for age in table["Age"])]]
        secrets += [np.array(age, order).tobytes() for age in table["Age"] for order in ("<f8", ">f8")]
        for secret in secrets:
            assert secret not in message.answered, (message.question, secret)
            assert secret not in message.sent, (message.question, secret)


def check_lists(federation):
    """Every center knows what was found among its own images; the server knows pseudonyms only."""
    found = pd.read_csv(federation.private["bad"] / "flagged_subjects.csv")
    assert sorted(found["Subject"]) == [f"patient-upside{number}-smith" for number in range(3)]
    assert found["Path"].str.contains("upside").all()
    assert (found["Eliminated"] == 1).all()
    rows = pd.read_csv(federation.private["bad"] / "flagged_rows.csv")
    assert set(rows["Phase"]) == {"batch", "subject", "revisit"}
    assert {name for cell in rows["Subjects"] for name in cell.split(";")} == set(found["Subject"])
    assert rows["Eliminated"].sum() == 3
    flagged = set(federation.log().query("Phase == 'subject' and Ignored == '1'")["Study"])
    for center in CENTERS:
        assert (federation.private[center] / "flagged_subjects.csv").exists() == (center in flagged)
        assert (federation.private[center].stat().st_mode & 0o777) == 0o700
    for path in [*federation.folder.glob("qc*"), *(federation.folder / "qc_run").iterdir()]:
        if path.is_file():
            assert b"smith" not in path.read_bytes(), path


def test_a_complete_run_is_done_or_another_or_overwritten(federation, study):
    def settings(**changes):
        return federation.configure(study, cycles=FIRST_CYCLE + 1, **changes).settings

    run_jobs(settings(), federation.job)
    before = set(federation.log()["Tolerance"])
    with pytest.raises(AlreadyDone, match=r"done already: .*qc_run \(--overwrite runs it again"):
        refuse_complete(settings(), "--overwrite")
    with pytest.raises(
        InputError, match=r"another run's result \(--overwrite replaces it; error is 0.\d+ there and 0.19"
    ):
        refuse_complete(settings(error=0.19), "--overwrite")
    anew = settings(error=0.19, overwrite=True)
    refuse_complete(anew, "--overwrite")
    with pytest.raises(InputError, match=r"the run is where it was before it \(aborted\)"):  # whatever is there already
        run_jobs(anew, lambda: "aborted")
    run_jobs(anew, federation.job)
    assert not set(federation.log()["Tolerance"]) & (before - {""})


def test_pseudonyms_stay_the_same_depend_on_the_center_and_have_an_order_of_their_own(study, tmp_path):
    subjects = list(study.table["Subject"])
    for center in ("a", "b"):
        (tmp_path / center).mkdir()
    first, again, other = (Pseudonyms(tmp_path / center, subjects).of for center in "aab")
    assert first == again
    assert not set(first.values()) & set(other.values())
    assert (tmp_path / "a" / "salt").stat().st_mode & 0o777 == 0o600
    assert sorted(first) == sorted(subjects)
    assert list(first) != subjects
    assert list(first) == list(Pseudonyms(tmp_path / "a", reversed(subjects)).of)


@pytest.mark.parametrize("names", [None, [], "0" * 16, ["patient-7"], ["0" * 16, "0" * 16], ["a" * 16], [3]])
def test_a_list_of_subjects_that_cannot_be_right_is_invalid(names):
    refuse_bad_subjects(["0" * 16, "b" * 16], {"a" * 16})
    with pytest.raises(ValueError, match="subject"):
        refuse_bad_subjects(names, {"a" * 16})


def test_looks_that_cannot_be_right_are_invalid():
    numbers = numbers_of_looks(["asymmetry"], labels=True)
    assert list(numbers) == [*LOOKS, "labels"]
    assert (numbers["asymmetry"], numbers["front_back"]) == (1, LOOKS["front_back"].numbers)
    right = np.full((2, sum(numbers.values())), 0.1)
    right[:, 0] = np.inf, np.nan  # to be flagged
    right[1, -1] = 1.0
    refuse_bad_looks([right], 2, numbers)
    others = right.astype(np.float32), np.zeros_like(right, int), right[:1], right[:, 1:], right[0]
    for arrays in ([], [right, right], *([other] for other in others)):
        with pytest.raises(ValueError, match="not a row of"):
            refuse_bad_looks(arrays, 2, numbers)
    for p in (0.0, -1.0, 7.0, float("nan")):
        right[0, -1] = p
        with pytest.raises(ValueError, match="from 0 to 1"):
            refuse_bad_looks([right], 2, numbers)


@pytest.mark.parametrize("labels", [False, True])
def test_the_screen_at_the_centers_is_that_of_one_process(labels, federation, study, options, tmp_path):
    cycles = FIRST_CYCLE + 2
    better = ("--screen", "--false-alarms", 0.06, "--rule", "evidence", "-cycles", cycles, *["--label-screen"] * labels)
    here = tmp_path / "here"
    here.mkdir()
    done = run_here("quality_control", *options, *better, "-fn_save", "qc", cwd=here)
    assert done.returncode == 0, done.stderr
    federation.configure(study, screen=True, label_screen=labels, false_alarms=0.06, rule="evidence", cycles=cycles)
    log = federation.jobs(1, cycles=2)
    pd.testing.assert_frame_equal(log, read_log(here / "qc.csv"))
    assert sorted(path.name for path in here.glob("qc_iqm.*")) == ["qc_iqm.json", "qc_iqm.tsv"]
    eliminated = log[(log["Eliminated"] == "1") & (log["FP"] == "")]
    assert (eliminated["Study"] == "bad").sum() == 3  # by the screen, without a training step
    looks = federation.asked("look")
    assert looks
    for look in looks:  # the network for labels alone; of an image a sum for each pair of halves, not their differences
        (rows,), images = look.answer.params.values(), len(look.asked.meta["subjects"])
        assert rows.shape == (images, len(MEANINGS) + 4 + bool(look.asked.meta["labels"]))
        assert len(look.asked.params) == 3 + bool(look.asked.meta["labels"]) * (26 + 12 + 1)
        assert set(look.answer.meta) == {"digest"}
        assert len(look.answered) < 2000 + 600 * images
    assert any(look.asked.meta["labels"] for look in looks) == labels
    visits = pd.read_csv(federation.folder / "qc_run" / "visits.csv").query("Question == 'look'")
    assert visits["Bytes_received"].tolist() == [sum(a.nbytes for a in look.answer.params.values()) for look in looks]
    rows = pd.read_csv(federation.private["bad"] / "flagged_rows.csv")
    assert set(rows["Phase"]) == {"screen", "revisit"}
    assert (rows["Screen_score"] > rows["Screen_limit"]).all()


def with_nan(array):
    array = np.array(array)
    array.flat[3] = np.nan
    return array


def test_visits_that_fail_are_rejected_and_the_centers_are_back_in_the_next_cycle(federation):
    spoilt = {
        "c0": lambda answer: None,
        "c1": lambda answer: FLModel(
            params=answer.params | {"0000": with_nan(answer.params["0000"])}, meta=answer.meta
        ),
        "c2": lambda answer: FLModel(params={}, meta={"error": "failure"}),
    }
    federation.tamper = lambda center, question, answer: (
        spoilt[center](answer) if question == "train" and center in spoilt else answer
    )
    federation.jobs(1)
    federation.tamper = lambda center, question, answer: answer
    log = federation.jobs(1)
    first, second = (log[log["Cycle"] == str(FIRST_CYCLE + cycle)] for cycle in range(2))
    for center, phase in (("c0", "unreachable"), ("c1", "invalid"), ("c2", "invalid")):
        assert list(first[first["Study"] == center]["Phase"]) == [phase]
        assert "batch" in set(second[second["Study"] == center]["Phase"])
        assert center not in set(log[log["Phase"] == "subject"]["Study"])  # not tried, never harmful
    assert set(second["Phase"]) <= {"batch", "subject", "revisit"}
    # What is sent after a visit that failed is what was sent to it.
    first, *others = (message.asked.params for message in federation.asked("train")[:4])
    for other in others:
        for name, array in first.items():
            np.testing.assert_array_equal(array, other[name])


def test_a_center_that_is_away_is_not_asked_and_comes_later(federation):
    federation.away = {"c2"}
    federation.jobs(1)
    assert "c2" not in {message.center for message in federation.messages}
    federation.away = set()
    log = federation.jobs(1)
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["unreachable", "batch"]
    assert len(pd.read_csv(federation.folder / "qc_subjects.csv")) == sum(SIZES.values()) + 3


def first_cycles(folder, number):
    """The rows of the script's log up to the end of a cycle."""
    log = read_log(folder / "qc.csv")
    return log[log["Cycle"].astype(int) < FIRST_CYCLE + number]


def test_an_aborted_job_and_a_server_that_dies_leave_no_trace(federation, in_one_process):
    class PowerCut(BaseException):
        pass

    def die(controller, question):
        if question == "train" and len(federation.asked("train")) == 6:
            raise PowerCut

    def abort(controller, question):
        if question == "train" and len(federation.asked("train")) == 12:
            controller.abort_signal.trigger(True)

    federation.before = die
    with pytest.raises(PowerCut):
        federation.job()
    assert (federation.folder / "qc.csv").read_text().count("\n") > 3
    federation.before = abort
    assert not set(federation.jobs(1, cycles=2)["Phase"]) & {"unreachable", "invalid"}
    assert not json.loads((federation.folder / "qc_run" / "run.json").read_text())["finished"]
    federation.before = lambda controller, question: None
    pd.testing.assert_frame_equal(federation.jobs(1), first_cycles(in_one_process, 2))


def test_a_process_that_dies_in_a_visit_costs_its_center_the_rest_of_the_cycle(federation):
    """It dies over its second batch; the step of the first one stays, and the others go on from there."""

    def die(controller, question):
        last = federation.messages[-1]
        if question == "train" and (last.center, last.question) == ("c1", "train"):
            federation.dead = {"c1"}

    federation.jobs(1)
    known = len(federation.asked("train"))
    federation.before = die
    federation.jobs(1)
    trained = federation.asked("train")[known:]
    here = [message.center for message in trained].index("c1")
    assert [message.center for message in trained].count("c1") == 1  # nothing is asked of a process that is dead
    federation.before, federation.dead = lambda controller, question: None, set()
    log = federation.jobs(1)
    second, third = (log[log["Cycle"] == str(FIRST_CYCLE + cycle)] for cycle in (1, 2))
    assert list(second[second["Study"] == "c1"]["Phase"]) == ["batch", "unreachable"]
    assert list(second[second["Study"] == "c1"]["Ignored"]) == ["0", "1"]
    assert list(third[third["Study"] == "c1"]["Phase"]) == ["batch", "batch"]
    assert {"c0", "c2"} < set(second[second["Phase"] == "batch"]["Study"])
    following = trained[here + 1].asked.params
    statistics = unpack(trained[here].answer.params)[26:]  # the step that stays: of it, only these are the center's own
    assert {array.tobytes() for array in statistics} <= {array.tobytes() for array in following.values()}
    refuse_inconsistent(federation, "consistent: 3 cycles", "1 visit failed")


def refuse_inconsistent(federation, *words):
    """The audit finds the server's log consistent, and says so in some words."""
    done = subprocess.run(
        [sys.executable, AUDIT, "qc.csv"], cwd=federation.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(word in done.stdout for word in words), done.stdout


def test_where_every_process_has_died_the_job_ends_and_says_so(federation):
    """FLARE aborts a job with no client that lives: whoever submitted it is told why."""

    def die(controller, question):
        if question == "train":
            federation.dead = set(CENTERS)
            controller.abort_signal.trigger(True)

    federation.before = die
    with pytest.raises(InputError, match="at every center the process of this job has ended"):
        run_jobs(federation.settings, federation.job)
    assert not set(federation.log()["Phase"]) & {"unreachable", "invalid"}


def test_a_full_disk_at_a_center_costs_its_step(federation):
    visits = federation.private["c2"] / "visits.csv"
    visits.unlink(missing_ok=True)
    visits.symlink_to("/dev/full")
    try:
        federation.jobs(1)
    finally:
        visits.unlink()
    log = federation.jobs(1)
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["invalid", "batch"]
    refuse_inconsistent(federation, "consistent: 2 cycles", "1 visit failed")
    assert "No space left on device" in (federation.private["c2"] / "center.log").read_text()


@pytest.mark.parametrize(
    ("whole", "error"), [(False, r"File too large: '.*(qc|visits)\.(csv|log)'$"), (True, "qc_run: cannot be written")]
)
def test_a_full_disk_at_the_server_loses_no_decision(whole, error, federation, in_one_process):
    """The log cannot grow any more in the middle of a cycle, or no file: one line, and the next job goes on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(center, question, answer):
        if question == "train" and len(federation.asked("train")) == 7:
            room = 0 if whole else (federation.folder / "qc.csv").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        return answer

    federation.tamper = fill
    try:
        with pytest.raises(InputError, match=error) as stopped:
            run_jobs(federation.settings, federation.job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(stopped.value)
    assert len(federation.log()) == 7  # it has something to lose
    federation.tamper = lambda center, question, answer: answer
    run_jobs(federation.settings, federation.job)
    pd.testing.assert_frame_equal(federation.log(), read_log(in_one_process / "qc.csv"))


@pytest.mark.parametrize("question", ["train", "look"])
def test_a_center_that_restarts_within_a_job_prepares_itself(question, federation, study, in_one_process):
    """It has lost its network, too, and nobody asks it to prepare again."""
    screened = {"screen": True, "false_alarms": 0.06} if question == "look" else {}
    federation.configure(study, **screened)
    left = [2]

    def restart(controller, asked):
        if asked == question and left[0]:
            left[0] -= 1
            federation.executors = {center: CenterExecutor() for center in CENTERS}

    federation.before = restart
    log = federation.jobs(1)
    assert left == [0]
    assert not set(log["Phase"]) & {"unreachable", "invalid"}
    if not screened:
        pd.testing.assert_frame_equal(log, first_cycles(in_one_process, 1))


def test_one_center_is_too_few(federation):
    federation.away = set(CENTERS) - {"c0"}
    (panic,) = federation.job().panics
    assert "1 of 4 centers is there, two at least are needed" in panic
    assert "two at least" in (federation.folder / "qc_run" / ERROR_FILE).read_text()


def test_an_error_that_nobody_foresaw_is_one_line_and_ends_the_jobs(federation):
    def fail(controller, question):
        raise ZeroDivisionError("nobody\nforesaw this")

    def run_one():
        with pytest.raises(ZeroDivisionError):  # FLARE logs it
            federation.job()

    federation.before = fail
    with pytest.raises(InputError, match=r"^ZeroDivisionError: nobody foresaw this; FLARE's log on the server"):
        run_jobs(federation.settings, run_one)
    assert (federation.folder / "qc_run" / ERROR_FILE).read_text().count("\n") == 1
    federation.before = lambda controller, question: None
    federation.away = set(CENTERS)  # ends the next job at once
    assert "ZeroDivision" not in str(federation.job().panics)
    assert "ZeroDivision" not in (federation.folder / "qc_run" / ERROR_FILE).read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"centers": ["c0"]}, "two centers at least are needed, not 1"),
        ({"centers": ["c0", "c0"]}, "a center is named twice"),
        ({"centers": ["c0", "../c1"]}, "centers: a list of names"),
        ({"revisit": 0}, "revisit: '0' is not a whole number"),
        ({"error": "much"}, "error: "),
        ({"fn_test": None}, "fn_test is missing"),
        ({"colour": 1}, "colour is not known"),
        ({"method": "magic"}, "method is "),
        ({"en": "nowhere.keras"}, "no such model file"),
    ],
)
def test_a_wrong_configuration_is_one_line(changes, message, federation, study):
    federation.configure(study, **changes)
    (panic,) = federation.job().panics
    assert message in panic
    assert "\n" not in panic


def test_an_error_at_a_center_stays_in_its_own_log(federation):
    cohort = federation.hospitals / "c1.csv"
    sound = cohort.read_text()
    federation.executors["c1"] = CenterExecutor()
    cohort.write_text(sound.replace(".nii.gz", "-gone.nii.gz"))
    try:
        answer = federation.deliver("c1", "subjects", FLModel(params={}))
        assert answer.meta == {"error": "input"}
    finally:
        cohort.write_text(sound)
    assert "-gone.nii.gz" in (federation.private["c1"] / "center.log").read_text()
    nonsense = federation.deliver("c1", "train", FLModel(params={}, meta={"subjects": ["f" * 16]}))
    assert nonsense.meta == {"error": "failure"}
    assert all(b"gone" not in message.answered for message in federation.messages)


def test_a_center_does_not_train_on_what_was_changed_on_its_way(federation):
    federation.jobs(1)
    asked = federation.asked("train")[0].asked
    asked.params["0003"] = asked.params["0003"] * np.float32(2)
    assert federation.deliver("c1", "train", asked).meta == {"error": "input"}
    assert "what the server sent was changed on its way" in (federation.private["c1"] / "center.log").read_text()


def test_images_that_lie_elsewhere_are_refused_at_their_center_and_changed_ones_told(federation):
    """The server says where its own lie; its own log says of a center's images what they were in the job before."""
    federation.jobs(1)
    meta = federation.asked("prepare")[0].asked.meta
    assert list(meta["space"]["shape"]) == [35, 34, 33]
    elsewhere = np.array(meta["space"]["affine"])
    elsewhere[0, 3] += 40  # mm
    log, images = (federation.private["c1"] / name for name in ("center.log", "images.csv"))
    before = len(log.read_text()) if log.exists() else 0
    federation.executors["c1"] = CenterExecutor()
    moved = meta | {"space": {"shape": meta["space"]["shape"], "affine": elsewhere.tolist()}}
    assert federation.deliver("c1", "prepare", FLModel(params={}, meta=moved)).meta == {"error": "input"}
    assert "lies up to 10 voxels from where the model's first image lies" in log.read_text()[before:]
    table = pd.read_csv(images)
    images.write_text(images.read_text().replace(table["sha256"][0], "0" * 64))
    assert set(federation.deliver("c1", "prepare", FLModel(params={}, meta=meta)).meta) == {"means", "checksums"}
    notices = [line for line in log.read_text()[before:].splitlines() if "notice: " in line]
    assert len(notices) == 1
    assert f"the image of {table['Subject'][0]} is not the one of the job before" in notices[0]
    assert images.read_text() == table.to_csv(index=False)


def test_the_standard_travelling_model_is_a_job_too(federation, study, tmp_path):
    settings = {
        "method": "standard", "centers": CENTERS, "shape": [33, 34, 35], "output_folder": str(tmp_path / "standard"),
        "cycles": 2, "epochs": 1, "width": 0.1, "learning_rate": 0.002,
    }  # fmt: skip
    (federation.folder / SERVER_FILE).write_text(json.dumps(settings))
    assert federation.job(cycles=2).panics == []
    assert "c0: train, " in (tmp_path / "standard" / "training.log").read_text()
    done = run_here(
        "standard", "-fn_train", study.training_set, "-cycles", 2, "-epochs", 1, "-batch_size", 5, "--width", 0.1,
        "--learning-rate", 0.002, "--output-folder", tmp_path / "script", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import keras

    for part in ("encoder", "classifier_PD"):
        mine, other = (
            keras.models.load_model(tmp_path / folder / f"{part}_distributed_BS5_01.keras")
            for folder in ("standard", "script")
        )
        for weight, same in zip(mine.weights, other.weights, strict=True):
            np.testing.assert_array_equal(np.asarray(weight), np.asarray(same))


GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), some, max_size=3),
    max_leaves=4,
) | st.sampled_from([np.zeros(3), np.array(["a"]), np.array(1), np.zeros((2, 2), np.int64), np.array([None, 1])])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(data=st.data())
def test_garbage_of_any_type_in_any_field_is_a_failed_visit_and_no_error(data, loaded):
    """Whatever a center answers is an answer that can be used, or VisitFailed, through FLARE's own serialization."""
    from travelling_quality_control.federated.step import CenterModel
    from travelling_quality_control.federated.trainer import FederatedTrainer

    model, state, _, _ = loaded
    model.import_state(state)
    names = ["0" * 16, "f" * 16]
    half_step = [np.zeros(shape, kind) for kind, shape in half_step_of(model)]
    sound = {
        "subjects": ({}, {"subjects": names}),
        "prepare": ({}, {"means": [0.1, 0.2, 0.3], "checksums": dict.fromkeys(names, "a" * 64)}),
        "train": (pack(half_step), {"loss": 0.5, "digest": digest(half_step)}),
    }
    question = data.draw(st.sampled_from(list(sound)))
    params, meta = (dict(part) for part in sound[question])
    field = data.draw(st.sampled_from(["params", "an array", "a key", "error", *meta]))
    value = data.draw(GARBAGE)
    if field == "params":
        params = value
    elif field == "an array":
        params[data.draw(st.sampled_from([*params, "0000"]))] = value
    elif field == "a key":
        params[data.draw(st.integers() | st.text(max_size=5))] = np.zeros(3, np.float32)
    else:
        meta[field] = value
    try:
        answer = SimpleNamespace(params=params, meta=meta, metrics=None, params_type=ParamsType.FULL)
        for name in ("start_round", "current_round", "total_rounds"):
            setattr(answer, name, None)
        answer = read(write(answer))
    except Exception:  # what FLARE cannot send or read is no answer
        answer = None

    def ask(center, question, arrays, meta, refuse):
        return TravellingController()._usable(center, question, answer, refuse)

    trainer = FederatedTrainer(ask, model, SimpleNamespace(space={}, shape=(35, 34, 33)))
    trainer.center_of = {names[0]: "c1"}
    refusals = {
        "subjects": lambda _, meta: refuse_bad_subjects(meta.get("subjects"), set()),
        "prepare": lambda _, meta: refuse_bad_images(meta.get("means"), meta.get("checksums"), names),
    }
    try:
        if question == "train":
            trainer.train(names[:1])
        else:
            ask("c1", question, [], {}, refusals[question])
    except VisitFailed:
        assert all(np.array_equal(*pair) for pair in zip(model.export_state(), state, strict=True))


def half_step_of(model):
    """Data type and shape of every array of a half step."""
    return [
        (variable.dtype, variable.shape)
        for variable in (*model.network.trainable_variables, *model.network.non_trainable_weights)
    ]


def replaced(names, change):
    """A center's answer to a training step with some arrays changed, as if they had been so from the start."""

    def spoil(answer):
        answer.params |= {name: change(answer.params[name]) for name in names}
        answer.meta["digest"] = digest(unpack(answer.params))

    return spoil


@pytest.mark.parametrize(
    ("question", "spoil", "reason"),
    [
        ("subjects", lambda answer: answer.meta.update(subjects={"a": 1}), "it names no subjects"),
        ("subjects", lambda answer: answer.meta["installed"].update(code="other"), "another version"),
        ("subjects", lambda answer: answer.meta.update(installed=3), "another version"),
        ("prepare", lambda answer: answer.meta.update(means=["a"]), "mean intensities"),
        ("train", lambda answer: answer.params.update({"0003": "text"}), "not arrays of numbers"),
        ("train", lambda answer: answer.params.update({7: answer.params["0000"]}), "not numbered arrays"),
        ("train", replaced(["0031"], lambda array: array * np.float32(0.5)), "moving variances are smaller"),
        ("train", replaced(["0002"], lambda array: array.astype(float)), "another number, shape or type"),
        ("train", replaced(["0002"], lambda array: array[:1]), "another number, shape or type"),
        ("train", replaced(["0002"], lambda array: array * np.float32(np.nan)), "not finite"),
        ("train", lambda answer: answer.meta.update(error=np.zeros(3)), "answers with an error (unknown"),
        ("train", lambda answer: answer.meta.update(loss=-1.0), "its loss is not a number"),
        # As a filter of FLARE would: the digest is that of other arrays.
        ("train", lambda answer: answer.params.update({"0000": np.zeros_like(answer.params["0000"])}), "on its way"),
        ("look", lambda answer: answer.params.update({"0000": np.zeros_like(answer.params["0000"])}), "on its way"),
        ("look", replaced(["0000"], lambda array: array[:1]), "not a row of"),
    ],
)
def test_a_center_that_answers_nonsense_is_one_row_and_the_others_go_on(question, spoil, reason, federation, study):
    if question == "look":
        federation.configure(study, screen=True, false_alarms=0.06)
    federation.spoil("c1", question, spoil)
    log = federation.jobs(1)
    assert reason in federation.text_log()
    phase = "unreachable" if reason == "it names no subjects" else "invalid"  # then nobody knows whom to ask for
    assert list(log[log["Study"] == "c1"]["Phase"]) == [phase]
    others = log[(log["Study"] != "c1") & (log["Phase"] != "baseline")]
    assert {"c0", "c2", "bad"} <= set(others["Study"])
    assert set(others["Phase"]) <= {"batch", "subject", "revisit", *["screen"] * (question == "look")}


def test_copies_and_other_scales_are_reported_before_the_first_cycle(federation, study):
    """An image that two centers hold, and a center whose intensities are others, are in the log; a center with one of
    the server's test images is refused."""
    csv = {center: federation.hospitals / f"{center}.csv" for center in ("c0", "c1", "c2")}
    before = {center: path.read_text() for center, path in csv.items()}
    tables = {center: pd.read_csv(path) for center, path in csv.items()}
    stolen = str(study.folder / pd.read_csv(study.test_set)["Path"][0])
    federation.executors |= {"c0": CenterExecutor(), "c2": CenterExecutor()}
    with contextlib.ExitStack() as stack:
        for center in ("c0", "c2"):
            stack.callback(csv[center].write_text, before[center])
        tables["c2"].loc[0, "Path"] = stolen
        tables["c0"].loc[len(tables["c0"]) - 1, "Path"] = tables["c1"]["Path"][0]
        for center in ("c0", "c2"):
            tables[center].to_csv(csv[center], index=False)
        log = federation.jobs(1)
    run_log = federation.text_log()
    assert "the same image under two names: c0 (" in run_log
    assert "bad: its images are of another scale" in run_log
    assert "test set, too" in run_log
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["invalid"]
    assert "patient" not in run_log
    assert run_log.index("the same image") < run_log.index("cycle 8")


POISONS = {
    "times 1000": lambda array: array * 1000,
    "times -1": lambda array: -array,
    "zeros": np.zeros_like,
    "huge": lambda array: np.full_like(array, 1e30),
    "tiny": lambda array: np.full_like(array, 1e-30),
    "large": lambda array: np.full_like(array, 1e15),
}
GRADIENTS, STATISTICS, ONE_GRADIENT = range(26), range(26, 38), range(1)


@pytest.mark.parametrize(
    ("poison", "part"),
    [
        *[(poison, GRADIENTS) for poison in POISONS],
        *[(poison, STATISTICS) for poison in ("times 1000", "zeros")],
        *[(poison, ONE_GRADIENT) for poison in ("times 1000", "huge")],
    ],
)
def test_a_center_that_poisons_what_it_answers_has_no_image_of_others_flagged(poison, part, federation):
    """Its own step is verified like any other, and nothing that the server owns can be reached through it."""
    names = [f"{number:04d}" for number in part]
    federation.spoil("c1", "train", replaced(names, POISONS[poison]))
    log = federation.jobs(2)
    flagged = set(log[(log["Phase"] == "subject") & (log["Ignored"] == "1")]["Study"])
    assert flagged <= {"bad", "c1"}
    assert "batch" in set(log[log["Study"] == "c0"]["Phase"])
    if (poison, part) == ("times 1000", GRADIENTS):
        assert "c1: its gradient's norm is " in federation.text_log()


def test_what_a_step_on_one_image_tells_the_server(federation, study):
    """docs/federation.md says so: its label, its features at the last layer, and the channel means of the first."""
    federation.configure(study, batch_size=1).jobs(1)
    labels = study.table.set_index("Subject")["Group_bin"]
    names = read_names(federation.private.values())
    steps = federation.asked("train")
    assert len(steps) > 10
    for step in steps:
        (subject,) = step.asked.meta["subjects"]
        *_, kernel, bias = unpack(step.answer.params)[:26]
        assert (bias[0] < 0) == labels[names[subject]]  # the gradient of the last bias is p - y
        features = kernel[:, 0] / bias[0]  # that of the last kernel, (p - y) times the features
        assert (features >= 0).all()  # as they are after the ReLU
        assert features.max() > 0


def test_centers_that_send_no_gradient_do_not_stop_the_others(loaded, caplog):
    """Their norms are 0: no other is a number of times as large."""
    from travelling_quality_control.federated.trainer import FEW_NORMS, FederatedTrainer

    model, state, _, _ = loaded
    model.import_state(state)
    zeros = [np.zeros(shape, kind) for kind, shape in half_step_of(model)]
    zeros[26:] = [np.array(variable) for variable in model.network.non_trainable_weights]
    ones = [*(np.ones_like(array) for array in zeros[:26]), *zeros[26:]]
    answers = {"dull": zeros, "c1": ones}

    def ask(center, question, arrays, meta, refuse):
        return answers[center], {"loss": 0.5, "digest": digest(answers[center])}

    trainer = FederatedTrainer(ask, model, SimpleNamespace(space={}, shape=(35, 34, 33)))
    trainer.center_of = {"a": "dull", "b": "c1"}
    for subject in "a" * FEW_NORMS + "b":
        trainer.train([subject])
    assert "gradient's norm" not in caplog.text
