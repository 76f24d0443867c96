"""Checkpoints: where a run stands, in files that are either whole or not used.

A file is a line with the checksum of the rest, a line of JSON (a record of all that decides how the run goes on, and
the arrays' types and shapes), and then the bytes of the arrays: everything that travels. The file before the newest is
kept, in case that the newest is damaged.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from travelling.errors import InputError
from travelling.files import write_whole

KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def save(self, record: dict, arrays: list) -> None:
        """Write the next checkpoint, then remove those before the last but one."""
        files = self._files()
        arrays = [np.asarray(array) for array in arrays]
        header = {"record": record, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
        content = b"".join([json.dumps(header).encode(), b"\n", *(array.tobytes() for array in arrays)])
        number = int(files[-1].stem) + 1 if files else 0
        self.folder.mkdir(exist_ok=True)
        write_whole(
            self.folder / f"{number:08d}.checkpoint", hashlib.sha256(content).hexdigest().encode() + b"\n" + content
        )
        for path in files[: -KEPT + 1]:
            path.unlink()

    def load(self) -> tuple[dict, list[np.ndarray], list[str]] | None:
        """The newest whole checkpoint: (record, arrays, warnings), or None where there are none at all.

        Raises InputError where there are checkpoints but all are damaged.
        """
        warnings: list[str] = []
        for path in reversed(self._files()):
            checksum, _, content = path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() == checksum:
                header, _, values = content.partition(b"\n")
                header = json.loads(header)
                return header["record"], list(_split(values, header["arrays"])), warnings
            warnings.append(f"{path}: damaged checkpoint; the run goes on from the one before")
        if warnings:
            raise InputError(f"{self.folder}: every checkpoint is damaged; --overwrite starts anew")
        return None

    def remove(self) -> None:
        """Remove all checkpoints, and what a killed process left behind."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _files(self):
        return sorted(self.folder.glob("*.checkpoint"))


def _split(values, descriptions):
    """The arrays that the bytes hold one after another."""
    start = 0
    for dtype, shape in descriptions:
        array = np.frombuffer(values, dtype, math.prod(shape), start).reshape(shape)
        start += array.nbytes
        yield array
