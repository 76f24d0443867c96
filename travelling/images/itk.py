"""Brain images as SimpleITK has them (axes x, y, z; mm), from NIfTI files and back."""

import errno
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

from travelling.errors import InputError, name_file
from travelling.files import replace_whole
from travelling.images.nifti import SAME_FORM, apart, read_header, read_voxels

_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own warnings; what matters is an InputError


def read_image(path: Path | str) -> sitk.Image:
    """Read a 3-D NIfTI image with one value per voxel, whole, as a SimpleITK image (axes x, y, z; mm).

    Raises InputError as :func:`travelling.images.nifti.read_voxels`.
    """
    voxels, header = read_voxels(path)
    return as_image(voxels, header.affine)


def as_image(voxels: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An array (z, y, x) as a SimpleITK image that lies where an affine (of x, y, z; mm right, front, up) has it."""
    image = sitk.GetImageFromArray(voxels)
    sizes = voxel_sizes(affine)
    to_left_posterior = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # ITK counts mm to there
    image.SetSpacing(sizes.tolist())
    image.SetDirection((to_left_posterior[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(to_left_posterior[:3, 3].tolist())
    return image


def write_image(image: sitk.Image, path: Path, like: Path | None = None) -> None:
    """Write a SimpleITK image such that ``path`` is at any moment the old file or the whole new one.

    ``like`` is a file whose image lies where this one does: where ITK's header cannot say that, it is copied. Raises
    OSError where writing fails, for example on a full disk.
    """
    partial = path.with_name(f".part_{path.name}")
    try:
        sitk.WriteImage(image, str(partial))
        if like is not None:
            _lie_like(partial, like)
        read_voxels(partial)  # ITK does not notice every failure
        replace_whole(partial, path)
    except (RuntimeError, InputError):
        with name_file(path), open(partial, "ab") as file:  # ITK does not say why: a full disk would do so here
            file.write(bytes(math.prod(image.GetSize()) * image.GetSizeOfPixelComponent()))
        raise OSError(errno.EIO, "could not be written", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


def _lie_like(path, like):
    """Give a file the geometry of another, unless it has it: ITK writes right angles, and an orientation, always."""
    header, other = read_header(path), read_header(like)
    if header.is_oriented and other.is_oriented and apart(header.affine, other.affine, other.shape) < SAME_FORM:
        return
    image = nib.Nifti1Image.from_filename(path)
    copy = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    for field in ("pixdim", "qform_code", "sform_code", *_QFORM, "srow_x", "srow_y", "srow_z"):
        copy.header[field] = other.nifti[field]
    nib.save(copy, path)


def to_array(image: sitk.Image) -> np.ndarray:
    """SimpleITK image (x, y, z) -> array (z, y, x) of its own data type."""
    return sitk.GetArrayFromImage(image)
