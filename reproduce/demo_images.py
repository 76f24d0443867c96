"""The demo's images: the MNI152 template (or a brain in its place), deformed, with a disease and a scanner simulated.

SimpleITK counts sizes and points x, y, z and its world is LPS (x to the left, y to the back); its arrays are z, y, x.
MNI coordinates are RAS. Both turns are made only in prepare_images.template and in mni_axes.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from demo_subjects import Row, generator
from scipy.ndimage import binary_fill_holes, gaussian_filter

from prepare_images.template import BRAIN_CENTER, FIELD_OF_VIEW, empty_image, image_size, load_templates, to_lps
from travelling.errors import InputError
from travelling.images.itk import read_image, write_image

WARP_SPACING = 5.0  # mm, grid of the deformation and of the bias field, whatever the image's spacing

# Anatomy
AGE_RANGE = (45.0, 80.0)  # years, uniform, the same for PD and HC
HEAD_SCALE = {"F": 0.915, "M": 0.952}  # of the template's length; men 4 % larger; fits the field of view
HEAD_SCALE_SD = 0.018
DEFORMATION_SD = 2.0  # mm, each of x, y, z
DEFORMATION_SMOOTHNESS = 20.0  # mm, standard deviation of the Gaussian that smooths it
VENTRICLE_GROWTH = 0.10  # mm of outward displacement of the ventricle's wall per year after 45
VENTRICLE_SD = 0.5  # mm, between subjects of one age
VENTRICLE_LIMITS = (-1.0, 4.5)  # mm, beyond which the deformation would fold
CORTEX_LOSS = 0.008  # share of the grey matter beside the sulci that turns to CSF, per year after 45
CSF_INTENSITY = 0.28  # of the template's maximum
GREY_INTENSITY = 0.65
WHITE_INTENSITY = 0.92  # its WHITE_PERCENTILE

# Brains of --anatomies
LEAST_OVERLAP = 0.7  # Dice coefficient with the template's brain
BRAIN_EDGE = 0.1  # of the white matter's intensity; less is background
OWN_DEFORMATION_SD = 1.5  # mm, in place of DEFORMATION_SD: these brains differ by themselves

# Disease: share of the intensity of the nuclei that is lost, before gamma
EFFECT_MEAN = 0.28  # of PD at --effect 1; HC have 0
EFFECT_SD = 0.11  # between subjects, PD and HC alike: this is what makes the classes overlap
NUCLEI = {  # MNI center (right side; the left is mirrored) and half-axes in mm, share of the effect
    "substantia nigra": ((10.0, -18.0, -11.0), (5.0, 6.5, 5.0), 1.0),
    "putamen": ((26.0, 3.0, 1.0), (6.5, 15.0, 9.5), 1.0),
    "caudate": ((13.0, 14.0, 9.0), (5.5, 10.0, 10.0), 0.8),
}

# Acquisition: (standard deviation between scanner models, between centers with one model)
GAIN_SD = (0.15, 0.05)  # of the logarithm; with the noise below it sets the signal-to-noise ratio
GAMMA_SD = (0.10, 0.03)  # of the logarithm
GAMMA = 1.4  # typical: brings the template's grey to white matter contrast to that of a T1 image
BIAS_SD = (0.05, 0.025)  # of the logarithm
BIAS_SMOOTHNESS = 40.0  # mm
NOISE = 0.016  # Rician, in units of the template's maximum, for each voxel of the image as it is written
NOISE_SD = (0.25, 0.10)  # of the logarithm
WHITE_PERCENTILE = 99.5  # of the brain; becomes 1.0


def mni_axes(image: sitk.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI coordinates (mm) of an image's voxels: x, y and z, shaped to broadcast to its array (z, y, x)."""
    (nx, ny, nz), (sx, sy, sz) = image.GetSize(), image.GetSpacing()
    left, back, up = image.GetOrigin()  # LPS
    x, y, z = -left + sx * np.arange(nx), -back + sy * np.arange(ny), up + sz * np.arange(nz)
    return x, y[:, None], z[:, None, None]


def warp_grid() -> sitk.Image:
    """Coarse grid of the smooth fields; a margin of two voxels makes it cover every image's grid."""
    return empty_image(WARP_SPACING, [round(length / WARP_SPACING) + 4 for length in FIELD_OF_VIEW])


def smooth_noise(rng: np.random.Generator, smoothness: float, channels: int = 1) -> np.ndarray:
    """Gaussian noise smoothed by `smoothness` mm on the warp grid, (channels, z, y, x), each of sd 1."""
    shape = (channels, *reversed(warp_grid().GetSize()))
    sigma = smoothness / WARP_SPACING
    noise = gaussian_filter(rng.standard_normal(shape), sigma=(0, sigma, sigma, sigma))
    return noise / np.std(noise, axis=(1, 2, 3), keepdims=True)


def on_warp_grid(array: np.ndarray, is_vector: bool = False) -> sitk.Image:
    """SimpleITK image of an array (z, y, x), or (3, z, y, x) for vectors in LPS mm, on the warp grid."""
    array = np.moveaxis(array, 0, -1) if is_vector else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype="float64"), isVector=is_vector)
    image.CopyInformation(warp_grid())
    return image


def nucleus_weight(name: str, image: sitk.Image) -> np.ndarray:
    """The nucleus on both sides, (z, y, x) like `image`: 1 inside, 0 outside, soft at the border."""
    (cx, cy, cz), (rx, ry, rz), _ = NUCLEI[name]
    x, y, z = mni_axes(image)
    distance = np.sqrt(((np.abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
    return np.clip((1.15 - distance) / 0.3, 0, 1)


def on_grid(array: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """SimpleITK image (float32) of an array (z, y, x), with the geometry of the image `grid`."""
    image = sitk.GetImageFromArray(array.astype("float32"))
    image.CopyInformation(grid)
    return image


def smooth_for(spacing: float, *maps: sitk.Image) -> list[sitk.Image]:
    """Images that can be sampled at `spacing` mm, a list."""
    return [sitk.SmoothingRecursiveGaussian(m, 0.3 * spacing) for m in maps] if spacing > 1 else list(maps)


@functools.cache
def template_maps(spacing: float) -> list[sitk.Image]:
    """What all subjects start from, made once in each process.

    Returns four images in MNI space, smoothed for sampling at `spacing` mm, with values in [0, 1]:
    T1 intensity, brain mask, nuclei (share of the disease effect), thinning cortex.
    """
    images = load_templates(max(1, int(spacing / 2)))  # half the target's spacing is enough, and quicker
    grid = images[0]
    t1, grey, white, brain = (sitk.GetArrayFromImage(image) for image in images)  # (z, y, x)

    tissue = np.clip(grey + white, 0, 1)
    nuclei = np.max([share * nucleus_weight(name, grid) for name, (*_, share) in NUCLEI.items()], axis=0)
    nuclei = nuclei * tissue  # not the ventricle beside the caudate
    near_csf = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(on_grid(brain * (1 - tissue), grid), 3.0))
    thinning = grey * np.clip(near_csf / 0.15, 0, 1) * (nuclei == 0)

    return smooth_for(spacing, *(on_grid(m, grid) for m in (t1, brain, nuclei, thinning)))


@functools.cache
def ventricle_direction() -> np.ndarray:
    """Towards the middle of the lateral ventricles: (3, z, y, x) in LPS, longest 1, on the warp grid."""
    template, *_, mask = load_templates(2)
    t1, brain = sitk.GetArrayFromImage(template), sitk.GetArrayFromImage(mask)
    x, y, z = mni_axes(template)
    box = (np.abs(x) < 36) & (y > -48) & (y < 38) & (z > -2) & (z < 34)
    cisterns = (np.abs(x) < 10) & (y < -26)  # dark too, but not ventricle
    ventricles = on_grid((brain == 1) & (t1 < 0.5) & box & ~cisterns, template)
    gradient = sitk.Gradient(sitk.SmoothingRecursiveGaussian(ventricles, 6.0), True, True)  # 6 mm; in LPS
    vectors = np.moveaxis(sitk.GetArrayFromImage(sitk.Resample(gradient, warp_grid())), -1, 0)
    return vectors / np.sqrt((vectors**2).sum(0)).max()


@functools.lru_cache(maxsize=32)
def brain_maps(path: Path, spacing: float) -> list[sitk.Image]:
    """The maps of :func:`template_maps` for the brain in a file; raises InputError where it is not in MNI space.

    Nuclei and cortex are where the template has them, as far as there is tissue in this brain.
    """
    _, template, nuclei, thinning = template_maps(spacing)
    resampled = sitk.Resample(read_image(path), template, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    t1, inside = sitk.GetArrayFromImage(resampled), sitk.GetArrayFromImage(template) > 0.5
    first, third, white = np.percentile(t1[inside], [25, 75, WHITE_PERCENTILE])
    if first == third != 0:
        raise InputError(f"{path}: a flat image, without tissues")
    brain = binary_fill_holes(t1 > BRAIN_EDGE * white)
    overlap = 2 * (brain & inside).sum() / (brain.sum() + inside.sum())
    if overlap < LEAST_OVERLAP:
        raise InputError(
            f"{path}: not a skull-stripped brain in MNI space (Dice {overlap:.2f} with the template's; "
            f"at least {LEAST_OVERLAP:g})"
        )
    # The image has been through a scanner already: without its gamma, the tissues are as bright as the template's.
    t1 = WHITE_INTENSITY * (np.clip(t1, 0, None) / white) ** (1 / GAMMA)
    maps = smooth_for(spacing, on_grid(t1, template), on_grid(brain, template))
    share = (sitk.GetArrayFromImage(maps[0]) - CSF_INTENSITY) / (GREY_INTENSITY - CSF_INTENSITY)
    tissue = on_grid(np.clip(share, 0, 1), template)
    return [*maps, nuclei * tissue, thinning * tissue]


def draw_subject(row: Row, effect: float, seed: int) -> tuple[Row, np.random.Generator]:
    """Everything that is drawn about a subject before its image: a dict, and the stream to go on with.

    The same numbers are drawn whatever class, sex and `effect` are, so that only their meaning differs.
    """
    rng = generator(seed, row["Subject"])
    age = round(rng.uniform(*AGE_RANGE), 1)
    lowest, highest = VENTRICLE_LIMITS
    ventricles = VENTRICLE_GROWTH * (age - AGE_RANGE[0]) + rng.normal(0, VENTRICLE_SD)
    traits = {
        "age": age,  # years
        "scale": HEAD_SCALE[row["Sex"]] + rng.normal(0, HEAD_SCALE_SD),  # of the template's length
        "ventricles": min(max(ventricles, lowest), highest),  # mm
        "darkening": effect * EFFECT_MEAN * row["Group_bin"] + rng.normal(0, EFFECT_SD),  # share
    }
    return traits, rng


def anatomy_transform(traits: Row, rng: np.random.Generator, deformation_sd: float = DEFORMATION_SD) -> sitk.Transform:
    """The way from a point of the subject to its point of the template (resampling asks for it)."""
    size = sitk.ScaleTransform(3, [1 / traits["scale"]] * 3)
    size.SetCenter(to_lps(BRAIN_CENTER))
    deformation = deformation_sd * smooth_noise(rng, DEFORMATION_SMOOTHNESS, channels=3)  # mm
    ventricles = traits["ventricles"] * ventricle_direction()  # mm
    # The last of the list is applied first: size, deformation, then the ventricles in template space.
    return sitk.CompositeTransform(
        [
            sitk.DisplacementFieldTransform(on_warp_grid(ventricles, is_vector=True)),
            sitk.DisplacementFieldTransform(on_warp_grid(deformation, is_vector=True)),
            size,
        ]
    )


def displacement_at_voxels(transform: sitk.Transform, image: sitk.Image) -> sitk.Transform:
    """`transform` worked out once for every voxel of `image`, so that several maps can share it."""
    sampler = sitk.TransformToDisplacementFieldFilter()
    sampler.SetReferenceImage(image)
    return sitk.DisplacementFieldTransform(sampler.Execute(transform))


@functools.cache
def draw_acquisition(center: str, scanner: str, seed: int) -> dict[str, Any]:
    """How a center images: gain, gamma, noise level, and the logarithm of the bias field on the warp grid."""
    streams = [generator(seed, name) for name in (f"scanner {scanner}", f"center {center}")]

    def both(spreads, draw):
        return sum(spread * draw(rng) for spread, rng in zip(spreads, streams, strict=True))

    return {
        "gain": math.exp(both(GAIN_SD, lambda rng: rng.standard_normal())),
        "gamma": GAMMA * math.exp(both(GAMMA_SD, lambda rng: rng.standard_normal())),
        "noise": NOISE * math.exp(both(NOISE_SD, lambda rng: rng.standard_normal())),
        "log_bias": on_warp_grid(both(BIAS_SD, lambda rng: smooth_noise(rng, BIAS_SMOOTHNESS)[0])),
    }


def make_volume(row: Row, traits: Row, rng: np.random.Generator, spacing: float, seed: int) -> sitk.Image:
    """The image of one subject: SimpleITK float32, in [0, 1], exactly 0 outside the brain."""
    target = empty_image(spacing, image_size(spacing))
    own = "Scan" in row
    anatomy = anatomy_transform(traits, rng, OWN_DEFORMATION_SD if own else DEFORMATION_SD)
    transform = displacement_at_voxels(anatomy, target)
    t1, brain, nuclei, thinning = (
        sitk.GetArrayFromImage(sitk.Resample(m, target, transform, sitk.sitkLinear))  # (z, y, x)
        for m in (brain_maps(row["Scan"], spacing) if own else template_maps(spacing))
    )
    brain = brain > 0.5

    t1 = t1 * (1 - traits["darkening"] * nuclei)
    thinned = CORTEX_LOSS * (traits["age"] - AGE_RANGE[0]) * thinning
    t1 = t1 + thinned * (CSF_INTENSITY - t1)

    scanner = draw_acquisition(row["Study"], row["Scanner"], seed)
    log_bias = sitk.GetArrayFromImage(sitk.Resample(scanner["log_bias"], target))  # (z, y, x)
    signal = scanner["gain"] * np.exp(log_bias) * np.clip(t1, 0, None) ** scanner["gamma"]
    real, imaginary = scanner["noise"] * rng.standard_normal((2, *signal.shape), dtype="float32")
    magnitude = np.hypot(signal + real, imaginary)  # Rician

    white = np.percentile(magnitude[brain], WHITE_PERCENTILE)
    return on_grid(np.where(brain, np.clip(magnitude / white, 0, 1), 0), target)


def write_subject(row: Row, folder: Path, spacing: float, effect: float, seed: int) -> Row:
    """Make and write one subject; returns its row for the CSV. Runs in a worker process."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the processes are the parallelism
    traits, rng = draw_subject(row, effect, seed)
    path = Path(folder) / "images" / f"{row['Subject']}.nii.gz"
    write_image(make_volume(row, traits, rng, spacing, seed), path)
    return {**row, "Path": f"images/{path.name}", "Age": traits["age"]}
