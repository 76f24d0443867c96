"""Inputs that are not what they seem: what a file tells, what a thing is, what the user's machine adds.

Each test stands for a kind of fault that was found in public problem reports. What may not happen is a wrong number
without a word.
"""

import errno
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SCRIPTS, Arguments, run_here, run_script
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from travelling.errors import InputError
from travelling.images.cohort import copies, read_cohort
from travelling.images.itk import read_image, to_array
from travelling.images.local_trainer import LocalTrainer
from travelling.images.nifti import read_upright, read_voxels
from travelling.images.plain_trainer import INTENSITY
from travelling.images.test_set import refuse_overlap
from travelling.images.volumes import Volumes
from travelling.network.model_files import SPACE
from travelling.runs import command, record, stopping
from travelling.runs.run import Run

SHAPE = (33, 34, 35)  # x, y, z
AFFINE = np.array([[4.0, 0, 0, -66], [0, 4, 0, -80], [0, 0, 4.5, -70], [0, 0, 0, 1]])  # RAS


@pytest.fixture
def voxels():
    return np.random.default_rng(0).uniform(0, 1, SHAPE).astype(np.float32)  # x, y, z


def save(path, voxels, affine=AFFINE, sform=2, qform=0):
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def turned(path, voxels, code):
    """The same image, stored with its axes running as ``code`` says."""
    image = nib.Nifti1Image(voxels, AFFINE)
    image = image.as_reoriented(ornt_transform(io_orientation(AFFINE), axcodes2ornt(code)))
    return save(path, np.asanyarray(image.dataobj), image.affine)


def volumes_of(*paths, reorient=False, space=None):
    """Volumes with these images, and the notices."""
    volumes = Volumes(1, paths[0].parent / "cache", reorient, space)
    volumes.add(pd.DataFrame({"Subject": [path.name for path in paths], "Path": [str(path) for path in paths]}))
    return volumes, volumes.decode()


def refusal(*paths, **options):
    with pytest.raises(InputError) as error:
        volumes_of(*paths, **options)
    return str(error.value)


# What a file tells


@pytest.mark.parametrize("code", ["LAS", "LPS", "SAR", "PIR"])
def test_another_orientation_is_refused_or_turned(code, voxels, tmp_path):
    first, other = save(tmp_path / "a.nii.gz", voxels), turned(tmp_path / "b.nii.gz", voxels, code)
    message = refusal(first, other)
    assert message.startswith(f"{other}: its axes run {code}, those of {first} RAS")
    assert "--reorient" in message
    volumes, notices = volumes_of(first, other, reorient=True)
    np.testing.assert_array_equal(*volumes.batch(["a.nii.gz", "b.nii.gz"]))
    assert notices == [f"1 image turned from {code} to RAS as {first} (--reorient): {other}"]
    np.testing.assert_array_equal(read_upright(other), voxels.T)


def test_what_is_turned_is_turned_on_disk_too(voxels, tmp_path):
    first, other = save(tmp_path / "a.nii.gz", voxels), turned(tmp_path / "b.nii.gz", voxels, "SAR")
    volumes = Volumes(0, tmp_path, reorient=True)
    volumes.add(pd.DataFrame({"Subject": ["a", "b"], "Path": [str(first), str(other)]}))
    volumes.decode()
    np.testing.assert_array_equal(*volumes.batch(["a", "b"]))


def moved(**changes):
    affine = AFFINE.copy()
    for place, value in changes.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


@pytest.mark.parametrize("reorient", [False, True])
@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (moved(a22=2.25), "voxels of 4 x 4 x 2.25 mm, but those of"),
        (moved(a03=-63.6), "lies up to 0.6 voxels from where"),
        (moved(a01=0.2), "lies up to 1.65 voxels from where"),  # tilted
    ],
)
def test_what_would_need_resampling_is_refused(affine, words, reorient, voxels, tmp_path):
    first, other = save(tmp_path / "a.nii", voxels), save(tmp_path / "b.nii", voxels, affine)
    message = refusal(first, other, reorient=reorient)
    assert message.startswith(f"{other}: ")
    assert words in message
    assert str(first) in message
    assert "resampling" in message


def test_an_origin_within_half_a_voxel_is_the_same(voxels, tmp_path):
    _, notices = volumes_of(save(tmp_path / "a.nii", voxels), save(tmp_path / "b.nii", 1 - voxels, moved(a03=-64.2)))
    assert notices == []


def test_images_of_a_center_agree_with_those_of_the_home(voxels, tmp_path):
    """Which are elsewhere: their shape and affine come with the model."""
    home, _ = volumes_of(save(tmp_path / "home.nii", voxels))
    space = json.loads(json.dumps(home.space))  # as it travels
    center = turned(tmp_path / "center.nii", voxels, "LAS")
    assert "its axes run LAS, those of the model's first image RAS" in refusal(center, space=space)
    volumes, _ = volumes_of(center, reorient=True, space=space)
    np.testing.assert_array_equal(volumes.batch(["center.nii"])[0, ..., 0], voxels.T)
    smaller = save(tmp_path / "smaller.nii", voxels[..., :-1])
    assert "33 x 34 x 34 voxels, but the model's first image has 33 x 34 x 35" in refusal(smaller, space=space)
    assert "but the model's first image has" in refusal(smaller, space={"shape": home.shape, "affine": None})


def test_what_a_user_should_know_of_headers_is_told_once(voxels, tmp_path):
    differing = nib.Nifti1Image(voxels, AFFINE)
    differing.set_sform(AFFINE, 4)
    differing.set_qform(moved(a03=-70), 1)
    paths = [save(tmp_path / f"{name}.nii", voxels + number) for number, name in enumerate("abc")]
    for path in paths[1:]:
        nib.save(differing, path)
    skewed = save(tmp_path / "d.nii", voxels, moved(a01=0.02))
    silent = save(tmp_path / "e.nii", voxels, sform=0)
    volumes, notices = volumes_of(*paths, skewed, silent)
    assert notices == [
        f"2 images whose qform and sform differ (the sform counts): {paths[1]} and others",
        f"1 image with axes that are not at right angles: {skewed}",
        f"1 image that tell no orientation, neither as qform nor as sform (taken as they are): {silent}",
    ]
    np.testing.assert_array_equal(volumes.batch(["d.nii"])[0, ..., 0], voxels.T)
    assert read_image(skewed).GetSize() == SHAPE


def patch(path, *changes):
    """Write other values, (place, struct's format, value), into the bytes of a file."""
    content = bytearray(path.read_bytes())
    for place, kind, *values in changes:
        struct.pack_into(f"<{kind}", content, place, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("slope", "intercept"), [(0, -0.5), (np.nan, 1), (np.inf, 0), (1, 0)])
def test_a_slope_of_zero_or_nan_scales_nothing(slope, intercept, voxels, tmp_path):
    path = patch(save(tmp_path / "x.nii", voxels), (112, "2f", slope, intercept))
    np.testing.assert_array_equal(read_voxels(path)[0], voxels.T)
    np.testing.assert_array_equal(to_array(read_image(path)), voxels.T)


def test_a_slope_scales(tmp_path):
    array, _ = read_voxels(patch(save(tmp_path / "x.nii", np.full(SHAPE, 3, np.int16)), (112, "2f", 0.5, -1)))
    assert array.dtype == np.float32
    assert set(array.flat) == {0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([(254, "h", 77)], "no possible one"),  # codes that do not exist
        ([(252, "h", -3)], "no possible one"),
        ([(80, "f", -4)], "no possible one"),  # voxel sizes of zero or less, where they count
        ([(88, "f", 0)], "no possible one"),
        ([(70, "h", 4)], "bits per voxel are no possible ones"),  # int16, of 32 bits per voxel
        ([(70, "h", 4), (72, "h", 16)], "longer than the"),
        ([(40, "h", 4), (48, "h", 0)], "its header tells 4 axes of [33, 34, 35, 0] voxels"),
        ([(40, "h", 4), (48, "h", -2)], "its header tells 4 axes of [33, 34, 35, -2] voxels"),
        ([(264, "f", 1.001)], "no possible one"),  # a quaternion longer than 1, and no sform
    ],
)
def test_what_a_library_would_correct_is_refused(changes, words, voxels, tmp_path):
    assert words in refusal(patch(save(tmp_path / "x.nii", voxels, sform=0, qform=1), *changes))


def test_padding_is_no_damage_but_more_is(voxels, tmp_path):
    path = save(tmp_path / "x.nii", voxels)
    content = path.read_bytes()
    path.write_bytes(content + bytes(1000))
    np.testing.assert_array_equal(read_voxels(path)[0], voxels.T)
    path.write_bytes(content + content[352:])
    assert "longer than the" in refusal(path)


def test_an_unusable_qform_beside_an_sform_is_told(voxels, tmp_path):
    path = patch(save(tmp_path / "x.nii", voxels, qform=1), (264, "f", 1.001))
    assert volumes_of(path)[1] == [f"1 image whose qform cannot be read (the sform counts): {path}"]


@pytest.mark.parametrize(("affine", "sform"), [(moved(a01=0.2), 4), (AFFINE, 0)])
def test_a_harmful_image_lies_where_its_source_does(affine, sform, voxels, tmp_path):
    """With tilted axes, and where the source does not tell how it lies."""
    source = save(tmp_path / "x.nii.gz", voxels, affine, sform)
    done = run_here("generate", "-i", source, "--kind", "blur", "--output-folder", tmp_path / "harm", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    volumes, notices = volumes_of(source, tmp_path / "harm" / "x_blur.nii.gz")
    assert len(notices) == 1
    assert notices[0].startswith("2 images ")
    assert volumes.batch(["x_blur.nii.gz"]).std() > 0.01


def test_a_link_into_a_store_without_endings_is_followed(voxels, tmp_path):
    stored = save(tmp_path / "store.nii", voxels).rename(tmp_path / "5f3a")
    (tmp_path / "a.nii").symlink_to(stored)
    path = tmp_path / "cohort.csv"
    pd.DataFrame([["a", "c", "a.nii", 0, "M"]], columns=COLUMNS).to_csv(path, index=False)
    (found,) = read_cohort(path)["Path"]
    assert found == str(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_voxels(found)[0], voxels.T)
    pd.DataFrame([["a", "c", "a.nii", 0, "M"], ["b", "c", "5f3a", 0, "M"]], columns=COLUMNS).to_csv(path, index=False)
    with pytest.raises(InputError, match="the image belongs to another subject"):
        read_cohort(path)


def test_kinds_of_harm_go_by_the_orientation_of_a_file(tmp_path):
    """The lower end of the head is cropped, wherever the file keeps it."""
    from travelling.images.harm import make_harmful

    voxels = np.random.default_rng(1).uniform(1, 2, SHAPE).astype(np.float32)
    first, other = save(tmp_path / "a.nii", voxels), turned(tmp_path / "b.nii", voxels, "PIR")
    for kind in ("cropped", "upside_down", "left_right", "ghosting", "spike", "noise_in_range"):
        for path in (first, other):
            from travelling.images.itk import write_image

            write_image(make_harmful(read_image(path), kind, 255, seed=3), tmp_path / f"h_{path.name}")
        straight, again = (read_upright(tmp_path / f"h_{path.name}") for path in (first, other))
        np.testing.assert_allclose(straight, again, rtol=1e-6, err_msg=kind)
        assert nib.aff2axcodes(nib.load(tmp_path / "h_b.nii").affine) == ("P", "I", "R")
    write_image(make_harmful(read_image(other), "cropped", 255, seed=3), tmp_path / "h.nii")
    upright = read_upright(tmp_path / "h.nii")
    assert upright[:17].max() == 0
    assert upright[20:].min() >= 1


# What a thing is, not how it is called


@pytest.fixture
def run(tmp_path):
    """Function: a session of a run, which may end; and the volumes of its image."""
    (tmp_path / "x.csv").write_text("a")

    def session(finish=False, overwrite=False, device="a device"):
        arguments = Arguments(fn=tmp_path / "x.csv", overwrite=overwrite)
        try:
            images = {"x.nii": tmp_path / "x.nii"}
            run = Run(tmp_path / "run", "log", arguments, {"fn": tmp_path / "x.csv"}, images=images)
            volumes, notices = volumes_of(tmp_path / "x.nii")
            run.begin(device, notices, volumes.images)
            if finish:
                run.finish()
        finally:
            stopping.end()

    return session


def test_a_run_goes_on_with_the_images_it_began_with(run, voxels, tmp_path):
    path = save(tmp_path / "x.nii", voxels)
    run()
    images = json.loads((tmp_path / "run" / "run.json").read_text())["images"]
    assert images["x.nii"]["path"] == str(path)
    assert len(images["x.nii"]["sha256"]) == 64
    shutil.copy(path, tmp_path / "copy.nii")
    os.replace(tmp_path / "copy.nii", path)  # another file, the same image
    run()
    save(path, 1 - voxels)
    with pytest.raises(InputError, match=r"x\.nii: the image of x\.nii has changed since the run began"):
        run()
    save(path, voxels)
    run(finish=True)
    save(path, 1 - voxels)
    with pytest.raises(InputError, match=r"x\.nii: has changed since it was read for .*run\.json"):
        run()
    run(overwrite=True)


def test_a_session_on_another_machine_is_told(run, voxels, tmp_path):
    save(tmp_path / "x.nii", voxels)
    run()
    with mock.patch.object(record, "_versions", return_value=[("numpy", "9.9")]):
        run(device="another device")
    log = (tmp_path / "run" / "log").read_text().splitlines()
    notices = [line.split("notice: ")[1] for line in log if "notice: " in line]
    assert notices == [
        "device was a device in the session before, and is another device",
        f"numpy was {np.__version__} in the session before, and is 9.9",
    ]


def test_a_complete_run_reads_only_what_was_written_anew(run, voxels, tmp_path):
    path = save(tmp_path / "x.nii", voxels)
    run(finish=True)
    earlier = record.Record(tmp_path / "run" / "run.json", {})
    with mock.patch("travelling.images.nifti.read_voxels", side_effect=AssertionError("read")):
        assert earlier.changed_image({"x.nii": path}) is None
    elsewhere = save(tmp_path / "elsewhere" / "x.nii", 1 - voxels)  # a link that leads to another version, for example
    assert earlier.changed_image({"x.nii": elsewhere}) == elsewhere
    assert earlier.changed_image({"x.nii": turned(tmp_path / "same" / "x.nii", voxels, "LPS")}) is None


COLUMNS = ["Subject", "Study", "Path", "Group_bin", "Sex"]


def cohort_csv(folder, rows, columns=COLUMNS, name="cohort.csv"):
    for row in rows:
        (folder / row[columns.index("Path")]).touch()
    path = folder / name
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def test_a_test_image_that_is_trained_on_is_refused_whatever_its_name(tmp_path):
    training, test = (
        read_cohort(cohort_csv(tmp_path, rows, name=f"{rows[0][0]}.csv"))
        for rows in (
            [["a", "c", "a.nii", 0, "M"], ["b", "c", "b.nii", 1, "M"], ["c", "c", "c.nii", 0, "F"]],
            [["x", "h", "x.nii", 0, "M"], ["y", "h", "y.nii", 1, "F"]],
        )
    )
    images = {subject: {"sha256": total} for subject, total in zip("abcxy", "12345", strict=True)}
    assert copies(images, training, test) == []
    twice = images | {"b": {"sha256": "1"}, "c": {"sha256": "1"}, "y": {"sha256": "4"}}
    assert copies(twice, training, test) == [
        "the same image under two names: a and b, one as HC and one as PD; a and c; x and y, one as HC and one as PD"
    ]
    many = cohort_csv(tmp_path, [[name, "c", f"{name}.nii", 0, "M"] for name in "pqrst"], name="many.csv")
    (line,) = copies({name: {"sha256": "1"} for name in "pqrst"}, read_cohort(many))
    assert line == "the same image under two names: p and q; p and r; p and s (and 1 more)"
    with pytest.raises(InputError, match=r"y\.nii: the test subject y has the same image as b of the training set"):
        copies(images | {"y": {"sha256": "2"}}, training, test)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hamburg", "HAMBURG"),
        ("Łódź", "Ło\N{COMBINING ACUTE ACCENT}dz\N{COMBINING ACUTE ACCENT}"),
        ("a b", "a\N{NO-BREAK SPACE}b"),
        ("a b", "a  b"),
        ("ab", "a\N{ZERO WIDTH SPACE}b"),
        ("Straße", "STRASSE"),
        ("a", "a\N{VARIATION SELECTOR-16}"),
        ("a", "a\b"),
        ("\N{FULLWIDTH DIGIT ONE}", "1"),
    ],
)
@pytest.mark.parametrize("column", ["Subject", "Study"])
def test_names_that_look_alike_are_refused(column, one, other, tmp_path):
    rows = [["s1", "c", "a.nii", 0, "M"], ["s2", "c", "b.nii", 1, "M"]]
    for row, name in zip(rows, (one, other), strict=True):
        row[COLUMNS.index(column)] = name
    path = cohort_csv(tmp_path, rows)
    if (one, other) == ("Łódź", "Ło\N{COMBINING ACUTE ACCENT}dz\N{COMBINING ACUTE ACCENT}"):
        assert one != other
    with pytest.raises(InputError) as error:
        read_cohort(path)
    shown = other.encode("unicode_escape").decode()
    assert str(error.value).startswith(f"{path}, row 3: {column} '{shown}' looks like ")


def test_nobody_is_in_both_sets_under_another_writing_or_as_another_visit(tmp_path):
    columns = [*COLUMNS, "Participant"]

    def sets(train, test):
        tables = [
            read_cohort(cohort_csv(tmp_path, [[*row[:5], row[5]][: len(names)]], names, f"{number}.csv"))
            for number, (row, names) in enumerate((train, test))
        ]
        refuse_overlap(*tables, "TRAIN", "TEST")

    def row(subject, path, person=""):
        return [subject, "c", path, 0, "M", person]

    sets((row("a1", "a.nii", "a"), columns), (row("b1", "b.nii", "b"), columns))
    sets((row("a1", "a.nii"), columns), (row("b1", "b.nii"), columns))  # empty: nothing is told
    with pytest.raises(InputError, match=r"^TEST, row 2: Participant is in TRAIN, too \('sub-1'\)"):
        sets((row("a1", "a.nii", "SUB-1"), columns), (row("b1", "b.nii", "sub-1"), columns))
    with pytest.raises(InputError, match="Participant is in TRAIN"):  # who has one image has no need of the column
        sets((row("sub-1", "a.nii"), COLUMNS), (row("b1", "b.nii", "sub-1"), columns))
    with pytest.raises(InputError, match="Subject is in TRAIN"):
        sets((row("Sub-1", "a.nii"), COLUMNS), (row("sub-1", "b.nii"), COLUMNS))


def test_several_images_of_one_participant_may_be_in_one_set(tmp_path):
    rows = [["a1", "c", "a.nii", 0, "M", "a"], ["a2", "c", "b.nii", 0, "M", "a"]]
    assert len(read_cohort(cohort_csv(tmp_path, rows, [*COLUMNS, "Participant"]))) == 2


# What a library would repair without a word


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("Sex", "Sex,Study").replace("M\n", "M,x\n"), "row 1: two columns are named 'Study'"),
        (lambda text: text.replace("Sex", "Sex,Study ").replace("M\n", "M,x\n"), "two columns are named 'Study'"),
        (lambda text: text.replace("Sex", "Gender"), "missing column(s) Sex; needed are Subject, Study, Path, "
         "Group_bin, Sex, there are 'Subject', 'Study', 'Path', 'Group_bin', 'Gender'"),
        (lambda text: text.replace("Sex", "sex"), "row 1: column 'sex' must be written 'Sex'"),
        (lambda text: text.replace("Sex", "Sex,age").replace("M\n", "M,7\n"), "column 'age' must be written 'Age'"),
    ],
)  # fmt: skip
def test_a_header_is_what_it_says(change, words, tmp_path):
    path = cohort_csv(tmp_path, [["a", "c", "a.nii", 0, "M"]])
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert words in str(error.value)


def test_blanks_around_names_of_columns_do_not_count(tmp_path):
    path = cohort_csv(tmp_path, [["a", "c", "a.nii", 1, "M"]])
    path.write_text(path.read_text().replace("Group_bin", " Group_bin "))
    assert list(read_cohort(path)["Group_bin"]) == [1]


def test_an_image_that_may_not_be_read_is_not_missing(tmp_path):
    path = cohort_csv(tmp_path, [["a", "c", "a.nii", 0, "M"]])
    with (
        mock.patch.object(Path, "is_file", side_effect=PermissionError(errno.EACCES, "Permission denied")),
        pytest.raises(InputError, match="row 2: the image cannot be read, Permission denied"),
    ):
        read_cohort(path)


# Values that are not finite, flat, out of scale


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of this shape; and its two files."""
    from travelling.network import backend
    from travelling.network.inference_network import EvaluatedModel

    backend.start(seed=1)
    folder = tmp_path_factory.mktemp("model")
    made = EvaluatedModel.build(tuple(reversed(SHAPE)), 0.02, 1e-3)
    files = folder / "encoder_x_03.keras", folder / "classifier_x_03.keras"
    made.save(*files, {"cycle": 3})
    return made, files


def with_weights(source, target, change):
    """A copy of a .keras file with other weights."""
    import h5py

    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    weights = target.with_suffix(".h5")
    weights.write_bytes(parts["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change(file)
    parts["model.weights.h5"] = weights.read_bytes()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["layers/conv3d/vars/0", "layers/batch_normalization/vars/3", "optimizer/vars/2"])
def test_a_model_that_is_not_finite_is_refused(where, value, model, tmp_path):
    from travelling.network.inference_network import EvaluatedModel
    from travelling.network.saved_model import load_model, read_weights

    def change(file):
        names = []
        file.visit(names.append)
        name = where if where in file else next(name for name in names if name.endswith(where.split("/", 1)[1]))
        file[name][...] = value

    _, (encoder, classifier) = model
    bad = with_weights(encoder, tmp_path / encoder.name, change)
    with pytest.raises(InputError, match="not finite"):
        load_model(bad, classifier, tuple(reversed(SHAPE)))
    if "optimizer" not in where:
        other = EvaluatedModel.build(tuple(reversed(SHAPE)), 0.02, 1e-3)
        with pytest.raises(InputError, match=f"{bad}: holds values that are not finite"):
            read_weights(other, bad, classifier)


def test_images_lie_where_those_that_the_model_knows_do(cohort, last_model, pretrained, tmp_path):
    """All images of a run may be turned alike: the model's own are not among them."""
    table = pd.read_csv(cohort / "test_set.csv")
    for path in table["Path"]:
        image = nib.load(cohort / path)
        other = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt("LPI")))
        (tmp_path / path).parent.mkdir(exist_ok=True)
        nib.save(other, tmp_path / path)
    table.to_csv(tmp_path / "test_set.csv", index=False)
    options = ("-fn", tmp_path / "test_set.csv", "-en", pretrained, "-pd", pretrained, "--only-cycles", 7, 7)
    done = run_here("inference", *options, "-o", "refused", cwd=tmp_path)
    assert done.returncode == 2
    assert "its axes run LPI, those of the model's first image LPS" in done.stderr
    assert run_here("inference", *options, "-o", "turned", "--reorient", cwd=tmp_path).returncode == 0
    usual = ("-fn", cohort / "test_set.csv", *options[2:])
    assert run_here("inference", *usual, "-o", "usual", cwd=tmp_path).returncode == 0
    assert (tmp_path / "turned_predictions.csv").read_text() == (tmp_path / "usual_predictions.csv").read_text()
    # Results that are gone are not "done already"; and a name is not what tells the cycle of a model.
    (tmp_path / "usual_metrics.csv").unlink()
    again = run_here("inference", *usual, "-o", "usual", cwd=tmp_path)
    assert again.returncode == 0
    assert "usual_metrics.csv: is gone, and is made anew" in again.stderr
    assert (tmp_path / "usual_metrics.csv").exists()
    for path in last_model[1::2]:
        shutil.copy(path, tmp_path / path.name.replace("_07", "_20"))
    renamed = ("-en", tmp_path, "-pd", tmp_path, "-o", "renamed")
    done = run_here("inference", "-fn", cohort / "test_set.csv", *renamed, cwd=tmp_path)
    assert done.returncode == 2
    assert "its name says cycle 20, but it is of cycle 7" in done.stderr


def test_halves_of_two_models_are_refused(model, tmp_path):
    """Of one cycle, and of one size; as inference reads them, too."""
    from travelling.network.inference_network import EvaluatedModel
    from travelling.network.saved_model import load_model, read_weights

    _, (encoder, classifier) = model
    shape = tuple(reversed(SHAPE))
    other = EvaluatedModel.build(shape, 0.02, 1e-3)
    files = tmp_path / encoder.name, tmp_path / classifier.name
    other.save(*files, {"cycle": 3})
    words = f"{files[1]}: of another model than {encoder}"
    with pytest.raises(InputError, match=words):
        load_model(encoder, files[1], shape)
    with pytest.raises(InputError, match=words):
        read_weights(other, encoder, files[1])
    load_model(*files, shape)


def test_halves_of_two_published_models_are_refused(tmp_path):
    """Files of Keras 2 have no record; but they tell how many steps Adam has made."""
    import h5py

    from travelling.network.saved_model import load_model

    data = Path(__file__).parent / "data"
    classifier = shutil.copy(data / "classifier_PD_distributed_BS5_09.h5", tmp_path)
    with h5py.File(classifier, "r+") as file:
        file["optimizer_weights/Adam/iter:0"][...] = 8
    with pytest.raises(InputError, match=r"of another model than .* 8 steps, and that in 3"):
        load_model(data / "encoder_distributed_BS5_09.h5", classifier, (33, 36, 34))


def test_a_step_that_ruins_the_model_ends_the_run_and_names_its_subjects(model, voxels, tmp_path):
    made, _ = model
    paths = [save(tmp_path / "a.nii", voxels), save(tmp_path / "b.nii", voxels * np.float32(1e30))]
    volumes, _ = volumes_of(*paths)
    table = pd.DataFrame({"Subject": ["a.nii", "b.nii"], "Group_bin": [0, 1]}, index=["a.nii", "b.nii"])
    trainer = LocalTrainer(made, volumes, table)
    kept = trainer.keep()
    trainer.train(["a.nii"])
    with pytest.raises(
        InputError, match=r"after a training step on b\.nii, a\.nii the model holds values that are not"
    ):
        trainer.train(["b.nii", "a.nii"])
    trainer.restore(kept)


def test_images_of_another_scale_than_most_and_flat_ones_are_told(voxels, tmp_path):
    paths = [save(tmp_path / f"{name}.nii", voxels + number) for number, name in enumerate("abc")]
    other, dark = save(tmp_path / "d.nii", 4000 * voxels), save(tmp_path / "f.nii", voxels / 4000)
    flat = save(tmp_path / "e.nii", np.full(SHAPE, 1, np.int16))
    assert sorted(volumes_of(*paths, other, flat, dark)[1]) == [
        f"1 image without any contrast: every voxel is the same: {flat}",
        f"2 images of another scale: the mean is not within a tenth and 10 times that of most: {other} and others",
    ]
    assert sorted(volumes_of(*paths, other, flat)[1]) == [
        f"1 image of another scale: the mean is not within a tenth and 10 times that of most: {other}",
        f"1 image without any contrast: every voxel is the same: {flat}",
    ]


@pytest.mark.parametrize(("factor", "told"), [(1, False), (0.5, True), (2, True)])
def test_images_on_another_scale_than_the_models_are_told(factor, told, cohort, tmp_path):
    """Whether the model's record tells that of its own images, or its training set does."""
    training_set, test_set = (read_cohort(cohort / f"{name}.csv").iloc[:8] for name in ("training_set", "test_set"))
    for path in test_set["Path"]:
        save(
            tmp_path / Path(path).name,
            np.float32(factor) * nib.load(path).get_fdata(dtype=np.float32),
            nib.load(path).affine,
        )
    test_set = test_set.assign(Path=[str(tmp_path / Path(path).name) for path in test_set["Path"]])
    volumes = Volumes(1, tmp_path)
    volumes.add(pd.concat([training_set, test_set]))
    volumes.decode()
    record = LocalTrainer(None, volumes, training_set).known(list(training_set.index))
    assert record[SPACE] == volumes.space
    trainer, inference = (
        LocalTrainer(None, volumes, training_set, test_set),
        LocalTrainer(None, volumes, None, test_set),
    )
    notices = trainer.other_scale(record)
    assert notices == trainer.other_scale({}) == inference.other_scale(record)
    assert [notice.startswith("the mean intensity of the test images is") for notice in notices] == [True] * told
    assert inference.other_scale({}) == []
    assert len(trainer.other_scale({INTENSITY: 1e6})) == 2


# The user's machine


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A training set of three images, in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("Łódź")
    generator = np.random.default_rng(3)
    rows = []
    for number in range(3):
        save(folder / f"s{number}.nii", generator.uniform(0, 1, SHAPE).astype(np.float32))
        rows.append([f"s{number}", "Łódź", f"s{number}.nii", number % 2, "M"])
    return cohort_csv(folder, rows)


def losses(csv, folder, **environment):
    """The mean losses of the standard script under settings of the environment."""
    done = subprocess.run(
        [sys.executable, SCRIPTS["standard"], "-fn_train", csv, "-cycles", "3", "--width", "0.02", "--learning-rate",
         "0.01", "--output-folder", folder],
        env=os.environ | environment, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [
        line.split("mean loss ")[1] for line in (folder / "training.log").read_text().splitlines() if "loss" in line
    ]


def test_settings_of_another_project_change_no_number(small, tmp_path):
    home = tmp_path / "home"
    settings = {"floatx": "float16", "epsilon": 1e-3, "backend": "jax", "image_data_format": "channels_first"}
    (home / ".keras").mkdir(parents=True)
    (home / ".keras" / "keras.json").write_text(json.dumps(settings))
    usual = losses(small, tmp_path / "usual")
    environment = {"HOME": str(home), "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii:strict"}
    assert losses(small, tmp_path / "other", **environment) == usual
    assert len(usual) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [("torch", "is not supported; tensorflow"), ("theano", "is not supported"), ("jax", "requirements-jax.txt")],
)
def test_a_backend_that_is_not_there_is_one_line(name, words, small, tmp_path):
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *more: None if name == 'jax' else find(name, *more);"
        "from travelling.runs import command;"
        "command.run(lambda: __import__('travelling.network.backend'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"KERAS_BACKEND": name}, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: KERAS_BACKEND={name}: ")
    assert words in done.stderr


def test_help_needs_no_docstrings():
    for script in SCRIPTS.values():
        done = subprocess.run([sys.executable, "-OO", script, "--help"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_an_encoding_lacks_is_escaped(tmp_path):
    code = (
        "from travelling.runs import command\n"
        "from travelling.errors import InputError\n"
        "def main():\n"
        "    print('Łódź')\n"
        "    raise InputError('ł')\n"
        "command.run(main)"
    )
    environment = os.environ | {"PYTHONIOENCODING": "latin-1:strict"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"\\u0141\xf3d\\u017a\n", b"error: \\u0142\n")


def test_names_of_files_beyond_the_systems_encoding_are_one_line(tmp_path):
    path = cohort_csv(tmp_path, [["a", "c", "ł.nii", 0, "M"]])
    done = subprocess.run(
        [sys.executable, SCRIPTS["standard"], "-fn_train", path, "--output-folder", tmp_path / "run"],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "row 2: the image cannot be found, names of files are ascii here (PYTHONUTF8=1" in done.stderr


def test_a_run_survives_its_terminal(tmp_path):
    code = (
        "import sys, time\n"
        "from travelling.runs import command\n"
        "from travelling.console import progress_bar\n"
        "def main():\n"
        "    bar = progress_bar(range(300))\n"
        "    for number in bar:\n"
        "        time.sleep(0.01)\n"
        "    print('the end')\n"
        "    open('done', 'w').close()\n"
        "command.run(main)"
    )
    terminal, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=other, stdout=other, stderr=other, cwd=tmp_path, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(other)
    os.read(terminal, 20)
    os.close(terminal)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "done").exists()


def test_closed_streams_and_warnings_as_errors_end_no_run(tmp_path):
    code = (
        "import warnings\n"
        "from travelling.runs import command\n"
        "def main():\n"
        "    warnings.warn('of a library', DeprecationWarning)\n"
        "    print('x')\n"
        "    open('done', 'w').close()\n"
        "command.run(main)"
    )
    environment = os.environ | {"PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT), "CODE": code}
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "$CODE" >&- 2>&-'], env=environment, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_full_disk_behind_stdout_is_still_told():
    code = "from travelling.runs import command\ncommand.run(lambda: print('x'))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "error: input/output: No space left on device\n")


def test_a_file_system_without_locks_is_told(run, voxels, tmp_path):
    save(tmp_path / "x.nii", voxels)
    with mock.patch("travelling.runs.run.fcntl.flock", side_effect=OSError(errno.ENOLCK, "No locks available")):
        run(finish=True)
    log = (tmp_path / "run" / "log").read_text()
    assert f"notice: {tmp_path / 'run'}: its file system has no locks (No locks available)" in log


def test_nothing_that_only_linux_has_is_needed(cohort, last_model, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    read_text, opened = Path.read_text, open

    def no_proc(path):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr(
        Path, "read_text", lambda path, *more, **named: no_proc(path) or read_text(path, *more, **named)
    )
    monkeypatch.setattr("builtins.open", lambda path, *more, **named: no_proc(path) or opened(path, *more, **named))
    monkeypatch.setattr("travelling.images.volumes.memory_for_images", lambda gigabytes: 0)  # psutil reads /proc itself
    done = run_here(
        "dirty", "-fn_train", cohort / "training_set.csv", *last_model, "-cycles", 9,
        "--output-folder", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_here(
        "generate", "-fn_train", cohort / "training_set.csv", "--kind", "blur", "--centers", 1, "--images", 1,
        "--output-folder", tmp_path / "harm", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_windows_is_told_about_wsl(capsys):
    with (
        mock.patch.object(command, "os", SimpleNamespace(name="nt", devnull=os.devnull)),
        pytest.raises(SystemExit) as end,
    ):
        command.run(lambda: pytest.fail("ran"))
    assert end.value.code == 2
    assert "WSL" in capsys.readouterr().err


def test_the_recorded_commit_is_that_of_this_repository(tmp_path, monkeypatch):
    """Within a hook of another one, git's variables name that."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    known = record.git_state()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert record.git_state() == known


def test_a_leak_is_refused_by_the_script(dirty_cohort, cohort, last_model, tmp_path):
    test = pd.read_csv(cohort / "test_set.csv")
    leak = test.assign(Path=[str(cohort / path) for path in test["Path"]])
    shutil.copy(cohort / "images" / "s003.nii.gz", tmp_path / "leak.nii.gz")
    leak.loc[4, "Path"] = str(tmp_path / "leak.nii.gz")
    leak.to_csv(tmp_path / "test.csv", index=False)
    done = run_script(
        "quality_control", "-fn_train", dirty_cohort / "training_set.csv", "-fn_test", tmp_path / "test.csv",
        *last_model, "-cycles", 9, "-fn_save", "qc", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "has the same image as s003 of the training set" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "qc_run").exists()


def test_a_setting_that_is_there_twice_is_refused(tmp_path):
    """Python's reader of JSON takes the last one."""
    from travelling_quality_control.federated.settings import read_center_settings

    path = tmp_path / "travelling_c1.json"
    path.write_text('{"training_set": "a.csv", "private_folder": "p", "training_set": "b.csv"}')
    with pytest.raises(InputError, match="training_set is there twice"):
        read_center_settings(path)


def test_a_users_style_of_figures_changes_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "reproduce")
    import matplotlib as mpl
    from evaluation.figures import Picture, render

    picture = Picture("x", "", "", "", (2, 2), lambda figure, colors: figure.subplots().plot([1, 2], label="x"))
    usual = render(picture)
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert render(picture) == usual
        assert mpl.rcParams["font.size"] == 30
