"""The demo cohort: who is in it, what its images are, and that its signals are the ones it claims."""

import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import ROOT

sys.path.insert(0, str(ROOT / "reproduce"))
import demo_images as demo
import demo_subjects

from prepare_images.template import empty_image, image_size

SCRIPT = ROOT / "reproduce" / "make_demo_cohort.py"
SPACING = 4.0  # mm
ROW = {"Subject": "demo_X_001", "Study": "X", "Group_bin": 0, "Sex": "F", "Scanner": "Siemens Skyra"}


def volume(row, effect=1.0, seed=42, **changed_traits):
    """The image of a subject, with some of its drawn traits replaced."""
    traits, rng = demo.draw_subject(row, effect, seed)
    return demo.make_volume(row, {**traits, **changed_traits}, rng, SPACING, seed)


def voxels(row, **options):
    return sitk.GetArrayFromImage(volume(row, **options))


# Who is in it


def test_largest_remainder():
    assert demo_subjects.largest_remainder(5, [10, 10, 0]) == [3, 2, 0]  # the tie goes to the first
    assert demo_subjects.largest_remainder(3, [1, 7, 4]) == [0, 2, 1]
    assert demo_subjects.largest_remainder(0, [0, 0]) == [0, 0]


def cells(rows):
    return Counter((row["Study"], "PD" if row["Group_bin"] else "HC", row["Sex"]) for row in rows)


def test_at_full_size_the_counts_are_those_of_the_paper():
    training, test, _ = demo_subjects.plan_cohort(1)
    assert (len(training), len(test)) == (1410, 407)
    for part, rows in (("train", training), ("test", test)):
        made = cells(rows)
        for center in pd.read_csv(demo_subjects.CENTERS_FILE).to_dict("records"):
            for group, sex in demo_subjects.CELLS:
                assert made[center["center"], group, sex] == center[f"{part}_{group}_{sex}"]


def test_at_a_quarter_all_centers_and_the_test_balance_stay():
    training, test, holdout = demo_subjects.plan_cohort(4)
    assert (len(training), len(test)) == (387, 102)
    assert len({r["Study"] for r in training}) == 83
    assert sum(r["Group_bin"] for r in test) == 47  # 187 of 407
    assert cells(test).keys() <= cells(demo_subjects.plan_cohort(1)[1]).keys()
    assert cells(holdout) == cells(test)


def test_nobody_is_in_two_sets_and_everybody_is_the_same_one_in_a_smaller_cohort():
    full = {row["Subject"]: row for rows in demo_subjects.plan_cohort(1) for row in rows}
    for shrink in (1, 4, 7):
        rows = [row for rows in demo_subjects.plan_cohort(shrink) for row in rows]
        assert len({row["Subject"] for row in rows}) == len(rows)
        assert all(full[row["Subject"]] == row for row in rows)


def test_age_is_the_same_in_both_classes_and_drives_the_ventricles():
    rows = demo_subjects.plan_cohort(1)[0]
    traits = pd.DataFrame([demo.draw_subject(r, 1.0, 42)[0] for r in rows])
    is_pd = np.array([r["Group_bin"] for r in rows]) == 1
    assert traits.age.between(45, 80).all()
    assert abs(traits.age[is_pd].mean() - traits.age[~is_pd].mean()) < 1.5
    assert np.corrcoef(traits.age, traits.ventricles)[0, 1] > 0.8
    difference = traits.darkening[is_pd].mean() - traits.darkening[~is_pd].mean()
    assert difference == pytest.approx(demo.EFFECT_MEAN, abs=0.02)


# What an image is


def test_file(tmp_path):
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
def test_size(spacing, size):
    assert image_size(spacing) == size


def test_the_image_is_the_right_way_round():
    """Ventricles are dark, the white matter above and behind is bright, at their MNI coordinates."""
    image = volume(ROW)
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


def test_same_seed_same_voxels():
    first = voxels(ROW)
    voxels({**ROW, "Subject": "demo_X_002"})
    for cached in (demo.template_maps, demo.ventricle_direction, demo.draw_acquisition):
        cached.cache_clear()
    assert (voxels(ROW) == first).all()
    assert (voxels(ROW, seed=43) != first).any()
    assert (voxels({**ROW, "Subject": "demo_X_002"}) != first).any()


# What the signals are


def putamen(image):
    """Mean of the putamen, as a share of the mean of the brain."""
    array = sitk.GetArrayFromImage(image)
    return array[demo.nucleus_weight("putamen", image) > 0.5].mean() / array[array > 0].mean()


def test_disease_darkens_the_putamen():
    for number in range(4):
        healthy = {**ROW, "Subject": f"demo_X_{number:03d}"}
        ill = {**healthy, "Group_bin": 1}
        assert putamen(volume(ill)) < 0.95 * putamen(volume(healthy))


def test_no_effect_no_difference():
    ill = {**ROW, "Group_bin": 1}
    assert (voxels(ill, effect=0.0) == voxels(ROW, effect=0.0)).all()


def test_ventricles_grow_with_age():
    image = volume(ROW)
    x, y, z = demo.mni_axes(image)
    around = (np.abs(x) < 20) & (np.abs(y) < 22) & (z > 4) & (z < 26)
    means = []
    for age in (45, 62, 80):
        growth = demo.VENTRICLE_GROWTH * (age - 45)
        means.append(voxels(ROW, age=age, ventricles=growth)[around].mean())
    assert means[0] > 1.02 * means[1] > 1.04 * means[2]


def test_men_have_larger_heads():
    assert (voxels({**ROW, "Sex": "M"}) > 0).sum() > 1.08 * (voxels(ROW) > 0).sum()


def command(*options):
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, check=False)


# Brains in the template's place


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """Six files of five people: the template at 3 mm, deformed by 3 mm and with intensities of each file's own."""
    folder = tmp_path_factory.mktemp("brains")
    target = empty_image(3.0, image_size(3.0))
    for number in range(6):
        warp = 3 * demo.smooth_noise(demo_subjects.generator(number, "brain"), 15.0, channels=3)
        field = sitk.DisplacementFieldTransform(demo.on_warp_grid(warp, is_vector=True))
        brain = sitk.Resample(demo.template_maps(2.0)[0], target, field) * (100 + 50 * number)
        sitk.WriteImage(sitk.Cast(brain, sitk.sitkInt16), str(folder / f"brain_{number}.nii.gz"))
    (folder / "people.csv").write_text("File,Participant\nbrain_1.nii.gz,anna\nbrain_4.nii.gz,anna\nbrain_2.nii.gz,\n")
    return folder


def test_who_is_in_which_file(brains):
    people = demo_subjects.find_people(brains)
    files = {person: [path.name for path in paths] for person, paths in people.items()}
    assert files.pop("anna") == ["brain_1.nii.gz", "brain_4.nii.gz"]
    assert files == {f"brain_{number}": [f"brain_{number}.nii.gz"] for number in (0, 2, 3, 5)}


def test_nobody_lends_a_brain_to_both_sets(brains):
    people, sides = demo_subjects.find_people(brains), set()
    for seed in range(8):
        training, test, _ = demo_subjects.plan_cohort(4)
        demo_subjects.choose_brains(training, test, people, seed)
        sets = [{row["Anatomy"] for row in rows} for rows in (training, test)]
        assert [len(one) for one in sets] == [3, 2]
        assert not sets[0] & sets[1]
        assert all(row["Scan"] in people[row["Anatomy"]] for row in training + test)
        assert {row["Scan"] for row in training + test} == {path for paths in people.values() for path in paths}
        sides.add(tuple(sorted(sets[1])))
        smaller = demo_subjects.plan_cohort(30)[:2]
        demo_subjects.choose_brains(*smaller, people, seed)
        full = {row["Subject"]: row for row in training + test}
        assert all(full[row["Subject"]] == row for rows in smaller for row in rows)
    assert len(sides) > 3  # the seed decides


def test_the_maps_of_a_brain(brains, tmp_path):
    """On the template's scale, whatever the file's is, with the nuclei of the template where this brain has tissue."""
    path = brains / "brain_3.nii.gz"
    t1, brain, nuclei, thinning = map(sitk.GetArrayFromImage, demo.brain_maps(path, SPACING))
    _, mask, all_nuclei, all_thinning = map(sitk.GetArrayFromImage, demo.template_maps(SPACING))
    assert np.percentile(t1[brain > 0.5], demo.WHITE_PERCENTILE) == pytest.approx(demo.WHITE_INTENSITY, abs=0.03)
    assert 0.85 < 2 * ((brain > 0.5) & (mask > 0.5)).sum() / ((brain > 0.5).sum() + (mask > 0.5).sum()) < 0.99
    assert (nuclei <= all_nuclei + 0.02).all()  # the smoothing swings a little below 0
    assert (thinning <= all_thinning + 0.02).all()
    assert nuclei[t1 > demo.GREY_INTENSITY] == pytest.approx(all_nuclei[t1 > demo.GREY_INTENSITY])
    assert not nuclei[t1 < demo.CSF_INTENSITY].any()
    brighter = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat64) * 0.01
    sitk.WriteImage(brighter, str(tmp_path / "x.nii"))
    assert sitk.GetArrayFromImage(demo.brain_maps(tmp_path / "x.nii", SPACING)[0]) == pytest.approx(t1, abs=1e-3)


def test_a_subject_has_the_brain_that_it_is_given(brains):
    rows = [{**ROW, "Scan": brains / f"brain_{number}.nii.gz"} for number in range(6)]
    made = [voxels(row) for row in rows]
    for cached in (demo.template_maps, demo.brain_maps):
        cached.cache_clear()
    assert (voxels(rows[0]) == made[0]).all()
    target = empty_image(SPACING, image_size(SPACING))
    maps = [sitk.GetArrayFromImage(sitk.Resample(demo.brain_maps(row["Scan"], SPACING)[0], target)) for row in rows]
    same_traits = [voxels(row, scale=1.0, ventricles=0.0, darkening=0.0) for row in rows]
    alike = np.corrcoef([a.ravel() for a in same_traits], [a.ravel() for a in maps])[:6, 6:]
    assert alike.argmax(axis=1).tolist() == list(range(6))
    for row in rows[:3]:
        assert putamen(volume({**row, "Group_bin": 1})) < 0.95 * putamen(volume(row))


def people(text):
    return lambda folder: (folder / "people.csv").write_text(text)


def another(change):
    """Change one image of the folder."""

    def spoil(folder):
        image = sitk.ReadImage(str(folder / "brain_2.nii.gz"))
        sitk.WriteImage(change(image), str(folder / "brain_2.nii.gz"))

    return spoil


def moved(image):
    image.SetOrigin([place + 30 for place in image.GetOrigin()])
    return image


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("brain_*")], "holds no images"),
        (
            people("File,Participant\n" + "".join(f"brain_{n}.nii.gz,{n // 2}\n" for n in range(6))),
            "3 people, at least",
        ),
        (people("File,Participant\nbrain_9.nii.gz,anna\n"), "no image 'brain_9.nii.gz'"),
        (people("Image,Person\nbrain_1.nii.gz,anna\n"), "columns File, Participant"),
        (another(moved), "brain_2.nii.gz: not a skull-stripped brain in MNI space"),
        (another(lambda image: image + 100), "brain_2.nii.gz: not a skull-stripped brain in MNI space"),
        (another(lambda image: (image > 0) * 100), "brain_2.nii.gz: a flat image"),
        (None, "--anatomies: not with --raw"),
    ],
)
def test_brains_that_cannot_serve_are_refused(brains, tmp_path, spoil, message):
    folder = shutil.copytree(brains, tmp_path / "brains")
    if spoil:
        spoil(folder)
    result = command(
        "--output-folder", tmp_path / "cohort", "--anatomies", folder, *([] if spoil else ["--raw"]), "--spacing", 4.8
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr
    assert not (tmp_path / "cohort").exists()


# The command line


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
        (["--output-folder", "{}/notes.txt/cohort"], "cannot be written"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path, options, message):
    (tmp_path / "notes.txt").write_text("mine\n")
    result = command("--output-folder", tmp_path, *(option.format(tmp_path) for option in options))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_whole_command_with_brains(brains, tmp_path):
    options = ["--anatomies", brains, "--shrink", "150", "--spacing", "4.8"]
    result = command("--output-folder", tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "in the brains of 5 people" in result.stdout
    training, test = (pd.read_csv(tmp_path / name) for name in ("training_set.csv", "test_set.csv"))
    assert list(training.columns) == list(test.columns)
    assert training.columns[-1] == "Anatomy"
    assert not set(training["Anatomy"]) & set(test["Anatomy"])
    assert not (tmp_path / "holdout_set.csv").exists()


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
    for name in ("training_set.csv", "test_set.csv", "holdout_set.csv"):
        rows = pd.read_csv(tmp_path / name)
        assert list(rows.columns) == ["Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Scanner"]
        assert set(rows.Group_bin) == {0, 1}
        paths += list(rows.Path)
    assert sorted(paths) == sorted(f"images/{p.name}" for p in (tmp_path / "images").iterdir())
