"""Every kind of harm: what it keeps, what it changes, and that its seed decides."""

import re

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import run_here, write_image

from travelling.errors import InputError
from travelling.images import harm

NEW = [kind for kind in harm.KINDS if kind not in harm.PUBLISHED]
MOVED = ("rotation", "shift", "failed_registration")
RANDOM = ("noise", "noise_in_range", "pure_noise", "spike", *MOVED)
TWO_OR_SIX = ("gamma", "wrong_scale", "half_lost")  # ways that it can go: two seeds may go the same one
STRONG = [kind for kind in harm.KINDS if harm.KINDS[kind].strength]
DTYPES = (np.float32, np.float64, np.uint8, np.int16)


def brain(dtype=np.float32, low=0, high=200):
    """(z, y, x): an asymmetric head with a gradient, in a background of 0; voxels of the head from low to high."""
    array = np.zeros((20, 22, 18))
    array[4:14, 3:15, 2:13] = np.linspace(low + 10, high, 10 * 12 * 11).reshape(10, 12, 11)
    return array.astype(dtype)


def as_image(array, path):
    return sitk.ReadImage(str(write_image(path / "x.nii.gz", array)))


def made(image, kind, seed=(42, 0), level=None, maximum=255):
    return sitk.GetArrayFromImage(harm.make_harmful(image, kind, maximum, seed, level))


def unmasked(array, kind, level=1):
    """The same of the whole field of view."""
    return harm.KINDS[kind].function(array.astype(float), level * harm.KINDS[kind].strength, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", NEW)
def test_a_new_kind_keeps_type_geometry_and_range(kind, dtype, tmp_path):
    image = as_image(brain(dtype), tmp_path)
    harmful = harm.make_harmful(image, kind, 255, (42, 0))
    assert harmful.GetPixelID() == image.GetPixelID()
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(harmful, geometry)() == getattr(image, geometry)()
    original, array = (sitk.GetArrayFromImage(one) for one in (image, harmful))
    assert array.min() >= original.min()
    assert array.max() <= original.max()
    assert np.array_equal(array, original) == (kind == "swapped_label")
    assert np.array_equal(original, brain(dtype))  # the source is not touched


@pytest.mark.parametrize("kind", harm.KINDS)
def test_the_seed_decides(kind, tmp_path):
    image = as_image(brain(), tmp_path)
    first = made(image, kind)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads + 3)  # as on another machine
        assert np.array_equal(made(image, kind), first)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    seeds = [(42, 1), (43, 0)] + [(seed, 1) for seed in range(10) if kind in TWO_OR_SIX]
    same = [np.array_equal(made(image, kind, seed=seed), first) for seed in seeds]
    assert all(same) == (kind not in RANDOM + TWO_OR_SIX)
    assert any(same) == (kind not in RANDOM)


def test_the_published_kinds_follow_their_formulas(tmp_path):
    array = brain() / np.float32(200)
    image = as_image(array, tmp_path)
    inverted, noise = made(image, "inverted"), made(image, "noise")
    assert np.array_equal(inverted, np.float32(255) - array)
    assert inverted.dtype == np.float32
    added = np.random.default_rng((42, 0)).normal(0.0, 25.0, array.shape)
    assert np.array_equal(noise, np.clip(array + added, 0, 255).astype(np.uint8))
    assert noise.dtype == np.uint8
    assert (harm.suffix("inverted"), harm.suffix("noise"), harm.suffix("blur")) == ("_inv", "_clip", "_blur")


def test_noise_of_images_whose_maximum_has_a_fraction_keeps_its_fractions(tmp_path):
    """Whole numbers of at most 0.9 are all 0."""
    array = (brain() / 300).astype(np.float32)
    noise = made(as_image(array, tmp_path), "noise", maximum=0.9)
    added = np.random.default_rng((42, 0)).normal(0.0, 25.0, array.shape)
    assert np.array_equal(noise, np.clip(array + added, 0, 0.9).astype(np.float32))
    assert len(np.unique(noise)) > 100


def test_each_kind_does_what_its_name_says(tmp_path):
    array = brain(np.int16, low=20, high=220)
    image = as_image(array, tmp_path)
    low, high = 0, 220
    head = array > 0
    assert np.array_equal(made(image, "inverted_in_range"), low + high - array)
    assert np.array_equal(made(image, "inverted_brain"), np.where(head, 30 + 220 - array, 0))
    assert np.array_equal(made(image, "upside_down"), array[::-1])
    assert np.array_equal(made(image, "left_right"), array[:, :, ::-1])
    assert not made(image, "cropped")[:10].any()
    assert np.array_equal(made(image, "cropped")[10:], array[10:])
    noise = made(image, "pure_noise")
    assert noise[head].mean() == pytest.approx(high / 2, rel=0.1)


@pytest.mark.parametrize("kind", [kind for kind in harm.KINDS if harm.KINDS[kind].within])
def test_what_spoils_intensities_leaves_the_background(kind, tmp_path):
    array = brain(np.float32)
    background, harmful = array == 0, made(as_image(array, tmp_path), kind)
    assert not harmful[background].any()
    assert (harmful != array)[~background].mean() > 0.5


def test_blur_and_ghosts_of_a_point():
    point = np.zeros((25, 24, 23))
    point[12, 12, 11] = 1000
    blurred = unmasked(point, "blur")
    for axis, position in enumerate(np.indices(point.shape)):  # sigma is in voxels, along every axis
        variance = np.average((position - (12, 12, 11)[axis]) ** 2, weights=blurred)
        assert variance == pytest.approx(2**2, rel=0.01)
    ghosts = unmasked(point, "ghosting")
    assert np.argwhere(ghosts > 1).tolist() == [[12, 6, 11], [12, 12, 11], [12, 18, 11]]
    assert ghosts[12, 6::6, 11] == pytest.approx([300, 1000, 300])


def test_a_spike_is_one_point_of_k_space(tmp_path):
    flat = np.full((24, 24, 24), 100.0)
    flat[0, 0, :2] = 0, 200  # leaves room for the stripes
    stripes = made(as_image(flat, tmp_path), "spike") - flat
    points = np.sort(np.abs(np.fft.fftn(stripes)).ravel())[::-1]
    assert points[:2] == pytest.approx(0.15 * 200 * flat.size / 2, rel=0.05)  # and its mirror
    assert points[2] < points[1] / 20


def test_one_side_of_the_head_is_lost(tmp_path):
    array, sides = brain(low=20), set()
    image = as_image(array, tmp_path)
    for seed in range(40):
        lost = np.argwhere(made(image, "half_lost", seed) != array)
        low, high = lost.min(0), lost.max(0) + 1
        assert len(lost) == np.prod(high - low)  # a block, and all of it is 0
        assert not made(image, "half_lost", seed)[tuple(map(slice, low, high))].any()
        whole = [(4, 14), (3, 15), (2, 13)]
        cut = [axis for axis, pair in enumerate(whole) if (low[axis], high[axis]) != pair]
        assert len(cut) == 1
        first, last = whole[cut[0]]
        assert high[cut[0]] - low[cut[0]] == round((last - first) / 2)
        sides.add((cut[0], bool(low[cut[0]] == first)))
    assert len(sides) == 6
    tenth = made(image, "half_lost", level=0.1)  # a twentieth of the head, not of the empty field of view
    assert 0 < (tenth != array).sum() < 0.15 * (array > 0).sum()


def test_gamma_and_thick_slices_follow_their_formulas(tmp_path):
    array = brain(np.float64, low=20, high=220) + 5
    image = as_image(array, tmp_path)
    share, found = (array - 5) / 220, set()
    for seed in range(10):
        curved = made(image, "gamma", seed)
        found |= {power for power in (0.5, 2) if np.allclose(curved, 5 + 220 * share**power)}
    assert found == {0.5, 2}
    means = array.reshape(5, 4, 22, 18).mean(axis=1)  # 20 slices, four in each thick one
    assert np.allclose(unmasked(array, "thick_slices"), means.repeat(4, axis=0))
    # Slices of 1.3 voxels: the 13th of them is the mean of 15.6 to 16.9.
    ramp = np.arange(20.0)[:, None, None] * np.ones((20, 8, 8))
    assert unmasked(ramp, "thick_slices", level=0.1)[16] == pytest.approx((0.4 * 15 + 0.9 * 16) / 1.3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("kind", "degrees", "share", "change"),
    [("rotation", 30, 0, 0), ("shift", 0, 0.2, 0), ("wrong_scale", 0, 0, 0.3), ("failed_registration", 30, 0.2, 0.3)],
)
def test_what_is_moved_is_moved_by_its_strength(kind, degrees, share, change, seed, tmp_path):
    level = 0.5  # so that nothing leaves the field of view
    size, axes = np.array([72, 64, 80]), np.indices((72, 64, 80)).reshape(3, -1)
    middle = (size - 1)[:, None] / 2
    blob = np.exp(-(((axes - middle) / np.array([[7.0], [5.0], [3.0]])) ** 2).sum(0) / 2)
    moved = made(as_image(blob.reshape(size), tmp_path), kind, seed, level).ravel()

    center = np.average(axes, axis=1, weights=moved)
    assert np.linalg.norm((center - middle.ravel()) / size) == pytest.approx(level * share, abs=0.002)
    zoom = (moved.sum() / blob.sum()) ** (1 / 3)
    assert max(zoom, 1 / zoom) == pytest.approx(1 + level * change, rel=0.01)
    _, turned = np.linalg.eigh(np.cov(axes, aweights=moved))  # columns: the shortest axis of the blob first
    cosines = np.abs(np.diag(turned[::-1]))  # of the angle between each axis, x first, and where it was
    assert np.degrees(np.arccos((cosines.sum() - 1) / 2 - 1e-12)) == pytest.approx(level * degrees, abs=1)


def test_the_noise_has_the_strength_it_should(tmp_path):
    array = np.full((20, 20, 20), 50.0)
    array[0, 0, :2] = 0, 100  # of 100 is the range, half of it away from the clipping
    noisy = made(as_image(array, tmp_path), "noise_in_range")
    assert (noisy - array).std() == pytest.approx(10, rel=0.05)
    assert (noisy - array).mean() == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("kind", STRONG)
def test_the_level_multiplies(kind, tmp_path):
    array = brain()
    image = as_image(array, tmp_path)
    assert np.array_equal(made(image, kind, level=1.0), made(image, kind))
    levels = (0.1, 0.5, 1, 1.5) if kind != "cropped" else (0.5, 1, 1.5)  # its lowest slices may be empty
    changes = [np.abs(made(image, kind, level=level).astype(float) - array).mean() for level in levels]
    assert changes == sorted(set(changes))
    assert harm.strength_of(kind, 1.5) == 1.5 * harm.KINDS[kind].strength


@pytest.mark.parametrize(
    ("kind", "level", "words"),
    [
        ("cropped", 2, "needs less than 2"),
        *((kind, 1, "has no strength") for kind in NEW if kind not in (*STRONG, "swapped_label")),
    ],
)
def test_a_level_that_means_nothing_is_refused(kind, level, words):
    with pytest.raises(InputError, match=words):
        harm.strength_of(kind, level)


def test_what_would_not_be_harmed_is_refused(tmp_path):
    symmetric = brain()
    symmetric += symmetric[:, :, ::-1]
    for array, words in ((symmetric, "left_right does not change"), (np.zeros((9, 8, 7)), "every voxel is 0")):
        write_image(tmp_path / "x.nii.gz", array)
        done = run_here("generate", "-i", "x.nii.gz", "--kind", "left_right", cwd=tmp_path)
        assert (done.returncode, words in done.stderr, "x.nii.gz" in done.stderr) == (2, True, True)
        assert not list(tmp_path.rglob("*_left_right*"))
    with pytest.raises(InputError):  # less than half a grey value
        made(as_image(brain(np.uint8), tmp_path), "noise_in_range", level=1e-6)


def test_single_images_of_any_intensity(tmp_path):
    write_image(tmp_path / "x.nii.gz", brain(np.int16, high=4000))  # beyond --maximum, which is not for this kind
    done = run_here("generate", "-i", "x.nii.gz", "--kind", "blur", "--output-folder", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x_blur.nii.gz"]


def test_a_swapped_label_is_of_experiments_only(tmp_path):
    write_image(tmp_path / "x.nii.gz", brain())
    done = run_here("generate", "-i", "x.nii.gz", "--kind", "swapped_label", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "-fn_train" in done.stderr


@pytest.mark.parametrize("kind", ["swapped_label", "spike"])
def test_an_experiment_of_a_new_kind(kind, cohort, tmp_path):
    options = ("-fn_train", cohort / "training_set.csv", "--kind", kind, "--experiment", "single", "--centers", 3)
    done = run_here("generate", *options, "--output-folder", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    good = pd.read_csv(cohort / "training_set.csv", index_col="Subject")
    training = pd.read_csv(tmp_path / "out" / "training_set.csv", index_col="Subject")
    truth = pd.read_csv(tmp_path / "out" / "truth.csv")
    assert list(truth.columns) == ["Subject", "Study", "Kind", "Experiment", "Source"]
    assert set(truth["Kind"]) == {kind}
    assert training.loc[good.index, "Group_bin"].equals(good["Group_bin"])
    changes = []
    for row in truth.itertuples():
        assert row.Subject == f"{row.Source}_{kind}"
        label = good.loc[row.Source, "Group_bin"]
        assert training.loc[row.Subject, "Group_bin"] == (1 - label if kind == "swapped_label" else label)
        paths = cohort / good.loc[row.Source, "Path"], tmp_path / "out" / training.loc[row.Subject, "Path"]
        source, harmful = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in paths)
        assert np.array_equal(source, harmful) == (kind == "swapped_label")
        changes.append(np.abs(np.fft.fftn(harmful - source)).argmax())
    assert len(set(changes)) == (1 if kind == "swapped_label" else 3)  # every image has a spike of its own


def test_help_knows_every_kind():
    table = harm.in_words()
    for kind, entry in harm.KINDS.items():
        strength = "" if entry.strength is None else f"{entry.strength:g}"
        assert re.search(rf"^ +{kind} +X{harm.suffix(kind)}: .*{strength}", table, re.MULTILINE)
