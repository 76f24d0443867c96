"""Bad input: one line on stderr that names what is wrong, a non-zero exit status, and nothing written or lost.

Each kind of bad input is given to a script as a user gives it. Where the script only answers to more of the
same, it runs in this process, or only the function that must raise the InputError does: that spares the imports.
"""

import csv
import gzip
import os
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import Arguments, run_here, run_script, write_image

import travelling.runs.command
from travelling.errors import InputError
from travelling.images.itk import read_image
from travelling.images.volumes import Volumes
from travelling.network.pretrained import cycles_to_run, model_pairs, pretrained_files
from travelling.runs.run import Run

SHAPE = (35, 34, 33)  # of the toy cohort's images: z, y, x
NO_PROC = "/proc/none/below"  # cannot be made, not even by root


def contents(folder):
    """Every file below a folder, byte for byte."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(name, *arguments, cwd, names, run=run_here):
    """Run a script that must refuse its input, naming ``names``, and leave ``cwd`` as it was. Returns the line."""
    before = contents(cwd)
    done = run(name, *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], done.stderr
    for word in names:
        assert str(word) in errors[0]
    assert sorted(contents(cwd)) == sorted(before)
    assert contents(cwd) == before
    return errors[0]


def input_error(function, *arguments, **options):
    """The message of the InputError that a call must raise: one line."""
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def some_rows(source, target, rows=slice(None), **changes):
    """Write rows of a cohort CSV, with changed columns and absolute paths, elsewhere. Returns the new path."""
    table = pd.read_csv(source, dtype=str, keep_default_na=False).iloc[rows].reset_index(drop=True)
    table["Path"] = [str(source.parent / path) for path in table["Path"]]
    table.assign(**changes).to_csv(target, index=False)
    return target


def with_image(image, source, target):
    """The same of three rows, the second of which has another image."""
    table = pd.read_csv(some_rows(source, target, slice(3)))
    table.loc[1, "Path"] = str(image)
    table.to_csv(target, index=False)
    return target


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of tiny untrained models: those of cycles 6 and 7, which call everybody PD (FPR = 1)."""
    from travelling.network import backend
    from travelling.network.inference_network import EvaluatedModel

    backend.start(seed=1)
    folder = tmp_path_factory.mktemp("models")
    model = EvaluatedModel.build(SHAPE, width=0.03, learning_rate=1e-4)
    kernel, bias = model.classifier.get_weights()
    model.classifier.set_weights([np.zeros_like(kernel), np.full_like(bias, 20)])
    for cycle in (6, 7):
        model.save(*pair(folder, cycle), {"cycle": cycle})
    return folder


def pair(folder, cycle=7):
    """Encoder and classifier of a cycle."""
    return [folder / f"{part}_distributed_BS5_{cycle:02d}.keras" for part in ("encoder", "classifier_PD")]


@pytest.fixture
def command(cohort, models):
    """Function: the arguments of a good run of a script, with some options set to other values."""
    training, test = cohort / "training_set.csv", cohort / "test_set.csv"
    encoder, classifier = pair(models)
    good = {
        "standard": {"-fn_train": training, "-cycles": 1, "--width": 0.03},
        "dirty": {"-fn_train": training, "-en": encoder, "-pd": classifier, "-cycles": 9},
        "quality_control": {
            "-fn_train": training, "-fn_test": test, "-en": encoder, "-pd": classifier, "-cycles": 9, "-fn_save": "qc",
        },
        "inference": {"-fn": test, "-en": models, "-pd": models, "-o": "result"},
        "generate": {"-fn_train": training, "--kind": "inverted"},
    }  # fmt: skip

    def arguments(script, changes=()):
        return [word for option in {**good[script], **dict(changes)}.items() for word in option]

    return arguments


# Cohort CSVs (tests/test_cohort.py tests the reader itself)

CSV_OPTION = {
    "standard": "-fn_train", "dirty": "-fn_train", "quality_control": "-fn_test", "inference": "-fn",
    "generate": "-fn_train",
}  # fmt: skip
HEADER = "Subject,Study,Path,Group_bin,Sex\n"


@pytest.mark.parametrize(
    ("script", "rows", "names"),
    [
        ("standard", None, []),
        ("dirty", "a,x,a.nii,0,M\na,x,b.nii,1,M\n", ["row 3", "Subject"]),
        ("quality_control", "a,x,a.nii,0\n", ["row 2", "Sex"]),
        ("inference", "a,x,a.nii,0,M\nb,x,b.nii,2,M\n", ["row 3", "Group_bin"]),
        ("generate", "a,x,a.nii,0,M\nb,,b.nii,1,M\n", ["row 3", "Study"]),
    ],
)
def test_bad_cohort(script, rows, names, command, tmp_path):
    path = tmp_path / "bad.csv"
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).touch()
    if rows is not None:
        path.write_text(HEADER + rows)
    arguments = command(script, {CSV_OPTION[script]: path})
    refused(script, *arguments, cwd=tmp_path, names=[path, *names], run=run_script)


def test_test_subjects_must_be_unseen(command, cohort, tmp_path):
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(4))
    seen = some_rows(cohort / "training_set.csv", tmp_path / "seen.csv", slice(1))
    with open(test, "a") as file:
        file.write(seen.read_text().splitlines()[1] + "\n")
    arguments = command("quality_control", {"-fn_test": test})
    refused("quality_control", *arguments, cwd=tmp_path, names=[f"{test}, row 6", "s000"])


def test_quality_control_needs_both_classes(command, cohort, tmp_path):
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(0, 8, 2))
    refused(
        "quality_control",
        *command("quality_control", {"-fn_test": test}),
        cwd=tmp_path,
        names=[test, "every subject is HC"],
    )


def test_inference_does_without_one_class(command, cohort, tmp_path):
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(0, 8, 2), Sex=list("MMFF"))
    done = run_here("inference", *command("inference", {"-fn": test}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "result_metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cycle"] for row in rows] == ["6", "7"]
    for row in rows:
        assert row["AUC_ROC"] == row["male AUC_ROC"] == row["sensitivity"] == ""
        assert float(row["accuracy"]) == float(row["specificity"]) == 0  # the model says PD, all are HC
    notices = [line for line in (tmp_path / "result.log").read_text().splitlines() if "notice: test set" in line]
    assert len(notices) == 1
    assert "no AUC_ROC" in notices[0]


def test_a_column_of_the_test_set_has_no_name_of_a_result(command, cohort, tmp_path):
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(8), cycle=range(8))
    refused("inference", *command("inference", {"-fn": test}), cwd=tmp_path, names=[test, "column 'cycle'"])


# Images


def noise(*shape, dtype=np.float32):
    return np.random.default_rng(0).uniform(0, 1, shape).astype(dtype)


def some_image(path, voxel=0.5):
    """Write an image, one voxel of which has a value."""
    array = noise(*SHAPE)
    array[3, 4, 5] = voxel
    return write_image(path, array)


def changed(change):
    """A writer of an image whose bytes are changed."""

    def write(path):
        path.write_bytes(change(some_image(path).read_bytes()))

    return write


def flip_bytes(content):
    """Bytes in the middle of a compressed file: its checksum tells."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 4]) + content[middle + 4 :]


def vectors(path):
    sitk.WriteImage(sitk.GetImageFromArray(noise(*SHAPE, 3), isVector=True), str(path))


def four_dimensions(path):
    volume = sitk.GetImageFromArray(noise(*SHAPE))
    sitk.WriteImage(sitk.JoinSeries([volume, volume]), str(path))


BAD_IMAGES = {
    "missing": ("x.nii.gz", lambda path: None),
    "a folder": ("x.nii.gz", lambda path: path.mkdir()),
    "empty": ("x.nii.gz", lambda path: path.touch()),
    "corrupt": ("x.nii.gz", lambda path: path.write_bytes(bytes(range(256)) * 40)),
    "corrupt, compressed": ("x.nii.gz", lambda path: path.write_bytes(gzip.compress(bytes(range(256)) * 40))),
    "corrupt, plain": ("x.nii", lambda path: path.write_bytes(bytes(range(256)) * 40)),
    "text": ("x.nii", lambda path: path.write_text("no image")),
    "flipped bytes": ("x.nii.gz", changed(flip_bytes)),
    "truncated archive": ("x.nii.gz", changed(lambda content: content[:-1000])),
    "truncated in the archive": ("x.nii.gz", changed(lambda content: gzip.compress(gzip.decompress(content)[:-40]))),
    "truncated": ("x.nii", changed(lambda content: content[:-1000])),
    "2-D": ("x.nii.gz", lambda path: sitk.WriteImage(sitk.GetImageFromArray(noise(34, 35)), str(path))),
    "4-D": ("x.nii.gz", four_dimensions),
    "vectors": ("x.nii.gz", vectors),
    "NaN": ("x.nii.gz", lambda path: some_image(path, np.nan)),
    "infinite": ("x.nii", lambda path: some_image(path, -np.inf)),
}


def decode(*paths):
    """What the scripts do with the images of a cohort."""
    volumes = Volumes(cache_gb=0, cache_folder=paths[0].parent / "cache")
    volumes.add(pd.DataFrame({"Subject": [path.name for path in paths], "Path": [str(path) for path in paths]}))
    volumes.decode()
    return volumes


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_image(kind, tmp_path):
    name, write = BAD_IMAGES[kind]
    good, bad = write_image(tmp_path / "good.nii.gz", noise(*SHAPE)), tmp_path / name
    write(bad)
    assert decode(good).batch(["good.nii.gz"]).shape == (1, *SHAPE, 1)
    assert input_error(decode, good, bad).startswith(f"{bad}: ")
    assert input_error(read_image, bad).startswith(f"{bad}: ")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("x.nii", lambda content: content, "is compressed; its name must end in .nii.gz"),
        ("x.nii.gz", gzip.decompress, "is not compressed; its name must end in .nii instead"),
        ("x.nii.gz", lambda content: b"/annex/objects/MD5E-s26--00.nii.gz\n", "a pointer file of git-annex or Git LFS"),
        ("x.nii", lambda content: b"/annex/objects/MD5E-s26--00.nii\n", "a pointer file of git-annex or Git LFS"),
        (
            "x.nii",
            lambda content: b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer file of git-annex or Git LFS",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told(name, change, told, tmp_path):
    content = write_image(tmp_path / "good.nii.gz", noise(*SHAPE)).read_bytes()
    path = tmp_path / name
    path.write_bytes(change(content))
    assert input_error(read_image, path).startswith(f"{path}: {told}")


def test_images_of_two_shapes_are_both_named(tmp_path):
    first = write_image(tmp_path / "first.nii.gz", noise(*SHAPE))
    other = write_image(tmp_path / "other.nii.gz", noise(35, 34, 34))
    message = input_error(decode, first, other)
    assert message.startswith(f"{other}: 34 x 34 x 35 voxels")  # x, y, z
    assert f"{first} has 33 x 34 x 35" in message


@pytest.mark.parametrize("shape", [(32, 40, 40), (40, 32, 40), (40, 40, 32)])
def test_an_axis_is_too_short(shape, tmp_path):
    path = write_image(tmp_path / "small.nii.gz", noise(*shape))
    message = input_error(decode, path)
    assert message.startswith(f"{path}: ")
    assert "33" in message


def test_bad_voxels_stop_a_run_before_it_replaces_results(command, cohort, tmp_path):
    bad = some_image(tmp_path / "bad.nii.gz", np.nan)
    training = with_image(bad, cohort / "training_set.csv", tmp_path / "training.csv")
    earlier_run(tmp_path / "run")
    arguments = [*command("standard", {"-fn_train": training}), "--output-folder", "run", "--overwrite"]
    refused("standard", *arguments, cwd=tmp_path, names=[bad, "NaN"], run=run_script)


def test_a_corrupt_test_image_stops_inference(command, cohort, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(gzip.compress(b"no image"))
    test = with_image(bad, cohort / "test_set.csv", tmp_path / "test.csv")
    refused("inference", *command("inference", {"-fn": test}), cwd=tmp_path, names=[bad], run=run_script)


# Options


@pytest.mark.parametrize(
    ("script", "option", "value"),
    [
        ("quality_control", "-revisit", "0"),
        ("quality_control", "-revisit", "-1"),
        ("quality_control", "-revisit", "1.5"),
        ("quality_control", "-error", "-0.1"),
        ("quality_control", "-error", "1.5"),
        ("quality_control", "-error", "nan"),
        ("quality_control", "-error", "two"),
        ("quality_control", "--batch-size", "0"),
        ("quality_control", "--protocol", "best"),
        ("dirty", "-cycles", "0"),
        ("dirty", "-batch_size", "0"),
        ("dirty", "--first-cycle", "-1"),
        ("standard", "-cycles", "abc"),
        ("standard", "-epochs", "0"),
        ("standard", "-batch_size", "-5"),
        ("standard", "--width", "0"),
        ("standard", "--learning-rate", "-1"),
        ("standard", "--learning-rate", "inf"),
        ("standard", "--seed", "-1"),
        ("standard", "--nonsense", "1"),
        ("inference", "--only-cycles", "x"),
        ("generate", "--centers", "0"),
        ("generate", "--images", "-1"),
        ("generate", "--maximum", "0"),
        ("generate", "--maximum", "inf"),
        ("generate", "--kind", "both"),
        ("generate", "--kind", "upside-down"),
    ],
)
def test_bad_option(script, option, value, command, tmp_path):
    refused(script, *command(script, {option: value}), cwd=tmp_path, names=[option], run=run_script)


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("standard", "-fn_train"),
        ("dirty", "-en"),
        ("quality_control", "-fn_test"),
        ("quality_control", "-fn_save"),
        ("inference", "-o"),
        ("generate", "-fn_train"),
    ],
)
def test_missing_option(script, option, command, tmp_path):
    arguments = command(script)
    position = arguments.index(option)
    del arguments[position : position + 2]
    refused(script, *arguments, cwd=tmp_path, names=[option], run=run_script)


@pytest.mark.parametrize(("script", "option"), [("quality_control", "-fn_save"), ("inference", "-o")])
def test_results_need_a_name(script, option, command, tmp_path):
    refused(script, *command(script, {option: "."}), cwd=tmp_path, names=[option])


# Models


def test_a_missing_model_is_named(command, tmp_path):
    missing = tmp_path / "encoder_x_07.keras"
    for script, option, run in (("dirty", "-en", run_script), ("quality_control", "-pd", run_here)):
        refused(script, *command(script, {option: missing}), cwd=tmp_path, names=[missing], run=run)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 64]) + content[middle + 64 :]


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("x.keras", lambda content: b"no model"),
        ("x.h5", lambda content: b"no model"),
        ("x.keras", lambda content: b""),
        ("x.h5", lambda content: b"\0" * 400),
        ("x.keras", lambda content: content[:-3000]),
        ("x.keras", flipped),
    ],
)
def test_bad_model(part, name, damage, models, tmp_path):
    from travelling.network.saved_model import load_model

    files, bad = pair(models), tmp_path / name
    bad.write_bytes(damage(files[part].read_bytes()))
    files[part] = bad
    assert input_error(load_model, *files, SHAPE).startswith(f"{bad}: ")


def test_an_archive_is_no_model(models, tmp_path):
    from travelling.network.saved_model import load_model

    bad = tmp_path / "x.keras"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("config.json", "{}")
    assert input_error(load_model, bad, pair(models)[1], SHAPE).startswith(f"{bad}: not a model that can be")


def test_a_model_that_does_not_fit_is_named(models):
    from travelling.network.saved_model import load_model

    encoder, classifier = pair(models)
    for files, shape, words in (
        ((encoder, classifier), SHAPE[::-1], f"{encoder}: the model takes inputs of shape (35, 34, 33, 1), but the "
         "images have (33, 34, 35, 1)"),
        ((classifier, encoder), SHAPE, f"{classifier}: the model takes inputs of shape"),
        ((encoder, encoder), SHAPE, f"{encoder}: the model takes inputs of shape (35, 34, 33, 1), but the encoder"),
        ((encoder, pair(models, 6)[1]), SHAPE, f"{pair(models, 6)[1]}: of cycle 6, but {encoder} is of cycle 7"),
    ):  # fmt: skip
        assert input_error(load_model, *files, shape).startswith(words)


@pytest.mark.parametrize(
    ("name", "has_record", "first"),
    [
        ("mine.h5", False, None),
        ("path_encoder", False, None),
        ("encoder_distributed_BS5_09", False, 10),  # by its name, where there is no record
        ("path_encoder", True, 8),  # by its record, whatever its name
        ("encoder_x_9", True, 8),
        ("encoder_x_08.keras", True, 8),
    ],
)
def test_the_cycle_of_a_model(name, has_record, first, models, tmp_path):
    (encoder, classifier), path = pair(models), tmp_path / name
    path.write_bytes(encoder.read_bytes() if has_record else b"")
    if first:
        assert cycles_to_run(path, classifier, None, 30) == range(first, 30)
    else:
        message = input_error(cycles_to_run, path, classifier, None, 30)
        assert message.startswith(f"{path}: neither its name ")
        assert "--first-cycle" in message
    assert cycles_to_run(path, classifier, 12, 30) == range(12, 30)


@pytest.mark.parametrize(
    ("files", "culprit"),
    [
        ([], ""),
        (["encoder_x_05.keras"], ""),
        (["classifier_PD_x_05.keras"], ""),
        (["encoder_x_05.keras", "classifier_PD_x_06.keras"], ""),
        (["encoder_x_05.keras", "encoder_x_5.keras", "classifier_PD_x_05.keras"], "encoder_x_5.keras"),
        (["encoder_x_05.h5", "classifier_PD_x_05.keras", "classifier_PD_x_05.h5"], "classifier_PD_x_05.keras"),
    ],
)
def test_folder_without_pairs_of_models(files, culprit, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    assert input_error(model_pairs, tmp_path, tmp_path).startswith(f"{tmp_path / culprit}: ")


@pytest.mark.parametrize("script", ["dirty", "quality_control"])
def test_a_folder_of_models_to_go_on_from(script, command, models, tmp_path):
    """The last one, or that before --first-cycle; what is there is named where that one is not."""
    folders = {"-en": models, "-pd": models}
    line = refused(script, *command(script, {**folders, "-cycles": 8}), cwd=tmp_path, names=["-cycles 8"])
    assert "first cycle of this run, which is 8" in line
    line = refused(
        script, *command(script, {**folders, "-cycles": 7}), "--first-cycle", 7, cwd=tmp_path, names=["-cycles 7"]
    )
    assert "which is 7" in line
    refused(
        script, *command(script, folders), "--first-cycle", 9, cwd=tmp_path, names=[models, "there are cycles 6, 7"]
    )
    refused(script, *command(script, {"-en": models}), cwd=tmp_path, names=[models, "two files or two folders"])


def test_the_files_that_a_run_goes_on_from(models, tmp_path):
    last = tuple(pair(models))
    assert pretrained_files(models, models, None) == last
    before = tuple(path.with_name(path.name.replace("_07", "_06")) for path in last)
    assert pretrained_files(models, models, 7) == before
    assert pretrained_files(*before, None) == before
    assert model_pairs(*before) == {6: before}
    unknown = tmp_path / "path_encoder.h5"
    unknown.touch()
    assert "tells its cycle" in input_error(model_pairs, unknown, last[1])


# Where results go


def earlier_run(folder):
    """Results of another run, and a file that is none."""
    folder.mkdir()
    for name in ("encoder_distributed_BS5_05.keras", "classifier_PD_distributed_BS5_05.keras", "training.log"):
        (folder / name).write_text("precious")
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("place", ["file", "file/below", NO_PROC])
@pytest.mark.parametrize(
    ("script", "option", "ending"),
    [
        ("standard", "--output-folder", ""),
        ("quality_control", "-fn_save", "/qc"),
        ("inference", "-o", "/result"),
        ("generate", "--output-folder", ""),
    ],
)
def test_results_cannot_be_written(script, option, ending, place, command, tmp_path):
    (tmp_path / "file").write_text("precious")
    run = run_script if place == NO_PROC else run_here
    refused(script, *command(script, {option: place + ending}), cwd=tmp_path, names=[place], run=run)


def test_results_of_another_run_are_replaced_on_demand_only(command, cohort, tmp_path):
    training = some_rows(cohort / "training_set.csv", tmp_path / "training.csv", slice(2))
    earlier_run(tmp_path / "run")
    arguments = [*command("standard", {"-fn_train": training}), "--output-folder", "run"]
    refused("standard", *arguments, cwd=tmp_path, names=["run/", "--overwrite"])
    done = run_here("standard", *arguments, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "encoder_distributed_BS5_00.keras", "classifier_PD_distributed_BS5_00.keras", "training.log", "notes.txt",
        "run.json", ".run.lock",
    }  # fmt: skip
    assert "precious" not in (tmp_path / "run" / "training.log").read_text()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["training.log", "encoder_x_9.keras", "classifier_PD_x_12.h5", "more.csv"])
def test_each_result_of_another_run_counts(name, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("precious")
    message = input_error(Run, folder, "training.log", Arguments(overwrite=False), {}, [folder / "more.csv"])
    assert message.startswith(f"{folder / name}: ")
    Run(folder, "training.log", Arguments(overwrite=True), {}, [folder / "more.csv"])
    assert (folder / name).read_text() == "precious"  # until the run begins


def test_the_model_a_run_starts_from_is_never_removed(command, models, tmp_path):
    folder = shutil.copytree(models, tmp_path / "run")
    arguments = command("dirty", {"-en": pair(folder)[0], "-pd": pair(folder)[1]})
    line = refused("dirty", *arguments, "--output-folder", "run", "--overwrite", cwd=tmp_path, names=["run/"])
    assert "starts from it" in line
    (tmp_path / "link").symlink_to(folder)
    inputs = dict(zip(("en", "pd"), pair(folder), strict=True))
    message = input_error(Run, tmp_path / "link", "training.log", Arguments(overwrite=True), inputs)
    assert "starts from it" in message


@pytest.mark.parametrize(
    ("script", "option", "name", "data"),
    [
        ("quality_control", "-fn_save", "data", "-fn_train"),
        ("quality_control", "-fn_save", "data", "-fn_test"),
        ("inference", "-o", "data", "-fn"),
    ],
)
def test_a_run_never_replaces_its_own_cohort(script, option, name, data, command, cohort, tmp_path):
    source = cohort / ("training_set.csv" if data == "-fn_train" else "test_set.csv")
    path = tmp_path / f"{name}{'_metrics' if script == 'inference' else ''}.csv"
    some_rows(source, path, slice(4))
    arguments = command(script, {option: name, data: path})
    refused(script, *arguments, "--overwrite", cwd=tmp_path, names=[path.name])


def test_a_refused_run_leaves_no_empty_folder(tmp_path):
    Run(tmp_path / "run", "training.log", Arguments(overwrite=False), {})
    assert not (tmp_path / "run").exists()  # before the run begins


# Harmful samples


def t1(path, low=0.0, high=255.0, dtype=np.float32):
    """An image whose intensities reach exactly from low to high."""
    array = np.full((9, 8, 7), low, dtype)
    array[0, 0, 0] = high
    return write_image(path, array)


@pytest.mark.parametrize(("low", "high"), [(0, 300), (-1, 200)])
def test_intensities_beyond_the_range(low, high, tmp_path):
    image = t1(tmp_path / "x.nii.gz", low, high)
    refused("generate", "-i", image, "--output-folder", "out", cwd=tmp_path, names=[image, f"{low:g} to {high:g}"])
    if low < 0:
        return
    done = run_here("generate", "-i", image, "--maximum", high, "--output-folder", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    inverted = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "x_inv.nii.gz")))
    assert (inverted.min(), inverted.max()) == (0, 300)
    assert sorted(os.listdir(tmp_path / "out")) == ["x_clip.nii.gz", "x_inv.nii.gz"]


def test_a_harmful_sample_is_replaced_on_demand_only(tmp_path):
    image = t1(tmp_path / "x.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_clip.nii.gz").write_text("precious")
    refused("generate", "-i", image, "--output-folder", "out", cwd=tmp_path, names=["x_clip.nii.gz", "--overwrite"])
    done = run_here("generate", "-i", image, "--output-folder", "out", "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    read_image(tmp_path / "out" / "x_clip.nii.gz")


@pytest.mark.parametrize(
    ("images", "folder", "words"),
    [
        (["x.nii.gz", "x_inv.nii.gz"], ".", "x_inv.nii.gz: an original is never overwritten"),
        (["x.nii.gz", "x.nii.gz"], "out", "x_inv.nii.gz: two harmful images"),
        (["x.nii.gz", "other/x.nii.gz"], "out", "x_inv.nii.gz: two harmful images"),
    ],
)
def test_names_of_samples(images, folder, words, tmp_path):
    for image in images:
        t1(tmp_path / image)
    refused("generate", "-i", *images, "--output-folder", folder, "--overwrite", cwd=tmp_path, names=[words])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--output-folder", ".", "--overwrite"], ["training_set.csv", "an original"]),
        (["--centers", 8, "--images", 5], ["--centers x --images: 40 sources", "39 subjects"]),
        (["--experiment", "single", "--centers", 9], ["--centers: 9", "8"]),
    ],
)
def test_an_experiment_that_cannot_be(options, names, command, cohort, tmp_path):
    training = some_rows(cohort / "training_set.csv", tmp_path / "training_set.csv")
    refused("generate", *command("generate", {"-fn_train": training}), *options, cwd=tmp_path, names=names)


def test_a_second_experiment_does_not_join_the_centers_of_the_first(command, cohort, tmp_path):
    """The new centers are named harmful_01, ...: in a training set that has such centers, they would merge."""
    names = ["harmful_01", "harmful_01", "harmful_02", "c"]
    training = some_rows(cohort / "training_set.csv", tmp_path / "training.csv", slice(4), Study=names)
    arguments = [*command("generate", {"-fn_train": training}), "--centers", 2, "--images", 2]
    refused("generate", *arguments, cwd=tmp_path, names=[training, "Study", "harmful_0"])


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), 1),
        (ResourceExhaustedError("OOM when allocating tensor"), 1),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), 1),
        (OSError(28, "No space left on device", "models"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, status, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        travelling.runs.command.run(main)
    assert end.value.code == status
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert ("memory" in line) == (not isinstance(error, (OSError, KeyboardInterrupt)))


def test_what_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="unforeseen"):
        travelling.runs.command.run(lambda: (_ for _ in ()).throw(RuntimeError("unforeseen")))


# Quality control that could see no harm


def test_a_saturated_model_is_refused_unless_allowed(command, cohort, models, tmp_path):
    # Nor are the training images read before, which may take hours: whoever reads this one refuses it.
    image = write_image(tmp_path / "bad.nii.gz", np.full(SHAPE, np.nan, np.float32))
    unread = some_rows(cohort / "training_set.csv", tmp_path / "training.csv", slice(1))
    unread.write_text(unread.read_text().replace(pd.read_csv(unread)["Path"][0], str(image)))
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(4))
    for name in ("qc.csv", "qc_subjects.csv", "qc.log"):
        (tmp_path / name).write_text("precious")
    arguments = command("quality_control", {"-fn_train": unread, "-fn_test": test})
    line = refused(
        "quality_control", *arguments, "--overwrite", cwd=tmp_path, names=[pair(models)[0], "FPR 1.000", "saturated"]
    )
    assert "FNR" not in line  # FNR = 0 can still rise
    assert "--allow-saturated" in line


def test_a_saturated_model_may_be_allowed(command, cohort, tmp_path):
    training = some_rows(cohort / "training_set.csv", tmp_path / "training.csv", slice(2))
    test = some_rows(cohort / "test_set.csv", tmp_path / "test.csv", slice(4))
    arguments = command("quality_control", {"-fn_train": training, "-fn_test": test})
    done = run_here("quality_control", *arguments, "--allow-saturated", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = pd.read_csv(tmp_path / "qc.csv", keep_default_na=False)
    assert log["Phase"].to_list() == ["baseline", "batch"]
    assert log["PFP"].iloc[0] == 1
    assert "saturated" in (tmp_path / "qc.log").read_text()
    assert len(pd.read_csv(tmp_path / "qc_subjects.csv")) == 2
