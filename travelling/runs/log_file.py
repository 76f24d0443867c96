"""The verification log's file."""

import csv
import os
from pathlib import Path

from travelling.errors import InputError, name_file
from travelling.method.verification_log import LOG_COLUMNS


class LogFile:
    """The verification log: a CSV whose rows are on disk as soon as they are written.

    ``length`` is what :attr:`length` (bytes) was when the run that goes on had last a checkpoint; later rows are cut
    off, because that work is done again.
    """

    def __init__(self, path: Path, columns: tuple = LOG_COLUMNS, length: int = 0):
        self._file = open(path, "r+" if length else "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")
        with name_file(path):
            if length:
                if self._file.seek(0, os.SEEK_END) < length:
                    raise InputError(f"{path}: shorter than when its run stopped; --overwrite starts anew")
                self._file.seek(0)
                if self._file.readline().strip() != ",".join(columns):
                    raise InputError(f"{path}: has other columns; --overwrite starts anew")
                self._file.truncate(length)
                self._file.seek(length)
            else:
                self._writer.writeheader()
            self._flush()

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def __call__(self, row: dict) -> None:
        """Append one row."""
        with name_file(self._file.name):
            self._writer.writerow(row)
            self._flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _flush(self):
        self._file.flush()
        os.fsync(self._file.fileno())
