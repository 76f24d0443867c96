"""What runs at the model's home: the same loop as in the scripts, with a trainer that trains at the centers."""

import contextlib
import csv
import logging
import re
import signal
import statistics
import time
from pathlib import Path

import numpy as np
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from travelling.errors import AlreadyDone, InputError, Stopped, VisitFailed
from travelling.images.cohort import copies, read_cohort
from travelling.images.volumes import SAME_SCALE, Volumes
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
from travelling_quality_control.federated import gate
from travelling_quality_control.federated.center import ERRORS, PSEUDONYM_LETTERS, REPORTED
from travelling_quality_control.federated.settings import INPUT_FILES, SERVER_FILE, read_server_settings
from travelling_quality_control.federated.wire import differences, installed, note_visit, pack, unpack
from travelling_quality_control.judging import judge_at_end

ERROR_FILE = "error.txt"  # in the run folder: why a job ended without having gone on
VISITS_FILE = "visits.csv"  # in the run folder: what every question to a center took
TASK_CHECK_PERIOD = 0.02  # seconds between FLARE's looks at whether a question is answered, two for every step
UNREACHABLE, ANSWERED = "unreachable", "answered"  # outcomes of a question
_VISITS = ("Center", "Question", "Seconds", "Bytes_sent", "Bytes_received", "Outcome")


def refuse_bad_subjects(names: object, others: set[str]) -> None:
    """Raise VisitFailed where a center's answer is not a list of pseudonyms, or some are another center's."""
    letters = set("0123456789abcdef")
    if not isinstance(names, list) or not names:
        raise VisitFailed("invalid", "it names no subjects")
    if not all(isinstance(name, str) and len(name) == PSEUDONYM_LETTERS and set(name) <= letters for name in names):
        raise VisitFailed("invalid", "its subjects are not pseudonyms")
    if len(set(names)) < len(names) or set(names) & others:
        raise VisitFailed("invalid", "a subject is named twice, or is another center's, too")


def refuse_bad_images(means: object, checksums: object, subjects: list[str]) -> None:
    """Raise VisitFailed where a center does not tell of its images what it should, see :class:`Center`.

    ``means`` are three finite numbers in ascending order, ``checksums`` maps all ``subjects`` to SHA-256.
    """
    if not isinstance(means, list) or len(means) != 3 or not all(isinstance(mean, float) for mean in means):
        raise VisitFailed("invalid", "the mean intensities of its images are not three numbers")
    if not np.isfinite(means).all() or means != sorted(means):
        raise VisitFailed("invalid", "the mean intensities of its images are not finite, or not in order")
    if not isinstance(checksums, dict) or set(checksums) != set(subjects):
        raise VisitFailed("invalid", "it does not answer for all of its images")
    if not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in checksums.values()):
        raise VisitFailed("invalid", "the checksums of its images are none")


def outcome(answer: FLModel | None) -> str:
    """UNREACHABLE, ANSWERED or a kind of error; of a center's own words nothing is written down."""
    if answer is None:
        return UNREACHABLE
    error = answer.meta.get("error")
    if error is None:
        return ANSWERED
    return error if isinstance(error, str) and error in ERRORS else "unknown"


def size(answer: FLModel | None) -> int:
    """Bytes of the arrays in an answer, 0 where there are none that can be read."""
    try:
        return sum(array.nbytes for array in unpack(answer.params)) if answer else 0
    except ValueError:
        return 0


def note_error(folder: Path | None, error: Exception | str) -> None:
    """Write why a job ends to its run folder, in one line: whoever submitted it is told that."""
    if folder:
        with contextlib.suppress(OSError):  # a full disk: the file is there then, and empty
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
        self._refused: dict[str, VisitFailed] = {}  # centers that are left alone in this job, and why

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
            gate.refuse_lax_policy(path.parent, gate.SERVER_RIGHTS)
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
        from travelling_quality_control.federated.trainer import FederatedTrainer

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
        controlled.close()
        self._report(controlled.control, run.files[0])
        images = controlled.control.subject_table()
        self._finish(run, cycles, resumed_at, lambda: judge_at_end(run, controlled, images))

    def _travel(self, settings):
        """The standard travelling model: what the script does, with the images elsewhere."""
        cycles = range(settings.cycles)
        run = Run(settings.output_folder, "training.log", settings, inputs={})

        from travelling.network import backend
        from travelling.network.model import TravellingModel
        from travelling_quality_control.federated.trainer import FederatedTrainer

        device = backend.start(settings.seed)
        model = TravellingModel.build(settings.shape, settings.width, settings.learning_rate)
        run.begin(device)
        volumes = Volumes(0, run.cache_folder, space={"shape": settings.shape, "affine": None})  # of no image
        trainer = FederatedTrainer(self._ask, model, volumes)
        resumed_at = run.go_on(trainer)
        centers = self._gather(settings.centers, resumed_at, trainer)
        files = PlainRun(settings, run, model, trainer, centers, cycles, resumed_at)
        now = self._of_this_job(cycles, resumed_at)
        travel_plainly(trainer, centers, now, settings, learning_rates(settings), files, resumed_at)
        self._finish(run, cycles, resumed_at)

    def _gather(self, centers, resumed_at, trainer):
        """The subjects of every center, by their pseudonyms: from the checkpoint, or as they are told now.

        Empty where a center cannot tell. Raises InputError where fewer than two can. Those prepare; those that are new
        are waited for: before they train, the home knows whether their images are alike and none is its own.
        """
        known = {center: list(resumed_at["subjects"].get(center, [])) if resumed_at else [] for center in centers}
        for center, answer in self._ask_all("subjects", centers, {}).items():
            try:
                _, meta = self._usable(center, "subjects", answer)
                if not known[center]:
                    refuse_bad_subjects(meta.get("subjects"), set(sum(known.values(), [])))
                    known[center] = meta["subjects"]
                    self._log.info("%s has %d subjects", center, len(known[center]))
                self._compare(center, meta.get("installed"))
            except VisitFailed as failure:
                self._refuse(center, failure)
        there = [center for center in centers if known[center] and center in self._connected() - self._refused.keys()]
        if len(there) < 2:
            raise InputError(
                f"the model cannot travel: {len(there)} of {len(centers)} centers {'is' if len(there) == 1 else 'are'} "
                "there, two at least are needed"
            )
        trainer.center_of = {subject: center for center, subjects in known.items() for subject in subjects}
        told = [center for center in there if resumed_at and resumed_at["subjects"].get(center)]
        if told:  # without waiting: each is ready when the model comes, or works on it until then
            task = FLModel(params={}, meta=trainer.preparation)
            self.send_model(
                task_name="prepare", data=task, targets=told, timeout=self.task_timeout, callback=lambda answer: None
            )
        new = [center for center in there if center not in told]
        self._look_at_images(self._ask_all("prepare", new, trainer.preparation), known, trainer)
        return known

    def _compare(self, center, theirs):
        """Raise VisitFailed where a center has other code than this site; report other libraries."""
        code, libraries = differences(theirs, installed())
        if code:
            raise VisitFailed("invalid", f"another version of this software is installed there ({'; '.join(code)})")
        if libraries:
            self._log.warning("%s: other libraries are installed there (%s)", center, "; ".join(libraries))

    def _look_at_images(self, answers, known, trainer):
        """Report centers whose images have another scale of intensities, or are another's; refuse those of the home."""
        own = trainer.own_images()
        owners: dict[str, str] = {}
        scales = {}
        for center, answer in answers.items():
            try:
                _, meta = self._usable(center, "prepare", answer)
                means, checksums = meta.get("means"), meta.get("checksums")
                refuse_bad_images(means, checksums, known[center])
                copied = [subject for subject, checksum in checksums.items() if checksum in own["checksums"]]
                if copied:
                    raise VisitFailed("invalid", f"its images of {', '.join(copied)} are in the test set, too")
            except VisitFailed as failure:
                self._refuse(center, failure)
                continue
            scales[center] = means
            for subject, checksum in checksums.items():
                other = owners.setdefault(checksum, f"{center} ({subject})")
                if other != f"{center} ({subject})":
                    self._log.warning("the same image under two names: %s, %s (%s)", other, center, subject)
        usual = statistics.median(own["means"] or [means[1] for means in scales.values()] or [0.0])
        for center, (least, median, greatest) in scales.items():
            if usual > 0 and not (usual / SAME_SCALE <= least and greatest <= usual * SAME_SCALE):
                self._log.warning(
                    "%s: its images are of another scale: their mean intensities are %.4g to %.4g (median %.4g), those "
                    "of the %s some %.4g", center, least, greatest, median,
                    "test set" if own["means"] else "centers", usual,
                )  # fmt: skip

    def _refuse(self, center, failure):
        """Leave a center alone in this job, if its answer was invalid; one that has not answered may do so later."""
        if failure.phase != UNREACHABLE:
            self._refused[center] = failure
        self._log.warning("%s: %s, %s", center, failure.phase, failure)

    def _connected(self):
        """The centers of this job, but for those whose process has ended."""
        dead = self.communicator.get_client_disconnect_time
        return {client.name for client in self.engine.get_clients() if not dead(client.name)}

    def _ask(self, center, question, arrays, meta):
        """A center's answer: (arrays, meta). Raises VisitFailed where there is none, Stopped if the job is aborted."""
        if center in self._refused:
            raise VisitFailed(self._refused[center].phase, str(self._refused[center]))
        try:
            return self._usable(center, question, self._ask_all(question, [center], meta, arrays)[center])
        except VisitFailed as failure:
            self._log.warning("%s, %s: %s, %s", center, question, failure.phase, failure)
            raise

    def _ask_all(self, question, centers, meta, arrays=()):
        """What several centers answer to a question, at the same time: center -> FLModel, None where none came."""
        self._stop_if_asked()
        start = time.perf_counter()
        there = [center for center in centers if center in self._connected()]
        answers = self.send_model_and_wait(
            task_name=question,
            data=FLModel(params=pack(list(arrays)), meta=meta),
            targets=there,
            timeout=self.task_timeout,
        ) if there else []  # fmt: skip
        self._stop_if_asked()  # then no answer says nothing about the center
        by_center = dict.fromkeys(centers) | {answer.meta["client_name"]: answer for answer in answers}
        seconds = f"{time.perf_counter() - start:.4f}"
        sent = sum(array.nbytes for array in arrays)
        for center, answer in by_center.items():
            note_visit(self._visits, _VISITS, (center, question, seconds, sent, size(answer), outcome(answer)))
        return by_center

    def _usable(self, center, question, answer):
        """Arrays and meta of an answer; raises VisitFailed where there is none, or none that can be read."""
        found = outcome(answer)
        if found == UNREACHABLE:
            raise VisitFailed(
                UNREACHABLE, f"not connected, its process has ended, or no answer within {self.task_timeout} s"
            )
        if found != ANSWERED:
            raise VisitFailed("invalid", f"it answers with an error ({found}; its own log says more)")
        try:
            return unpack(answer.params), answer.meta
        except ValueError as error:
            raise VisitFailed("invalid", f"its answer to {question} is {error}") from None

    def _of_this_job(self, cycles, resumed_at):
        first = resumed_at["cycle"] if resumed_at else cycles[0]
        return [cycle for cycle in cycles if cycle < first + self.cycles]

    def _stop_if_asked(self):
        if self.abort_signal.triggered:
            if not self._connected():  # then it is FLARE that ends the job
                raise InputError("the model cannot travel: at every center the process of this job has ended")
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

    def _finish(self, run, cycles, resumed_at, known_then=dict):
        now = self._of_this_job(cycles, resumed_at)
        if not now or now[-1] == cycles[-1]:
            run.finish(**known_then())
            self._log.info("done: models in %s", run.folder)
