"""What runs at a hospital. Its images, its CSV and the ids of its subjects stay here.

What leaves: for each of the server's questions one answer, made in :meth:`Center.answer` and nowhere else.
docs/federation.md has them all in a table.

A question that cannot be answered is answered with one of ERRORS; the reason is written to the center's own log.
Adam's moments never come here (:mod:`travelling_quality_control.federated.step`).
"""

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from travelling.errors import InputError
from travelling.files import write_csv
from travelling.images.cohort import copies, read_cohort
from travelling.method.verification_log import LOG_COLUMNS, SEPARATOR
from travelling_quality_control.federated import gate
from travelling_quality_control.federated.options import CenterSite
from travelling_quality_control.federated.settings import center_file, read_center_settings
from travelling_quality_control.federated.wire import digest, installed, note_visit, pack, unpack

ERRORS = ("input", "failure")  # what the hospital can mend (its CSV, an image), and everything else
CHANGED = "changed on its way: a filter of FLARE at one of the sites? None may touch what is sent"
PSEUDONYM_LETTERS = 16
FLAGGED_FILE = "flagged_subjects.csv"  # in the private folder
REPORTED = ("Subject", "Times_flagged", "First_flagged_cycle", "Revisits", "Eliminated", "Eliminated_cycle")
_VISITS = ("Images", "Training_seconds")


class Pseudonyms:
    """Ids under which a center's subjects are known outside, and the way back, in a folder that only it can read.

    A pseudonym is a keyed hash of the id. The key, ``salt``, is drawn once and never leaves the folder: whoever
    has a list of ids, but not the key, cannot tell which of them stands behind a pseudonym. Subjects are named in
    the order of their pseudonyms: that of the CSV could tell which came first, or which have PD.
    """

    def __init__(self, folder: Path, subjects: Iterable[str]):
        salt = _salt(folder / "salt")
        pseudonyms = {
            subject: hmac.new(salt, subject.encode(), hashlib.sha256).hexdigest()[:PSEUDONYM_LETTERS]
            for subject in subjects
        }
        self.of = dict(sorted(pseudonyms.items(), key=lambda pair: pair[1]))
        self.subject = {pseudonym: subject for subject, pseudonym in self.of.items()}
        if len(self.subject) < len(self.of):
            raise InputError(f"{folder}: two subjects have one pseudonym; remove the file salt, and begin a new run")
        write_csv(pd.DataFrame(self.of.items(), columns=["Subject", "Pseudonym"]), folder / "pseudonyms.csv")


def _salt(path):
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    except FileExistsError:
        pass
    salt = path.read_bytes()
    if len(salt) != 32:
        raise InputError(f"{path}: damaged; without it no pseudonym of an earlier run can be resolved")
    return salt


class Center:
    """A hospital: its cohort, and one model that stays compiled from visit to visit.

    ``log`` is its own. Raises InputError where its configuration or its CSV is wrong.
    """

    def __init__(self, settings: CenterSite, log: logging.Logger):
        self._log = log
        self._folder = settings.private_folder
        self._settings = settings
        self._cohort = read_cohort(settings.training_set)
        self._pseudonyms = Pseudonyms(self._folder, self._cohort["Subject"])
        self._model: Any = None  # these four once prepared
        self._volumes: Any = None
        self._trainer: Any = None
        self._eyes: Any = None  # of the screen
        self._prepared: tuple | None = None  # for which network, and images that lie where

    def answer(self, question: str, arrays: list[np.ndarray], meta: dict) -> tuple[list[np.ndarray], dict]:
        """The answer to one question: (arrays, meta). Raises whatever went wrong."""
        if question == "subjects":
            return [], {"subjects": list(self._pseudonyms.of.values()), "installed": installed()}
        if question == "prepare":
            self._prepare(meta)
            return [], self._about_images()
        if question in ("train", "look"):
            self._prepare(meta)  # again, where the center has restarted
            if digest(arrays) != meta["digest"]:
                raise InputError(f"what the server sent was {CHANGED}")
            subjects = self._own(meta["subjects"])
            return self._train(subjects, arrays) if question == "train" else self._look(subjects, arrays, meta)
        if question == "report":
            self._report(meta["subjects"], meta["rows"])
            return [], {}
        raise InputError(f"no such question: {question}")

    def _own(self, pseudonyms):
        return [self._pseudonyms.subject[name] for name in pseudonyms]

    def _train(self, subjects, network):
        self._model.import_network(network)
        start = time.perf_counter()
        loss = self._trainer.train(subjects)
        answer = self._model.half_step()
        note_visit(self._folder / "visits.csv", _VISITS, (len(subjects), f"{time.perf_counter() - start:.4f}"))
        return answer, {"loss": loss, "digest": digest(answer)}

    def _look(self, subjects, arrays, meta):
        from travelling.beyond.screen.eyes import Eyes  # only where a run has the screen

        self._eyes = self._eyes or Eyes(self._trainer)
        weights = dict(zip(meta["weights"], arrays, strict=False))
        if meta["labels"]:
            self._model.import_network(arrays[len(weights) :])
        answer = [np.hstack(list(self._eyes.look(subjects, meta["labels"], weights).values()))]
        return answer, {"digest": digest(answer)}

    def _about_images(self):
        """What the server may know of the images before they train: their mean intensities, and a checksum of each."""
        volumes = self._volumes
        means = sorted(volumes.means[subject] for subject in self._pseudonyms.of)
        checksums = {of: volumes.images[subject]["sha256"] for subject, of in self._pseudonyms.of.items()}
        return {"means": [means[0], float(np.median(means)), means[-1]], "checksums": checksums}

    def _prepare(self, meta):
        """Read the images, build the network and compile its training step: what takes long, but once in a job."""
        if self._prepared == (meta["filters"], meta["space"]):
            return
        # Only now: TensorFlow takes seconds to import, and the images to read.
        from travelling.images.local_trainer import LocalTrainer
        from travelling.images.volumes import Volumes
        from travelling.network import backend
        from travelling.network.sfcn import width_of
        from travelling_quality_control.federated.step import CenterModel

        settings = self._settings
        folder = settings.cache_dir or self._folder
        volumes = Volumes(settings.cache_gb, folder, settings.reorient, meta["space"])
        volumes.add(self._cohort)
        backend.start(seed=0)  # whatever is random travels
        model = CenterModel.build(volumes.shape, width_of(meta["filters"]), learning_rate=0.0)
        for notice in volumes.decode() + copies(volumes.images, self._cohort) + self._changes(volumes.images):
            self._log.info("notice: %s", notice)
        self._model, self._volumes, self._trainer = model, volumes, LocalTrainer(model, volumes, self._cohort)
        self._eyes = None
        self._trainer.train([self._cohort["Subject"].iloc[0]])  # compiles; what is received replaces its statistics
        self._prepared = (meta["filters"], meta["space"])

    def _changes(self, images):
        """Notices of images that are not what they were in the job before; notes what they are now."""
        path = self._folder / "images.csv"
        earlier = pd.read_csv(path, dtype=str, index_col="Subject")["sha256"].to_dict() if path.exists() else {}
        now = {subject: image["sha256"] for subject, image in images.items()}
        write_csv(pd.DataFrame(now.items(), columns=["Subject", "sha256"]), path)
        return [
            f"the image of {subject} is not the one of the job before ({images[subject]['path']})"
            for subject in now
            if earlier.get(subject, now[subject]) != now[subject]
        ]

    def _report(self, subjects, rows):
        """Write down which of the own subjects were flagged or eliminated, with their images, and why."""
        own = self._pseudonyms.subject
        found = pd.DataFrame(subjects, columns=REPORTED)
        found["Subject"] = found["Subject"].map(own)
        found.insert(1, "Path", found["Subject"].map(self._cohort["Path"]))
        write_csv(found, self._folder / FLAGGED_FILE)
        decisive = pd.DataFrame(rows, columns=list(rows[0]) if rows else LOG_COLUMNS)
        decisive["Subject"] = decisive["Subject"].map(lambda name: own.get(name, name))  # or "batch"
        decisive["Subjects"] = decisive["Subjects"].map(
            lambda names: SEPARATOR.join(own[name] for name in names.split(SEPARATOR))
        )
        write_csv(decisive, self._folder / "flagged_rows.csv")


class CenterExecutor(Executor):
    """FLARE's door to a :class:`Center`; it keeps one alive for a whole job."""

    def __init__(self) -> None:
        super().__init__()
        self._center: Any = None  # from the first question on
        self._log: logging.Logger | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Answer the server's question; whatever goes wrong stays in the center's own log."""
        try:
            if self._center is None:
                self._open(Path(fl_ctx.get_engine().get_workspace().get_site_config_dir()), fl_ctx)
            model = FLModelUtils.from_shareable(shareable)
            arrays, meta = self._center.answer(task_name, unpack(model.params), model.meta)
        except InputError as error:
            self._note(error)
            arrays, meta = [], {"error": "input"}
        except Exception as error:  # an answer in any case: silence would be taken for absence
            self._note(error, trace=True)
            arrays, meta = [], {"error": "failure"}
        return FLModelUtils.to_shareable(FLModel(params=pack(arrays), meta=meta))

    def _open(self, folder, fl_ctx):
        center = fl_ctx.get_identity_name()
        settings = read_center_settings(folder / center_file(center))
        settings.private_folder.mkdir(parents=True, exist_ok=True)
        settings.private_folder.chmod(0o700)
        # FLARE's own logs can be sent to the server, and the text of an error may hold a path or an id.
        self._log = logging.getLogger(f"travelling.center.{center}")
        self._log.propagate = False
        if not self._log.handlers:
            handler = logging.FileHandler(settings.private_folder / "center.log", encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
            self._log.addHandler(handler)
        gate.refuse_lax_policy(folder, gate.CENTER_RIGHTS)
        gate.refuse_insecure(fl_ctx)
        self._center = Center(settings, self._log)

    def _note(self, error, trace=False):
        if self._log is None:  # the configuration is wrong: the only place left is the process's own stderr
            print(f"error: {error}", flush=True)
            return
        self._log.error("error: %s", error, exc_info=trace)
