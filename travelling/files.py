"""Files that are at any moment the old one or the whole new one."""

import os
import tempfile
from pathlib import Path

from travelling.errors import InputError, name_file


def write_whole(path, content):
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


def replace_whole(partial, path):
    """Make a file that a library has written take the place of ``path``, with its content on disk before its name."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_csv(table, path):
    """Write a DataFrame such that ``path`` is at any moment the old file or the whole new one."""
    write_whole(path, table.to_csv(index=False, lineterminator="\n").encode())


def refuse_read_only(folder):
    """Raise InputError where nothing can be written to a folder, or where it cannot be made."""
    folder = Path(folder).absolute()
    above = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
