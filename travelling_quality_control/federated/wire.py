"""How a list of arrays becomes the parameters of a FLARE model, and back, and what is installed at a site."""

import csv
import functools
import hashlib
import os
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

import travelling
from travelling.errors import name_file

NUMBERS = "fiub"  # kinds of NumPy's data types


def pack(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by their number, as text that sorts as the numbers do: data types and shapes survive the way."""
    return {f"{number:04d}": array for number, array in enumerate(arrays)}


def unpack(params: object) -> list[np.ndarray]:
    """The arrays of :func:`pack`, in their order. Raises ValueError for anything else but None, which has no arrays."""
    if params is None:
        return []
    if not isinstance(params, dict) or set(params) != {f"{number:04d}" for number in range(len(params))}:
        raise ValueError("its parameters are not numbered arrays")
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in NUMBERS for array in params.values()):
        raise ValueError("its parameters are not arrays of numbers")
    return [array for _, array in sorted(params.items())]


def digest(arrays: list[np.ndarray]) -> str:
    """A name that tells one state from any other."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


@functools.cache
def installed() -> dict[str, str]:
    """What decides about a training step at this site: version and digest of our code, versions of the libraries.

    The digest is of all source files, whatever their line ends: a changed network or reader of images is another one.
    """
    found = hashlib.sha256()
    for folder in (Path(travelling.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{path.relative_to(folder).as_posix()}\n{path.read_text(encoding='utf-8')}".encode())
    about = {"travelling": travelling.__version__, "code": found.hexdigest()[:16]}
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    return about | {name: version(name) for name in ("numpy", "keras", backend)}


def differences(theirs: object, ours: dict[str, str]) -> tuple[list[str], list[str]]:
    """In words, what another site's :func:`installed` has otherwise: of our code, and of the libraries."""
    theirs = theirs if isinstance(theirs, dict) else {}
    found = {name: str(theirs.get(name, "none"))[:40] for name in ours}
    words = {name: f"{name} {found[name]}, not {ours[name]}" for name in ours if found[name] != ours[name]}
    own = [words.pop(name) for name in ("travelling", "code") if name in words]
    return own, list(words.values())


def note_visit(path: Path, columns: Iterable[str], values: Iterable) -> None:
    """Append the time and the values of ``columns`` to a table of visits; a new table begins with the names."""
    is_new = not path.exists()
    with name_file(path), open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(("Time", *columns))
        writer.writerow((f"{time.time():.3f}", *values))
