"""Brain images as files: NIfTI in, arrays (z, y, x) out; :mod:`travelling.images.itk` has SimpleITK's.

nibabel reads headers and voxels. It believes what a header says and what is in an archive, so both are looked at here.
"""

import gzip
import io
import itertools
import logging
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError

from travelling.errors import InputError, first_line

LARGEST_LENGTH = 1e6  # mm, of a voxel or from the origin
LARGEST_PADDING = 1024  # bytes after the voxels; more means that they are of another type or number
GZIP_RATIO = 1032  # no byte of a gzip file can stand for more bytes than that
SAME_FORM = 0.1  # voxels, between qform and sform: what rounding leaves is below 0.001
RIGHT_ANGLE = 0.1  # degrees by which axes may miss it

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its remarks on headers; what matters is an InputError


class Header(NamedTuple):
    """What a file tells of its image.

    ``affine`` takes voxel indices (x, y, z) to mm (right, anterior, superior); where neither qform nor sform tells it,
    ``is_oriented`` is False. ``remarks`` are what a user should know, though it can be read.
    """

    nifti: nib.Nifti1Header
    shape: tuple[int, ...]  # x, y, z
    affine: np.ndarray  # (4, 4)
    is_oriented: bool
    remarks: list[str]


def read_voxels(path: Path | str) -> tuple[np.ndarray, Header]:
    """The voxels of an image as an array (z, y, x), and its :class:`Header`.

    The array has the file's own data type; scaled intensities are float32. Raises InputError for anything but a 3-D
    image with one value per voxel, and where the file is damaged or a voxel is not finite in float32.
    """
    header = read_header(path)
    length = _length(header.nifti)
    try:
        with _open_bytes(path) as file:
            content = file.read(header.nifti.get_data_offset() + length + LARGEST_PADDING + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: damaged image ({error})") from None
    found = len(content) - header.nifti.get_data_offset()
    if found < length:
        raise InputError(f"{path}: damaged image (truncated: {max(found, 0)} of {length} bytes of voxels)")
    if found > length + LARGEST_PADDING:
        raise InputError(f"{path}: damaged image (longer than the {length} bytes of voxels in its header)")
    with np.errstate(all="ignore"):
        voxels = np.asanyarray(ArrayProxy(io.BytesIO(content), header.nifti))
        kind = header.nifti.get_data_dtype().newbyteorder("=")
        voxels = voxels.astype(kind if voxels.dtype == kind else np.float32, copy=False)
        finite = voxels.dtype.kind in "iu" or np.isfinite(voxels.astype(np.float32, copy=False)).all()
    if not finite:
        raise InputError(f"{path}: the image has voxels that are NaN or infinite (or too large for float32)")
    return np.ascontiguousarray(voxels.reshape(header.shape, order="F").T), header


def read_upright(path: Path | str) -> np.ndarray:
    """The voxels of an image as an array whose axes run up, to the front and to the right, wherever the file's do."""
    voxels, header = read_voxels(path)
    return turned(voxels, io_orientation(header.affine))


def turned(voxels: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """A view of an array (z, y, x) with its axes permuted and flipped as nibabel's orientation of x, y, z says."""
    return apply_orientation(voxels.T, orientation).T


def read_header(path: Path | str) -> Header:
    """The :class:`Header` of a 3-D image; raises InputError for anything else, and where it cannot be true."""
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a .nii or .nii.gz file")
    try:
        _refuse_other_files(path)
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


def _refuse_other_files(path):
    """Raise InputError where a file is not what its name says, or stands for one that is elsewhere."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith((b"/annex/objects/", b"version https://git-lfs")):
        raise InputError(f"{path}: a pointer file of git-annex or Git LFS, a line of text; the image was not fetched")
    is_compressed, says_so = start.startswith(b"\x1f\x8b"), str(path).endswith(".gz")
    if is_compressed and not says_so:
        raise InputError(f"{path}: is compressed; its name must end in .nii.gz")
    if says_so and (348).to_bytes(4, "little") in (start[:4], start[3::-1]):
        raise InputError(f"{path}: is not compressed; its name must end in .nii instead of .nii.gz")


def _checked_header(path, content, most):
    """The :class:`Header` of 348 bytes, in a file of at most ``most`` bytes; raises InputError."""
    try:
        nifti, told = nib.Nifti1Header(content), nib.Nifti1Header(content, check=False)
        axes, kind, offset = nifti.get_data_shape(), nifti.get_data_dtype(), nifti.get_data_offset()
        nifti.get_slope_inter()
    except (HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: damaged image ({first_line(error)})") from None
    # What nibabel corrects without a word: codes that do not exist, voxel sizes of 0 or less, bits of another type.
    decisive = ["sform_code", "qform_code", "bitpix", *([] if nifti["sform_code"] else ["pixdim"])]
    if any(np.any(told[name] != nifti[name]) and not np.isnan(told[name]).any() for name in decisive):
        raise InputError(
            f"{path}: damaged image (its voxel size, its orientation or its bits per voxel are no possible ones)"
        )
    if nifti["magic"].item() != b"n+1":
        raise InputError(f"{path}: not a NIfTI image in one file (no 'n+1' at the end of its header)")
    if min(axes, default=0) < 1:
        raise InputError(f"{path}: damaged image (its header tells {len(axes)} axes of {list(axes)} voxels)")
    if len(axes) < 3 or max(axes[3:], default=1) > 1 or kind.kind not in "iuf" or kind.itemsize > 8:
        raise InputError(
            f"{path}: a 3-D image with one value per voxel is needed, this one is {shape_in_words(axes[::-1])}, "
            f"data type {nifti['datatype']}"
        )
    if not offset >= 352:  # extensions may be long
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
    impossible = InputError(f"{path}: damaged image (its voxel size or its orientation is no possible one)")
    sform = nifti.get_sform(coded=True)[0]
    try:
        qform = nifti.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError):
        if sform is None:
            raise impossible from None
        qform = None
        remarks.append("whose qform cannot be read (the sform counts)")
    affine = next((form for form in (sform, qform) if form is not None), nifti.get_base_affine())
    sizes = voxel_sizes(affine)
    if not ((np.abs(affine) < LARGEST_LENGTH).all() and (sizes > 1 / LARGEST_LENGTH).all()):  # not of NaN either
        raise impossible
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


def apart(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """How far, in voxels, the corners of an image of ``shape`` (x, y, z) lie from where another affine has them."""
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    return np.abs(apply_affine(np.linalg.inv(other) @ affine, corners) - corners).max()


def _open_bytes(path):
    return gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")


def shape_in_words(shape: Sequence[int]) -> str:
    """A shape (z, y, x) as users know it: x, y, z."""
    return " x ".join(str(voxels) for voxels in reversed(shape))
