"""Server and centers in one process, every message through FLARE's own serialization."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import run_here

pytest.importorskip("nvflare")

from federation import (
    CYCLES,
    FIRST_CYCLE,
    SIZES,
    in_one_process,
    options,
    read_log,
    read_names,
    read_weights,
    server_settings,
    study,
)
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import fobs_initialize

from travelling_quality_control.federated.center import CenterExecutor
from travelling_quality_control.federated.prepare_site import configure_center
from travelling_quality_control.federated.server import ERROR_FILE, TravellingController

CENTERS = [*SIZES, "bad"]


class Federation:
    """The centers of the study, and ``job``: one job on them, as FLARE would run it."""

    def __init__(self, study, folder):
        self.folder = folder
        self.local = folder / "local"
        self.local.mkdir()
        self.private = {center: folder / "centers" / center for center in CENTERS}
        table = study.table.assign(Path=[str(study.folder / path) for path in study.table["Path"]])
        for center in CENTERS:
            data = folder / f"{center}.csv"
            table[table["Study"] == center].to_csv(data, index=False)
            configure_center(self.local, center, data, self.private[center])
        self.executors = {center: CenterExecutor() for center in CENTERS}
        self.messages = []  # (center, question, what the server sent, what the center answered), as bytes
        self.away = set()
        self.tamper = lambda center, question, answer: answer
        self.before = lambda center, question: None
        (self.local / "travelling_server.json").write_text(server_settings(study, folder))

    def job(self, cycles=1):
        """Run one job; returns its controller, whose ``panics`` are why FLARE would end it."""
        controller = TravellingController(task_timeout=5, cycles=cycles)
        controller.panics = []
        controller.panic = controller.panics.append
        controller.info = controller.warning = lambda text: None
        controller.abort_signal = Signal()
        workspace = SimpleNamespace(get_site_config_dir=lambda: str(self.local))
        there = [SimpleNamespace(name=center) for center in CENTERS if center not in self.away]
        controller.engine = SimpleNamespace(get_workspace=lambda: workspace, get_clients=lambda: there)
        controller.send_model = lambda targets, task_name, data, **_: [
            self._deliver(center, task_name, data) for center in targets
        ]
        controller.send_model_and_wait = lambda targets, task_name, data, **_: self._deliver(
            targets[0], task_name, data, controller
        )
        controller.run()
        return controller

    def _deliver(self, center, question, data, controller=None):
        self.before(center, question)
        if controller and controller.abort_signal.triggered:
            return []
        sent = fobs.dumps(FLModelUtils.to_shareable(data))
        context = mock.Mock()
        context.get_engine().get_workspace().get_site_config_dir.return_value = str(self.local)
        context.get_identity_name.return_value = center
        answer = self.executors[center].execute(question, fobs.loads(sent), context, Signal())
        answered = fobs.dumps(answer)
        self.messages.append((center, question, sent, answered))
        answer = self.tamper(center, question, FLModelUtils.from_shareable(fobs.loads(answered)))
        return [answer] if answer else []

    def log(self):
        """The server's log with the pseudonyms resolved."""
        return read_log(self.folder / "qc.csv", read_names(self.private.values()))


@pytest.fixture(scope="session", autouse=True)
def _serialization():
    fobs_initialize()


@pytest.fixture
def federation(study, tmp_path):
    return Federation(study, tmp_path)


def test_one_algorithm_two_engines(federation, in_one_process):
    for _ in range(FIRST_CYCLE, CYCLES):
        assert federation.job().panics == []
    pd.testing.assert_frame_equal(federation.log(), read_log(in_one_process / "qc.csv"))
    for mine, other in zip(
        read_weights(federation.folder / "qc_run"), read_weights(in_one_process / "qc_run"), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    assert json.loads((federation.folder / "qc_run" / "run.json").read_text())["finished"]
    check_messages(federation)
    check_lists(federation)


def check_messages(federation):
    """What left the centers: the answers' fields, one by one, and none of what must stay."""
    fields = {"subjects": {"subjects"}, "prepare": set(), "train": {"loss"}, "report": set()}
    assert {question for _, question, _, _ in federation.messages} == set(fields)
    for center, question, sent, answered in federation.messages:
        table = pd.read_csv(federation.folder / f"{center}.csv")
        model = FLModelUtils.from_shareable(fobs.loads(answered))
        assert set(model.meta) == fields[question]
        assert bool(model.params) == (question == "train")
        if question == "subjects":
            assert len(model.meta["subjects"]) == len(table)
        if question == "train":
            before = FLModelUtils.from_shareable(fobs.loads(sent)).params
            assert [(name, array.shape) for name, array in model.params.items()] == [
                (name, array.shape) for name, array in before.items()
            ]
            assert type(model.meta["loss"]) is float
        secrets = [*table["Subject"], *table["Path"], "smith", "nii", str(federation.folder), "Sex", "Age", "Group_bin"]
        secrets += [f"{age:.6f}"[:8] for age in table["Age"]]
        secrets = [secret.encode() for secret in secrets]
        secrets += [np.array(age, order).tobytes() for age in table["Age"] for order in ("<f8", ">f8")]
        for secret in secrets:
            assert secret not in answered, (question, secret)
            assert secret not in sent, (question, secret)


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


def test_pseudonyms_of_two_centers_with_the_same_ids_differ(federation):
    names = read_names_of(federation, "c0") & read_names_of(federation, "c1")
    assert names == set()


def read_names_of(federation, center):
    (federation.local / f"travelling_{center}.json").write_text(
        json.dumps(
            {"training_set": str(federation.folder / "c0.csv"), "private_folder": str(federation.private[center])}
        )
    )
    answer = federation._deliver(center, "subjects", FLModel(params={}))[0]
    assert len(answer.meta["subjects"]) == SIZES["c0"]
    assert federation._deliver(center, "subjects", FLModel(params={}))[0].meta == answer.meta  # they stay the same
    return set(answer.meta["subjects"])


def spoil(answer, change):
    """Change the first array of an answer."""
    answer.params["0000"] = change(np.array(answer.params["0000"]))
    return answer


def with_nan(array):
    array.flat[3] = np.nan
    return array


@pytest.mark.parametrize(
    ("tamper", "phase"),
    [
        (lambda answer: None, "unreachable"),
        (lambda answer: spoil(answer, with_nan), "invalid"),
        (lambda answer: spoil(answer, lambda array: array[..., :-1]), "invalid"),
        (lambda answer: spoil(answer, lambda array: array.astype(np.float64)), "invalid"),
        (lambda answer: FLModel(params={}, meta={"loss": 0.5}), "invalid"),
        (lambda answer: FLModel(params={}, meta={"error": "failure"}), "invalid"),
        (lambda answer: FLModel(params=answer.params, meta={"loss": float("nan")}), "invalid"),
        (lambda answer: FLModel(params=answer.params, meta={}), "invalid"),
    ],
    ids=["silence", "nan", "shape", "type", "empty", "error", "loss", "no loss"],
)
def test_a_visit_that_fails_is_undone_and_the_center_is_back_in_the_next_cycle(tamper, phase, federation):
    federation.tamper = lambda center, question, answer: (
        tamper(answer) if (center, question) == ("c1", "train") else answer
    )
    assert federation.job().panics == []
    federation.tamper = lambda center, question, answer: answer
    assert federation.job().panics == []
    log = federation.log()
    first, second = (log[log["Cycle"] == str(FIRST_CYCLE + cycle)] for cycle in range(2))
    of_center = first[first["Study"] == "c1"]
    assert list(of_center["Phase"]) == [phase]
    assert set(first["Study"]) == set(CENTERS)
    assert phase not in set(second["Phase"])
    assert "c1" in set(second["Study"])
    assert "c1" not in set(log[log["Phase"] == "subject"]["Study"])  # not tried, never harmful
    tried = [row for row in federation.messages if row[1] == "train" and row[0] == "c1"]
    assert len(tried) == 1 + sum(second["Study"] == "c1")


def test_a_center_that_is_away_costs_no_time_and_comes_later(federation):
    federation.away = {"c2"}
    assert federation.job().panics == []
    federation.away = set()
    assert federation.job().panics == []
    log = federation.log()
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["unreachable", "batch"]
    assert len(pd.read_csv(federation.folder / "qc_subjects.csv")) == sum(SIZES.values()) + 3


def test_an_aborted_job_and_a_server_that_dies_leave_no_trace(federation, in_one_process):
    class PowerCut(BaseException):
        pass

    def die(center, question):
        if question == "train" and sum(message[1] == "train" for message in federation.messages) == 6:
            federation.before = lambda center, question: None
            raise PowerCut

    federation.before = die
    with pytest.raises(PowerCut):
        federation.job()
    lines = (federation.folder / "qc.csv").read_text().count("\n")
    assert lines > 3

    asked = []

    def abort(center, question):
        asked.append(question)
        if asked.count("train") == 3:
            signals[0].trigger(True)

    signals = []
    original = Signal.__init__

    def remember(self, *words, **options):
        original(self, *words, **options)
        signals.append(self)

    federation.before = abort
    with mock.patch.object(Signal, "__init__", remember):
        assert federation.job().panics == []
    federation.before = lambda center, question: None
    for _ in range(FIRST_CYCLE, CYCLES):
        assert federation.job().panics == []
    pd.testing.assert_frame_equal(federation.log(), read_log(in_one_process / "qc.csv"))


def test_one_center_is_too_few(federation):
    federation.away = set(CENTERS) - {"c0"}
    (panic,) = federation.job().panics
    assert "1 of 4 centers is there, two at least are needed" in panic
    assert "two at least" in (federation.folder / "qc_run" / ERROR_FILE).read_text()


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
    (federation.local / "travelling_server.json").write_text(server_settings(study, federation.folder, **changes))
    (panic,) = federation.job().panics
    assert message in panic
    assert "\n" not in panic


def test_an_error_at_a_center_stays_in_its_own_log(federation):
    image = pd.read_csv(federation.folder / "c1.csv")["Path"][0]
    cohort = federation.folder / "c1.csv"
    cohort.write_text(cohort.read_text().replace(image, str(federation.folder / "gone.nii.gz")))
    assert federation.job().panics == []
    log = federation.log()
    assert list(log[log["Study"] == "c1"]["Phase"]) == ["unreachable"]  # it could not even tell its subjects
    answers = [answered for center, _, _, answered in federation.messages if center == "c1"]
    assert answers
    assert all(b"gone" not in answered for answered in answers)
    assert "gone.nii.gz" in (federation.private["c1"] / "center.log").read_text()


def test_the_standard_travelling_model_is_a_job_too(federation, study, tmp_path):
    settings = {
        "method": "standard", "centers": CENTERS, "shape": [33, 34, 35], "output_folder": str(tmp_path / "standard"),
        "cycles": 2, "epochs": 2, "width": 0.1, "learning_rate": 0.002,
    }  # fmt: skip
    (federation.local / "travelling_server.json").write_text(json.dumps(settings))
    assert federation.job(cycles=2).panics == []
    done = run_here(
        "standard", "-fn_train", study.training_set, "-cycles", 2, "-epochs", 2, "-batch_size", 5, "--width", 0.1,
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
