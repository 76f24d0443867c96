"""How much memory decoded images may take, and what tells one image from another."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import psutil

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
    return hashlib.sha256(os.fsencode(words)).hexdigest()[:32]
