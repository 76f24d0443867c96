"""Decoded images: in memory as far as it reaches, beyond that in memory-mapped files."""

import contextlib
import hashlib
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from travelling.errors import name_file

_IDENTITY = 32  # letters
SHARE = 0.5  # of the free memory; the rest is for the network and for the system's own cache of files


def memory_for_images(cache_gb=None):
    """Bytes for decoded images: so many GB, or a share of the free memory."""
    return SHARE * free_memory() if cache_gb is None else cache_gb * 1e9


def free_memory():
    """Bytes that this process may still take: of the machine, and of its control groups (SLURM, containers).

    Zero where neither can be told.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2
                root, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            place = root / group.lstrip("/")
            for folder in (place, *place.parents):
                with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                    found.append(int((folder / limit).read_text()) - int((folder / usage).read_text()))
    return max(0, min(found, default=0))


class ArrayFiles:
    """Arrays made from other files, one ``.npy`` file each, in a folder that several runs may share.

    A name tells what the file was made from (path, size and time of the last change) and the checksum of what it
    holds, so that a changed original or a damaged file is never taken for the right one. Files appear whole.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._found = {path.name[:_IDENTITY]: path for path in self.folder.glob("*.npy")}

    def find(self, original):
        """The file with the array of ``original``, checked; None where there is none. A damaged one is removed."""
        path = self._found.get(_identity(original))
        if path is None:
            return None
        with contextlib.suppress(OSError, ValueError, EOFError):
            if path.name == _name(original, np.load(path, mmap_mode="r")):
                return path
        path.unlink(missing_ok=True)
        return None

    def store(self, original, array):
        """Write the array of ``original`` to its file and return that; raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients
        path = self.folder / _name(original, array)
        with (
            name_file(path),
            tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as partial,
        ):
            try:
                np.save(partial, array)
                partial.close()
                os.replace(partial.name, path)
            except BaseException:
                os.unlink(partial.name)
                raise
        return path


def _identity(original):
    state = os.stat(original)
    words = f"{Path(original).resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    return hashlib.sha256(words.encode()).hexdigest()[:_IDENTITY]


def _name(original, array):
    description = f"{array.dtype.str} {array.shape}".encode()
    return f"{_identity(original)}_{zlib.crc32(np.ascontiguousarray(array), zlib.crc32(description)):08x}.npy"
