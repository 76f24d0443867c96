"""The demo cohort: who is in it, what its images are, and that its signals are the ones it claims."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

SCRIPT = Path(__file__).parents[1] / "reproduce" / "make_demo_cohort.py"
SPACING = 4.0  # mm
ROW = {"Subject": "demo_X_001", "Study": "X", "Group_bin": 0, "Sex": "F", "Scanner": "Siemens Skyra"}


@pytest.fixture(scope="module")
def demo():
    """The script as a module; `reproduce` is a folder of scripts, not a package."""
    spec = importlib.util.spec_from_file_location("make_demo_cohort", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def centers(demo):
    return pd.read_csv(demo.CENTERS_FILE)


def volume(demo, row, effect=1.0, seed=42, **changed_traits):
    """The image of a subject, with some of its drawn traits replaced."""
    traits, rng = demo.draw_subject(row, effect, seed)
    return demo.make_volume(row, {**traits, **changed_traits}, rng, SPACING, seed)


def voxels(demo, row, **options):
    return sitk.GetArrayFromImage(volume(demo, row, **options))


# Who is in it


def test_largest_remainder(demo):
    assert demo.largest_remainder(5, [10, 10, 0]) == [3, 2, 0]  # the tie goes to the first
    assert demo.largest_remainder(3, [1, 7, 4]) == [0, 2, 1]
    assert demo.largest_remainder(0, [0, 0]) == [0, 0]


def test_at_full_size_the_counts_are_those_of_the_paper(demo, centers):
    training, test = demo.plan_cohort(centers, 1)
    assert (len(training), len(test)) == (1410, 407)
    for part, rows in (("train", training), ("test", test)):
        made = Counter((r["Study"], "PD" if r["Group_bin"] else "HC", r["Sex"]) for r in rows)
        for center in centers.to_dict("records"):
            for group, sex in demo.CELLS:
                assert made[center["center"], group, sex] == center[f"{part}_{group}_{sex}"]


def test_at_a_quarter_all_centers_and_the_test_balance_stay(demo, centers):
    training, test = demo.plan_cohort(centers, 4)
    assert (len(training), len(test)) == (387, 102)
    assert len({r["Study"] for r in training}) == 83
    assert sum(r["Group_bin"] for r in test) == 47  # 187 of 407
    real = {(r["Study"], r["Group_bin"], r["Sex"]) for r in demo.plan_cohort(centers, 1)[1]}
    assert {(r["Study"], r["Group_bin"], r["Sex"]) for r in test} <= real


def test_no_subject_is_in_both_sets_or_twice(demo, centers):
    for shrink in (1, 4, 7):
        training, test = demo.plan_cohort(centers, shrink)
        assert len({r["Subject"] for r in training + test}) == len(training) + len(test)


def test_a_subject_is_the_same_one_in_a_smaller_cohort(demo, centers):
    full = {r["Subject"]: r for part in demo.plan_cohort(centers, 1) for r in part}
    assert all(full[r["Subject"]] == r for part in demo.plan_cohort(centers, 4) for r in part)


def test_age_is_the_same_in_both_classes_and_drives_the_ventricles(demo, centers):
    rows = demo.plan_cohort(centers, 1)[0]
    traits = pd.DataFrame([demo.draw_subject(r, 1.0, 42)[0] for r in rows])
    is_pd = np.array([r["Group_bin"] for r in rows]) == 1
    assert traits.age.between(45, 80).all()
    assert abs(traits.age[is_pd].mean() - traits.age[~is_pd].mean()) < 1.5
    assert np.corrcoef(traits.age, traits.ventricles)[0, 1] > 0.8
    difference = traits.darkening[is_pd].mean() - traits.darkening[~is_pd].mean()
    assert difference == pytest.approx(demo.EFFECT_MEAN, abs=0.02)


# What an image is


def test_file(demo, tmp_path):
    (tmp_path / "images").mkdir()
    row = demo.write_subject(ROW, tmp_path, SPACING, 1.0, 42)
    assert row["Path"] == "images/demo_X_001.nii.gz"
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["demo_X_001.nii.gz"]
    image = sitk.ReadImage(str(tmp_path / row["Path"]))
    assert image.GetSize() == (40, 48, 40)  # x, y, z
    assert image.GetSpacing() == (SPACING,) * 3
    assert image.GetPixelID() == sitk.sitkFloat32
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    assert middle == pytest.approx((0, 17, 5))  # MNI (0, -17, 5): SimpleITK's y points to the back

    array = sitk.GetArrayFromImage(image)  # (z, y, x)
    assert array.min() == 0
    assert array.max() == 1
    assert (array[:, :, :2] == 0).all()
    assert (array[:, :2] == 0).all()
    brain_litres = (array > 0).sum() * SPACING**3 / 1e6
    assert 1.2 < brain_litres < 1.8


SIZES = [(1.0, [160, 192, 160]), (4.0, [40, 48, 40]), (4.8, [33, 40, 33])]  # mm; voxels x, y, z


@pytest.mark.parametrize(("spacing", "size"), SIZES)
def test_size(demo, spacing, size):
    assert demo.image_size(spacing) == size


def test_the_image_is_the_right_way_round(demo):
    """Ventricles are dark, the white matter above and behind is bright, at their MNI coordinates."""
    image = volume(demo, ROW)
    array = sitk.GetArrayFromImage(image)
    x, y, z = demo.mni_axes(image)

    def mean_around(point):
        distance = np.sqrt((np.abs(x) - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2)
        return array[distance < 6].mean()

    frontal_horn = mean_around((6, 8, 14))
    assert frontal_horn < 0.6 * mean_around((25, -20, 30))
    assert frontal_horn < 0.6 * mean_around((26, 30, 10))
    assert array[np.broadcast_to((z > 60) & (y > 50), array.shape)].max() == 0  # no head above the forehead
    assert array[np.broadcast_to((z < -40) & (y > 25), array.shape)].max() == 0  # nor below it


def test_same_seed_same_voxels(demo):
    first = voxels(demo, ROW)
    voxels(demo, {**ROW, "Subject": "demo_X_002"})
    for cached in (demo.template_maps, demo.ventricle_direction, demo.draw_acquisition):
        cached.cache_clear()
    assert (voxels(demo, ROW) == first).all()
    assert (voxels(demo, ROW, seed=43) != first).any()
    assert (voxels(demo, {**ROW, "Subject": "demo_X_002"}) != first).any()


# What the signals are


def putamen(demo, image):
    """Mean of the putamen, as a share of the mean of the brain."""
    array = sitk.GetArrayFromImage(image)
    return array[demo.nucleus_weight("putamen", image) > 0.5].mean() / array[array > 0].mean()


def test_disease_darkens_the_putamen(demo):
    for number in range(4):
        healthy = {**ROW, "Subject": f"demo_X_{number:03d}"}
        ill = {**healthy, "Group_bin": 1}
        assert putamen(demo, volume(demo, ill)) < 0.95 * putamen(demo, volume(demo, healthy))


def test_no_effect_no_difference(demo):
    ill = {**ROW, "Group_bin": 1}
    assert (voxels(demo, ill, effect=0.0) == voxels(demo, ROW, effect=0.0)).all()


def test_ventricles_grow_with_age(demo):
    image = volume(demo, ROW)
    x, y, z = demo.mni_axes(image)
    around = (np.abs(x) < 20) & (np.abs(y) < 22) & (z > 4) & (z < 26)
    means = []
    for age in (45, 62, 80):
        growth = demo.VENTRICLE_GROWTH * (age - 45)
        means.append(voxels(demo, ROW, age=age, ventricles=growth)[around].mean())
    assert means[0] > 1.02 * means[1] > 1.04 * means[2]


def test_men_have_larger_heads(demo):
    assert (voxels(demo, {**ROW, "Sex": "M"}) > 0).sum() > 1.08 * (voxels(demo, ROW) > 0).sum()


# The command line


def command(*options):
    return subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spacing", "0"], "must be more than 0 mm"),
        (["--spacing", "5"], "an axis must have at least 33 voxels"),
        (["--shrink", "0"], "--shrink"),
        (["--shrink", "1000"], "both classes"),
        (["--effect", "-1"], "--effect"),
        (["--effect", "inf"], "--effect"),
        ([], "is not empty"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, message):
    (tmp_path / "notes.txt").write_text("mine\n")
    result = command("--output-folder", tmp_path, *options)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = command("--output-folder", tmp_path / "file" / "cohort")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_whole_command(tmp_path):
    """The smallest cohort, coarsest grid; --overwrite takes away an earlier cohort and nothing else."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "demo_OLD_001.nii.gz").write_text("")
    (tmp_path / "notes.txt").write_text("mine\n")
    options = ["--output-folder", tmp_path, "--shrink", "150", "--spacing", "4.8", "--overwrite"]
    result = command(*options)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "notes.txt").exists()
    paths = []
    for name in ("training_set.csv", "test_set.csv"):
        rows = pd.read_csv(tmp_path / name)
        assert list(rows.columns) == ["Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Scanner"]
        assert set(rows.Group_bin) == {0, 1}
        paths += list(rows.Path)
    assert sorted(paths) == sorted(f"images/{p.name}" for p in (tmp_path / "images").iterdir())
