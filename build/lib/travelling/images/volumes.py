"""The images of a run: each read once, all in one space, in batches for the network."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, inv_ornt_aff, io_orientation, ornt_transform

from travelling.console import progress_bar
from travelling.errors import InputError
from travelling.images.cache import ArrayFiles, checksum, identity, memory_for_images
from travelling.images.nifti import apart, read_header, read_upright, read_voxels, shape_in_words, turned
from travelling.network.sfcn import MINIMUM_VOXELS

SAME_SCALE = 10  # times by which the mean intensity of an image may differ from that of the median image
_AS_IT_IS = [[0, 1], [1, 1], [2, 1]]  # nibabel's orientation of what need not be turned
SAME_SPACE = 0.5  # voxels between the corners of two images: more, and they do not lie in one space


def for_each_image(function: Callable[[str], object], paths: Sequence[str], description: str) -> None:
    """Call ``function(path)`` for each path, several at a time, under a progress bar; raises what it raises."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in progress_bar(pool.map(function, paths), total=len(paths), desc=description, unit="image"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def read_with_content(path: Path | str) -> tuple[np.ndarray, dict[str, str]]:
    """The voxels of an image as :func:`read_upright`, and what a record says of it, see :attr:`Volumes.images`."""
    file = identity(path)
    voxels = read_upright(path)
    return voxels, {"path": str(path), "file": file, "sha256": checksum(voxels)}


class Volumes:
    """The images of one or more cohorts, which must have one shape and lie in one space; each is read once.

    ``shape`` is (z, y, x) in voxels, known once a cohort is added. With ``reorient``, images whose axes are only
    permuted or flipped are turned as the first one is. ``space`` is :attr:`space` of the images that these must agree
    with, where they are elsewhere. Decoded images are kept in their own data type: in
    memory up to ``cache_gb`` (10^9 bytes; None: half of what is free), as a rule those that were added first, the
    others in files in ``cache_folder``, which is made when the first one needs it. ``images`` (after
    :meth:`decode`) tells for each subject, in dicts, ``path``, ``file`` (its :func:`travelling.images.cache.identity`)
    and ``sha256``, the checksum of its voxels in one orientation, whatever that of the file is.
    """

    def __init__(
        self, cache_gb: float | None, cache_folder: Path | str, reorient: bool = False, space: dict | None = None
    ):
        self.shape: tuple[int, ...] = () if space is None else tuple(space["shape"])
        self.images: dict[str, dict] = {}
        self._reorient = reorient
        self._first = "the model's first image"  # or the image that set the shape
        self._affine = None if space is None or space["affine"] is None else np.array(space["affine"])
        self._oriented = self._first  # or the image that set the affine
        self._sizes = None if self._affine is None else voxel_sizes(self._affine)  # mm
        self._upright: dict[str, np.ndarray] = {}  # NIfTI file -> nibabel's orientation of its axes x, y, z
        self._turns: dict[str, np.ndarray] = {}  # NIfTI file -> nibabel's transform of them, where one is needed
        self._files: dict[str, str] = {}  # subject -> NIfTI file
        self._memory: dict[str, np.ndarray] = {}  # NIfTI file -> array
        self._array_files = ArrayFiles(cache_folder)
        self._stored: dict[str, Path] = {}  # NIfTI file -> .npy file
        self._stored_bytes = 0
        self._contents: dict[str, dict] = {}  # NIfTI file -> what is known of it, see images
        self._means: dict[str, float] = {}  # NIfTI file -> mean intensity
        self._remarks: dict[str, list[str]] = {}  # in words -> NIfTI files
        self._free = memory_for_images(cache_gb)  # bytes
        self._reservation = threading.Lock()
        self._buffers = [np.empty((0,)), np.empty((0,))]  # of batch()

    def add(self, cohort: pd.DataFrame) -> None:
        """Add the images of a cohort, checking the headers only; raises InputError for the first bad one."""
        for path in cohort["Path"]:
            header = read_header(path)
            self._upright[path] = io_orientation(header.affine)
            for remark in header.remarks:
                self._remark(remark, path)
            size, affine = self._turned(path, header) if self._reorient else (header.shape, header.affine)
            self._refuse_other_axes(path, header, affine)
            shape = tuple(reversed(size))  # x, y, z -> z, y, x
            if not self.shape:
                self.shape, self._first = shape, path
            if shape != self.shape:
                raise InputError(
                    f"{path}: {shape_in_words(shape)} voxels, but {self._first} has {shape_in_words(self.shape)}; "
                    "all images must have one shape"
                )
            if min(shape) < MINIMUM_VOXELS:
                raise InputError(
                    f"{path}: {shape_in_words(shape)} voxels; the network needs {MINIMUM_VOXELS} along every axis"
                )
            self._refuse_other_space(path, header, affine)
            if self._affine is None and header.is_oriented:
                self._affine, self._oriented = affine, path
        self._files.update(zip(cohort["Subject"], cohort["Path"], strict=True))

    def _remark(self, words, path):
        self._remarks.setdefault(words, []).append(path)

    @property
    def space(self) -> dict:
        """Where all images lie, as plain values: ``shape``, and ``affine`` (None where none tells it)."""
        return {"shape": self.shape, "affine": None if self._affine is None else self._affine.tolist()}

    def _comparable(self, header):
        """Whether an image and the first one both tell how they lie."""
        return self._affine is not None and header.is_oriented

    def _turned(self, path, header):
        """Shape (x, y, z) and affine after the axes are permuted and flipped as those of the first image."""
        if not self._comparable(header):
            return header.shape, header.affine
        turn = ornt_transform(self._upright[path], io_orientation(self._affine))
        if np.array_equal(turn, _AS_IT_IS):
            return header.shape, header.affine
        shape = turned(np.empty(header.shape[::-1], bool), turn).shape[::-1]
        self._turns[path] = turn
        self._remark(
            f"turned from {_axes(header.affine)} to {_axes(self._affine)} as {self._oriented} (--reorient)", path
        )
        return shape, header.affine @ inv_ornt_aff(turn, header.shape)

    def _refuse_other_axes(self, path, header, affine):
        if self._comparable(header) and _axes(affine) != _axes(self._affine):
            raise InputError(
                f"{path}: its axes run {_axes(affine)}, those of {self._oriented} {_axes(self._affine)}; "
                "all images must have one orientation (--reorient turns them)"
            )

    def _refuse_other_space(self, path, header, affine):
        sizes, shape = voxel_sizes(affine), self.shape[::-1]
        if self._sizes is None:
            self._sizes = sizes
        if (np.abs(sizes / self._sizes - 1) * shape > SAME_SPACE).any():
            raise InputError(
                f"{path}: voxels of {_in_mm(sizes)} mm, but those of {self._first} have {_in_mm(self._sizes)} mm; "
                "all images must have one voxel size: this needs resampling, which is not done here"
            )
        if self._affine is None or not header.is_oriented:
            return
        if (distance := apart(affine, self._affine, shape)) > SAME_SPACE:
            raise InputError(
                f"{path}: lies up to {distance:.3g} voxels from where {self._oriented} lies (origin, or tilted axes); "
                "all images must lie in one space: this needs resampling, which is not done here"
            )

    @property
    def means(self) -> dict[str, float]:
        """The mean intensity of every subject's image, after :meth:`decode`."""
        return {subject: self._means[path] for subject, path in self._files.items()}

    def read(self, subjects: Iterable[str]) -> None:
        """Read and check the images of some subjects, which can be used from now on; raises as :meth:`decode`."""
        paths = [self._files[subject] for subject in subjects]
        for_each_image(self._decode, [path for path in paths if path not in self._contents], "reading images")

    def decode(self) -> list[str]:
        """Read and check every image once; raises InputError for a bad one, OSError where a file cannot be written.

        Returns what a log should say of them: a list of lines.
        """
        self.read(self._files)
        self.images = {subject: self._contents[path] for subject, path in self._files.items()}
        usual = np.median(list(self._means.values()))
        for path, mean in self._means.items():
            if usual > 0 and not usual / SAME_SCALE <= mean <= usual * SAME_SCALE:
                self._remark(
                    f"of another scale: the mean is not within a tenth and {SAME_SCALE} times that of most", path
                )
        notices = [
            f"{len(paths)} image{'s' * (len(paths) > 1)} {words}: {min(paths)}{' and others' * (len(paths) > 1)}"
            for words, paths in self._remarks.items()
        ]
        if self._stored:
            size = self._stored_bytes / 1e9
            notices.append(
                f"{len(self._memory)} decoded images are in memory, "
                f"{len(self._stored)} in {self._array_files.folder} ({size:.1f} GB)"
            )
        return notices

    def _decode(self, path):
        original = identity(path)
        found = self._array_files.load(original)
        if found:
            array, stored, total = found
        else:
            array, stored = read_voxels(path)[0], None
            total = checksum(array)
        is_flat = array.min() == array.max()
        content = total if np.array_equal(self._upright[path], _AS_IT_IS) else self._content(path, array)
        mean = float(array.mean(dtype=np.float64))  # in float32 the sum can overflow
        with self._reservation:
            self._means[path] = mean
            self._contents[path] = {"path": path, "file": original, "sha256": content}
            if is_flat:
                self._remark("without any contrast: every voxel is the same", path)
            fits = array.nbytes <= self._free
            self._free -= array.nbytes if fits else 0
            self._stored_bytes += 0 if fits else array.nbytes
        if fits:
            self._memory[path] = np.array(array) if stored else array
        else:
            self._stored[path] = stored or self._array_files.store(original, array, total)

    def _content(self, path, array):
        """The checksum of a file's voxels in one orientation."""
        return checksum(turned(array, self._upright[path]))

    def batch(self, subjects: Sequence[str]) -> np.ndarray:
        """Images of the subjects as float32 of shape (subjects, z, y, x, 1).

        The array is overwritten by the next call but one: fresh memory for every batch can cost more than the copy.
        """
        buffer, other = self._buffers
        if len(subjects) > len(buffer):
            buffer = np.empty((len(subjects), *self.shape, 1), np.float32)
        self._buffers = [other, buffer]
        images = buffer[: len(subjects)]
        for image, subject in zip(images, subjects, strict=True):
            path = self._files[subject]
            array = self._array(path)
            if path in self._turns:
                array = turned(array, self._turns[path])
            image[..., 0] = array
        return images

    def upright(self, image: np.ndarray) -> np.ndarray:
        """A view of an image of a batch (z, y, x): its axes run up, to the front and to the right, if that is known."""
        return image if self._affine is None else turned(image, io_orientation(self._affine))

    def batches(self, groups: Sequence[Sequence[str]]) -> Iterator[np.ndarray]:
        """Yield :meth:`batch` of every group of subjects; the next is made ready while the caller works on one."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.batch, groups[0])
            for following in groups[1:]:
                images = ahead.result()
                ahead = pool.submit(self.batch, following)
                yield images
            yield ahead.result()

    def expect(self, subjects: Sequence[str]) -> None:
        """Have the system read the files of these subjects in the background: a batch of them is needed soon."""
        if not hasattr(os, "posix_fadvise"):  # macOS
            return
        for subject in subjects:
            path = self._files[subject]
            if path not in self._memory:
                with contextlib.suppress(OSError), open(self._stored.get(path, path), "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def _array(self, path):
        if path in self._memory:
            return self._memory[path]
        try:
            return np.load(self._stored[path], mmap_mode="r")
        except (OSError, ValueError):  # somebody has cleaned up
            array, _ = read_voxels(path)
            if self._content(path, array) != self._contents[path]["sha256"]:
                raise InputError(f"{path}: has changed since this run began") from None
            return array


def _axes(affine):
    """Where the axes x, y, z run to, as letters: RAS is right, anterior, superior."""
    return "".join(aff2axcodes(affine))


def _in_mm(sizes):
    return " x ".join(f"{size:.4g}" for size in sizes)
