"""Faults of all kinds: damaged files, a full disk, lost permissions, two processes in one folder.

Whatever happens, the answer is one line that names the file, and neither a wrong result nor a lost decision. The slow
versions try many more inputs; ``pytest -m slow -rP tests/test_faults.py`` shows how many.
"""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import hypothesis
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import SCRIPTS, write_image
from hypothesis import strategies as st

from travelling.errors import InputError
from travelling.images.cohort import read_cohort
from travelling.images.itk import read_image
from travelling.images.volumes import Volumes
from travelling.network.model_files import RECORD
from travelling.network.pretrained import read_record
from travelling.runs.checkpoint import Checkpoints

hypothesis.configuration.set_hypothesis_home_dir(tempfile.gettempdir())  # nothing in the repository


def many(few, lots):
    """Run a test with a few inputs always and with lots of them in the slow suite."""
    return pytest.mark.parametrize("examples", [few, pytest.param(lots, marks=pytest.mark.slow)])


def some_of(cases, few):
    """The first ``few`` of the cases always, the others in the slow suite."""
    slow = [pytest.param(*([case] if isinstance(case, str) else case), marks=pytest.mark.slow) for case in cases]
    return [*list(cases)[:few], *slow[few:]]


def try_all(examples, strategy, attempt):
    """Call ``attempt`` with inputs, always the same ones; it returns in a word how each ended."""
    ends = []

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(value):
        ends.append(attempt(value))

    run()
    counts = {end: ends.count(end) for end in sorted(set(ends))}
    print(f"{len(ends)} inputs tried: {counts}")
    return counts


@st.composite
def damaged(draw, content, pieces=(b"\0", b"\xff", b"\x80"), places=None):
    """``content`` with up to four changes: bytes replaced, put in, left out, or the end cut off."""
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        here = draw(st.integers(0, len(content)) if places is None else st.sampled_from(places))
        piece = draw(st.sampled_from(pieces) | st.binary(min_size=1, max_size=2))
        change = draw(st.sampled_from(["replace", "replace", "put in", "leave out", "cut"]))
        if change == "cut":
            content = content[:here]
        else:
            rest = content[here + (0 if change == "put in" else len(piece)) :]
            content = content[:here] + (b"" if change == "leave out" else piece) + rest
    return content


def refusal(path, function, *arguments):
    """The result of a call, or None where it is refused with an InputError of one line that names the file."""
    try:
        return function(*arguments)
    except InputError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return None


# CSVs

ROWS = (
    b"Subject,Study,Path,Group_bin,Sex,Age,Scanner\n"
    b'a,x,a.nii,0,M,61,A\n"b",y,b.nii,1,F,,"B, b"\nc,x,c.nii,1.0,F,70.5,C\n'
)
PIECES = [
    b'"', b"\n", b"\r", b"\0", b",", b";", b"", b"\t", b"'", b"nan", b"-1", b"1e999", b"inf", b"a" * 300, b"../",
    b"\xef\xbb\xbf", b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1a", b"/", b"batch", b",,,,,,\n", b"\xd7\xa0",
]  # fmt: skip


@pytest.fixture(scope="module")
def images_of_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    for name in "abc":
        (folder / f"{name}.nii").touch()
    (folder / "circle").symlink_to("circle")
    return folder


CELLS = st.text(max_size=8) | st.sampled_from(["a.nii", "./a.nii", "circle", ".", "0", "1", "M", "F", "a", "n/a", "99"])
CSVS = st.one_of(
    damaged(ROWS, PIECES),
    damaged(ROWS, PIECES).flatmap(
        lambda content: st.sampled_from(["utf-16", "utf-32-be", "cp500", "utf-7"]).map(
            lambda encoding: content.decode("latin-1").encode(encoding)
        )
    ),
    st.lists(st.lists(CELLS, min_size=6, max_size=7), max_size=4).map(
        lambda rows: ROWS + "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    ),
    st.binary(max_size=60),
)


@many(60, 5_000)
def test_a_damaged_csv_is_a_cohort_or_one_error(examples, images_of_rows):
    path = images_of_rows / "set.csv"

    def attempt(content):
        path.write_bytes(content)
        cohort = refusal(path, read_cohort, path)
        if cohort is None:
            return "refused"
        lines = [line for line in re.split(rb"\r\n|\r|\n", content) if line.strip(b',"')]
        assert len(cohort) == len(lines) - 1 > 0  # no row is lost
        assert b"\0" not in content
        assert cohort.index.is_unique
        assert list(cohort.index) == list(cohort["Subject"])
        assert not cohort["Subject"].str.contains("[;\r\n]").any()
        assert (cohort[["Subject", "Study", "Path"]] != "").all(axis=None)
        assert set(cohort["Group_bin"]) <= {0, 1}
        assert set(cohort["Sex"]) <= {"M", "F"}
        assert (cohort["Age"].isna() | cohort["Age"].between(0, 120)).all()
        assert cohort["Path"].is_unique
        assert all(Path(file).is_absolute() and Path(file).is_file() for file in cohort["Path"])
        return "read"

    counts = try_all(examples, CSVS, attempt)
    assert min(counts["read"], counts["refused"]) > examples / 100


@pytest.mark.parametrize(
    ("cell", "row", "words"),
    [
        (b"a\0.nii", "", "zero byte"),
        (b"a" * 300, ", row 3", "no such image"),
        (b"circle", ", row 3", "no such image"),
        (b'"a\nb.nii"', ", row 3", "line break"),
        (b"x\xe2\x80\xa8x", ", row 3", r"'x\u2028x'"),
    ],
)
def test_a_damaged_cell_is_named(cell, row, words, images_of_rows):
    path = images_of_rows / "one.csv"
    path.write_bytes(ROWS.replace(b"b.nii", cell))
    with pytest.raises(InputError) as error:
        read_cohort(path)
    assert str(error.value).startswith(f"{path}{row}: ")
    assert words in str(error.value)


def test_rows_between_two_stray_quotation_marks_are_not_lost(images_of_rows):
    path = images_of_rows / "quotes.csv"
    path.write_bytes(ROWS.replace(b'"', b"").replace(b"B, b", b"B").replace(b",A\n", b',"A\n')[:-1] + b'"\n')
    with pytest.raises(InputError, match=r"row 2: a line break inside a cell"):
        read_cohort(path)


# Images

SHAPE = (33, 34, 35)  # z, y, x
FIELDS = {  # of the header of NIfTI-1: place and type
    "sizeof_hdr": (0, "i"), "dim": (40, "h"), "dim1": (42, "h"), "dim2": (44, "h"), "dim3": (46, "h"),
    "dim4": (48, "h"), "dim5": (50, "h"), "intent": (68, "h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "pixdim0": (76, "f"), "pixdim1": (80, "f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"),
    "scl_inter": (116, "f"), "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern_b": (256, "f"),
    "qoffset_x": (268, "f"), "srow_x": (280, "f"), "srow_x3": (292, "f"), "magic": (344, "i"), "extension": (348, "i"),
}  # fmt: skip
WHOLE = [0, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2304, 32767, -1, -32768]
FLOATS = [0.0, 1.0, -1.0, 0.5, 344.0, 348.0, 352.5, 356.0, 1e9, 1e38, -1e38, 1e-45, np.nan, np.inf, -np.inf]


def header_fields(order):
    """Changes of whole fields: (place, bytes)."""
    return st.sampled_from(sorted(FIELDS)).flatmap(
        lambda name: st.sampled_from(FLOATS if FIELDS[name][1] == "f" else WHOLE).map(
            lambda value: (FIELDS[name][0], struct.pack(order + FIELDS[name][1], value))
        )
    )


@st.composite
def damaged_headers(draw, content, order):
    """``content`` with changes in fields or bytes of its header."""
    content = bytearray(content)
    single = st.tuples(st.integers(0, 351), st.binary(min_size=1, max_size=1))
    for place, value in draw(st.lists(header_fields(order) | single, min_size=1, max_size=4)):
        content[place : place + len(value)] = value
    return bytes(content)


@pytest.fixture(scope="module")
def plain_image(tmp_path_factory):
    """The bytes of a good .nii, float32 and little-endian."""
    array = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.float32)
    return write_image(tmp_path_factory.mktemp("nii") / "good.nii", array).read_bytes()


def big_endian(content):
    """The same image as other machines write it."""
    changed = bytearray(content)
    for place, kind in [
        *FIELDS.values(),
        *((40 + 2 * i, "h") for i in range(4, 8)),
        *((76 + 4 * i, "f") for i in (2, 3)),
    ]:
        if place not in (344, 348):
            changed[place : place + struct.calcsize(kind)] = content[place : place + struct.calcsize(kind)][::-1]
    for place in (*range(260, 268, 4), *range(272, 280, 4), *range(284, 328, 4)):
        if place != 292:
            changed[place : place + 4] = content[place : place + 4][::-1]
    changed[352:] = np.frombuffer(content[352:], "<f4").byteswap().tobytes()
    return bytes(changed)


@contextlib.contextmanager
def silent():
    """Assert that nothing is printed meanwhile, not by C libraries either."""
    with tempfile.TemporaryFile() as file:
        terminal = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        printed = file.read()
        # VNL, which ITK asks for orientations, remarks on dust such as 1e-45, and then does what is right.
        assert not printed or b"vnl_svd" in printed


def read_volumes(path):
    """What the scripts do with an image: (read_image's, the batch that is trained on)."""
    image = read_image(path)
    volumes = Volumes(1, path.parent / "cache")
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        volumes.add(pd.DataFrame({"Subject": ["s"], "Path": [str(path)]}))
        volumes.decode()
    return image, volumes.batch(["s"])


def look_at(path):
    """Read a file that may be damaged; the image where it is valid, else None."""
    with silent():
        found = refusal(path, read_volumes, path)
    if found is None:
        return None
    image, batch = found
    assert image.GetDimension() == 3
    assert min(image.GetSize()) >= 33
    assert image.GetSize() == batch.shape[3:0:-1]
    assert np.isfinite(batch).all()
    for geometry in (image.GetSpacing(), image.GetOrigin(), image.GetDirection()):
        assert np.isfinite(geometry).all()
    return image


@pytest.mark.parametrize("order", ["<", ">"])
@many(30, 3_000)
def test_a_damaged_header_is_an_image_or_one_error(examples, order, plain_image, tmp_path):
    content = plain_image if order == "<" else big_endian(plain_image)
    path = tmp_path / "x.nii"
    path.write_bytes(content)
    good = sitk.GetArrayFromImage(look_at(path))

    def attempt(header):
        path.write_bytes(header)
        image = look_at(path)
        if image is None:
            return "refused"
        is_as_before = np.array_equal(sitk.GetArrayFromImage(image), good)
        return "read" if is_as_before else "read otherwise"  # another data type, another scale

    counts = try_all(examples, damaged_headers(content, order), attempt)
    assert min(counts["read"], counts["refused"]) > examples / 20


@many(50, 10_000)
def test_a_damaged_archive_is_the_image_or_one_error(examples, plain_image, tmp_path):
    content = gzip.compress(plain_image, 1, mtime=0)
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    good = sitk.GetArrayFromImage(look_at(path))
    ends = [*range(40), *range(len(content) - 20, len(content) + 1)]

    def attempt(archive):
        path.write_bytes(archive)
        image = look_at(path)
        if image is not None:
            assert np.array_equal(sitk.GetArrayFromImage(image), good)
        return "refused" if image is None else "read"

    counts = try_all(examples, damaged(content) | damaged(content, places=ends), attempt)
    assert counts["refused"] > examples / 2


def test_a_long_header_extension_is_no_damage(tmp_path):
    """Some tools write megabytes there, for example of DICOM."""
    path = tmp_path / "x.nii"
    image = nib.Nifti1Image(np.arange(24, dtype="int16").reshape(2, 3, 4), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1_500_000))
    nib.save(image, path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_image(path)), image.get_fdata().T)


def with_field(content, **values):
    """The image with other values in its header."""
    content = bytearray(content)
    for name, value in values.items():
        place, kind = FIELDS[name]
        struct.pack_into(f"<{kind}", content, place, value)
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("x.nii", lambda content: with_field(content, magic=0x31696E), "in one file"),  # ni1: of an .hdr/.img pair
        ("x.nii", lambda content: struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n" + content[12:], "NIfTI-2"),
        ("x.nii", lambda content: with_field(content, vox_offset=0), "begin at byte 0"),
        ("x.nii", lambda content: with_field(content, dim2=-34), "-34"),
        ("x.nii", lambda content: with_field(content, datatype=32, bitpix=64), "data type 32"),
        ("x.nii", lambda content: with_field(content, srow_x=np.nan), "no possible one"),
        ("x.nii", lambda content: with_field(content, scl_slope=1e38), "too large"),
        ("x.nii", lambda content: content[:200], "does not begin with a header"),
    ],
)
def test_what_itk_takes_for_an_image_is_refused(name, change, words, plain_image, tmp_path):
    path = tmp_path / name
    path.write_bytes(change(plain_image))
    with silent(), pytest.raises(InputError, match=words):
        read_image(path)


def test_voxels_beyond_float32_are_refused(tmp_path):
    """They would be infinite in training."""
    path = write_image(tmp_path / "x.nii", np.full(SHAPE, 1e300))
    with silent(), pytest.raises(InputError, match="too large for float32"):
        read_image(path)


def test_nothing_is_read_as_an_image_that_is_no_single_file(plain_image, tmp_path):
    """An .hdr/.img pair under other names, and with the names that ITK would look for."""
    header, voxels = with_field(plain_image, magic=0x31696E, vox_offset=0)[:348], plain_image[352:]
    for names in (("x.nii", "x.img"), ("y.hdr", "y.img"), ("z.hdr.nii", "z.img.nii")):
        for name, content in zip(names, (header, voxels), strict=True):
            (tmp_path / name).write_bytes(content)
        for name in names:
            assert look_at(tmp_path / name) is None


# Memory

BILLIONS = {"dim1": 32767, "dim2": 32767, "dim3": 32767}
LOOK = """
import sys
from travelling.images import itk
from travelling.errors import InputError

try:
    itk.read_image(sys.argv[1])
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def bomb(content):
    """An archive of 3 MB that goes on for 3 GB after the image."""
    return gzip.compress(content, 1) + 48 * gzip.compress(bytes(2**26), 1) + b"not read any more"


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("x.nii", lambda content: with_field(content, **BILLIONS), "truncated"),
        ("x.nii.gz", lambda content: gzip.compress(with_field(content, **BILLIONS), 1), "truncated"),
        ("x.nii.gz", lambda content: gzip.compress(with_field(content, dim1=900, dim2=900, dim3=900), 1), "truncated"),
        ("x.nii.gz", bomb, "longer than"),
    ],
)
def test_a_header_that_claims_too_much_takes_no_memory(name, make, words, plain_image, server, tmp_path):
    good, bad, look = tmp_path / "good.nii", tmp_path / name, tmp_path / "look.py"
    good.write_bytes(plain_image)
    bad.write_bytes(make(plain_image))
    look.write_text(LOOK)
    usual = server.run([look, good], tmp_path)
    assert usual.status == 0
    done = server.run([look, bad], tmp_path)
    assert done.peak < usual.peak + 20e6  # bytes; the headers claim 3 GB and 141 TB
    assert (done.status, words in done.err) == (1, True), done.err


# Models


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """Folder with a tiny encoder and its classifier, .keras, and with those that TensorFlow 2.10 saved, .h5."""
    from travelling.network import backend
    from travelling.network.inference_network import EvaluatedModel

    backend.start(seed=1)
    folder = tmp_path_factory.mktemp("model")
    EvaluatedModel.build(SHAPE, 0.01, 1e-4).save(folder / "encoder.keras", folder / "classifier.keras", {"cycle": 7})
    for part, name in (("encoder", "encoder"), ("classifier", "classifier_PD")):
        shutil.copy(Path(__file__).parent / "data" / f"{name}_distributed_BS5_09.h5", folder / f"{part}.h5")
    return folder


@pytest.mark.parametrize(("kind", "shape"), [("keras", SHAPE), ("h5", (33, 36, 34))])
@pytest.mark.slow
@pytest.mark.parametrize("examples", [300])
def test_a_damaged_model_is_the_model_or_one_error(examples, kind, shape, saved_model, tmp_path):
    from travelling.network import saved_model

    good, classifier = (saved_model / f"{part}.{kind}" for part in ("encoder", "classifier"))
    bad = tmp_path / f"bad.{kind}"
    content = good.read_bytes()

    def load(encoder):
        loaded, record, _ = saved_model.load_model(encoder, classifier, shape)
        return [np.asarray(variable) for variable in loaded.export_state()], record

    whole, whole_record = load(good)

    def attempt(damage):
        bad.write_bytes(damage)
        with mock.patch.object(saved_model, "HDF5_TIMEOUT", 10):
            found = refusal(bad, load, bad)
        if found is None:
            return "refused"
        state, record = found
        assert [array.shape for array in state] == [array.shape for array in whole]
        if kind == "keras":  # has checksums
            assert all(np.array_equal(one, other) for one, other in zip(state, whole, strict=True))
            assert record == whole_record
        return "loaded"

    ends = [*range(len(content) - 1000, len(content))]  # the archive's table of contents
    try_all(examples, damaged(content) | damaged(content, places=ends), attempt)


def test_a_record_whose_name_is_damaged_is_not_overlooked(tmp_path):
    """Without it a model would have no cycle and no random state."""
    path = tmp_path / "encoder.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(RECORD, '{"cycle": 7}')
    assert read_record(path) == {"cycle": 7}
    content = path.read_bytes()
    place = content.rindex(RECORD.encode())  # in the table of contents
    path.write_bytes(content[:place] + b"?" + content[place + 1 :])
    assert refusal(path, read_record, path) is None


@pytest.mark.parametrize("record", ['{"cycle": "7"}', "[7]", "{"])
def test_a_record_that_is_none_is_one_error(record, tmp_path):
    path = tmp_path / "encoder.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(RECORD, record)
    assert refusal(path, read_record, path) is None


# Checkpoints


def test_no_damage_to_the_newest_checkpoint_is_taken_for_a_state(tmp_path):
    """Every single byte, and every length: the one before is taken."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for cycle in (1, 2):
        checkpoints.save({"cycle": cycle}, [np.arange(3.0) * cycle, np.array(cycle)])
    path = sorted(checkpoints.folder.iterdir())[-1]
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytes([content[place] ^ 1 << place % 8])
        for bad in (content[:place], content[:place] + flipped + content[place + 1 :]):
            path.write_bytes(bad)
            record, arrays, warnings = checkpoints.load()
            assert record == {"cycle": 1}
            assert [array.tolist() for array in arrays] == [[0, 1, 2], 1]
            assert len(warnings) == 1
            assert str(path) in warnings[0]


# Runs, with a fake model


class Server:
    """tests/fork_server.py."""

    class Done(NamedTuple):
        """How a process ended."""

        status: int
        peak: int  # bytes of memory
        err: str

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, argv, cwd, **options):
        """Start a script in ``cwd``; the number of its process."""
        return self.ask(start={"argv": [str(word) for word in argv], "cwd": cwd, **options})

    def wait(self, number):
        return self.Done(*self.ask(wait=number))

    def run(self, argv, cwd, **options):
        return self.wait(self.start(argv, cwd, **options))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder with a training set (two of its images harm), a test set and a pre-trained model, for the fake model."""
    folder = tmp_path_factory.mktemp("inputs")
    centers = {"a": [60, 180, 62], "b": [60, 255, 180, 61, 182, 183], "c": [180], "d": [60, 255, 61, 63, 181, 180, 62]}
    tested = {"home": [60, 180, 61, 181]}
    for name, table in (("training_set", centers), ("test_set", tested)):
        rows = []
        for center, values in table.items():
            for value in values:
                subject = f"{name[:2]}{len(rows)}"
                voxels = np.full(SHAPE, value, np.uint8)
                voxels[0, 0, len(rows)], voxels[0, 1, 0] = 0, name == "test_set"  # no image is another's copy
                write_image(folder / f"{subject}.nii.gz", voxels)
                rows.append([subject, center, f"{subject}.nii.gz", int(value > 100), "MF"[len(rows) % 2]])
        columns = ["Subject", "Study", "Path", "Group_bin", "Sex"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / f"{name}.csv", index=False)
    for cycle in (6, 7):
        for part in ("encoder", "classifier_PD"):
            (folder / f"{part}_x_{cycle:02d}.keras").write_bytes(np.array([100.0, cycle]).tobytes())
    return folder


@pytest.fixture(scope="module")
def commands(inputs):
    """The command line of every script, and the results that must not depend on what happened."""
    train, test = inputs / "training_set.csv", inputs / "test_set.csv"
    model = ("-en", inputs / "encoder_x_07.keras", "-pd", inputs / "classifier_PD_x_07.keras")
    return {
        "standard": [
            SCRIPTS["standard"], "-fn_train", train, "-cycles", 2, "-epochs", 1, "--output-folder", "run",
        ],
        "quality_control": [
            SCRIPTS["quality_control"], "-fn_train", train, "-fn_test", test, "-cycles", 10, *model,
            "-revisit", 1, "-fn_save", "qc", "--output-folder", "run",
        ],
        "inference": [SCRIPTS["inference"], "-fn", test, "-en", inputs, "-pd", inputs, "-o", "run/result"],
        "generate": [
            SCRIPTS["generate"], "-fn_train", train, "--kind", "noise", "--centers", 2, "--images", 2,
            "--output-folder", "run",
        ],
    }  # fmt: skip


def results(folder):
    """What a run leaves for its user, byte for byte; of what tells the time, only the names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            timeless = path.suffix in (".csv", ".keras", ".gz") or ".part" in path.name
            found[str(path.relative_to(folder))] = path.read_bytes() if timeless else None
    return found


@pytest.fixture(scope="module")
def uninterrupted(server, commands, tmp_path_factory):
    """Results of the complete runs."""
    whole = {}
    for script, argv in commands.items():
        folder = tmp_path_factory.mktemp(script)
        done = server.run(argv, folder)
        assert done.status == 0, done.err
        whole[script] = results(folder)
    return whole


def failed(done, name, cause, status=1):
    """A run must have ended with one clear line."""
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    assert "Logging error" not in done.err
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], done.err
    assert name in lines[-1]
    assert cause in lines[-1]


def wholly_or_not_at_all(folder, whole):
    """No final file is half-written (logs grow by lines: they may end in the middle of one)."""
    for name, content in results(folder).items():
        assert ".part" not in name
        if name.endswith("_subjects.csv"):  # the only table that changes
            assert content.count(b"\n") == whole[name].count(b"\n")
        elif name.endswith((".keras", ".gz", "training_set.csv", "truth.csv")):
            assert content == whole[name], name


def test_the_runs_of_the_fake_model_have_something_to_lose(uninterrupted):
    log = uninterrupted["quality_control"]["qc.csv"].decode().splitlines()
    assert sum(row.split(",")[-1] == "1" for row in log) == 2  # eliminations
    assert len(uninterrupted["standard"]) == 7
    assert len(uninterrupted["generate"]) == 9


# What was happening, when ("open" or "rename" of a file, and the how manieth) the disk was full, and for which file.
FULL = {
    "record at the start": ("quality_control", "open", ".run.json.part", 1, "run/.run.json.part", 9),
    "log at the start": ("quality_control", "open", "qc.log", 1, "qc.log", 9),
    "checkpoint": ("quality_control", "open", ".checkpoint.part", 3, "run/checkpoints/.00000002.checkpoint.part", 99),
    "row": ("quality_control", "os.rename", ".checkpoint.part", 2, "qc.csv", 7),
    "model": ("quality_control", "open", ".encoder", 1, "run/.encoder.part", 99),
    "subject table": ("quality_control", "open", ".qc_subjects.csv.part", 1, ".qc_subjects.csv.part", 9),
    "line of the log": ("quality_control", "os.rename", "qc_subjects.csv", 1, "qc.log", 7),
    "inference: metrics": ("inference", "open", ".result_metrics.csv.part", 1, "run/.result.part", 9),
    "image": ("generate", "os.rename", ".part_", 1, "run/images/none", 99),
    "lock": ("quality_control", "open", ".run.lock", 1, "run/.run.lock", 0),
    "record at the end": ("quality_control", "open", ".run.json.part", 2, "run/.run.json.part", 9),
    "standard: checkpoint": ("standard", "open", ".checkpoint.part", 2, "run/checkpoints/.00000001.checkpoint.part", 9),
    "standard: model": ("standard", "open", ".encoder", 3, "run/.encoder.part", 99),
    "standard: line of the log": ("standard", "os.rename", ".classifier", 1, "run/training.log", 7),
    "inference: predictions": ("inference", "open", ".result_predictions.csv.part", 2, "run/.result.part", 9),
    "inference: line of the log": ("inference", "os.rename", "result_metrics.csv", 1, "run/result.log", 7),
    "training set": ("generate", "open", ".training_set.csv.part", 1, "run/.training_set.csv.part", 9),
}


@pytest.mark.parametrize("kind", some_of(FULL, 9))
def test_a_full_disk_costs_time_but_nothing_else(kind, server, commands, uninterrupted, tmp_path):
    script, event, name, count, grown, room = FULL[kind]
    fault = {"event": event, "name": name, "count": count, "grown": grown, "room": room}
    done = server.run(commands[script], tmp_path, fault=fault)
    culprit = "images/" if kind == "image" else Path(grown).name.lstrip(".").removesuffix(".part")
    failed(done, culprit, "File too large")
    wholly_or_not_at_all(tmp_path, uninterrupted[script])
    again = server.run(commands[script], tmp_path)
    assert again.status == 0, again.err
    assert results(tmp_path) == uninterrupted[script]


@pytest.mark.parametrize(
    ("script", "name", "count"),
    [("quality_control", ".checkpoint.part", 3), ("standard", ".classifier", 1)],
)
def test_lost_permission_costs_time_but_nothing_else(script, name, count, server, commands, uninterrupted, tmp_path):
    folders = [tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path]
    fault = {"event": "os.rename", "name": name, "count": count, "forbid": [str(folder) for folder in folders]}
    done = server.run(commands[script], tmp_path, fault=fault)
    failed(done, "run/", "Permission denied")
    failed(server.run(commands[script], tmp_path, fault=fault), str(tmp_path), "cannot be written (Permission", 2)
    for folder in folders:
        folder.chmod(0o755)
    again = server.run(commands[script], tmp_path)
    assert again.status == 0, again.err
    assert "going on in cycle" in again.err
    assert results(tmp_path) == uninterrupted[script]


def test_damaged_checkpoints_never_lose_a_decision(server, commands, uninterrupted, tmp_path):
    fault = {"event": "open", "name": ".checkpoint.part", "count": 8, "grown": "none", "room": 9}
    argv, whole = commands["quality_control"], uninterrupted["quality_control"]
    assert server.run(argv, tmp_path, fault=fault).status == 1
    before = results(tmp_path)
    assert before["qc.csv"].count(b"\n") > 8
    paths = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert len(paths) == 2
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    failed(server.run(argv, tmp_path), "checkpoints", "every checkpoint is damaged; --overwrite starts anew", 2)
    assert results(tmp_path) == before

    shutil.rmtree(paths[0].parent)
    failed(server.run(argv, tmp_path), "run/", "no checkpoint; --overwrite starts anew", 2)
    assert {**results(tmp_path), **before} == before

    paths[0].parent.mkdir()
    paths[0].write_bytes(contents[0])
    paths[1].write_bytes(contents[1][:500])
    done = server.run(argv, tmp_path)
    assert done.status == 0, done.err
    assert f"warning: {paths[1].relative_to(tmp_path)}: damaged checkpoint" in done.err
    assert results(tmp_path) == whole


@pytest.mark.parametrize(
    ("script", "forget"),
    [
        ("quality_control", lambda record, arrays: record["control"].pop("counts")),
        ("quality_control", lambda record, arrays: record["baseline"].update(unknown=1)),
        ("quality_control", lambda record, arrays: record.pop("log_length")),
        ("quality_control", lambda record, arrays: arrays.clear()),
        ("standard", lambda record, arrays: record.pop("losses")),
        ("standard", lambda record, arrays: record.pop("generator")),
    ],
)
def test_a_checkpoint_of_another_version_is_one_line(script, forget, server, commands, tmp_path):
    fault = {"event": "open", "name": ".checkpoint.part", "count": 3, "grown": "none", "room": 9}
    assert server.run(commands[script], tmp_path, fault=fault).status == 1
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    record, arrays, _ = checkpoints.load()
    forget(record, arrays)
    checkpoints.save(record, arrays)
    before = results(tmp_path)
    failed(server.run(commands[script], tmp_path), "checkpoints", "another version of this code; --overwrite starts", 2)
    assert results(tmp_path) == before


@pytest.mark.parametrize("script", some_of(["quality_control", "standard", "inference"], 1))
def test_of_two_processes_in_one_folder_one_wins(script, server, commands, uninterrupted, tmp_path):
    two = [server.start(commands[script], tmp_path, pause=0.05) for _ in range(2)]
    winner, loser = sorted((server.wait(number) for number in two), key=lambda done: done.status)
    assert winner.status == 0, winner.err
    failed(loser, "run: ", "is writing to it", 2)
    assert results(tmp_path) == uninterrupted[script]
