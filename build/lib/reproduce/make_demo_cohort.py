"""Make the demo cohort: synthetic T1 volumes that any reader may have and share.

    python reproduce/make_demo_cohort.py --output-folder demo/cohort

NONE OF THIS IS PATIENT DATA. Every volume is the MNI152 template (the copy inside the nilearn wheel;
nothing is downloaded), deformed and recoloured by a random number generator. Only the number of
images by center, class and sex, and the scanner names, are those of the paper (centers.csv, beside this
script). What the volumes can show is that the programs work, not how Parkinson's disease (PD) looks.

With --anatomies FOLDER the template's place is taken by the brains in a folder of yours: skull-stripped, registered
to MNI152, any voxel size and intensities. Disease and acquisition are simulated all the same, but such images show
real people: what holds for the brains (license, privacy) holds for them. A third of the people are in the test set
alone. Who is in which file is told by people.csv in the folder (columns File, Participant); a file that it does not
name is a person of its own. Both CSVs then have a column Anatomy, the person.

Written to the output folder, the two CSV files last:

    training_set.csv, test_set.csv   Subject, Study, Path, Group_bin (1 = PD), Sex, Age (years), Scanner
    images/<Subject>.nii.gz          float32 in [0, 1], 0 outside the brain, MNI space, 160 x 192 x 160 mm

With --raw, whole heads instead, tilted, as six scanners might write them, five of them spoiled (raw_heads.py):

    bids/                            a BIDS folder, for prepare_images.py
    truth.csv                        which are spoiled; for tests alone

How an image comes about:

    anatomy      head size by sex, a smooth random deformation, ventricles and cortex by age
    disease      substantia nigra, putamen and caudate darker, by an amount that varies between subjects
    acquisition  gain, gamma, bias field and noise of the scanner model, plus a smaller part of the center

Each subject has its own random stream, made of the seed and the subject's name: a subject is the same
whatever else is made beside it, on any number of processes.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare_images.template import BRAIN_CENTER, FIELD_OF_VIEW, empty_image, image_size, load_templates, to_lps
from travelling.errors import InputError
from travelling.network.sfcn import MINIMUM_VOXELS
from travelling.option import changed, from_command_line, number, option
from travelling.runs.command import run
from travelling.runs.options import Overwrite

if TYPE_CHECKING:  # they take a second to import, so functions import what they use, and --help answers at once
    import numpy as np
    import pandas as pd
    import SimpleITK as sitk

Row = dict[str, Any]  # a subject

CENTERS_FILE = Path(__file__).with_name("centers.csv")
CELLS = [("HC", "F"), ("HC", "M"), ("PD", "F"), ("PD", "M")]  # as in the column names of centers.csv
COLUMNS = ["Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Scanner"]

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
FEWEST_PEOPLE = 4
TEST_SHARE = 1 / 3  # of the people
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


@dataclass(kw_only=True)
class DemoCohort(Overwrite):
    """What is made."""

    output_folder: Path = option("where the cohort is written", Path, metavar="FOLDER")
    raw: bool = option("whole heads in a BIDS folder of six centers, as prepare_images.py takes them", None, False)
    anatomies: Path | None = option(
        "brains in MNI space, in the template's place (not with --raw)", Path, None, metavar="FOLDER"
    )
    spacing: float = option("size of a voxel in mm (default: 4; --raw: 2)", float, None, metavar="MM")
    shrink: int = option("divide the real numbers by this (default: 4; --raw: 16)", number(int, 1), None, metavar="N")
    effect: float = option("strength of the disease; 0: none", number(float, 0), 1.0, metavar="X")
    seed: int = option("of everything that is drawn at random", number(int, 0), 42, metavar="N")
    workers: int = option("processes", number(int, 1), min(os.cpu_count() or 1, 8), metavar="N")
    overwrite: bool = changed(Overwrite, "overwrite", words="replace a cohort that is already there")

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.option.Options.check`."""
        if self.raw and self.anatomies:
            raise ValueError(
                f"{spell('anatomies')}: not with {spell('raw')}, whose heads are drawn around the template"
            )
        if self.spacing is None:
            self.spacing = 2.0 if self.raw else 4.0
        self.shrink = self.shrink or (16 if self.raw else 4)


# ---------------------------------------------------------------------------------------------------------
# Who is in the cohort


def largest_remainder(seats: int, counts: Sequence[int]) -> list[int]:
    """Divide `seats` in proportion to `counts` (both whole numbers); a tie goes to the earlier one."""
    total = sum(counts)
    if total == 0:
        return [0] * len(counts)
    shares = [seats * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: -(seats * counts[i] % total))
    for i in by_remainder[: seats - sum(shares)]:
        shares[i] += 1
    return shares


def training_numbers(centers: pd.DataFrame, shrink: int) -> list[list[int]]:
    """Training images by center and cell, shape (83, 4): every center keeps at least one image."""
    counts = centers[[f"train_{group}_{sex}" for group, sex in CELLS]].to_numpy().tolist()
    return [largest_remainder(math.ceil(sum(row) / shrink), row) for row in counts]


def test_numbers(centers: pd.DataFrame, shrink: int) -> list[list[int]]:
    """Test images by center and cell, shape (83, 4): the balance of class and sex is kept first."""
    counts = centers[[f"test_{group}_{sex}" for group, sex in CELLS]].to_numpy().T.tolist()
    cell_totals = [sum(column) for column in counts]
    seats = largest_remainder((2 * sum(cell_totals) + shrink) // (2 * shrink), cell_totals)
    columns = [largest_remainder(n, column) for n, column in zip(seats, counts, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def plan_cohort(centers: pd.DataFrame, shrink: int) -> tuple[list[Row], list[Row]]:
    """Who is made: (training rows, test rows), each a list of {Subject, Study, Group_bin, Sex, Scanner}.

    A subject is numbered by its place in the full-size center, so that its name, and with it its image,
    does not depend on `shrink`.
    """
    numbers = {"train": training_numbers(centers, shrink), "test": test_numbers(centers, shrink)}
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for i, center in enumerate(centers.to_dict("records")):
        first = 1
        for part in rows:
            for (group, sex), images in zip(CELLS, numbers[part][i], strict=True):
                for k in range(images):
                    rows[part].append(
                        {
                            "Subject": f"demo_{center['center']}_{first + k:03d}",
                            "Study": center["center"],
                            "Group_bin": int(group == "PD"),
                            "Sex": sex,
                            "Scanner": center["scanner"],
                        }
                    )
                first += center[f"{part}_{group}_{sex}"]
    return rows["train"], rows["test"]


def generator(seed: int, name: str) -> np.random.Generator:
    """The random stream of one subject, center or scanner model: from the seed and its name alone."""
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))


# ---------------------------------------------------------------------------------------------------------
# Images. SimpleITK counts sizes and points x, y, z and its world is LPS (x to the left, y to the back); its
# arrays are z, y, x. MNI coordinates are RAS. Both turns are made only in prepare_images.template and in mni_axes.


def mni_axes(image: sitk.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI coordinates (mm) of an image's voxels: x, y and z, shaped to broadcast to its array (z, y, x)."""
    import numpy as np

    (nx, ny, nz), (sx, sy, sz) = image.GetSize(), image.GetSpacing()
    left, back, up = image.GetOrigin()  # LPS
    x, y, z = -left + sx * np.arange(nx), -back + sy * np.arange(ny), up + sz * np.arange(nz)
    return x, y[:, None], z[:, None, None]


def warp_grid() -> sitk.Image:
    """Coarse grid of the smooth fields; a margin of two voxels makes it cover every image's grid."""
    return empty_image(WARP_SPACING, [round(length / WARP_SPACING) + 4 for length in FIELD_OF_VIEW])


def smooth_noise(rng: np.random.Generator, smoothness: float, channels: int = 1) -> np.ndarray:
    """Gaussian noise smoothed by `smoothness` mm on the warp grid, (channels, z, y, x), each of sd 1."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    shape = (channels, *reversed(warp_grid().GetSize()))
    sigma = smoothness / WARP_SPACING
    noise = gaussian_filter(rng.standard_normal(shape), sigma=(0, sigma, sigma, sigma))
    return noise / np.std(noise, axis=(1, 2, 3), keepdims=True)


def on_warp_grid(array: np.ndarray, is_vector: bool = False) -> sitk.Image:
    """SimpleITK image of an array (z, y, x), or (3, z, y, x) for vectors in LPS mm, on the warp grid."""
    import numpy as np
    import SimpleITK as sitk

    array = np.moveaxis(array, 0, -1) if is_vector else array
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype="float64"), isVector=is_vector)
    image.CopyInformation(warp_grid())
    return image


def nucleus_weight(name: str, image: sitk.Image) -> np.ndarray:
    """The nucleus on both sides, (z, y, x) like `image`: 1 inside, 0 outside, soft at the border."""
    import numpy as np

    (cx, cy, cz), (rx, ry, rz), _ = NUCLEI[name]
    x, y, z = mni_axes(image)
    distance = np.sqrt(((np.abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
    return np.clip((1.15 - distance) / 0.3, 0, 1)


def on_grid(array: np.ndarray, grid: sitk.Image) -> sitk.Image:
    """SimpleITK image (float32) of an array (z, y, x), with the geometry of the image `grid`."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array.astype("float32"))
    image.CopyInformation(grid)
    return image


def smooth_for(spacing: float, *maps: sitk.Image) -> list[sitk.Image]:
    """Images that can be sampled at `spacing` mm, a list."""
    import SimpleITK as sitk

    return [sitk.SmoothingRecursiveGaussian(m, 0.3 * spacing) for m in maps] if spacing > 1 else list(maps)


@functools.cache
def template_maps(spacing: float) -> list[sitk.Image]:
    """What all subjects start from, made once in each process.

    Returns four images in MNI space, smoothed for sampling at `spacing` mm, with values in [0, 1]:
    T1 intensity, brain mask, nuclei (share of the disease effect), thinning cortex.
    """
    import numpy as np
    import SimpleITK as sitk

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
    import numpy as np
    import SimpleITK as sitk

    template, *_, mask = load_templates(2)
    t1, brain = sitk.GetArrayFromImage(template), sitk.GetArrayFromImage(mask)
    x, y, z = mni_axes(template)
    box = (np.abs(x) < 36) & (y > -48) & (y < 38) & (z > -2) & (z < 34)
    cisterns = (np.abs(x) < 10) & (y < -26)  # dark too, but not ventricle
    ventricles = on_grid((brain == 1) & (t1 < 0.5) & box & ~cisterns, template)
    gradient = sitk.Gradient(sitk.SmoothingRecursiveGaussian(ventricles, 6.0), True, True)  # 6 mm; in LPS
    vectors = np.moveaxis(sitk.GetArrayFromImage(sitk.Resample(gradient, warp_grid())), -1, 0)
    return vectors / np.sqrt((vectors**2).sum(0)).max()


# ---------------------------------------------------------------------------------------------------------
# Brains in the template's place


def find_people(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by person: {name: paths}; raises InputError for too few people or a wrong people.csv."""
    import pandas as pd

    scans = {path.name: path for path in sorted(folder.glob("[!.]*.nii*"))}
    if not scans:
        raise InputError(f"--anatomies {folder}: holds no images (*.nii or *.nii.gz)")
    told = folder / "people.csv"
    persons: dict[str, str] = {}
    if told.exists():
        try:
            table = pd.read_csv(told, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            persons = dict(zip(table["File"], table["Participant"], strict=True))
        except (KeyError, ValueError):
            raise InputError(f"{told}: no table with columns File, Participant") from None
    if unknown := persons.keys() - scans.keys():
        raise InputError(f"{told}: there is no image '{min(unknown)}'")
    people: dict[str, list[Path]] = {}
    for name, path in scans.items():
        people.setdefault(persons.get(name) or name.split(".nii")[0], []).append(path)
    if len(people) < FEWEST_PEOPLE:
        raise InputError(f"--anatomies {folder}: {len(people)} people, at least {FEWEST_PEOPLE} are needed")
    return people


def choose_brains(training: list[Row], test: list[Row], people: dict[str, list[Path]], seed: int) -> None:
    """Add to every row Anatomy, a person, and Scan, a path: nobody is in both sets, whatever `shrink` was."""
    names = generator(seed, "anatomies").permutation(sorted(people)).tolist()
    tested = round(TEST_SHARE * len(names))
    for rows, part in ((test, names[:tested]), (training, names[tested:])):
        for row in rows:
            rng = generator(seed, f"anatomy {row['Subject']}")
            row["Anatomy"] = part[rng.integers(len(part))]
            row["Scan"] = people[row["Anatomy"]][rng.integers(len(people[row["Anatomy"]]))]


@functools.lru_cache(maxsize=32)
def brain_maps(path: Path, spacing: float) -> list[sitk.Image]:
    """The maps of :func:`template_maps` for the brain in a file; raises InputError where it is not in MNI space.

    Nuclei and cortex are where the template has them, as far as there is tissue in this brain.
    """
    import numpy as np
    import SimpleITK as sitk
    from scipy.ndimage import binary_fill_holes

    from travelling.images.nifti import read_image

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


# ---------------------------------------------------------------------------------------------------------
# One subject


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
    import SimpleITK as sitk

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
    import SimpleITK as sitk

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
    import numpy as np
    import SimpleITK as sitk

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
    import SimpleITK as sitk

    from travelling.images.nifti import write_image

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the processes are the parallelism
    traits, rng = draw_subject(row, effect, seed)
    path = Path(folder) / "images" / f"{row['Subject']}.nii.gz"
    write_image(make_volume(row, traits, rng, spacing, seed), path)
    return {**row, "Path": f"images/{path.name}", "Age": traits["age"]}


# ---------------------------------------------------------------------------------------------------------


def check_spacing(spacing: float) -> None:
    """Refuse a voxel size (mm) with which no network could work."""
    if not spacing > 0:
        raise InputError(f"--spacing {spacing:g}: must be more than 0 mm")
    size = image_size(spacing)
    if min(size) < MINIMUM_VOXELS:
        raise InputError(
            f"--spacing {spacing:g}: the images would have {' x '.join(map(str, size))} voxels; "
            f"an axis must have at least {MINIMUM_VOXELS} voxels"
        )


def prepare_folder(folder: Path, overwrite: bool, *earlier: str) -> None:
    """Make the folder; with `overwrite`, take away what an earlier cohort left (patterns), and nothing else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not overwrite:
            raise InputError(f"--output-folder {folder}: is not empty (--overwrite replaces a cohort in it)")
        for path in [path for pattern in earlier for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise InputError(f"--output-folder {folder}: cannot be written: {error.strerror}") from error


def write_all(write: Callable, rows: list[Row], arguments: DemoCohort) -> list:
    """What `write` returns of every row, on several processes."""
    from travelling.console import progress_bar

    told = {"spacing": arguments.spacing, "effect": arguments.effect, "seed": arguments.seed}
    write_one = functools.partial(write, folder=arguments.output_folder, **told)
    with ProcessPoolExecutor(arguments.workers) as pool:
        return list(progress_bar(pool.map(write_one, rows), total=len(rows), unit="image"))


def main() -> None:
    """Plan the cohort, make its images on several processes, write the two CSV files."""
    arguments = from_command_line(DemoCohort, __doc__ or "")
    check_spacing(arguments.spacing)
    if arguments.raw:
        import raw_heads  # beside this script

        return raw_heads.make(arguments)

    import pandas as pd

    from travelling.files import write_csv

    training, test = plan_cohort(pd.read_csv(CENTERS_FILE), arguments.shrink)
    if len({row["Group_bin"] for row in test}) < 2:
        raise InputError(f"--shrink {arguments.shrink}: the test set would not hold both classes")
    what = "synthetic, no patient data"
    if arguments.anatomies:
        people = find_people(arguments.anatomies)
        for path in (path for paths in people.values() for path in paths):
            brain_maps(path, arguments.spacing)
        choose_brains(training, test, people, arguments.seed)
        what = f"simulated disease in the brains of {len(people)} people"
    folder = arguments.output_folder
    tables = ("training_set.csv", "test_set.csv")
    prepare_folder(folder, arguments.overwrite, *tables, "images/*demo_*.nii.gz")
    (folder / "images").mkdir(exist_ok=True)

    rows = write_all(write_subject, training + test, arguments)
    columns = [*COLUMNS, "Anatomy"] if arguments.anatomies else COLUMNS
    for name, part in zip(tables, (rows[: len(training)], rows[len(training) :]), strict=True):
        write_csv(pd.DataFrame(part, columns=columns), folder / name)
    print(f"{len(training)} training and {len(test)} test images in {folder} ({what})")


if __name__ == "__main__":
    run(main)
