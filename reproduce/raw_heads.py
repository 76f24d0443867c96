"""Raw whole heads for make_demo_cohort.py --raw: what a hospital's BIDS folder looks like before anything is prepared.

The template has no skull: nilearn ships it stripped. So skull, scalp, neck and face are drawn here, as shells and
ellipsoids of about the right size and brightness. They test whether brains are found, not how well they are cut out.
"""

import functools
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from demo_images import (
    anatomy_transform,
    draw_acquisition,
    draw_subject,
    on_grid,
    on_warp_grid,
    smooth_noise,
    template_maps,
)
from demo_subjects import Row, generator, plan_cohort
from scipy.ndimage import gaussian_filter

from prepare_images.template import BRAIN_CENTER, template_image, to_lps
from travelling.errors import InputError
from travelling.files import replace_whole, write_csv, write_whole
from travelling.images.harm import make_harmful

CENTERS = 6  # those with the most images, of which both classes were imaged
# A center's protocol: voxels (multiples of --spacing), the axes of its files, degrees by which its slices are oblique.
PROTOCOLS = [
    ((1.0, 1.0, 1.0), "RAS", 0),
    ((1.2, 1.0, 1.0), "PIR", 0),  # sagittal slices
    ((0.9, 0.9, 1.5), "LPS", 12),
    ((1.0, 1.0, 1.0), "LAS", 0),
    ((0.8, 0.8, 2.0), "RPI", 20),
    ((1.1, 0.9, 1.1), "ASL", 8),
]
FOUR_AXES = (1, 4)  # centers whose files are 4-D, with one volume
TILT = 30.0  # degrees at most, about any axis
SHIFT = 15.0  # mm at most along each axis
FIELD_OF_VIEW = (190.0, 240.0, 250.0)  # mm to the right, front, up
HEAD_CENTER = (0.0, -10.0, -15.0)  # mm MNI, of the field of view without shift
BIAS_SD, BIAS_SMOOTHNESS = 0.15, 40.0  # of the logarithm; mm
SPOILED = ("inverted_in_range", "inverted_in_range", "noise_in_range", "noise_in_range", "ghosting")
LEVELS = {"noise_in_range": 3.0, "ghosting": 2.0}  # times the kind's own strength
# Shells around the brain: mm from it at their outer side, brightness (fluid, bone, marrow, bone, fat, skin).
SHELLS = [(2.0, 0.2), (4.0, 0.04), (6.0, 0.35), (8.0, 0.04), (12.0, 0.95), (14.0, 0.55)]


@functools.cache
def head_maps(spacing: float) -> list[sitk.Image]:
    """The template's maps (:func:`make_demo_cohort.template_maps`) and, on a larger grid, the head around the brain."""
    maps = template_maps(max(spacing, 2.0))
    affine = np.array([[1.0, 0, 0, -110], [0, 1, 0, -150], [0, 0, 1, -170], [0, 0, 0, 1]])  # corner, mm MNI
    grid = template_image(np.zeros((110, 130, 140), "float32"), affine)  # x, y, z
    grid.SetSpacing([2.0] * 3)
    brain = sitk.Resample(maps[1], grid) > 0.5
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(brain, False, False, True))  # mm, z y x
    rng = np.random.default_rng(0)  # one head for all: each subject's deformation makes it its own
    wavy = gaussian_filter(rng.standard_normal(distance.shape), 8)
    outside = distance - 1.5 * wavy / wavy.std()  # thinner and thicker

    z, y, x = (
        np.arange(n).reshape([-1 if i == k else 1 for i in range(3)]) * 2.0 for k, n in enumerate(distance.shape)
    )
    x, y, z = x - 110, y - 150, z - 170

    def ellipsoid(center, axes):
        return sum(((v - c) / a) ** 2 for v, c, a in zip((x, y, z), center, axes, strict=True))

    head = np.zeros(distance.shape, "float32")
    texture = gaussian_filter(rng.standard_normal(distance.shape), 2)
    soft = np.select([texture < -0.1, texture > 0.08], [0.05, 0.9], 0.45)  # air and bone, fat, muscle
    neck = ellipsoid((0, -35, -120), (62, 62, 70)) < 1
    face = ellipsoid((0, 35, -70), (60, 55, 65)) < 1
    skin = (ellipsoid((0, -35, -120), (66, 66, 74)) < 1) | (ellipsoid((0, 35, -70), (64, 59, 69)) < 1)
    head[skin] = 0.6
    head[neck | face] = soft[neck | face]
    for side in (-32, 32):
        head[ellipsoid((side, 58, -32), (12, 12, 12)) < 1] = 0.2  # eyes
    inner = -np.inf
    for outer, brightness in SHELLS:
        head[(outside > inner) & (outside <= outer) & (distance > 0)] = brightness
        inner = outer
    return [*maps, on_grid(gaussian_filter(head, 0.4), grid)]


def draw_position(rng: np.random.Generator) -> sitk.VersorRigid3DTransform:
    """How the head lies: a rigid transform from points of the scanner to points of the upright subject."""
    axis = rng.standard_normal(3)
    angle, shift = math.radians(rng.uniform(0, TILT)), rng.uniform(-SHIFT, SHIFT, 3)
    return sitk.VersorRigid3DTransform(
        (axis / np.linalg.norm(axis)).tolist(), angle, shift.tolist(), to_lps(BRAIN_CENTER)
    )


def scanner_grid(protocol: tuple, spacing: float, rng: np.random.Generator) -> sitk.Image:
    """An empty image as a center's protocol has it: SimpleITK, axes and oblique slices in its direction."""
    sizes, axes, degrees = protocol
    orientation = nib.orientations.axcodes2ornt(axes)
    order = orientation[:, 0].astype(int)
    direction = np.zeros((3, 3))
    direction[order, range(3)] = orientation[:, 1] * np.array([-1, -1, 1])[order]  # RAS to LPS
    tilt = sitk.VersorRigid3DTransform(np.eye(3)[rng.integers(3)].tolist(), math.radians(degrees))
    direction = np.array(tilt.GetMatrix()).reshape(3, 3) @ direction
    voxel = np.array(sizes) * spacing
    size = np.round(np.array(FIELD_OF_VIEW)[order] / voxel).astype(int)
    image = sitk.Image(size.tolist(), sitk.sitkFloat32)
    image.SetSpacing(voxel.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((np.array(to_lps(HEAD_CENTER)) - direction @ (voxel * (size - 1) / 2)).tolist())
    return image


def make_head(
    row: Row,
    traits: Row,
    rng: np.random.Generator,
    grid: sitk.Image,
    position: sitk.VersorRigid3DTransform,
    spacing: float,
    seed: int,
    anatomy: sitk.Transform | None = None,
) -> sitk.Image:
    """The raw image of a subject on ``grid``: SimpleITK, 16 bits; ``anatomy`` in place of the drawn deformation."""
    anatomy = anatomy_transform(traits, rng) if anatomy is None else anatomy
    transform = sitk.CompositeTransform([anatomy, position])  # the last one is applied first
    t1, brain, nuclei, _, head = (
        sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, sitk.sitkLinear)) for image in head_maps(spacing)
    )
    scanner = draw_acquisition(row["Study"], row["Scanner"], seed)
    tissue = np.clip(t1 * (1 - traits["darkening"] * nuclei), 0, None) ** scanner["gamma"]
    bias = sitk.Resample(on_warp_grid(BIAS_SD * smooth_noise(rng, BIAS_SMOOTHNESS)[0]), grid)
    field = np.exp(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(bias, 10.0)))
    brightness = (brain * tissue + (1 - brain) * head) * scanner["gain"] * field
    real, imaginary = scanner["noise"] * rng.standard_normal((2, *brightness.shape), dtype="float32")
    raw = sitk.GetImageFromArray((600 * np.hypot(brightness + real, imaginary)).clip(0, 32767).astype("int16"))
    raw.CopyInformation(grid)
    return raw


def write_head(row: Row, folder: Path, spacing: float, effect: float, seed: int) -> tuple[Row, Row]:
    """Make and write one subject; returns its rows for participants.tsv and truth.csv. Runs in a worker process."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    traits, rng = draw_subject(row, effect, seed)
    drawn = generator(seed, f"position {row['Subject']}")
    position, grid = draw_position(drawn), scanner_grid(PROTOCOLS[row["Protocol"]], spacing, drawn)
    image = make_head(row, traits, rng, grid, position, spacing, seed)
    if row["Kind"]:
        image = make_harmful(image, row["Kind"], None, seed, LEVELS.get(row["Kind"]))
    affine = np.eye(4)
    affine[:3, :3] = np.array(grid.GetDirection()).reshape(3, 3) * grid.GetSpacing()
    affine[:3, 3] = grid.GetOrigin()
    voxels = sitk.GetArrayFromImage(image).T  # x, y, z
    nifti = nib.Nifti1Image(
        voxels[..., None] if row["Protocol"] in FOUR_AXES else voxels, np.diag([-1, -1, 1, 1]) @ affine
    )
    nifti.set_qform(nifti.affine, 1)
    nifti.set_sform(nifti.affine, 1)
    participant = row["Participant"]
    path = Path(folder) / "bids" / participant / "anat" / f"{participant}_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nifti, partial := path.with_name(f".part_{path.name}"))
    replace_whole(partial, path)
    told = {"participant_id": participant, "diagnosis": ("control", "PD")[row["Group_bin"]], "site": row["Study"]}
    told |= {"sex": row["Sex"], "age": traits["age"], "scanner": row["Scanner"]}
    sine = math.hypot(*position.GetParameters()[:3])  # of half the angle: the length of a versor
    tilt = round(math.degrees(2 * math.asin(sine)), 2)
    return told, {"Subject": participant, "Kind": row["Kind"], "Tilt": tilt}


def plan(shrink: int, seed: int) -> list[Row]:
    """The subjects: rows of plan_cohort, with Participant, Protocol and Kind (of harm, or "")."""
    rows = [row for part in plan_cohort(shrink)[:2] for row in part]
    centers = pd.DataFrame(rows).groupby("Study", sort=False)["Group_bin"].agg(["size", "nunique"])
    chosen = list(centers[centers["nunique"] == 2].sort_values("size", ascending=False, kind="stable").index[:CENTERS])
    rows = [row for row in rows if row["Study"] in chosen]
    if len(rows) < 4 * len(SPOILED):
        raise InputError(f"--shrink {shrink}: too few subjects would be left for {len(SPOILED)} spoiled ones")
    spoiled = generator(seed, "spoiled").choice(len(rows), len(SPOILED), replace=False).tolist()
    kinds = dict(zip(spoiled, SPOILED, strict=True))
    for number, row in enumerate(rows):
        row |= {"Participant": f"sub-{number + 1:03d}", "Protocol": chosen.index(row["Study"])}
        row["Kind"] = kinds.get(number, "")
    return rows


def write_tables(made: list, folder: Path) -> None:
    """Write what tells about the heads, of the rows of :func:`write_head`: BIDS, and for tests alone ``truth.csv``."""
    told, truth = (pd.DataFrame(part) for part in zip(*made, strict=True))
    about = {"Name": "Synthetic raw heads (no patient data)", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    write_whole(folder / "bids" / "dataset_description.json", json.dumps(about, indent=2).encode() + b"\n")
    write_csv(truth, folder / "truth.csv")
    table = told.to_csv(sep="\t", index=False, lineterminator="\n")
    write_whole(folder / "bids" / "participants.tsv", table.encode())
    print(f"{len(made)} raw heads of {CENTERS} centers in {folder / 'bids'} (synthetic, no patient data)")
