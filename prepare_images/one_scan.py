"""One scan, from its file to the files that are made of it."""

import importlib.metadata
import json
import os
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from prepare_images.options import DEEPBET, EXTRACTIONS, TEMPLATE
from prepare_images.overview import draw
from prepare_images.registration import BRAIN_LITRES, FAILED, SEEN, background, litres, prepare, reference
from prepare_images.template import NAME
from travelling import __version__
from travelling.errors import InputError
from travelling.files import write_whole
from travelling.images.cache import identity
from travelling.images.itk import as_image, read_image, to_array, write_image
from travelling.images.nifti import read_header

# What differs from the background, the template's brain, or what deepbet finds (Fisch et al. 2024, doi
# 10.1016/j.compbiomed.2024.108845).
STRIPPED = "stripped"
MASKS = (STRIPPED, *EXTRACTIONS)
DESCRIPTION = "Brains without skull, corrected for bias fields (N4), affinely registered, in 8 bits."  # of an image
SMALLEST_SCAN = 16  # voxels along each axis


class Job(NamedTuple):
    """A scan to prepare. ``mask`` is a file, or one of :data:`MASKS`."""

    source: str
    mask: str
    target: str  # .nii.gz; its mask lies beside it, and a .json that tells how it was made
    picture: str
    spacing: float  # mm
    dataset: str = ""  # the BIDS folder of the scans


def failed(reason: str) -> dict:
    """What is known of a scan that could not be prepared."""
    return {"Status": FAILED, "Reason": reason, "Notices": ""}


def prepare_file(job: Job) -> dict:
    """Prepare a scan unless that was done: ``Status``, ``Reason`` (not of the prepared), measures and ``Notices``.

    What was made of the same files, by the same options and versions, stays as it is. Raises OSError where writing
    fails.
    """
    target, picture = Path(job.target), Path(job.picture)
    sidecar = _sidecar(target)
    scan = mask = made = None
    try:
        sources = [job.source] if job.mask in MASKS else [job.source, job.mask]
        for source in sources:
            if not os.path.isfile(source):
                raise InputError(f"{source}: no such image")
        made_of = {"files": [identity(source) for source in sources], "spacing": job.spacing}
        made_of["mask"] = job.mask if job.mask in MASKS else "own"
        made_of |= {"travelling": __version__, "SimpleITK": sitk.Version_VersionString()}
        if job.mask == DEEPBET:
            made_of[DEEPBET] = importlib.metadata.version(DEEPBET)
        if target.exists() and picture.exists() and (earlier := _read_json(sidecar)).get("MadeOf") == made_of:
            return earlier["Measures"]
        scan = read_scan(job.source)
        mask = brain_of(job, scan)
        made = prepare(scan, mask, job.spacing)
        measures = made.measures
    except InputError as error:
        measures = failed(str(error))
    except RuntimeError as error:  # ITK's, for example of a registration that has lost the head
        measures = failed(f"{job.source}: {str(error).strip().splitlines()[-1]}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    if scan is None:
        picture.unlink(missing_ok=True)
        return measures
    if made and mask is None:
        mask = sitk.Resample(reference()[1], scan, made.affine.GetInverse()) >= 0.5
    write_whole(picture, draw(scan, mask, made and made.image))
    if not made:
        return measures
    measures["Notices"] = "; ".join(f"an image {text}" for text in read_header(job.source).remarks)
    target.parent.mkdir(parents=True, exist_ok=True)
    of_mask = target.with_name(target.name.replace("_T1w.nii.gz", "_mask.nii.gz"))
    write_image(made.brain, of_mask)
    write_image(made.image, target)
    about: dict = {
        "Sources": [uri(source, job.dataset) for source in sources],
        "SpatialReference": NAME,
        "Description": DESCRIPTION,
    }
    _write_json(_sidecar(of_mask), {"Type": "Brain", **about})
    about |= {
        "SkullStripped": True,
        "Resolution": f"{job.spacing:g} mm",
        "TransformToScan": matrix(made.affine),
        "Measures": measures,
        "MadeOf": made_of,
    }
    _write_json(sidecar, about)  # last: with it the image is known to be whole
    return measures


def uri(path: str, dataset: str) -> str:
    """The address of a file, as BIDS has it for one of a data set (DatasetLinks in dataset_description.json)."""
    inside = dataset and Path(path).is_relative_to(dataset)
    return f"bids:raw:{Path(path).relative_to(dataset).as_posix()}" if inside else Path(path).as_uri()


def _sidecar(image):
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def _write_json(path, content):
    write_whole(path, json.dumps(content, indent=2).encode() + b"\n")


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def read_scan(path: str) -> sitk.Image:
    """A scan as float32; raises InputError where it cannot be registered."""
    scan = sitk.Cast(read_image(path), sitk.sitkFloat32)
    if min(scan.GetSize()) < SMALLEST_SCAN:
        raise InputError(f"{path}: {' x '.join(map(str, scan.GetSize()))} voxels are too few to register")
    if to_array(scan).min() == to_array(scan).max():
        raise InputError(f"{path}: every voxel has the same value")
    return scan


def brain_of(job: Job, scan: sitk.Image) -> sitk.Image | None:
    """A scan's own mask (0, 1), on its grid; None where the template's is taken; raises InputError where it is none."""
    if job.mask == TEMPLATE:
        return None
    if job.mask == STRIPPED:
        mask = sitk.BinaryFillhole(scan != background(scan))
        place = f"{job.source}: what differs from its background, {background(scan):g},"
    elif job.mask == DEEPBET:
        mask, place = _deepbet(job.source, scan), f"{job.source}: what deepbet takes for the brain"
    else:
        mask, place = read_mask(job.mask, scan), f"{job.mask}: its mask, where the scan is,"
    if not BRAIN_LITRES[0] <= (volume := litres(mask)) <= BRAIN_LITRES[1]:
        raise InputError(f"{place} holds {volume:.2g} litres; a brain has {BRAIN_LITRES[0]:g} to {BRAIN_LITRES[1]:g}")
    return mask


def _deepbet(path, scan):
    """The brain of a scan by deepbet, on the CPU; its weights are in its package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how its weights are saved
        import torch
        from deepbet.bet import BrainExtraction

        torch.set_num_threads(1)
        image = nib.Nifti1Image(to_array(scan).T, read_header(path).affine)
        try:
            _, found, _ = BrainExtraction(no_gpu=True).run(image)
        except AssertionError as error:
            raise InputError(f"{path}: deepbet finds no brain ({error})") from None
    mask = as_image(np.ascontiguousarray(np.asarray(found.dataobj, "uint8").T), found.affine)
    return sitk.Resample(mask, scan, sitk.Transform(), sitk.sitkNearestNeighbor)


def read_mask(path: Path | str, scan: sitk.Image) -> sitk.Image:
    """What is above 0 in a NIfTI or FreeSurfer (.mgz) image, as a mask (0, 1; 8 bits) on the grid of a scan.

    A NIfTI image that tells no place is taken voxel for voxel. Raises InputError where it has other voxels than the
    scan, or where a mask lies partly outside it.
    """
    if str(path).endswith((".mgz", ".mgh")):
        try:
            file = nib.MGHImage.from_filename(path)
            voxels = np.asanyarray(file.dataobj)
        except (ImageFileError, OSError, ValueError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a FreeSurfer image ({error})") from None
        if voxels.ndim != 3:
            raise InputError(f"{path}: a 3-D mask is needed")
        mask = as_image(np.ascontiguousarray(voxels.T), file.affine)
    else:
        mask = read_image(path)
        if not read_header(path).is_oriented:
            if mask.GetSize() != scan.GetSize():
                raise InputError(f"{path}: tells no place, and has not the voxels of the scan")
            mask.CopyInformation(scan)
    moved = sitk.Resample(mask > 0, scan, sitk.Transform(), sitk.sitkNearestNeighbor)
    if litres(moved) < SEEN * litres(mask > 0):
        raise InputError(f"{path}: its mask lies partly outside the scan (has its header lost its place?)")
    return moved


def matrix(affine: sitk.AffineTransform) -> list:
    """SimpleITK's affine transform as a 4 x 4 matrix of mm to the right, front and up, as a list of rows."""
    found = np.eye(4)
    found[:3, :3] = np.array(affine.GetMatrix()).reshape(3, 3)
    found[:3, 3] = affine.TransformPoint((0.0, 0.0, 0.0))
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    return (turn @ found @ turn).round(6).tolist()
