"""Brain images: NIfTI files in, arrays (z, y, x) out, each file read once.

nibabel reads headers and voxels. It believes what a header says and what is in an archive, so both are looked at here.
"""

import contextlib
import errno
import gzip
import io
import itertools
import logging
import math
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from travelling.cache import ArrayFiles, checksum, identity, memory_for_images
from travelling.console import progress_bar
from travelling.errors import InputError, name_file
from travelling.files import replace_whole

LARGEST_OFFSET = 2**20  # bytes of header and extensions; more means that the header is damaged
LARGEST_LENGTH = 1e6  # mm, of a voxel or from the origin
GZIP_RATIO = 1032  # no byte of a gzip file can stand for more bytes than that
MINIMUM_VOXELS = 33  # per axis: five poolings by 2, rounded up, must leave 2 for the network's average pooling
SAME_SPACE = 0.5  # voxels between the corners of two images: more, and they do not lie in one space
SAME_FORM = 0.1  # voxels, between qform and sform: what rounding leaves is below 0.001
RIGHT_ANGLE = 0.1  # degrees by which axes may miss it

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its remarks on headers; what matters is an InputError
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings likewise


class Header(NamedTuple):
    """What a file tells of its image.

    ``affine`` takes voxel indices (x, y, z) to mm (right, anterior, superior); where neither qform nor sform tells it,
    ``is_oriented`` is False. ``remarks`` are what a user should know, though it can be read.
    """

    nifti: nib.Nifti1Header
    shape: tuple  # x, y, z
    affine: np.ndarray  # (4, 4)
    is_oriented: bool
    remarks: list


def read_image(path):
    """Read a 3-D NIfTI image with one value per voxel, whole, as a SimpleITK image (axes x, y, z; mm).

    Raises InputError for anything else, and where the file is damaged or a voxel is not finite in float32.
    """
    voxels, header = read_voxels(path)
    image = sitk.GetImageFromArray(voxels)
    sizes = voxel_sizes(header.affine)
    to_left_posterior = np.diag([-1.0, -1.0, 1.0, 1.0]) @ header.affine  # ITK counts mm to there
    image.SetSpacing(sizes.tolist())
    image.SetDirection((to_left_posterior[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(to_left_posterior[:3, 3].tolist())
    return image


def read_voxels(path):
    """The voxels of an image as an array (z, y, x), and its :class:`Header`; raises InputError as :func:`read_image`.

    The array has the file's own data type; scaled intensities are float32.
    """
    header = read_header(path)
    length = _length(header.nifti)
    try:
        with _open_bytes(path) as file:
            content = file.read(header.nifti.get_data_offset() + length + LARGEST_OFFSET + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: damaged image ({error})") from None
    found = len(content) - header.nifti.get_data_offset()
    if found < length:
        raise InputError(f"{path}: damaged image (truncated: {max(found, 0)} of {length} bytes of voxels)")
    if found > length + LARGEST_OFFSET:
        raise InputError(f"{path}: damaged image (longer than the {length} bytes of voxels in its header)")
    with np.errstate(all="ignore"):
        voxels = np.asanyarray(ArrayProxy(io.BytesIO(content), header.nifti))
        kind = header.nifti.get_data_dtype().newbyteorder("=")
        voxels = voxels.astype(kind if voxels.dtype == kind else np.float32, copy=False)
        finite = voxels.dtype.kind in "iu" or np.isfinite(voxels.astype(np.float32, copy=False)).all()
    if not finite:
        raise InputError(f"{path}: the image has voxels that are NaN or infinite (or too large for float32)")
    return np.ascontiguousarray(voxels.reshape(header.shape, order="F").T), header


def read_upright(path):
    """The voxels of an image as an array whose axes run up, to the front and to the right, wherever the file's do."""
    voxels, header = read_voxels(path)
    return apply_orientation(voxels.T, io_orientation(header.affine)).T


def read_header(path):
    """The :class:`Header` of a 3-D image; raises InputError for anything else, and where it cannot be true."""
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a .nii or .nii.gz file")
    try:
        with _open_bytes(path) as file:
            content = file.read(348)
        most = os.stat(path).st_size * (GZIP_RATIO if str(path).endswith(".gz") else 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: not a NIfTI image ({getattr(error, 'strerror', None) or error})") from None
    if {content[:4], content[3::-1]} & {(540).to_bytes(4, "little")}:
        raise InputError(f"{path}: a NIfTI-2 image; NIfTI-1 is needed")
    if len(content) < 348 or not {content[:4], content[3::-1]} & {(348).to_bytes(4, "little")}:
        raise InputError(f"{path}: not a NIfTI image (it does not begin with a header)")
    with np.errstate(all="ignore"):  # of numbers in a damaged header
        return _checked_header(path, content, most)


def _checked_header(path, content, most):
    """The :class:`Header` of 348 bytes, in a file of at most ``most`` bytes; raises InputError."""
    try:
        nifti, told = nib.Nifti1Header(content), nib.Nifti1Header(content, check=False)
        axes, kind, offset = nifti.get_data_shape(), nifti.get_data_dtype(), nifti.get_data_offset()
        nifti.get_slope_inter()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: damaged image ({_reason(error)})") from None
    # What nibabel corrects without a word: codes that do not exist, voxel sizes of 0 or less.
    decisive = ("sform_code", "qform_code") if nifti["sform_code"] else ("sform_code", "qform_code", "pixdim")
    if any(np.any(told[name] != nifti[name]) and not np.isnan(told[name]).any() for name in decisive):
        raise InputError(f"{path}: damaged image (its voxel size or its orientation is no possible one)")
    if nifti["magic"].item() != b"n+1":
        raise InputError(f"{path}: not a NIfTI image in one file (no 'n+1' at the end of its header)")
    if min(axes[:3], default=0) < 1:
        raise InputError(f"{path}: damaged image (its header tells {len(axes)} axes of {list(axes)} voxels)")
    if len(axes) < 3 or max(axes[3:], default=1) > 1 or kind.kind not in "iuf" or kind.itemsize > 8:
        raise InputError(
            f"{path}: a 3-D image with one value per voxel is needed, this one is {_in_words(axes[::-1])}, data type "
            f"{nifti['datatype']}"
        )
    if not 352 <= offset <= LARGEST_OFFSET:
        raise InputError(f"{path}: damaged image (its voxels begin at byte {offset:g})")
    if offset + _length(nifti) > most:
        raise InputError(
            f"{path}: damaged image (truncated: its header tells {_length(nifti)} bytes of voxels, "
            f"the file has at most {max(most - offset, 0)})"
        )
    return Header(nifti, axes[:3], *_geometry(path, nifti, axes[:3]))


def _length(nifti):
    """Bytes of voxels."""
    return math.prod(nifti.get_data_shape()) * nifti.get_data_dtype().itemsize


def _geometry(path, nifti, shape):
    """Affine, whether the file tells it, and remarks; raises InputError where it is none."""
    remarks = []
    try:
        sform, qform = nifti.get_sform(coded=True)[0], nifti.get_qform(coded=True)[0]
        affine = next((form for form in (sform, qform) if form is not None), nifti.get_base_affine())
    except (HeaderDataError, ValueError):
        affine = np.full((4, 4), np.nan)
    sizes = voxel_sizes(affine)
    if not ((np.abs(affine) < LARGEST_LENGTH).all() and (sizes > 1 / LARGEST_LENGTH).all()):  # not of NaN either
        raise InputError(f"{path}: damaged image (its voxel size or its orientation is no possible one)")
    axes = affine[:3, :3] / sizes
    if abs(np.linalg.det(axes)) < 0.1:
        raise InputError(f"{path}: damaged image (its axes lie in one plane)")
    skew = np.degrees(np.arcsin(np.abs(axes.T @ axes - np.eye(3)).max()))
    if skew > RIGHT_ANGLE:
        remarks.append("with axes that are not at right angles")
    if sform is not None and qform is not None and apart(qform, sform, shape) > SAME_FORM:
        remarks.append("whose qform and sform differ (the sform counts)")
    if sform is None and qform is None:
        remarks.append("that tell no orientation, neither as qform nor as sform (taken as they are)")
    return affine, sform is not None or qform is not None, remarks


def apart(affine, other, shape):
    """How far, in voxels, the corners of an image of ``shape`` (x, y, z) lie from where another affine has them."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    return np.abs(apply_affine(np.linalg.inv(other) @ affine, corners) - corners).max()


def _open_bytes(path):
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def write_image(image, path):
    """Write a SimpleITK image such that ``path`` is at any moment the old file or the whole new one.

    Raises OSError where that fails, for example on a full disk.
    """
    partial = path.with_name(f".part_{path.name}")
    try:
        sitk.WriteImage(image, str(partial))
        read_voxels(partial)  # ITK does not notice every failure
        replace_whole(partial, path)
    except (RuntimeError, InputError):
        with name_file(path), open(partial, "ab") as file:  # ITK does not say why: a full disk would do so here
            file.write(bytes(math.prod(image.GetSize()) * image.GetSizeOfPixelComponent()))
        raise OSError(errno.EIO, "could not be written", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def to_array(image):
    """SimpleITK image (x, y, z) -> array (z, y, x) of its own data type."""
    return sitk.GetArrayFromImage(image)


def _reason(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def for_each_image(function, paths, description):
    """Call ``function(path)`` for each path, several at a time, under a progress bar; raises what it raises."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in progress_bar(pool.map(function, paths), total=len(paths), desc=description, unit="image"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class Volumes:
    """The images of one or more cohorts, which must have one shape and lie in one space; each is read once.

    ``shape`` is (z, y, x) in voxels, known once a cohort is added. With ``reorient``, images whose axes are only
    permuted or flipped are turned as the first one is. ``space`` is :attr:`space` of the images that these must agree
    with, where they are elsewhere. Decoded images are kept in their own data type: in
    memory up to ``cache_gb`` (10^9 bytes; None: half of what is free), as a rule those that were added first, the
    others in files in ``cache_folder``, which is made when the first one needs it. ``images`` (after
    :meth:`decode`) tells for each subject, in dicts, ``path``, ``file`` (its :func:`travelling.cache.identity`)
    and ``sha256`` (:func:`travelling.cache.checksum`).
    """

    def __init__(self, cache_gb, cache_folder, reorient=False, space=None):
        self.shape = None if space is None else tuple(space["shape"])
        self.images = {}
        self._reorient = reorient
        self._first = "the model's home"  # or the image that set the shape
        self._affine = None if space is None or space["affine"] is None else np.array(space["affine"])
        self._oriented = self._first  # or the image that set the affine
        self._sizes = None if self._affine is None else voxel_sizes(self._affine)  # mm
        self._turns = {}  # NIfTI file -> nibabel's orientation transform of (z, y, x), where one is needed
        self._files = {}  # subject -> NIfTI file
        self._memory = {}  # NIfTI file -> array
        self._array_files = ArrayFiles(cache_folder)
        self._stored = {}  # NIfTI file -> .npy file
        self._contents = {}  # NIfTI file -> what is known of it, see images
        self._remarks = {}  # in words -> NIfTI files
        self._free = memory_for_images(cache_gb)  # bytes
        self._reservation = threading.Lock()
        self._buffers = [np.empty((0,)), np.empty((0,))]  # of batch()

    def add(self, cohort):
        """Add the images of a cohort, checking the headers only; raises InputError for the first bad one."""
        for path in cohort["Path"]:
            header = read_header(path)
            for remark in header.remarks:
                self._remark(remark, path)
            size, affine = self._turned(path, header) if self._reorient else (header.shape, header.affine)
            self._refuse_other_axes(path, header, affine)
            shape = tuple(reversed(size))  # x, y, z -> z, y, x
            if self.shape is None:
                self.shape, self._first = shape, path
            if shape != self.shape:
                raise InputError(
                    f"{path}: {_in_words(shape)} voxels, but {self._first} has {_in_words(self.shape)}; "
                    "all images must have one shape"
                )
            if min(shape) < MINIMUM_VOXELS:
                raise InputError(
                    f"{path}: {_in_words(shape)} voxels; the network needs {MINIMUM_VOXELS} along every axis"
                )
            self._refuse_other_space(path, header, affine)
            if self._affine is None and header.is_oriented:
                self._affine, self._oriented = affine, path
        self._files.update(zip(cohort["Subject"], cohort["Path"], strict=True))

    def _remark(self, words, path):
        self._remarks.setdefault(words, []).append(path)

    @property
    def space(self):
        """Where all images lie, as plain values: ``shape``, and ``affine`` (None where none tells it)."""
        return {"shape": self.shape, "affine": None if self._affine is None else self._affine.tolist()}

    def _comparable(self, header):
        """Whether an image and the first one both tell how they lie."""
        return self._affine is not None and header.is_oriented

    def _turned(self, path, header):
        """Shape (x, y, z) and affine after the axes are permuted and flipped as those of the first image."""
        if not self._comparable(header):
            return header.shape, header.affine
        turn = ornt_transform(io_orientation(header.affine), io_orientation(self._affine))
        if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
            return header.shape, header.affine
        shape = apply_orientation(np.empty(header.shape, bool), turn).shape
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
        if self._comparable(header) and (distance := apart(affine, self._affine, shape)) > SAME_SPACE:
            raise InputError(
                f"{path}: lies up to {distance:.3g} voxels from where {self._oriented} lies (origin, or tilted axes); "
                "all images must lie in one space: this needs resampling, which is not done here"
            )

    def decode(self):
        """Read and check every image once; raises InputError for a bad one, OSError where a file cannot be written.

        Returns what a log should say of them: a list of lines.
        """
        for_each_image(self._decode, list(self._files.values()), "reading images")
        self.images = {subject: self._contents[path] for subject, path in self._files.items()}
        notices = [
            f"{len(paths)} image{'s' * (len(paths) > 1)} {words}: {min(paths)}{' and others' * (len(paths) > 1)}"
            for words, paths in self._remarks.items()
        ]
        if self._stored:
            size = sum(path.stat().st_size for path in self._stored.values()) / 1e9
            notices.append(
                f"{len(self._memory)} decoded images are in memory (--cache-gb), "
                f"{len(self._stored)} in {self._array_files.folder} ({size:.1f} GB, --cache-dir)"
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
        with self._reservation:
            self._contents[path] = {"path": path, "file": original, "sha256": total}
            if is_flat:
                self._remark("without any contrast: every voxel is the same", path)
            fits = array.nbytes <= self._free
            self._free -= array.nbytes if fits else 0
        if fits:
            self._memory[path] = np.array(array) if stored else array
        else:
            self._stored[path] = stored or self._array_files.store(original, array, total)

    def batch(self, subjects):
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
                array = apply_orientation(array.T, self._turns[path]).T
            image[..., 0] = array
        return images

    def batches(self, groups):
        """Yield :meth:`batch` of every group of subjects; the next is made ready while the caller works on one."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.batch, groups[0])
            for following in groups[1:]:
                images = ahead.result()
                ahead = pool.submit(self.batch, following)
                yield images
            yield ahead.result()

    def expect(self, subjects):
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
            if checksum(array) != self._contents[path]["sha256"]:
                raise InputError(f"{path}: has changed since this run began") from None
            return array


def _axes(affine):
    """Where the axes x, y, z run to, as letters: RAS is right, anterior, superior."""
    return "".join(aff2axcodes(affine))


def _in_mm(sizes):
    return " x ".join(f"{size:.4g}" for size in sizes)


def _in_words(shape):
    return " x ".join(str(voxels) for voxels in reversed(shape))  # as users know it: x, y, z
