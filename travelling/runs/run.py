"""A run: its folder, its log, its models and its checkpoints."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from travelling.console import AboveTheBar
from travelling.errors import AlreadyDone, InputError, name_file
from travelling.files import refuse_read_only, replace_whole
from travelling.network.model_files import MODEL_FILE, model_files
from travelling.runs import stopping
from travelling.runs.checkpoint import Checkpoints
from travelling.runs.record import Record, describe, differences

if TYPE_CHECKING:
    import pandas as pd

    from travelling.method.trainer import PlainTrainer
    from travelling.network.model import TravellingModel
    from travelling.runs.harm_options import HarmfulSamples
    from travelling.runs.options import Overwrite


class Run:
    """A run and its folder. Nothing is written or removed before :meth:`begin`.

    ``arguments`` is the parsed command line, ``inputs`` maps the options that name CSVs and models to their
    paths. ``log`` is the plain log, in the folder unless it is an absolute path; ``files`` are further results outside
    the folder (:attr:`files`); ``models`` tells whether the run saves models; ``record`` is the file for its record;
    ``images`` maps subjects to the files of the images that are read.

    The same command line goes on where an interrupted run stopped (:attr:`resumes`); :attr:`log`, a ``logging.Logger``,
    is there from :meth:`begin` on. Raises AlreadyDone where it is complete, and InputError where a place cannot be
    written, another process writes there, or it holds another run's results and ``--overwrite`` is not given.
    """

    def __init__(
        self,
        folder: Path | str,
        log: Path | str,
        arguments: Overwrite | HarmfulSamples,
        inputs: Mapping[str, Path],
        files: Iterable[Path] = (),
        models: bool = True,
        record: str = "run.json",
        images: Mapping[str, str] | pd.Series | None = None,
    ):
        self.folder = Path(folder)
        self._log_file = self.folder / log
        self.files = [Path(file) for file in files]
        self._results = [self._log_file, *self.files]
        self._models = models
        self._overwrite = arguments.overwrite
        self._reads = {Path(path).resolve() for path in inputs.values()}
        self._images = {} if images is None else dict(images)
        self._checkpoints = Checkpoints(self.folder / "checkpoints")
        self._folders = {self.folder, *(file.parent for file in self._results)}
        for place in self._folders:
            refuse_read_only(place)
        self._record = Record(self.folder / record, describe(arguments, inputs, self.folder))
        self.cache_folder = getattr(arguments, "cache_dir", None) or self.folder  # on whose disk decoded images may lie
        self._lock: TextIO | None = None
        self._notices: list[str] = []
        self.log: logging.Logger  # from begin() on
        self.resumes = False
        if self._record.path.exists():
            self._take_lock()
        self._look()

    def _look(self):
        """Find out what is there, and whether this run may begin or go on."""
        earlier = self._earlier_record()
        changes = differences(earlier, self._record.description) if earlier else []
        self.resumes = bool(earlier) and not changes and not earlier.get("finished")
        if self.resumes:
            return
        if earlier and not changes and not self._overwrite:
            if image := self._record.changed_image(self._images):
                raise InputError(
                    f"{image}: has changed since it was read for {self._record.path}, a complete run; bring back the "
                    "old one, or --overwrite runs it again"
                )
            gone = [str(path) for path in self.files if not path.exists()]
            if not gone:
                raise AlreadyDone(
                    f"done already, {earlier['finished']}: {self._record.path} (--overwrite runs it again)"
                )
            self._overwrite = True
            self._notices.append(f"{gone[0]}: is gone, and is made anew with all other results of this run")
        for path in self._earlier_results():
            if path.resolve() in self._reads:
                raise InputError(f"{path}: this run starts from it; choose another place for the results")
            if not self._overwrite:
                difference = f"; {changes[0]}" if changes else ""
                raise InputError(f"{path}: is another run's result (--overwrite replaces it{difference})")

    def _earlier_record(self):
        try:
            return self._record.read()
        except InputError:
            if not self._overwrite:
                raise
            return None

    def _take_lock(self):
        """Hold the run folder until this process ends, however it ends."""
        path = self._record.path.with_name(f".{self._record.path.stem}.lock")
        lock = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise InputError(f"{self.folder}: {owner} is writing to it") from None
        except OSError as error:  # some file systems of networks
            self._notices.append(
                f"{self.folder}: its file system has no locks ({error.strerror}); no other run must write there"
            )
        self._lock = lock
        with name_file(path):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
        stopping.at_end.append(lock.close)

    def begin(self, device: str, notices: Iterable[str] = (), images: dict[str, dict] | None = None) -> logging.Logger:
        """Remove an earlier run's results or go on with this one's; returns the log (a ``logging.Logger``).

        ``images`` is what :attr:`travelling.images.volumes.Volumes.images` tells of all that the run reads. Raises
        InputError where one is not what it was when the run began.
        """
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        if not self._lock:
            self._take_lock()
            self._look()  # another process may have been faster
        notices = [*notices, *self._notices]
        if self.resumes:
            notices = self._record.resume(device, images or {}, notices)
        else:
            for path in self._earlier_results():
                path.unlink()
            self._checkpoints.remove()
            # First: whatever fails from now on, the same command goes on.
            notices = self._record.start(device, images or {}, notices)
        self.log = log = logging.getLogger("travelling")
        log.setLevel(logging.INFO)
        log.propagate = False
        self._close_log()
        stopping.at_end.append(self._close_log)
        to_file = _PlainLog(self._log_file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        log.addHandler(to_file)
        log.info("command: %s", shlex.join(sys.argv))
        log.addHandler(AboveTheBar())
        log.info("device: %s", device)
        for notice in notices:
            log.info("notice: %s", notice)
        stopping.finish_steps_on_signals()
        return log

    def checkpoint(self, record: dict, trainer: PlainTrainer) -> None:
        """Save where the run stands: a dict of plain values, and all that travels."""
        self._checkpoints.save(record, trainer.export_state())

    def go_on(self, trainer: PlainTrainer) -> dict | None:
        """Give the trainer all that travelled at the last checkpoint; returns its dict, or None at the beginning."""
        found = self._checkpoints.load() if self.resumes else None
        if found is None:
            models = [path for path in self._earlier_results() if MODEL_FILE.fullmatch(path.name)]
            if models:  # to begin anew would silently lose what was decided up to this cycle
                raise InputError(f"{models[0]}: is there, but no checkpoint; --overwrite starts anew")
            return None
        record, arrays, warnings = found
        for warning in warnings:
            self.log.warning("warning: %s", warning)
        with self.taking_over():
            trainer.import_state(arrays)
            _ = record["generator"]  # with which the travelling order goes on
            self.log.info("going on in cycle %d, %d centers to visit", record["cycle"], record["centers_left"])
        return record

    @contextlib.contextmanager
    def taking_over(self) -> Iterator[None]:
        """Raise InputError where a checkpoint does not hold what this version of the code would save in it."""
        try:
            yield
        except (LookupError, TypeError, ValueError):
            folder = self._checkpoints.folder
            raise InputError(f"{folder}: written by another version of this code; --overwrite starts anew") from None

    @property
    def record(self) -> dict:
        """What ``run.json`` holds, from :meth:`begin` on."""
        return self._record.content

    def finish(self, **more: object) -> None:
        """Note that the run is complete, and ``more`` in its record."""
        self._record.finish(more)
        self._checkpoints.remove()
        self._close_log()
        if self._lock:
            self._lock.close()

    def _close_log(self):
        for handler in [*self.log.handlers]:
            self.log.removeHandler(handler)
            with contextlib.suppress(OSError):  # of a line that could not be written, which was an error already
                handler.close()

    def save(self, model: TravellingModel, cycle: int, batch_size: int, known: dict) -> None:
        """Save the model of a cycle under its published names.

        ``known`` is what its record says besides (:meth:`travelling.images.plain_trainer.PlainTrainer.known`).
        """
        whole = model_files(self.folder, batch_size, cycle)
        partial = [path.with_name(f".{path.name}.part.keras") for path in whole]
        try:
            encoder, classifier = partial
            model.save(encoder, classifier, {"cycle": cycle, **known})
            for source, target in zip(partial, whole, strict=True):
                replace_whole(source, target)
        except OSError:
            for path in partial:
                path.unlink(missing_ok=True)
            raise

    def _earlier_results(self):
        files = self.folder.iterdir() if self._models and self.folder.is_dir() else ()
        models = [path for path in files if MODEL_FILE.fullmatch(path.name)]
        return [path for path in (*self._results, *models) if path.exists()]


class _PlainLog(logging.FileHandler):
    """A log file that says it where it cannot be written, as every other result does."""

    def emit(self, record):
        with name_file(self.baseFilename):
            super().emit(record)

    def handleError(self, record):
        raise  # what emit() caught; logging would print a traceback and go on
