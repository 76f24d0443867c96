"""What runs at the server: the same loop as in the scripts, with a trainer that trains at the centers."""

import contextlib
import logging
import re
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nvflare.apis.wf_comm_spec import WFCommSpec
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from travelling.errors import AlreadyDone, InputError, Stopped, VisitFailed
from travelling.images.cohort import copies, read_cohort
from travelling.images.volumes import SAME_SCALE, Volumes
from travelling.method.protocol import learning_rates
from travelling.method.quality_control import FAILURES
from travelling.method.travel import travel
from travelling.method.verification_log import SEPARATOR
from travelling.network.model_files import SPACE
from travelling.network.pretrained import cycles_to_run, read_record
from travelling.runs import stopping
from travelling.runs.controlled_run import ControlledRun, first_evaluation, open_run, refuse_unfit_test_set
from travelling.runs.plain_run import PlainRun
from travelling.runs.run import Run
from travelling.words import some
from travelling_quality_control.enc_PD_quality_control import control_quality
from travelling_quality_control.federated import gate
from travelling_quality_control.federated.center import ERRORS, PSEUDONYM_LETTERS, REPORTED
from travelling_quality_control.federated.options import QualityControlServer
from travelling_quality_control.federated.settings import (
    ERROR_FILE,
    INPUT_FILES,
    SERVER_FILE,
    log_file,
    read_server_settings,
)
from travelling_quality_control.federated.wire import differences, installed, note_visit, pack, unpack
from travelling_quality_control.judging import judge_at_end

VISITS_FILE = "visits.csv"  # in the run folder: what every question to a center took
TASK_CHECK_PERIOD = 0.02  # seconds between FLARE's looks at whether a question is answered, two for every step
UNREACHABLE, ANSWERED = "unreachable", "answered"  # outcomes of a question
_VISITS = ("Center", "Question", "Seconds", "Bytes_sent", "Bytes_received", "Outcome")


def refuse_bad_subjects(names: object, others: set[str]) -> None:
    """Raise ValueError where a center's answer is not a list of pseudonyms, or some are another center's."""
    if not isinstance(names, list) or not names:
        raise ValueError("it names no subjects")
    if not all(isinstance(name, str) and re.fullmatch(f"[0-9a-f]{{{PSEUDONYM_LETTERS}}}", name) for name in names):
        raise ValueError("its subjects are not pseudonyms")
    if len(set(names)) < len(names) or set(names) & others:
        raise ValueError("a subject is named twice, or is another center's, too")


def refuse_bad_images(means: object, checksums: object, subjects: list[str]) -> None:
    """Raise ValueError where a center does not report of its images what it should, see :class:`Center`.

    ``means`` are three finite numbers in ascending order, ``checksums`` maps all ``subjects`` to SHA-256.
    """
    found = np.array(means)
    if found.dtype != float or found.shape != (3,) or not (np.isfinite(found).all() and (np.diff(found) >= 0).all()):
        raise ValueError("the mean intensities of its images are not three finite numbers in order")
    if not isinstance(checksums, dict) or set(checksums) != set(subjects):
        raise ValueError("it does not answer for all of its images")
    if not all(isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one) for one in checksums.values()):
        raise ValueError("the checksums of its images are none")


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
        self._folder: Any = None  # of the run, once it is known
        self._refused: dict[str, VisitFailed] = {}  # centers that are left alone in this job, and why

    def set_communicator(self, communicator: WFCommSpec) -> None:
        """Called by FLARE; 2.9 notes the period under a name that it does not read, and checks every 0.2 s."""
        super().set_communicator(communicator)
        communicator._task_check_period = TASK_CHECK_PERIOD

    def run(self) -> None:
        """Called by FLARE, in a thread of the job's process on the server."""
        path = Path(self.engine.get_workspace().get_site_config_dir()) / SERVER_FILE
        try:
            settings = read_server_settings(path)
            self._folder = settings.output_folder
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / ERROR_FILE).unlink(missing_ok=True)
            gate.refuse_lax_policy(path.parent, gate.SERVER_RIGHTS)
            if isinstance(settings, QualityControlServer):
                self._control_quality(settings)
            else:
                self._travel(settings)
        except AlreadyDone as message:
            self.info(str(message))
        except Stopped:
            self.info("stopped; the next job goes on from the last checkpoint")
        except (InputError, OSError) as error:
            self._note_error(error)
            self.panic(f"error: {error}")
        except Exception as error:
            self._note_error(f"{type(error).__name__}: {error}; FLARE's log on the server says more")
            raise  # FLARE writes its traceback to that log, and ends the job
        finally:
            stopping.end()

    def _note_error(self, error):
        """Write why the job ends to the run's folder, in one line: whoever submitted it reads that."""
        if self._folder:
            with contextlib.suppress(OSError):  # a full disk: the file is there then, and empty
                (self._folder / ERROR_FILE).write_text(" ".join(str(error).split()) + "\n", encoding="utf-8")

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
        from travelling.network.saved_model import load_model
        from travelling_quality_control.federated.trainer import FederatedTrainer

        device = backend.start(settings.seed)
        model, record, notices = load_model(settings.en, settings.pd, volumes.shape)
        notices += volumes.decode() + copies(volumes.images, test_set)
        trainer = FederatedTrainer(self._ask, model, volumes, test_set)
        baseline, saturation = first_evaluation(run, trainer, settings)
        run.begin(device, notices + trainer.other_scale(record) + saturation, volumes.images)
        resumed_at = run.go_on(trainer)
        centers = self._gather(settings.centers, resumed_at, trainer, volumes)
        now = self._of_this_job(cycles, resumed_at)
        controlled = ControlledRun(settings, run, model, trainer, centers, baseline, resumed_at, self._show)
        rates = learning_rates(settings, cycles[0], record["learning_rate"])
        control_quality(controlled.control, now, rates, controlled, resumed_at)
        controlled.close()
        self._report(controlled.control, run.files[0])
        if not now or now[-1] == cycles[-1]:
            run.finish(**judge_at_end(run, controlled, controlled.control.subject_table()))
            self._log.info("done: models in %s", run.folder)

    def _travel(self, settings):
        """The standard travelling model: what the script does, with the images elsewhere."""
        cycles = range(settings.cycles)
        run = Run(settings.output_folder, log_file(settings), settings, inputs={})

        from travelling.network import backend
        from travelling.network.inference_network import EvaluatedModel
        from travelling_quality_control.federated.trainer import FederatedTrainer

        device = backend.start(settings.seed)
        model = EvaluatedModel.build(settings.shape, settings.width, settings.learning_rate)
        run.begin(device)
        volumes = Volumes(0, run.cache_folder, space={"shape": settings.shape, "affine": None})  # of no image
        trainer = FederatedTrainer(self._ask, model, volumes)
        resumed_at = run.go_on(trainer)
        centers = self._gather(settings.centers, resumed_at, trainer, volumes)
        files = PlainRun(settings, run, model, trainer, centers, cycles, resumed_at)
        now = self._of_this_job(cycles, resumed_at)
        travel(trainer, centers, now, settings, learning_rates(settings), files, resumed_at)
        if not now or now[-1] == cycles[-1]:
            run.finish()
            self._log.info("done: models in %s", run.folder)

    def _gather(self, centers, resumed_at, trainer, volumes):
        """The subjects of every center, by their pseudonyms: from the checkpoint, or as it names them now.

        None where a center cannot. Raises InputError where fewer than two answer. Those prepare: before they train, the
        server knows whether their images are alike and none is its own.
        """
        known = {center: list(resumed_at["subjects"].get(center, [])) if resumed_at else [] for center in centers}
        there = []

        def note_subjects(center, meta):
            if not known[center]:
                refuse_bad_subjects(meta.get("subjects"), set(sum(known.values(), [])))
                known[center] = meta["subjects"]
                self._log.info("%s has %d subjects", center, len(known[center]))
            code, libraries = differences(meta.get("installed"), installed())
            if code:
                raise ValueError(f"another version of this software is installed there ({'; '.join(code)})")
            if libraries:
                self._log.warning("%s: other libraries are installed there (%s)", center, "; ".join(libraries))
            there.append(center)

        self._ask_all("subjects", centers, {}, note_subjects)
        if len(there) < 2:
            raise InputError(
                f"the model cannot travel: {len(there)} of {len(centers)} centers {'is' if len(there) == 1 else 'are'} "
                "there, two at least are needed"
            )
        trainer.center_of = {subject: center for center, subjects in known.items() for subject in subjects}
        self._compare_images(there, known, trainer.preparation, volumes)
        return known

    def _compare_images(self, centers, known, preparation, volumes):
        """Report images of another scale, or that two centers have; refuse centers that have those of the test set."""
        own = {image["sha256"] for image in volumes.images.values()}
        own_means = list(volumes.means.values())
        owners: dict[str, str] = {}
        scales = {}

        def note_images(center, meta):
            refuse_bad_images(meta.get("means"), meta.get("checksums"), known[center])
            copied = [subject for subject, checksum in meta["checksums"].items() if checksum in own]
            if copied:
                raise ValueError(f"its images of {', '.join(copied)} are in the test set, too")
            scales[center] = meta["means"]
            for subject, checksum in meta["checksums"].items():
                name = f"{center} ({subject})"
                if owners.setdefault(checksum, name) != name:
                    self._log.warning("the same image under two names: %s, %s", owners[checksum], name)

        self._ask_all("prepare", centers, preparation, note_images)
        usual = statistics.median(own_means or [means[1] for means in scales.values()] or [0.0])
        for center, (least, median, greatest) in scales.items():
            if usual > 0 and not (usual / SAME_SCALE <= least and greatest <= usual * SAME_SCALE):
                self._log.warning(
                    "%s: its images are of another scale: their mean intensities are %.4g to %.4g (median %.4g), those "
                    "of the %s some %.4g", center, least, greatest, median,
                    "test set" if own_means else "centers", usual,
                )  # fmt: skip

    def _connected(self):
        """The centers of this job, but for those whose process has ended."""
        dead = self.communicator.get_client_disconnect_time
        return {client.name for client in self.engine.get_clients() if not dead(client.name)}

    def _ask_all(self, question, centers, meta, take):
        """Ask several centers at the same time; ``take(center, meta)`` gets each answer.

        A center is left alone in this job if its answer is invalid, also where ``take`` raises ValueError; one that has
        not answered may do so later.
        """
        for center, answer in self._send(question, centers, meta).items():
            try:
                self._usable(center, question, answer, lambda _, meta, center=center: take(center, meta))
            except VisitFailed as failure:
                if failure.phase != UNREACHABLE:
                    self._refused[center] = failure

    def _ask(self, center, question, arrays, meta, refuse=lambda arrays, meta: None):
        """A center's answer: (arrays, meta). Raises VisitFailed where there is none, Stopped if the job is aborted."""
        if center in self._refused:
            raise VisitFailed(self._refused[center].phase, str(self._refused[center]))
        return self._usable(center, question, self._send(question, [center], meta, arrays)[center], refuse)

    def _send(self, question, centers, meta, arrays=()):
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
        seconds = time.perf_counter() - start
        sent = sum(array.nbytes for array in arrays)
        for center, answer in by_center.items():
            found = outcome(answer)
            self._log.info("%s: %s, %.1f s, %s", center, question, seconds, found)
            values = (center, question, f"{seconds:.4f}", sent, size(answer), found)
            note_visit(self._folder / VISITS_FILE, _VISITS, values)
        return by_center

    def _usable(self, center, question, answer, refuse):
        """Arrays and meta of an answer; raises VisitFailed, which is logged, where there is none that can be used.

        ``refuse(arrays, meta)`` raises ValueError where they cannot be right.
        """
        found, phase = outcome(answer), "invalid"
        try:
            if found == UNREACHABLE:
                phase = UNREACHABLE
                raise ValueError(f"not connected, its process has ended, or no answer within {self.task_timeout} s")
            if found != ANSWERED:
                raise ValueError(f"it answers with an error ({found}; its own log says more)")
            arrays = unpack(answer.params)
            refuse(arrays, answer.meta)
        except ValueError as error:
            self._log.warning("%s, %s: %s, %s", center, question, phase, error)
            raise VisitFailed(phase, str(error)) from None
        return arrays, answer.meta

    def _of_this_job(self, cycles, resumed_at):
        first = resumed_at["cycle"] if resumed_at else cycles[0]
        return [cycle for cycle in cycles if cycle < first + self.cycles]

    def _stop_if_asked(self):
        if self.abort_signal.triggered:
            if not self._connected():  # then it is FLARE that ends the job
                raise InputError("the model cannot travel: at every center the process of this job has ended")
            raise Stopped(signal.SIGTERM)

    def _show(self, step):
        """Log a step: whoever submitted the job reads it there."""
        text = f"cycle {step.cycle}, {step.center}: {step.phase}, {some(len(step.subjects), 'image')}"
        if step.rates:  # none where a visit failed
            text += ", FPR {:.3f}, FNR {:.3f}".format(*step.rates) + ", rejected" * step.harmful
        self._log.info("%s", text)
        self._stop_if_asked()

    def _report(self, control, log_csv):
        """Send every center what became of its own subjects; one that is away gets it after the next cycle."""
        table = control.subject_table()
        found = table[(table["Times_flagged"] > 0) | (table["Eliminated"] > 0)].astype(object)
        found = found.where(found.notna(), None)
        log = pd.read_csv(log_csv, dtype=str, keep_default_na=False)
        log = log[(log["Ignored"] == "1") | (log["Phase"] == "revisit")]
        log = log[~log["Phase"].isin((*FAILURES, "group"))]  # a group accuses nobody, and names others' subjects
        for center, own in found.groupby("Study", sort=False):
            names = set(own["Subject"])
            decisive = log[[not names.isdisjoint(cell.split(SEPARATOR)) for cell in log["Subjects"]]]
            answer = {"subjects": own[list(REPORTED)].to_dict("records"), "rows": decisive.to_dict("records")}
            with contextlib.suppress(VisitFailed):
                self._ask(center, "report", [], answer)
