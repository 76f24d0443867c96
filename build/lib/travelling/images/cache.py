"""Decoded images: in memory as far as it reaches, beyond that in memory-mapped files."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import psutil

from travelling.errors import name_file

_IDENTITY = 32  # letters
SHARE = 0.5  # of the free memory; the rest is for the network and for the system's own cache of files


def memory_for_images(cache_gb: float | None = None) -> float:
    """Bytes for decoded images: so many GB, or a share of the free memory."""
    return SHARE * free_memory() if cache_gb is None else cache_gb * 1e9


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control groups (SLURM, containers)."""
    found = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no control groups, as on macOS
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
    return max(0, min(found))


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an image: of its shape and of its voxels in float32, as the network gets them."""
    total = hashlib.sha256(str(array.shape).encode())
    total.update(np.ascontiguousarray(array, "<f4").data)
    return total.hexdigest()


def identity(file: Path | str) -> str:
    """What the file system knows of a file, as one word. Another word: its content may be another.

    A copy that keeps size and time of the last change has another inode, a file that is written over another ctime.
    """
    state = os.stat(file)
    words = f"{Path(file).resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ctime_ns}\n{state.st_ino}"
    return hashlib.sha256(os.fsencode(words)).hexdigest()[:_IDENTITY]


class ArrayFiles:
    """Arrays made from other files, one ``.npy`` file each, in a folder that several runs may share.

    A name tells what the file was made from (:func:`identity`) and the checksum of what it holds, so that a changed
    original or a damaged file is never taken for the right one. Files appear whole.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._found = {path.name[:_IDENTITY]: path for path in self.folder.glob("*.npy")}

    def load(self, original: str) -> tuple[np.ndarray, Path, str] | None:
        """The array of a file, mapped into memory, its own file and its checksum; None where there is none.

        ``original`` is the file's :func:`identity`. A damaged file is removed.
        """
        path = self._found.get(original)
        if path is None:
            return None
        with contextlib.suppress(OSError, ValueError, EOFError):
            array = np.load(path, mmap_mode="r")
            total = checksum(array)
            if path.name == _name(original, total):
                return array, path, total
        path.unlink(missing_ok=True)
        return None

    def store(self, original: str, array: np.ndarray, total: str) -> Path:
        """Write an array, whose checksum is ``total``, to its file and return that; raises OSError.

        ``original`` is the :func:`identity` that the file it comes from had before it was read.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # images of patients
        path = self.folder / _name(original, total)
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


def _name(original, total):
    return f"{original}_{total}.npy"
