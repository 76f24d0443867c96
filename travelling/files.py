"""Files that are at any moment the old one or the whole new one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from travelling.errors import InputError, name_file

if TYPE_CHECKING:
    import pandas as pd


def write_whole(path: Path | str, content: bytes) -> None:
    """Write bytes such that ``path`` is at any moment the old file or the whole new one, even after a power cut."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.part")
    try:
        with name_file(path):
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def replace_whole(partial: Path, path: Path) -> None:
    """Make a file that a library has written take the place of ``path``, with its content on disk before its name."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_csv(table: pd.DataFrame, path: Path | str) -> None:
    """Write a DataFrame such that ``path`` is at any moment the old file or the whole new one."""
    write_whole(path, table.to_csv(index=False, lineterminator="\n").encode())


def write_tsv(table: pd.DataFrame, path: Path, columns: Mapping[str, Mapping]) -> list[Path]:
    """Write the columns of a table that ``columns`` describe, as BIDS has it: a TSV and, beside it, their description.

    Returns the two files.
    """
    described = path.with_suffix(".json")
    write_whole(path, table[list(columns)].to_csv(sep="\t", index=False, lineterminator="\n").encode())
    write_whole(described, json.dumps(columns, indent=2).encode() + b"\n")
    return [path, described]


def refuse_read_only(folder: Path | str) -> None:
    """Raise InputError where nothing can be written to a folder, or where it cannot be made."""
    folder = Path(folder).absolute()
    above = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
