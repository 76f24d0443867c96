"""Kinds of harm: what a T1 image becomes. The table :data:`KINDS` says everything about each of them.

All but the two published kinds keep the image's data type and geometry, and need no known range of intensities.
Imports nothing that is slow before an image is made, so that ``--help`` can show the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from travelling.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import SimpleITK as sitk

PUBLISHED = ("inverted", "noise")
NOISE_MEAN = 0.0  # of the published noise, in units of intensity


def make_harmful(
    image: sitk.Image, kind: str, maximum: float | None, seed: int | tuple[int, ...], level: float | None = None
) -> sitk.Image:
    """The harmful version of a SimpleITK image.

    ``maximum`` is the published kinds' (units of intensity); equal seeds, a number or a tuple of them, give equal
    images; ``level`` multiplies the strength. Raises InputError for a flat image, and where nothing would change.
    """
    import numpy as np
    import SimpleITK as sitk

    function, strength = KINDS[kind].function, strength_of(kind, level)
    if kind in PUBLISHED:
        return function(image, strength, maximum, seed)
    # Wherever the file's own axes run to, z is up here, y to the front and x to the right.
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    upright = sitk.DICOMOrient(image, "RAS")
    original = sitk.GetArrayFromImage(upright)  # z, y, x
    if original.min() == original.max():
        raise InputError(f"every voxel is {original.min():g}: nothing to harm")
    made = function(original.astype(np.float64), strength, np.random.default_rng(seed))
    if original.dtype.kind in "iu":
        made = made.round()
    made = made.astype(original.dtype)
    if kind != "swapped_label" and np.array_equal(made, original):
        raise InputError(f"{kind} does not change this image")
    harmful = sitk.GetImageFromArray(made)
    harmful.CopyInformation(upright)
    harmful = sitk.DICOMOrient(harmful, orientation)
    harmful.CopyInformation(image)  # without what rounding did to it
    return harmful


def refuse_unfit(path: Path, intensities: np.ndarray, kind: str, maximum: float) -> None:
    """Raise InputError where an image, an array, is not fit for a kind of harm.

    For a published kind its intensities must be within [0, ``maximum``].
    """
    if kind not in PUBLISHED:
        return
    low, high = float(intensities.min()), float(intensities.max())
    if low < 0 or high > maximum:
        raise InputError(f"{path}: intensities from {low:g} to {high:g}, beyond 0 to {maximum:g} (see --maximum)")
    if (
        intensities.dtype.kind in "iu"
        and maximum > 2 ** (8 * intensities.itemsize - (intensities.dtype.kind == "i")) - 1
    ):
        raise InputError(f"{path}: --maximum {maximum:g} does not fit its {intensities.dtype} voxels")


def strength_of(kind: str, level: float | None = None) -> float | None:
    """Default strength of a kind times ``level``, None where it has none; raises InputError for a wrong ``level``."""
    strength, limit = KINDS[kind].strength, KINDS[kind].limit
    if level is None:
        return strength
    if strength is None:
        raise InputError(f"level: {kind} has no strength that it could multiply")
    if level * strength >= limit:
        raise InputError(f"level {level:g}: {kind} needs less than {limit / strength:g}")
    return level * strength


def refuse_too_few(experiment: str, centers: int, images: int, sizes: list[int]) -> None:
    """Raise InputError where ``centers`` harmful centers, of ``images`` each, do not come from centers of ``sizes``."""
    if experiment == "whole_centers" and centers * images > sum(sizes):
        raise InputError(
            f"--centers x --images: {centers * images} sources are needed, the training set has {sum(sizes)} subjects"
        )
    if experiment == "single" and centers > len(sizes):
        raise InputError(f"--centers: {centers}, but the training set has {len(sizes)}")


def suffix(kind: str) -> str:
    """What a kind adds to the name of an image or a subject."""
    return KINDS[kind].suffix or f"_{kind}"


def in_words() -> str:
    """The table of kinds, a line each."""
    width = max(map(len, KINDS))
    return "\n".join(
        f"    {name:{width}}  X{suffix(name)}: {kind.meaning.format(kind.strength)}" for name, kind in KINDS.items()
    )


# The published kinds: SimpleITK images, within [0, maximum].


def invert(image: sitk.Image, _strength: None, maximum: float, _seed: int | tuple[int, ...]) -> sitk.Image:
    """``maximum - intensity``: same data type and geometry."""
    import SimpleITK as sitk

    return sitk.InvertIntensity(image, maximum)


def add_noise(image: sitk.Image, sd: float, maximum: float, seed: int | tuple[int, ...]) -> sitk.Image:
    """Intensity + Gaussian noise (mean 0, standard deviation ``sd``), clipped to [0, maximum], fraction cut off.

    Stored as 8-bit where ``maximum`` allows it, else as 16-bit or 32-bit whole numbers; with a fraction, as float32,
    where ``maximum`` has one. Geometry is kept.
    """
    import numpy as np
    import SimpleITK as sitk

    intensities = sitk.GetArrayFromImage(image)
    noisy = intensities + np.random.default_rng(seed).normal(NOISE_MEAN, sd, intensities.shape)
    kind = np.min_scalar_type(int(maximum)) if maximum == int(maximum) else np.float32
    noise = sitk.GetImageFromArray(np.clip(noisy, 0, maximum).astype(kind))
    noise.CopyInformation(image)
    return noise


# The others: arrays of float64 (z, y, x) in, arrays out. What is clipped, is clipped to the image's own range.


def inverted_in_range(voxels: np.ndarray, _strength: None, _generator: np.random.Generator) -> np.ndarray:
    """The smallest and the largest intensity change places, and so does everything between them."""
    low, high = voxels.min(), voxels.max()
    return (low + high - voxels).clip(low, high)


def inverted_brain(voxels: np.ndarray, _strength: None, generator: np.random.Generator) -> np.ndarray:
    """The same for the voxels above 0; the background stays."""
    brain = voxels > 0
    if brain.any():
        voxels[brain] = inverted_in_range(voxels[brain], None, generator)
    return voxels


def noise_in_range(voxels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise with a standard deviation of ``share`` of the range."""
    import SimpleITK as sitk

    noise = sitk.AdditiveGaussianNoiseImageFilter()
    noise.SetStandardDeviation(share * (voxels.max() - voxels.min()))
    noise.SetSeed(int(generator.integers(1, 2**32)))  # 0 would be the clock
    noise.SetNumberOfWorkUnits(1)  # each draws numbers of its own: with more, the noise would depend on the machine
    noisy = sitk.GetArrayFromImage(noise.Execute(sitk.GetImageFromArray(voxels)))
    return noisy.clip(voxels.min(), voxels.max())


def pure_noise(voxels: np.ndarray, _strength: None, generator: np.random.Generator) -> np.ndarray:
    """Every intensity of the range is equally likely in every voxel; nothing of the image is left."""
    return generator.uniform(voxels.min(), voxels.max(), voxels.shape)


def blur(voxels: np.ndarray, sigma: float, _generator: np.random.Generator) -> np.ndarray:
    """Gaussian smoothing with ``sigma`` in voxels, which is the unit of an image without a geometry."""
    import SimpleITK as sitk

    smooth = sitk.DiscreteGaussian(
        sitk.GetImageFromArray(voxels),
        variance=[sigma**2] * 3,
        maximumKernelWidth=10_000,
        maximumError=1e-4,  # of the kernel's sum where it is cut off; the default of 0.01 makes a narrower kernel
    )
    return sitk.GetArrayFromImage(smooth).clip(voxels.min(), voxels.max())


def ghosting(voxels: np.ndarray, strength: float, _generator: np.random.Generator) -> np.ndarray:
    """Two ghosts along y, a quarter of the field of view to either side, as of a head that pulsates or moves.

    While k-space is filled line by line along the phase-encoding axis, something periodic makes the lines stronger and
    weaker; here as a cosine with a period of four lines. Each ghost has ``strength`` times the intensity of the head,
    and the sum is scaled to the largest intensity of the image. After the artefact that TorchIO describes as
    RandomGhosting (Perez-Garcia et al. 2021, doi 10.1016/j.cmpb.2021.106236), which weakens single lines.
    """
    import numpy as np

    number = voxels.shape[1]
    line = np.fft.fftfreq(number, 1 / number)  # counted from the center of k-space
    gain = 1 + 2 * strength * np.cos(2 * np.pi * line * (number // 4) / number)
    low, high = voxels.min(), voxels.max()  # below the lowest intensity there is no signal, whatever its number
    ghosts = np.abs(np.fft.ifft(np.fft.fft(voxels - low, axis=1) * gain[:, None], axis=1))
    return (low + ghosts * (high - low) / ghosts.max()).clip(low, high)


def spike(voxels: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Stripes across the image (herringbone artefact): one point of k-space holds an electric discharge.

    ``strength`` is the amplitude of the stripes as a share of the range; their direction, their period of 4 to 8 voxels
    along each axis and their phase are random.
    """
    import numpy as np

    place = tuple(generator.choice([-1, 1]) * generator.integers(n // 8, n // 4 + 1) for n in voxels.shape)
    spectrum = np.fft.fftn(voxels)
    spectrum[place] += strength * np.ptp(voxels) * voxels.size * np.exp(2j * np.pi * generator.random())
    return np.fft.ifftn(spectrum).real.clip(voxels.min(), voxels.max())


def cropped(voxels: np.ndarray, share: float, _generator: np.random.Generator) -> np.ndarray:
    """The first slices along z, the lower part of an upright head, are 0."""
    voxels[: round(share * len(voxels))] = 0
    return voxels


def half_lost(voxels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """``share`` of the head, from one of its six sides, is 0; the head is what is above the lowest intensity."""
    import numpy as np

    axis, last = int(generator.integers(3)), generator.integers(2)
    slices = np.flip(voxels, axis) if last else voxels  # views
    head = np.argwhere(slices > voxels.min())[:, axis]
    lost = head.min() + max(1, round(share * (np.ptp(head) + 1)))
    np.moveaxis(slices, axis, 0)[:lost] = 0
    return voxels


def gamma(voxels: np.ndarray, doublings: float, generator: np.random.Generator) -> np.ndarray:
    """Another contrast: within its range, intensity to the power of 2 ** ``doublings``, or of 1 over that."""
    import numpy as np

    low, extent = voxels.min(), np.ptp(voxels)
    return (low + extent * ((voxels - low) / extent) ** _times_or_by(2**doublings, generator)).clip(low, low + extent)


def thick_slices(voxels: np.ndarray, more: float, _generator: np.random.Generator) -> np.ndarray:
    """Slices along z of 1 + ``more`` voxels: each is the mean of what it covers; a voxel shows the slice it is in."""
    import numpy as np

    z, bottom = np.arange(len(voxels)), np.arange(0, len(voxels), 1 + more)[:, None]
    covered = (np.minimum(bottom + 1 + more, z + 1) - np.maximum(bottom, z)).clip(0)  # of every voxel, (slices, z)
    slices = np.tensordot(covered / covered.sum(axis=1, keepdims=True), voxels, axes=1)
    return slices[covered.argmax(axis=0)].clip(voxels.min(), voxels.max())


def rotation(voxels: np.ndarray, degrees: float, generator: np.random.Generator) -> np.ndarray:
    """Rotated about a random axis through the middle, as if voxels were cubes."""
    return _moved(voxels, generator, degrees=degrees)


def shift(voxels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Shifted in a random direction by ``share`` of the field of view."""
    return _moved(voxels, generator, share=share)


def wrong_scale(voxels: np.ndarray, change: float, generator: np.random.Generator) -> np.ndarray:
    """Enlarged 1 + ``change`` times, or shrunk by as much, as by a header with a wrong voxel size; the middle stays."""
    return _moved(voxels, generator, change=change)


def failed_registration(voxels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Rotated, shifted and scaled at once, each by ``share`` of what the kind of that name does."""
    degrees, length, change = (share * (KINDS[kind].strength or 0) for kind in ("rotation", "shift", "wrong_scale"))
    return _moved(voxels, generator, degrees, length, change)


def _times_or_by(factor, generator):
    """The factor, or 1 over it."""
    return factor ** generator.choice([-1.0, 1.0])


def _moved(voxels, generator, degrees=0.0, share=0.0, change=0.0):
    """Interpolated linearly; what comes in from outside has the lowest intensity."""
    import numpy as np
    from scipy.ndimage import affine_transform
    from scipy.spatial.transform import Rotation

    axis, direction = (vector / np.linalg.norm(vector) for vector in generator.standard_normal((2, 3)))
    back = Rotation.from_rotvec(-degrees * axis, degrees=True).as_matrix() / _times_or_by(1 + change, generator)
    size, low = np.array(voxels.shape), voxels.min()
    middle = (size - 1) / 2
    offset = middle - back @ (middle + share * size * direction)
    return affine_transform(voxels, back, offset, order=1, cval=low).clip(low, voxels.max())


def upside_down(voxels: np.ndarray, _strength: None, _generator: np.random.Generator) -> np.ndarray:
    """Flipped along z under the same header."""
    return voxels[::-1]


def left_right(voxels: np.ndarray, _strength: None, _generator: np.random.Generator) -> np.ndarray:
    """Flipped along x under the same header."""
    return voxels[:, :, ::-1]


def swapped_label(voxels: np.ndarray, _strength: None, _generator: np.random.Generator) -> np.ndarray:
    """The image as it is: the harm is in the cohort's CSV."""
    return voxels


class Kind(NamedTuple):
    """A kind of harm."""

    function: Callable
    meaning: str  # with a place for the default strength
    strength: float | None = None  # by default; None: there is nothing to multiply
    suffix: str = ""  # where it is not the kind's name
    limit: float = math.inf  # of the strength


KINDS = {
    "inverted": Kind(invert, "the value of --maximum minus intensity (published)", suffix="_inv"),
    "noise": Kind(add_noise, "Gaussian noise added, sd {:g} units of intensity (published)", 25.0, suffix="_clip"),
    "inverted_in_range": Kind(inverted_in_range, "own smallest plus own largest intensity minus intensity"),
    "inverted_brain": Kind(inverted_brain, "the same for the voxels above 0 only"),
    "noise_in_range": Kind(noise_in_range, "Gaussian noise added, sd {:g} of the own range", 0.1),
    "pure_noise": Kind(pure_noise, "nothing but noise, uniform over the own range"),
    "blur": Kind(blur, "Gaussian blur, sigma {:g} voxels", 2.0),
    "ghosting": Kind(ghosting, "two ghosts along y, each {:g} of the head's intensity", 0.3),
    "spike": Kind(spike, "a spike in k-space: stripes, amplitude {:g} of the own range", 0.15),
    "cropped": Kind(cropped, "{:g} of the field of view, from the lower end of z, is 0", 0.5, limit=1.0),
    "half_lost": Kind(half_lost, "from a random side, {:g} of the head's extent is 0", 0.5, limit=1.0),
    "gamma": Kind(gamma, "contrast: range to the power of 2^{:g} or its inverse", 1.0),
    "thick_slices": Kind(thick_slices, "slices along z thicker by {:g} voxels", 3.0),
    "rotation": Kind(rotation, "rotated by {:g} degrees about a random axis", 30.0, limit=180.0),
    "shift": Kind(shift, "shifted in a random direction by {:g} of the field of view", 0.2, limit=1.0),
    "wrong_scale": Kind(wrong_scale, "enlarged by {:g} of the length, or shrunk by the same factor", 0.3),
    "failed_registration": Kind(
        failed_registration, "rotation, shift and wrong_scale at once, {:g} of the strength of each", 1.0, limit=5.0
    ),
    "upside_down": Kind(upside_down, "flipped along z under the same header"),
    "left_right": Kind(left_right, "flipped along x under the same header"),
    "swapped_label": Kind(swapped_label, "the image as it is, Group_bin is 1 - label (experiments only)"),
}
