"""A run: its folder, its models, its log and its progress bar."""

import json
import logging
import os
import re
import shlex
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from travelling.errors import InputError

MODEL_FILE = re.compile(r"(encoder|classifier)_.*_(\d+)\.(keras|h5)")  # ..._<cycle>.<format>
RECORD = "travelling.json"  # in a .keras file, beside what Keras writes: what else a model must carry


class Run:
    """A run and its folder. Nothing is written or removed before :meth:`begin`.

    ``log`` is the plain log, in the folder unless it is an absolute path; ``files`` are further results outside
    the folder, ``reads`` the CSVs and models that it reads, and ``models`` tells whether it saves models.
    Raises InputError where a place cannot be written, or where it already holds such results and
    ``overwrite`` is false.
    """

    def __init__(self, folder, log, files=(), overwrite=False, reads=(), models=True):
        self.folder = Path(folder)
        self._log_file = self.folder / log
        self._results = [self._log_file, *map(Path, files)]
        self._models = models
        self._folders = {self.folder, *(file.parent for file in self._results)}
        for place in self._folders:
            refuse_read_only(place)
        for path in self._earlier_results():
            if path.resolve() in {Path(file).resolve() for file in reads}:
                raise InputError(f"{path}: this run starts from it; choose another place for the results")
            if not overwrite:
                raise InputError(f"{path}: is another run's result (--overwrite replaces that run's results)")

    def begin(self, device, notices=()):
        """Remove an earlier run's results, start the log and return it (a ``logging.Logger``)."""
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        for path in self._earlier_results():
            path.unlink()
        log = logging.getLogger("travelling")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers.clear()
        to_file = logging.FileHandler(self._log_file, encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
        log.addHandler(to_file)
        log.info("command: %s", shlex.join(sys.argv))
        log.addHandler(_AboveTheBar())
        log.info("device: %s", device)
        for notice in notices:
            log.info("notice: %s", notice)
        return log

    def save(self, model, cycle, batch_size):
        """Save the model of a cycle under its published names."""
        names = (f"encoder_distributed_BS{batch_size}", f"classifier_PD_distributed_BS{batch_size}")
        whole = [self.folder / f"{name}_{cycle:02d}.keras" for name in names]
        partial = [path.with_name(f".{path.name}.part.keras") for path in whole]
        model.save(*partial, {"cycle": cycle})
        for source, target in zip(partial, whole, strict=True):
            os.replace(source, target)

    def _earlier_results(self):
        files = self.folder.iterdir() if self._models and self.folder.is_dir() else ()
        models = [path for path in files if MODEL_FILE.fullmatch(path.name)]
        return [path for path in (*self._results, *models) if path.exists()]


def refuse_read_only(folder):
    """Raise InputError where nothing can be written to a folder, or where it cannot be made."""
    folder = Path(folder).absolute()
    above = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None


class _AboveTheBar(logging.Handler):
    """Log lines on the terminal, above the progress bar instead of through it."""

    def emit(self, record):
        tqdm.write(record.getMessage(), file=sys.stderr)


def progress_bar(items=None, **options):
    """A tqdm bar; where stderr is not a terminal, a line every ten seconds."""
    return tqdm(items, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 10, **options)


def write_csv(table, path):
    """Write a DataFrame such that ``path`` is at any moment the old file or the whole new one."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        table.to_csv(file, index=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def model_pairs(encoder_folder, classifier_folder, first_cycle=None, last_cycle=None):
    """The models of two folders (one and the same, as a rule): {cycle: (encoder, classifier)}, by cycle.

    A file belongs to the cycle that its name ends with, padded with zeros or not. Raises InputError where a
    cycle has one half only, or two of the same, or where there are no models from first to last cycle.
    """
    encoders = _files_by_cycle(encoder_folder, "encoder")
    classifiers = _files_by_cycle(classifier_folder, "classifier")
    cycles = sorted(
        cycle
        for cycle in encoders.keys() | classifiers.keys()
        if (first_cycle is None or cycle >= first_cycle) and (last_cycle is None or cycle <= last_cycle)
    )
    if not cycles:
        raise InputError(f"{encoder_folder}: no models (encoder_..._<cycle>.keras or .h5) of the cycles asked for")
    for cycle in cycles:
        for part, files, folder in (
            ("encoder", encoders, encoder_folder),
            ("classifier", classifiers, classifier_folder),
        ):
            if cycle not in files:
                raise InputError(f"{folder}: no {part} of cycle {cycle}, but its other half exists")
    return {cycle: (encoders[cycle], classifiers[cycle]) for cycle in cycles}


def _files_by_cycle(folder, part):
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (inference takes folders with a model for each cycle)")
    files = {}
    for path in sorted(folder.iterdir()):
        match = MODEL_FILE.fullmatch(path.name)
        if match and match[1] == part:
            first = files.setdefault(int(match[2]), path)
            if first != path:
                raise InputError(f"{path}: a second {part} of cycle {int(match[2])}, beside {first.name}")
    return files


def read_record(path):
    """What a saved model carries beside its weights (a dict, empty for other files); reads no weights."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    if not zipfile.is_zipfile(path):
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(RECORD)) if RECORD in archive.namelist() else {}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged model file ({error})") from None


def cycles_to_run(encoder_path, classifier_path, first_cycle, cycles):
    """The cycles of a run that goes on from a pre-trained model, as a range.

    It begins after the model's own cycle (told by its record, or by its name where TensorFlow 2.10 saved it) unless
    ``first_cycle`` says otherwise; ``cycles`` is the total. Raises InputError where that leaves none.
    """
    records = [read_record(path) for path in (encoder_path, classifier_path)]
    if first_cycle is None:
        match = MODEL_FILE.fullmatch(Path(encoder_path).name)
        cycle = records[0].get("cycle", int(match[2]) if match else None)
        if cycle is None:
            raise InputError(f"{encoder_path}: does not tell its cycle; --first-cycle is needed")
        first_cycle = cycle + 1
    if cycles <= first_cycle:
        raise InputError(
            f"-cycles {cycles}: is the total and must be beyond the first cycle of this run, which is {first_cycle}"
        )
    return range(first_cycle, cycles)
