"""How a list of arrays becomes the parameters of a FLARE model, and back, and how not to send it twice."""

import csv
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from travelling.errors import name_file


def pack(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by their number, as text that sorts as the numbers do: data types and shapes survive the way."""
    return {f"{number:04d}": array for number, array in enumerate(arrays)}


def unpack(params: dict[str, np.ndarray] | None) -> list[np.ndarray]:
    """The arrays of :func:`pack`, in their order."""
    return [array for _, array in sorted((params or {}).items())]


def digest(arrays: list[np.ndarray]) -> str:
    """A name that tells one state from any other."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def note_visit(path: Path, columns: Iterable[str], values: Iterable) -> None:
    """Append the time and the values of ``columns`` to a table of visits; a new table begins with the names."""
    is_new = not path.exists()
    with name_file(path), open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(("Time", *columns))
        writer.writerow((f"{time.time():.3f}", *values))
