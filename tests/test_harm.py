"""Every kind of harm: what it keeps, what it changes, and that its seed decides."""

import re

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import ROOT, run_here, write_image

from travelling import harm
from travelling.errors import InputError

NEW = [kind for kind in harm.KINDS if kind not in harm.PUBLISHED]
RANDOM = ("noise", "noise_in_range", "pure_noise", "spike")
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
    assert np.array_equal(made(image, kind, seed=(42, 1)), first) == (kind not in RANDOM)
    assert np.array_equal(made(image, kind, seed=(43, 0)), first) == (kind not in RANDOM)


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
    assert noise[~head].mean() == pytest.approx(high / 2, rel=0.1)


def test_blur_and_ghosts_of_a_point(tmp_path):
    point = np.zeros((25, 24, 23))
    point[12, 12, 11] = 1000
    image = as_image(point, tmp_path)
    blurred = made(image, "blur")
    for axis, position in enumerate(np.indices(point.shape)):  # sigma is in voxels, along every axis
        variance = np.average((position - (12, 12, 11)[axis]) ** 2, weights=blurred)
        assert variance == pytest.approx(2**2, rel=0.01)
    ghosts = made(image, "ghosting")
    assert np.argwhere(ghosts > 1).tolist() == [[12, 6, 11], [12, 12, 11], [12, 18, 11]]
    assert ghosts[12, 6::6, 11] == pytest.approx([300, 1000, 300])


def test_a_spike_is_one_point_of_k_space(tmp_path):
    flat = np.full((24, 24, 24), 100.0)
    flat[0, 0, :2] = 0, 200  # leaves room for the stripes
    stripes = made(as_image(flat, tmp_path), "spike") - flat
    points = np.sort(np.abs(np.fft.fftn(stripes)).ravel())[::-1]
    assert points[:2] == pytest.approx(0.15 * 200 * flat.size / 2, rel=0.05)  # and its mirror
    assert points[2] < points[1] / 20


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
    changes = [np.abs(made(image, kind, level=level).astype(float) - array).mean() for level in (0.5, 1, 1.5)]
    assert changes[0] < changes[1] < changes[2]
    assert harm.strength_of(kind, 1.5) == 1.5 * harm.KINDS[kind].strength


def test_a_level_that_means_nothing_is_refused(tmp_path):
    write_image(tmp_path / "x.nii.gz", brain())
    refusals = [("cropped", 2, "needs less than 2"), ("both", 1, "inverted has no strength"), ("blur", 0, "--level")]
    refusals += [(kind, 1, "has no strength") for kind in NEW if kind not in (*STRONG, "swapped_label")]
    for kind, level, words in refusals:
        done = run_here("generate", "-i", "x.nii.gz", "--kind", kind, "--level", level, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
        assert "--level" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]


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


def test_help_and_docs_know_every_kind():
    page = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    table = harm.in_words()
    for kind, entry in harm.KINDS.items():
        strength = "" if entry.strength is None else f"{entry.strength:g}"
        assert re.search(rf"^ +{kind} +X{harm.suffix(kind)}: .*{strength}", table, re.MULTILINE)
        published = kind in harm.PUBLISHED
        row = rf"^- \*{kind}\*, `X{harm.suffix(kind)}" if published else rf"^\| `{kind}` \|.*\|.*\b{strength}\b.*\|$"
        assert re.search(row if strength or published else rf"^\| `{kind}` \|.*\| \|$", page, re.MULTILINE), kind
