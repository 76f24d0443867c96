"""From a raw T1 scan to what the network reads: bias field, registration to the template, brain mask, 8 bits.

The order (:func:`prepare`): N4 on the head, in coarse voxels; registration; resampling; N4 on the brain; intensities.

SimpleITK images throughout (axes x, y, z; mm to the left, back and up, as their headers say).
"""

import contextlib
import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy.linalg import polar

from prepare_images.template import BRAIN_CENTER, empty_image, image_size, load_templates, to_lps
from travelling.errors import InputError
from travelling.images.itk import to_array

FINE, COARSE = 2.0, 8.0  # mm: voxels of the registration, and of its start
HEAD_BIAS, BRAIN_BIAS = 8.0, 4.0  # mm: voxels in which the bias field is fitted, to the head and to the brain
RIM = 5.0  # mm around the template's brain that count in the end: fluid and skull are dark, and the template is 0 there
START = 20.0  # degrees of the starting rotations, both ways about each axis
# mm to the right, front and up: the brain's center from that of the head, which the neck draws down.
OFFSETS = [(0, y, z) for y in (0, -15) for z in (0, 20, 40)]
CANDIDATES = 5  # best positions, of which each is made better
PERCENTILES = (0.5, 99.5)  # of the brain; they become 0 and 255
BRAIN_LITRES = (0.5, 2.5)  # a mask that holds less or more is not of a brain
PLAUSIBLE_SCALE = (0.75, 1.4)  # of a head, along each of its axes, as a share of the template's
GAUGE = 4.0  # mm, voxels in which a scan is compared with the template
SEEN = 0.98  # of the template's brain that should lie within the scan
# Limits beyond which somebody should look. Intact heads: docs/own_scans.md.
LOW_SIMILARITY, MOST_EMPTY, MOST_APART, USUAL_LITRES = 0.5, 0.005, 5.0, (1.0, 2.3)


PREPARED, LOOK, FAILED = "prepared", "look at it", "failed"  # how each scan ends
MEASURES = (
    "Similarity", "Mutual_information", "Dice_mask", "Displacement", "Litres", "Empty",
    "Rotation", "Translation", "Scale", "Stretch",
)  # fmt: skip


def background(scan: sitk.Image) -> float:
    """The most frequent value of a scan: of a stripped, defaced or cut one, that of what was taken away."""
    values, numbers = np.unique(to_array(scan)[::2, ::2, ::2], return_counts=True)
    return float(values[numbers.argmax()])


def litres(mask: sitk.Image) -> float:
    """The volume of a mask (0, 1)."""
    return float(to_array(mask).sum() * math.prod(mask.GetSpacing()) / 1e6)


class Prepared(NamedTuple):
    """What :func:`prepare` makes of a scan."""

    image: sitk.Image  # in template space, 8 bits, 0 outside the brain
    brain: sitk.Image  # its mask (0, 1) there
    affine: sitk.AffineTransform  # from points of the image to points of the scan
    measures: dict


def prepare(scan: sitk.Image, mask: sitk.Image | None, spacing: float) -> Prepared:
    """Put a scan into template space, in voxels of so many mm, with its status, reason and measures.

    Without a mask the template's brain is taken. Raises InputError where no plausible head was found.
    """
    empty = scan == background(scan)
    scan = scan - min(0.0, float(to_array(scan).min()))  # N4 leaves out what is not above 0
    even = without_bias(scan, mask, HEAD_BIAS)
    found, other = register(even, mask), register(scan, mask)
    apart = displacement(found[0], other[0])
    # Of an inverted head N4 takes the air for the head, and can lose it.
    affine, information = max(found, other, key=lambda pair: pair[1]) if apart > MOST_APART else found
    measures = {"Mutual_information": information, **_shape(affine)}
    image, brain = _in_template_space(even, mask, affine, spacing)
    measures |= {
        **_likeness(even, mask, affine),
        "Displacement": apart,
        "Empty": _empty_share(empty, affine),
        "Litres": litres(reference()[1] >= 0.5) * measures["Scale"] ** 3 if mask is None else litres(mask),
        "Stripped": mask is None and litres(empty == 0) <= BRAIN_LITRES[1],
    }
    reasons = verdict(measures)
    rounded = {name: None if measures[name] is None else round(measures[name], 4) for name in MEASURES}
    about = {"Status": LOOK if reasons else PREPARED, "Reason": "; ".join(reasons)}
    return Prepared(image, brain, affine, about | rounded)


def verdict(measures: dict) -> list[str]:
    """Why somebody should look at a scan, by its measures; raises InputError where no registration can be believed."""
    unlike = measures["Similarity"] < LOW_SIMILARITY
    apart = measures["Displacement"] > MOST_APART
    found = {
        f"unlike the template (similarity {measures['Similarity']:.2f})": unlike,
        f"with the bias field, the registration ends {measures['Displacement']:.0f} mm away": apart,
        f"{measures['Empty']:.1%} of the brain is empty (cut off, or defaced?)": measures["Empty"] > MOST_EMPTY,
        "part of the brain lies outside the scan": measures["Seen"] < SEEN,
        f"the brain has {measures['Litres']:.2f} litres": not (
            USUAL_LITRES[0] <= measures["Litres"] <= USUAL_LITRES[1]
        ),
        "seems skull-stripped already (--stripped)": measures["Stripped"],
    }
    reasons = [reason for reason, is_so in found.items() if is_so]
    if abs(measures["Similarity"]) < LOW_SIMILARITY and apart:
        raise InputError(f"the head was not found: {'; '.join(reasons)}")
    return reasons


@functools.cache
def brain_points() -> list[tuple]:
    """Points of the template's brain (mm): every 100th voxel."""
    brain = reference()[1]
    inside = np.argwhere(to_array(brain) >= 0.5)[::100, ::-1]
    return [brain.TransformIndexToPhysicalPoint(index.tolist()) for index in inside]


def displacement(one: sitk.Transform, other: sitk.Transform) -> float:
    """How far apart (mm) two transforms put the points of the template's brain, mean."""
    apart = [np.subtract(one.TransformPoint(point), other.TransformPoint(point)) for point in brain_points()]
    return float(np.linalg.norm(apart, axis=1).mean())


def _empty_share(empty, affine):
    """The share of the inner part of the template's brain where a scan is empty (a mask: 0, 1)."""
    brain = reference()[1] >= 0.5
    inside = to_array(sitk.BinaryErode(brain, [round(RIM / FINE)] * 3)) == 1
    found = to_array(sitk.Resample(empty, brain, affine, sitk.sitkNearestNeighbor))
    return float(found[inside].mean())


def _resampled(scan, mask, affine, spacing):
    """Scan, template (float32), mask and the template's brain (0, 1) on the grid of prepared images of so many mm."""
    grid = empty_image(spacing, image_size(spacing))
    if spacing > 1.5 * min(scan.GetSpacing()):  # before larger voxels are sampled
        scan = sitk.SmoothingRecursiveGaussian(scan, 0.3 * spacing)
    t1, brain, _ = (sitk.Resample(image, grid) for image in reference())
    brain = brain >= 0.5
    own = brain if mask is None else sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), grid, affine) >= 0.5
    return sitk.Resample(scan, grid, affine), t1, own, brain


def _in_template_space(scan, mask, affine, spacing):
    """The prepared image and its mask (0, 1)."""
    moved, _, own, _ = _resampled(scan, mask, affine, spacing)
    moved = without_bias(moved, own)
    values = to_array(moved)[to_array(own) == 1]
    low, high = np.percentile(values, PERCENTILES) if values.size else (0, 0)
    if low == high:
        raise InputError("no brain was found (its voxels have one value)")
    bits = sitk.Cast(sitk.Round(sitk.IntensityWindowing(moved, float(low), float(high), 0, 255)), sitk.sitkUInt8)
    return sitk.Mask(bits, own), own


def _likeness(scan, mask, affine):
    """How like the template a scan is, in voxels of ``GAUGE`` mm, whatever those of the prepared image are."""
    moved, t1, own, brain = _resampled(scan, mask, affine, GAUGE)
    inside = to_array(sitk.And(own, brain)) == 1
    seen = to_array(sitk.Resample(scan * 0 + 1, brain, affine))[to_array(brain) == 1]
    with np.errstate(invalid="ignore"):
        correlation = np.corrcoef(to_array(moved)[inside], to_array(t1)[inside])[0, 1] if inside.any() else 0
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(own, brain)
    dice = None if mask is None else overlap.GetDiceCoefficient()
    return {"Similarity": float(np.nan_to_num(correlation)), "Dice_mask": dice, "Seen": float(seen.mean())}


@functools.cache
def reference() -> tuple[sitk.Image, sitk.Image, sitk.Image]:
    """T1, brain mask and white matter of the template: float32 in [0, 1], voxels of ``FINE`` mm."""
    t1, _, white, brain = load_templates(round(FINE))
    return t1, brain, white


def shrunk(image: sitk.Image, mm: float) -> sitk.Image:
    """An image with voxels averaged until they have about ``mm``."""
    factors = [
        max(1, min(round(mm / size), n // 4)) for size, n in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    return sitk.BinShrink(image, factors)


def foreground(image: sitk.Image) -> sitk.Image:
    """What is brighter than Otsu's threshold, as a mask (0, 1)."""
    return sitk.OtsuThreshold(image, 0, 1, 256)


def without_bias(image: sitk.Image, brain: sitk.Image | None, voxels: float = BRAIN_BIAS) -> sitk.Image:
    """An image over the bias field in its brain (None: in the head), fitted in voxels of so many mm.

    N4 (Tustison et al. 2010, doi 10.1109/TMI.2010.2046908).
    """
    small = shrunk(image, voxels)
    inside = foreground(small) if brain is None else shrunk(sitk.Cast(brain, sitk.sitkFloat32), voxels) >= 0.5
    inside = sitk.And(inside, small > 0)  # it takes the logarithm
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([50] * 3)
    n4.Execute(small, inside)
    return image * sitk.Exp(-n4.GetLogBiasFieldAsImage(image))


def register(scan: sitk.Image, mask: sitk.Image | None = None) -> tuple[sitk.AffineTransform, float]:
    """The affine transform from points of the template to points of a scan, and its mutual information (nats).

    Mattes mutual information. The best of many positions around the head's center of mass are made better, in coarse
    voxels, as similarity transforms; the best of these goes on as an affine one. On one thread, the same scan gives the
    same transform.
    """
    scan = scan if mask is None else sitk.Mask(scan, mask)
    template, brain, _ = reference()
    moving, brain = shrunk(scan, FINE), brain >= 0.5
    middle = _centroid(foreground(moving) if mask is None else mask)
    best = _similarity(moving, middle, OFFSETS if mask is None else OFFSETS[:1])
    affine = sitk.AffineTransform(best.GetMatrix(), best.GetTranslation(), best.GetCenter())
    method = _method(sitk.BinaryDilate(brain, [round(RIM / FINE)] * 3), [2 * FINE, FINE], step=1.0, smallest=0.01)
    method.SetInitialTransform(affine, inPlace=True)
    method.Execute(template, moving)
    return affine, -method.GetMetricValue()


def _similarity(moving, middle, offsets):
    """The similarity transform by which a head, with its center of mass at ``middle``, is most like the template."""
    template, brain, _ = reference()
    template, moving = (sitk.SmoothingRecursiveGaussian(image, COARSE / 2) for image in (template, moving))
    template, brain, moving = shrunk(template, COARSE), shrunk(brain, COARSE) >= 0.5, shrunk(moving, COARSE / 2)
    # Without the rim: with it, the brain can come to lie in the scalp, with the dark air around it as the rim.
    method = _method(brain, [], step=4.0, smallest=0.1)
    center = np.array(to_lps(BRAIN_CENTER))
    starts = []
    for angles in itertools.product((0, -START, START), repeat=3):
        rotation = sitk.Euler3DTransform((0, 0, 0), *map(math.radians, angles))
        for offset in offsets:
            place = middle + rotation.TransformPoint(to_lps(offset)) - center
            start = sitk.Similarity3DTransform(1.0, (0, 0, 1), 0.0, place.tolist(), center.tolist())
            start.SetMatrix(rotation.GetMatrix())
            method.SetInitialTransform(start)
            with contextlib.suppress(RuntimeError):  # the head lies outside there
                starts.append((method.MetricEvaluate(template, moving), start))
    found = []
    for _, start in sorted(starts, key=lambda pair: pair[0])[:CANDIDATES]:
        method.SetInitialTransform(start, inPlace=True)
        with contextlib.suppress(RuntimeError):
            method.Execute(template, moving)
            found.append((method.GetMetricValue(), start))
    if not found:
        raise InputError("no head was found")
    return min(found, key=lambda pair: pair[0])[1]


def _method(counts, voxels, step, smallest):
    """ITK's registration; a level for each size of voxels (mm; none: as the images are), steps in mm."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(counts)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([round(mm / FINE) for mm in voxels] or [1])
    method.SetSmoothingSigmasPerLevel([mm / 2 for mm in voxels] or [0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        step, smallest, 100, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _centroid(mask):
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(mask)
    return np.array(statistics.GetCentroid(1))


def _shape(affine):
    """How a head lies and how large it is, compared with the template; raises InputError where no head is so."""
    matrix = np.array(affine.GetMatrix()).reshape(3, 3)
    rotation, _ = polar(matrix)
    sizes = np.linalg.svd(matrix, compute_uv=False)
    if not PLAUSIBLE_SCALE[0] <= sizes.min() <= sizes.max() <= PLAUSIBLE_SCALE[1]:
        raise InputError(
            f"no head was found (the best match has {sizes.min():.2f} to {sizes.max():.2f} times the template's size)"
        )
    return {
        "Rotation": math.degrees(math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))),  # degrees
        "Translation": float(np.linalg.norm(affine.GetTranslation())),  # mm, of the brain's center
        "Scale": float(np.prod(sizes) ** (1 / 3)),
        "Stretch": float(sizes.max() / sizes.min()),
    }
