"""The saved models that a run goes on from, or evaluates: their files, cycles and records."""

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from travelling.errors import InputError
from travelling.network.model_files import MODEL_FILE, RECORD

CYCLE_AT_END = re.compile(r"encoder_.*_(\d+)(\.\w+)?")  # of the file of an encoder


def model_pairs(
    encoder: Path, classifier: Path, only_cycles: Sequence[int] | None = None
) -> dict[int, tuple[Path, Path]]:
    """The models of two folders (one and the same, as a rule), or of two files: {cycle: (encoder, classifier)}.

    They are in the order of the cycles. A file belongs to the cycle that its record or else its name tells, padded with
    zeros or not. ``only_cycles`` are the first and the last that are wanted. Raises InputError where a cycle has one
    half only, or two of the same, where there are no models of the wanted cycles, or where one of the two is a file
    and the other a folder.
    """
    encoder, classifier = Path(encoder), Path(classifier)
    for path in (encoder, classifier):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if encoder.is_dir() != classifier.is_dir():
        file, folder = (classifier, encoder) if encoder.is_dir() else (encoder, classifier)
        raise InputError(f"{file}: a file, but {folder} is a folder; -en and -pd must be two files or two folders")
    if not encoder.is_dir():
        cycle = cycle_of(encoder)
        if cycle is None:
            raise InputError(f"{encoder}: neither its name (as in encoder_09.h5) nor a record in it tells its cycle")
        return {cycle: (encoder, classifier)}
    encoders, classifiers = _files_by_cycle(encoder, "encoder"), _files_by_cycle(classifier, "classifier")
    there = sorted(encoders.keys() | classifiers.keys())
    cycles = [cycle for cycle in there if not only_cycles or only_cycles[0] <= cycle <= only_cycles[1]]
    if not cycles:
        found = (
            f"there are cycles {', '.join(map(str, there))}"
            if there
            else "none is named encoder_..._<cycle>.keras or .h5"
        )
        raise InputError(f"{encoder}: no models of the cycles asked for ({found})")
    for cycle in cycles:
        for part, files, folder in (("encoder", encoders, encoder), ("classifier", classifiers, classifier)):
            if cycle not in files:
                raise InputError(f"{folder}: no {part} of cycle {cycle}, but its other half exists")
    return {cycle: (encoders[cycle], classifiers[cycle]) for cycle in cycles}


def pretrained_files(encoder: Path, classifier: Path, first_cycle: int | None) -> tuple[Path, Path]:
    """The two files of the model that a run goes on from: those that are given, or of two folders the last ones.

    A run whose ``first_cycle`` is given goes on from the cycle before it. Raises InputError as :func:`model_pairs`.
    """
    if not Path(encoder).is_dir() and not Path(classifier).is_dir():
        return encoder, classifier
    only = None if first_cycle is None else (first_cycle - 1, first_cycle - 1)
    return list(model_pairs(encoder, classifier, only).values())[-1]


def cycle_of(encoder: Path) -> int | None:
    """The cycle after which a model was saved: by its record or, where it has none, by the name of its encoder."""
    match = CYCLE_AT_END.fullmatch(Path(encoder).name)
    return read_record(encoder).get("cycle", int(match[1]) if match else None)


def _files_by_cycle(folder, part):
    files: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = MODEL_FILE.fullmatch(path.name)
        if match and match[1] == part:
            first = files.setdefault(int(match[2]), path)
            if first != path:
                raise InputError(f"{path}: a second {part} of cycle {int(match[2])}, beside {first.name}")
    return files


def read_record(path: Path | str) -> dict:
    """What a saved model carries beside its weights (a dict, empty for other files); checks the whole archive."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    if not zipfile.is_zipfile(path):
        return {}
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # a damaged name would look like a file without record
                raise zipfile.BadZipFile(damaged)
            record = json.loads(archive.read(RECORD)) if RECORD in archive.namelist() else {}
        if not isinstance(record.get("cycle", 0), int):
            raise ValueError("its cycle is not a number")
    except Exception as error:  # whatever the file makes zipfile and its decompressors raise, the answer is the same
        raise InputError(f"{path}: damaged model file ({error or type(error).__name__})") from None
    return record


def cycles_to_run(encoder_path: Path, classifier_path: Path, first_cycle: int | None, cycles: int) -> range:
    """The cycles of a run that goes on from a pre-trained model, as a range.

    It begins after the model's own cycle (told by its record, or by its name where it has none) unless
    ``first_cycle`` says otherwise; ``cycles`` is the total. Raises InputError where that leaves none.
    """
    read_record(classifier_path)  # a damaged file is refused now
    if first_cycle is None:
        cycle = cycle_of(encoder_path)
        if cycle is None:
            raise InputError(
                f"{encoder_path}: neither its name (as in encoder_09.h5) nor a record in it tells the cycle of this "
                "model; --first-cycle is needed"
            )
        first_cycle = cycle + 1
    if cycles <= first_cycle:
        raise InputError(
            f"-cycles {cycles}: is the total and must be beyond the first cycle of this run, which is {first_cycle}"
        )
    return range(first_cycle, cycles)
