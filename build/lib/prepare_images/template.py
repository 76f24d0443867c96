"""MNI space and the MNI152 template in it: where prepared images and the demo cohort lie.

SimpleITK counts sizes and points x, y, z and its world is LPS (mm to the left, back and up); its arrays are z, y, x.
MNI coordinates are RAS (mm to the right, front and up).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # slow to import
    import numpy as np
    import SimpleITK as sitk

NAME = "MNI152NLin2009aSym"  # of the template, in BIDS
FIELD_OF_VIEW = (160.0, 192.0, 160.0)  # mm, x y z; the paper's images have as many voxels of 1 mm
BRAIN_CENTER = (0.0, -17.0, 5.0)  # mm RAS, the middle of the template brain's bounding box
_RAS = (-1, 0, 0, 0, -1, 0, 0, 0, 1)  # direction of an image whose voxels run along MNI's axes


def to_lps(point: Sequence[float]) -> tuple[float, float, float]:
    """MNI point (x right, y front, z up; mm) as a SimpleITK point (x left, y back, z up; mm)."""
    return (-point[0], -point[1], point[2])


def image_size(spacing: float) -> list[int]:
    """Voxels along x, y, z of an image with `spacing` mm."""
    return [round(length / spacing) for length in FIELD_OF_VIEW]


def empty_image(spacing: float, size: Sequence[int]) -> sitk.Image:
    """Image of `size` voxels (x, y, z) of `spacing` mm around BRAIN_CENTER, voxels in MNI (RAS) order."""
    import SimpleITK as sitk

    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing([spacing] * 3)
    image.SetDirection(_RAS)
    image.SetOrigin(to_lps([c - (n - 1) * spacing / 2 for c, n in zip(BRAIN_CENTER, size, strict=True)]))
    return image


def template_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """SimpleITK image of a nilearn template: array (x, y, z) of 1 mm voxels, whose axes run along MNI's."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array.T)  # (x, y, z) -> (z, y, x)
    image.SetDirection(_RAS)
    image.SetOrigin(to_lps(affine[:3, 3].tolist()))
    return image


def load_templates(shrink: int) -> list[sitk.Image]:
    """T1, grey matter, white matter and brain mask of the MNI152 template that nilearn carries, in [0, 1].

    1 mm voxels, `shrink` of them (each way) averaged into one. The T1 template is skull-stripped.
    """
    import SimpleITK as sitk
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    templates = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
    nilearn_images = [load(resolution=1) for load in templates]
    images = [template_image(image.get_fdata(dtype="float32"), image.affine) for image in nilearn_images]
    images.append(sitk.Cast(images[0] > 0, sitk.sitkFloat32))
    return [sitk.BinShrink(image, [shrink] * 3) for image in images]
