"""The images of a run: each read once, all in one space, in batches for the network."""

import mmap
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes, inv_ornt_aff, io_orientation, ornt_transform

from travelling.console import progress_bar
from travelling.errors import InputError, name_file
from travelling.images.cache import checksum, identity, memory_for_images
from travelling.images.nifti import apart, read_header, read_voxels, shape_in_words, turned
from travelling.network.sfcn import MINIMUM_VOXELS

SAME_SCALE = 10  # times by which the mean intensity of an image may differ from that of the median image
SAME_SPACE = 0.5  # voxels between the corners of two images: more, and they do not lie in one space


@dataclass
class _Image:
    """An image of a run: orientations are nibabel's, of the axes x, y, z; ``voxels`` (z, y, x) are turned."""

    path: str
    upright: np.ndarray  # orientation of the file
    turn: np.ndarray | None = None  # transform to the axes of the first image, where one is needed
    voxels: np.ndarray = field(default_factory=lambda: np.empty(0))
    mapping: mmap.mmap | None = None  # of the file that holds the voxels, where memory did not reach
    mean: float = 0.0
    about: dict = field(default_factory=dict)  # for a record, see Volumes.images; empty: it was not read yet


class Volumes:
    """The images of one or more cohorts, which must have one shape and lie in one space; each is read once.

    ``shape`` is (z, y, x) in voxels, known once a cohort is added. With ``reorient``, images whose axes are only
    permuted or flipped are turned as the first one is. ``space`` is :attr:`space` of the images that these must agree
    with, where they are elsewhere. Decoded images are kept in their own data type: in memory up to ``cache_gb``
    (10^9 bytes; None: half of what is free), as a rule those that were added first, the others on the disk of
    ``cache_folder``, in files without a name that end with this process. ``images`` (after :meth:`decode`) tells for
    each subject, in dicts, ``path``, ``file`` (its :func:`travelling.images.cache.identity`) and ``sha256``, the
    checksum of its voxels in one orientation, whatever that of the file is.
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
        self._of: dict[str, _Image] = {}  # subject -> image
        self._remarks: dict[str, list[str]] = {}  # in words -> NIfTI files
        self._free = memory_for_images(cache_gb)  # bytes
        self._folder = Path(cache_folder).absolute()
        self._reservation = threading.Lock()
        self._buffers = [np.empty((0,)), np.empty((0,))]  # of batch()

    def add(self, cohort: pd.DataFrame) -> None:
        """Add the images of a cohort, checking the headers only; raises InputError for the first bad one."""
        for subject, path in zip(cohort["Subject"], cohort["Path"], strict=True):
            header = read_header(path)
            image = self._of[subject] = _Image(path, io_orientation(header.affine))
            for remark in header.remarks:
                self._remark(remark, path)
            known = self._affine if header.is_oriented else None
            size, affine = header.shape, header.affine  # x, y, z
            if known is not None and _axes(affine) != _axes(known):
                if not self._reorient:
                    raise InputError(
                        f"{path}: its axes run {_axes(affine)}, those of {self._oriented} {_axes(known)}; "
                        "all images must have one orientation (--reorient turns them)"
                    )
                self._remark(f"turned from {_axes(affine)} to {_axes(known)} as {self._oriented} (--reorient)", path)
                image.turn = ornt_transform(image.upright, io_orientation(known))
                affine = affine @ inv_ornt_aff(image.turn, size)
                size = tuple(size[axis] for axis in np.argsort(image.turn[:, 0]))
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
            self._refuse_other_space(path, affine, size, known)
            if self._affine is None and header.is_oriented:
                self._affine, self._oriented = affine, path

    def _remark(self, words, path):
        self._remarks.setdefault(words, []).append(path)

    @property
    def space(self) -> dict:
        """Where all images lie, as plain values: ``shape``, and ``affine`` (None where none tells it)."""
        return {"shape": self.shape, "affine": None if self._affine is None else self._affine.tolist()}

    def _refuse_other_space(self, path, affine, size, known):
        sizes = voxel_sizes(affine)
        if self._sizes is None:
            self._sizes = sizes
        if (np.abs(sizes / self._sizes - 1) * size > SAME_SPACE).any():
            raise InputError(
                f"{path}: voxels of {_in_mm(sizes)} mm, but those of {self._first} have {_in_mm(self._sizes)} mm; "
                "all images must have one voxel size: this needs resampling, which is not done here"
            )
        if known is not None and (distance := apart(affine, known, size)) > SAME_SPACE:
            raise InputError(
                f"{path}: lies up to {distance:.3g} voxels from where {self._oriented} lies (origin, or tilted axes); "
                "all images must lie in one space: this needs resampling, which is not done here"
            )

    @property
    def means(self) -> dict[str, float]:
        """The mean intensity of every subject's image, of its absolute values, after :meth:`decode`."""
        return {subject: image.mean for subject, image in self._of.items()}

    def read(self, subjects: Iterable[str]) -> None:
        """Read and check the images of some subjects, which can be used from now on; raises as :meth:`decode`."""
        waiting = [image for image in map(self._of.__getitem__, subjects) if not image.about]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                done = pool.map(self._read, waiting)
                for _ in progress_bar(done, total=len(waiting), desc="reading images", unit="image"):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def decode(self) -> list[str]:
        """Read and check every image once; raises InputError for a bad one, OSError where a file cannot be written.

        Returns what a log should say of them: a list of lines.
        """
        self.read(self._of)
        self.images = {subject: image.about for subject, image in self._of.items()}
        usual = np.median(list(self.means.values()))
        for image in self._of.values():
            if usual > 0 and not usual / SAME_SCALE <= image.mean <= usual * SAME_SCALE:
                self._remark(
                    f"of another scale: the mean is not within a tenth and {SAME_SCALE} times that of most", image.path
                )
        notices = [
            f"{len(paths)} image{'s' * (len(paths) > 1)} {words}: {min(paths)}{' and others' * (len(paths) > 1)}"
            for words, paths in self._remarks.items()
        ]
        on_disk = [image.voxels.nbytes for image in self._of.values() if image.mapping]
        if on_disk:
            notices.append(
                f"{len(self._of) - len(on_disk)} decoded images are in memory, "
                f"{len(on_disk)} on the disk of {self._folder} ({sum(on_disk) / 1e9:.1f} GB)"
            )
        return notices

    def _read(self, image):
        about = {"path": image.path, "file": identity(image.path)}
        voxels, _ = read_voxels(image.path)
        about["sha256"] = checksum(turned(voxels, image.upright))
        image.mean = float(np.abs(voxels, dtype=np.float64).mean())
        is_flat = voxels.min() == voxels.max()
        with self._reservation:
            if is_flat:
                self._remark("without any contrast: every voxel is the same", image.path)
            fits = voxels.nbytes <= self._free
            self._free -= voxels.nbytes if fits else 0
        image.voxels = voxels if image.turn is None else turned(voxels, image.turn)
        if not fits:
            image.mapping = _map_to_disk(image.voxels, self._folder)
            image.voxels = np.frombuffer(image.mapping, voxels.dtype).reshape(image.voxels.shape)
        image.about = about  # last: it can be used

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
            image[..., 0] = self._of[subject].voxels
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
        """Have the system read what is on disk of these subjects in the background: a batch of them is needed soon."""
        for subject in subjects:
            if mapping := self._of[subject].mapping:
                mapping.madvise(mmap.MADV_WILLNEED)


def _map_to_disk(array, folder):
    """An array in a file on the disk of a folder, which need not be there yet, mapped into memory."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    with name_file(folder), tempfile.TemporaryFile(dir=there) as file:  # it has no name, and nobody else can read it
        file.write(np.ascontiguousarray(array).data)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _axes(affine):
    """Where the axes x, y, z run to, as letters: RAS is right, anterior, superior."""
    return "".join(aff2axcodes(affine))


def _in_mm(sizes):
    return " x ".join(f"{size:.4g}" for size in sizes)
