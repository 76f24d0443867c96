"""What runs at the model's home: the same loop as in the scripts, with a trainer that trains at the centers."""

import csv
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from travelling.errors import AlreadyDone, InputError, Stopped, VisitFailed
from travelling.images.cohort import copies, read_cohort
from travelling.images.local_trainer import LocalTrainer
from travelling.images.volumes import Volumes
from travelling.method.protocol import learning_rates
from travelling.method.quality_control import FAILURES
from travelling.method.travel import travel as travel_plainly
from travelling.method.verification_log import SEPARATOR
from travelling.network.model_files import SPACE, cycles_to_run, read_record
from travelling.runs import stopping
from travelling.runs.controlled_run import ControlledRun, first_evaluation, open_run, refuse_unfit_test_set
from travelling.runs.plain_run import PlainRun
from travelling.runs.run import Run
from travelling_quality_control.enc_PD_quality_control import travel
from travelling_quality_control.federated.center import ERRORS, PSEUDONYM_LETTERS, REPORTED
from travelling_quality_control.federated.settings import INPUT_FILES, SERVER_FILE, read_server_settings
from travelling_quality_control.federated.wire import digest, note_visit, pack, unpack

if TYPE_CHECKING:
    from travelling.beyond.screen.labels import Reference
    from travelling.network.model import TravellingModel

Ask = Callable[[str, str, list[np.ndarray], dict], tuple[list[np.ndarray], dict]]  # of FederatedTrainer
ERROR_FILE = "error.txt"  # in the run folder: why a job ended without having gone on
VISITS_FILE = "visits.csv"  # in the run folder: what every question to a center took
TASK_CHECK_PERIOD = 0.02  # seconds between FLARE's looks at whether a question is answered, two for every step
_VISITS = ("Center", "Question", "Seconds", "Bytes_sent", "Bytes_received", "Outcome")


class FederatedTrainer(LocalTrainer):
    """A trainer whose training images are at the centers, and whose model and test set are here.

    ``ask(center, question, arrays, meta)`` gives a center's answer, (arrays, meta), or raises VisitFailed.
    ``center_of`` maps every subject to its center.
    """

    def __init__(
        self,
        ask: Ask,
        model: "TravellingModel",
        volumes: Volumes,
        test_set: pd.DataFrame | None = None,
        evaluation_batch: int | None = None,
    ):
        super().__init__(model, volumes, test_set=test_set, evaluation_batch=evaluation_batch)
        self._ask = ask
        self.center_of: dict[str, str] = {}
        # What a center needs to know of the network and of the home's images.
        self.preparation = {"filters": model.filters, "space": volumes.space}
        self._here: Any = None  # looks at the test set
        self._states: dict[str, set[str]] = {}  # center -> digests of the states that it still holds

    def train(self, subjects: list[str]) -> float:
        """One training step at the subjects' center. Returns the loss; raises VisitFailed, and changes nothing then."""
        return self.train_batches([subjects])

    def train_batches(self, batches: list[list[str]]) -> float:
        """As :meth:`train`, on batches of one center: the model comes back once, after the last."""
        state = self.export_state()
        center, name, arrays, meta = self._ask_in(state, "train", batches[0][0], batches=batches)
        refuse_invalid(arrays, meta.get("loss"), state)
        self.import_state(arrays)
        self._states[center] = {name, digest(arrays)}
        return meta["loss"]

    def look(self, subjects: list[str] | None = None, labels: "Reference | None" = None) -> dict[str, np.ndarray]:
        """As :meth:`Eyes.look`; measured at the subjects' center. Raises VisitFailed."""
        if subjects is None:
            return self._eyes().look()
        center, name, _, meta = self._ask_in(self.export_state(), "look", subjects[0], subjects=subjects, labels=labels)
        looks = meta.get("looks")
        refuse_bad_looks(looks, len(subjects), 2 * sum(self._model.channels), bool(labels))
        self._states[center] = {name}
        return {look: np.array(rows) for look, rows in looks.items()}

    def related(self) -> tuple[np.ndarray, str]:
        """As :meth:`Eyes.related`."""
        return self._eyes().related()

    def _eyes(self):
        from travelling.beyond.screen.eyes import Eyes  # only where a run has the screen

        self._here = self._here or Eyes(self)
        return self._here

    def known(self, subjects: list[str]) -> dict:
        """Where images lie; centers are not asked how far they are from each other, unless for the screen."""
        return {SPACE: self._volumes.space}

    def _ask_in(self, state, question, subject, **about):
        """Ask the center of a subject something in a state: (center, the state's digest, arrays, meta)."""
        center, name = self.center_of[subject], digest(state)
        meta = {"state": name, **about, **self.preparation}
        # A center's next batch begins where its last one has ended, or, if that was undone, begun: it has that state.
        there = name in self._states.pop(center, ())
        answer = self._ask(center, question, [] if there else state, meta)
        if there and answer[1].get("missing"):  # it has restarted
            answer = self._ask(center, question, state, meta)
        return center, name, *answer

    def expect(self, subjects: list[str]) -> None:
        """The images are the center's own concern."""


def refuse_invalid(arrays: list[np.ndarray], loss: object, sent: list[np.ndarray]) -> None:
    """Raise VisitFailed where an answer to ``sent`` cannot be that state after a training step."""
    if [(array.dtype, array.shape) for array in arrays] != [(array.dtype, array.shape) for array in sent]:
        raise VisitFailed("invalid", "its weights are of another number, shape or type")
    if not all(np.isfinite(array).all() for array in arrays if np.issubdtype(array.dtype, np.floating)):
        raise VisitFailed("invalid", "its weights hold values that are not finite")
    if not isinstance(loss, float) or not np.isfinite(loss):
        raise VisitFailed("invalid", "its loss is not a number")


def refuse_bad_looks(looks: object, subjects: int, numbers: int, labels: bool) -> None:
    """Raise VisitFailed where a center's answer has not, for each look, one row of its numbers for each subject.

    ``numbers`` are those of a look that the network measures; ``labels`` tells whether labels were asked for, too.
    """
    from travelling.beyond.screen.looks import LOOKS  # only where a run has the screen

    lengths = {name: look.numbers or numbers for name, look in LOOKS.items()} | ({"labels": 1} if labels else {})
    if not isinstance(looks, dict) or looks.keys() != lengths.keys():
        raise VisitFailed("invalid", f"its looks are not {', '.join(lengths)}")
    for name, rows in looks.items():
        if not isinstance(rows, list) or len(rows) != subjects:
            raise VisitFailed("invalid", f"its look {name} is not one row for each subject")
        if not all(isinstance(row, list) and len(row) == lengths[name] for row in rows):
            raise VisitFailed("invalid", f"its look {name} is not that of this network")
        # An image may be infinitely far, or no number: then it is a suspect, as in the script.
        if not all(isinstance(value, float) for row in rows for value in row):
            raise VisitFailed("invalid", f"its look {name} holds what is not a number")
    if labels and not all(0 < value <= 1 for (value,) in looks["labels"]):
        raise VisitFailed("invalid", "its look labels is not from 0 to 1")


def refuse_bad_subjects(names: object, others: set[str]) -> None:
    """Raise VisitFailed where a center's answer is not a list of pseudonyms, or some are another center's."""
    letters = set("0123456789abcdef")
    if not isinstance(names, list) or not names:
        raise VisitFailed("invalid", "it names no subjects")
    if not all(isinstance(name, str) and len(name) == PSEUDONYM_LETTERS and set(name) <= letters for name in names):
        raise VisitFailed("invalid", "its subjects are not pseudonyms")
    if len(set(names)) < len(names) or set(names) & others:
        raise VisitFailed("invalid", "a subject is named twice, or is another center's, too")


def note_error(folder: Path | None, error: Exception | str) -> None:
    """Write why a job ends to its run folder, in one line: whoever submitted it is told that."""
    if folder:
        (folder / ERROR_FILE).write_text(" ".join(str(error).split()) + "\n", encoding="utf-8")


class TravellingController(ModelController):
    """Runs the next ``cycles`` cycles of the run that the server's configuration describes.

    ``task_timeout`` is in seconds: a center that has not answered by then is left alone until the next cycle.
    """

    def __init__(self, task_timeout: int = 600, cycles: int = 1):
        # Whatever a center answers, the cycle goes on: errors are this class's concern, not FLARE's.
        super().__init__(persistor_id="", ignore_result_error=True, task_check_period=TASK_CHECK_PERIOD)
        self.task_timeout = task_timeout
        self.cycles = cycles
        self._log = logging.getLogger("travelling")
        self._visits: Path  # from run() on

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Called by FLARE; 2.9 notes the period under a name that it does not read, and checks every 0.2 s."""
        super().set_communicator(communicator)
        communicator._task_check_period = TASK_CHECK_PERIOD

    def run(self) -> None:
        """Called by FLARE, in a thread of the job's process on the server."""
        path = Path(self.engine.get_workspace().get_site_config_dir()) / SERVER_FILE
        folder = None
        try:
            settings = read_server_settings(path)
            folder = settings.output_folder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR_FILE).unlink(missing_ok=True)
            self._visits = folder / VISITS_FILE
            {"quality_control": self._control_quality, "standard": self._travel}[settings.method](settings)
        except AlreadyDone as message:
            self.info(str(message))
        except Stopped:
            self.info("stopped; the next job goes on from the last checkpoint")
        except (InputError, OSError) as error:
            note_error(folder, error)
            self.panic(f"error: {error}")
        except Exception as error:
            note_error(folder, f"{type(error).__name__}: {error}; FLARE's log on the server says more")
            raise  # FLARE writes its traceback to that log, and ends the job
        finally:
            stopping.end()

    def _control_quality(self, settings):
        """Quality control: what the script does, with the training images elsewhere."""
        test_set = read_cohort(settings.fn_test)
        refuse_unfit_test_set(test_set, settings)
        cycles = cycles_to_run(settings.en, settings.pd, settings.first_cycle, settings.cycles)
        run = open_run(settings, INPUT_FILES[settings.method], test_set["Path"].to_dict())
        space = read_record(settings.en).get(SPACE)
        volumes = Volumes(settings.cache_gb, run.cache_folder, settings.reorient, space)
        volumes.add(test_set)

        from travelling.network import backend
        from travelling.network.model import TravellingModel

        device = backend.start(settings.seed)
        model, record, notices = TravellingModel.load(settings.en, settings.pd, volumes.shape)
        notices += volumes.decode() + copies(volumes.images, test_set)
        trainer = FederatedTrainer(self._ask, model, volumes, test_set)
        baseline, saturation = first_evaluation(run, trainer, settings)
        run.begin(device, notices + trainer.strange(record) + saturation, volumes.images)
        resumed_at = run.go_on(trainer)
        centers = self._gather(settings.centers, resumed_at, trainer)
        now = self._of_this_job(cycles, resumed_at)
        controlled = ControlledRun(
            settings, run, model, trainer, centers, baseline, resumed_at, lambda step: self._stop_if_asked()
        )
        rates = learning_rates(settings, cycles[0], record["learning_rate"])
        travel(controlled.control, now, rates, controlled, resumed_at)
        controlled.close(last=cycles[-1] in now)
        self._report(controlled.control, run.files[0])
        self._finish(run, cycles, resumed_at)

    def _travel(self, settings):
        """The standard travelling model: what the script does, with the images elsewhere."""
        cycles = range(settings.cycles)
        run = Run(settings.output_folder, "training.log", settings, inputs={})

        from travelling.network import backend
        from travelling.network.model import TravellingModel

        device = backend.start(settings.seed)
        model = TravellingModel.build(settings.shape, settings.width, settings.learning_rate)
        run.begin(device)
        volumes = Volumes(0, run.cache_folder, space={"shape": settings.shape, "affine": None})  # of no image
        trainer = FederatedTrainer(self._ask, model, volumes)
        resumed_at = run.go_on(trainer)
        centers = self._gather(settings.centers, resumed_at, trainer)
        files = PlainRun(settings, run, model, trainer, centers)
        now = self._of_this_job(cycles, resumed_at)
        travel_plainly(trainer, centers, now, settings, learning_rates(settings), files, resumed_at)
        self._finish(run, cycles, resumed_at)

    def _gather(self, centers, resumed_at, trainer):
        """The subjects of every center, by their pseudonyms: from the checkpoint, or asked for now.

        Empty where a center cannot tell. Raises InputError where fewer than two can; those begin to prepare.
        """
        known = {center: list(resumed_at["subjects"].get(center, [])) if resumed_at else [] for center in centers}
        for center in centers:
            if not known[center]:
                try:
                    _, meta = self._ask(center, "subjects", [], {})
                    refuse_bad_subjects(meta.get("subjects"), set(sum(known.values(), [])))
                    known[center] = meta["subjects"]
                    self._log.info("%s has %d subjects", center, len(known[center]))
                except VisitFailed as failure:
                    self._log.warning("%s is not visited in this cycle: %s, %s", center, failure.phase, failure)
        there = [center for center in centers if known[center] and center in self._connected()]
        if len(there) < 2:
            raise InputError(
                f"the model cannot travel: {len(there)} of {len(centers)} centers {'is' if len(there) == 1 else 'are'} "
                "there, two at least are needed"
            )
        trainer.center_of = {subject: center for center, subjects in known.items() for subject in subjects}
        # All at once, and without waiting: each is ready when the model comes, or works on it until then.
        self.send_model(
            task_name="prepare",
            data=FLModel(params={}, meta=trainer.preparation),
            targets=there,
            timeout=self.task_timeout,
            callback=lambda answer: None,
        )
        return known

    def _connected(self):
        return {client.name for client in self.engine.get_clients()}

    def _ask(self, center, question, arrays, meta):
        """A center's answer: (arrays, meta). Raises VisitFailed where there is none, Stopped if the job is aborted."""
        self._stop_if_asked()
        start = time.perf_counter()
        answers = []
        if center in self._connected():
            answers = self.send_model_and_wait(
                task_name=question,
                data=FLModel(params=pack(arrays), meta=meta),
                targets=[center],
                timeout=self.task_timeout,
            )
        self._stop_if_asked()  # then no answer says nothing about the center
        received = unpack(answers[0].params) if answers else []
        error = answers[0].meta.get("error") if answers else "unreachable"
        known = (None, "unreachable", *ERRORS)
        outcome = error if error in known else "unknown"  # of a center's own words nothing is written down
        seconds = f"{time.perf_counter() - start:.4f}"
        sizes = [sum(array.nbytes for array in arrays_one_way) for arrays_one_way in (arrays, received)]
        note_visit(self._visits, _VISITS, (center, question, seconds, *sizes, outcome or "answered"))
        if not answers:
            failure = VisitFailed("unreachable", f"no answer within {self.task_timeout} s, or not connected")
        elif error:
            failure = VisitFailed("invalid", f"it answers with an error ({outcome}; its own log says more)")
        else:
            return received, answers[0].meta
        self._log.warning("%s, %s: %s, %s", center, question, failure.phase, failure)
        raise failure

    def _of_this_job(self, cycles, resumed_at):
        first = resumed_at["cycle"] if resumed_at else cycles[0]
        return [cycle for cycle in cycles if cycle < first + self.cycles]

    def _stop_if_asked(self):
        if self.abort_signal.triggered:
            raise Stopped(signal.SIGTERM)

    def _report(self, control, log_csv):
        """Tell every center what became of its own subjects; one that is away is told after the next cycle."""
        table = control.subject_table()
        found = table[(table["Times_flagged"] > 0) | (table["Eliminated"] > 0)].astype(object)
        found = found.where(found.notna(), None)
        with open(log_csv, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for center in found["Study"].unique():
            own = found.loc[found["Study"] == center, list(REPORTED)].to_dict("records")
            names = {row["Subject"] for row in own}
            decisive = [
                row
                for row in rows
                if row["Phase"] not in (*FAILURES, "group")  # a group accuses nobody, and names others' subjects
                and (row["Ignored"] == "1" or row["Phase"] == "revisit")
                and names & set(row["Subjects"].split(SEPARATOR))
            ]
            try:
                self._ask(center, "report", [], {"subjects": own, "rows": decisive})
            except VisitFailed:
                continue

    def _finish(self, run, cycles, resumed_at):
        now = self._of_this_job(cycles, resumed_at)
        if not now or now[-1] == cycles[-1]:
            run.finish()
            self._log.info("done: models in %s", run.folder)
