"""Preparing raw scans: who is found, what is written, what is refused, and how well a head is put where it belongs."""

import base64
import hashlib
import html
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from conftest import ROOT, run_here
from matplotlib.image import imread

sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from registration_error import error, synthetic

from prepare_images import bids, one_scan, overview, registration
from prepare_images.one_scan import Job
from prepare_images.registration import brain_points
from prepare_images.template import empty_image, image_size
from travelling.errors import InputError
from travelling.images.cohort import read_cohort
from travelling.images.itk import read_image
from travelling.images.nifti import read_header, read_voxels
from travelling.images.ratings import read_ratings

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # as the script's processes: then equal scans give equal images
SCRIPT = ROOT / "prepare_images" / "prepare_images.py"
AFFINE = np.array([[5.0, 0, 0, -80], [0, 5, 0, -100], [0, 0, 5, -80], [0, 0, 0, 1]])  # RAS


def write_scan(path, seed=0, shape=(33, 40, 33), affine=AFFINE):
    voxels = np.random.default_rng(seed).integers(1, 1000, shape).astype("int16")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_participants(folder, *rows, columns="participant_id\tgroup\tsite\tsex\tage"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "participants.tsv").write_text("\n".join([columns, *rows]) + "\n")


@pytest.fixture
def dataset(tmp_path):
    """A BIDS folder: three good ones, of which one has two sessions; and one of each fault."""
    folder = tmp_path / "bids"
    write_participants(
        folder,
        "sub-01\tPD\tA\tM\t61",
        "02\tControl\tB\tfemale\t89+",
        "sub-03\thc\tB\tF\tn/a",
        "sub-04\tMSA\tB\tF\t70",
        "sub-05\tPD\tB\tn/a\t70",
        "sub-06\tPD\tB\tF\t70",
        "sub-07\tPD\tB\tF\t70",
        "sub-08\tPD\tB\tF\t70",
    )
    for number, place in enumerate(
        ("sub-01/ses-1/anat/sub-01_ses-1", "sub-01/ses-2/anat/sub-01_ses-2", "sub-02/anat/sub-02", "sub-03/anat/sub-03",
         "sub-04/anat/sub-04", "sub-05/anat/sub-05", "sub-06/anat/sub-06_run-1", "sub-06/anat/sub-06_run-2",
         "sub-08/anat/sub-08", "sub-09/anat/sub-09")
    ):  # fmt: skip
        write_scan(folder / f"{place}_T1w.nii.gz", number)
    (folder / "sub-08/anat/sub-08_T1w.nii.gz").write_bytes(b"no image")
    return folder


class Here(ThreadPoolExecutor):
    """In place of processes."""

    def __init__(self, workers, _context, initializer):
        super().__init__(1)


@pytest.fixture
def prepared_scans(monkeypatch):
    """Preparation without registration: what it was asked for; the image is made of the scan's first voxel."""
    calls = []

    def prepare(scan, mask, spacing):
        calls.append((sitk.GetArrayViewFromImage(scan)[0, 0, 0], mask, spacing))
        image = empty_image(spacing, image_size(spacing))
        image = sitk.Cast(image + float(scan[0, 0, 0] % 255), sitk.sitkUInt8)
        measures = {"Status": "prepared", "Reason": "", **dict.fromkeys(registration.MEASURES, 0.5)}
        measures["Similarity"] = len(calls) / 100
        return registration.Prepared(image, image > 0, sitk.AffineTransform(3), measures)

    monkeypatch.setattr(one_scan, "prepare", prepare)
    monkeypatch.setattr(one_scan, "draw", lambda *_: b"JPEG")
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Here)
    return calls


def run(*options):
    """The script in this process: status, and what it said on stderr."""
    done = run_here(SCRIPT, *options)
    return done.returncode, done.stderr


def refusal(*options):
    status, said = run(*options)
    assert status == 2
    assert len(said.splitlines()) == 1
    return said


def test_a_bids_folder_becomes_a_cohort(dataset, prepared_scans, tmp_path):
    out = tmp_path / "out"
    status, said = run("--bids", dataset, "--output-folder", out, "--spacing", 4.8)
    assert status == 0, said
    cohort = read_cohort(out / "prepared.csv")
    assert list(cohort["Subject"]) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02", "sub-03"]
    assert list(cohort.columns[:6]) == ["Subject", "Study", "Path", "Group_bin", "Sex", "Age"]
    assert list(cohort["Participant"]) == ["sub-01", "sub-01", "sub-02", "sub-03"]
    assert list(cohort["Study"]) == ["A", "A", "B", "B"]
    assert list(cohort["Group_bin"]) == [1, 1, 0, 0]
    assert list(cohort["Sex"]) == ["M", "M", "F", "F"]
    assert list(cohort["Similarity"].astype(float)) == [0.01, 0.02, 0.03, 0.04]
    np.testing.assert_array_equal(cohort["Age"], [61, 61, 89, np.nan])
    assert cohort.loc["sub-01_ses-2", "Path"] == str(
        out / "images/sub-01/ses-2/anat/sub-01_ses-2_space-MNI152NLin2009aSym_desc-brain_T1w.nii.gz"
    )
    described = json.loads((out / "images/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert {"Name", "BIDSVersion", "GeneratedBy"} <= set(described)
    assert described["DatasetLinks"] == {"raw": dataset.as_uri()}
    (image, mask) = (
        json.loads(Path(cohort["Path"].iloc[1].replace("_T1w.nii.gz", f"_{kind}.json")).read_text())
        for kind in ("T1w", "mask")
    )
    assert image["Sources"] == mask["Sources"] == ["bids:raw:sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"]
    assert mask["Type"] == "Brain"
    assert "registered" in image["Description"]
    assert "registered" in (out / "images/README").read_text()

    table = pd.read_csv(out / "registration.csv", keep_default_na=False).set_index("Subject")
    assert list(table["Status"]) == ["prepared"] * 4 + ["failed"] * 6
    reasons = {
        "sub-04": "group 'MSA' is neither PD",
        "sub-05": "sex 'n/a' is neither M nor F",
        "sub-06": "2 T1w images in",
        "sub-07": "no T1w image",
        "sub-08": "not a NIfTI image",
        "sub-09": "not in participants.tsv",
    }
    for subject, reason in reasons.items():
        assert reason in table.loc[subject, "Reason"]
        assert said.index(reason) < said.index("preparing scans")
    assert "sub-06_run-1_T1w.nii.gz, sub-06_run-2_T1w.nii.gz; --t1w chooses" in table.loc["sub-06", "Reason"]
    assert set(table["Mask"]) == {"template"}
    assert "have no brain mask: the template's is carried over" in said

    assert "at sub-01_ses-1" in said  # the bar names the scan at hand


def test_the_page_holds_a_picture_and_a_tick_for_each_scan(dataset, prepared_scans, tmp_path):
    write_participants(
        dataset, *[f"sub-{name}\tPD\t<A>\tF\t61" for name in ("02", "03", "04", "07", "08")], 'sub-"9"\tHC\tB\tF\t61'
    )
    write_scan(dataset / 'sub-"9"/anat/sub-"9"_T1w.nii.gz', 9, (10, 40, 33))
    out = tmp_path / "a folder"
    status, said = run("--bids", dataset, "--output-folder", out, "--center", "<A> & B")
    assert status == 0, said
    page = (out / "overview.html").read_text()
    cards = re.findall(r"<article data-subject=\"(.*?)\">(.*?)</article>", page, re.DOTALL)
    # Those that failed first, then by similarity; a scan that is none has no picture.
    assert [html.unescape(name) for name, _ in cards] == [
        "sub-07", "sub-08", 'sub-"9"', "sub-01", "sub-05", "sub-06", "sub-09", "sub-02", "sub-03", "sub-04"
    ]  # fmt: skip
    pictures = [unquote(html.unescape(name)) for name in re.findall(r'src="(.*?)"', page)]
    assert pictures == [f"pictures/sub-{name}.jpg" for name in ("02", "03", "04")]
    assert all((out / name).read_bytes() == b"JPEG" for name in pictures)
    for _, card in cards:
        assert re.findall(r'type="radio" name="rating-\d+" value="(.*?)"', card) == ["keep", "leave out", "redo"]
    assert "&lt;A&gt; &amp; B; similarity 0.01" in cards[7][1]
    assert "no T1w image" in cards[0][1]
    assert "These are pictures of people" in page
    # Nothing from outside: its own script and no other, no address, no image but those beside it.
    (text,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "://" not in page
    assert "href" not in page.replace("link.href", "")


def test_a_bids_app_call_is_the_same_command(dataset, prepared_scans, tmp_path):
    out = tmp_path / "out"
    status, said = run(dataset, out, "participant", "--participant-label", "02", "sub-01")
    assert status == 0, said
    assert list(read_cohort(out / "prepared.csv")["Subject"]) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02"]
    assert "done already" in run("--bids", dataset, "--output-folder", out, "--participant-label", "02", "sub-01")[1]
    assert run(dataset, out, "participant", "--overwrite")[0] == 0
    assert list(read_cohort(out / "prepared.csv")["Subject"])[2:] == ["sub-02", "sub-03"]
    assert len(prepared_scans) == 4  # no image is made again
    there = ["--overwrite", "--participant-label"]
    assert "participants.tsv: has no sub-2 (--participant-label)" in refusal(dataset, out, "participant", *there, "2")
    assert "--participant-label: of a BIDS folder only" in refusal("--csv", out / "prepared.csv", *there, "02")
    for words in ([dataset], [dataset, out, "group"]):
        assert "not bids_dir, output_dir and the word participant" in refusal(*words)


def colors_of(picture):
    """Where a picture is yellow, and where it is red: arrays of bool."""
    red, green, blue = np.moveaxis(imread(io.BytesIO(picture), format="jpg").astype(int), -1, 0)
    return (red > 180) & (green > 140) & (blue < 90), (red > 180) & (green < 110) & (blue < 110)


def test_a_picture_shows_what_was_cut():
    """The scan in its own voxels and orientation, upright; the mask's outline where the mask is."""
    voxels = np.zeros((60, 50, 40), "float32")  # z, y, x
    scan = sitk.GetImageFromArray(voxels)
    scan.SetSpacing((2.0, 1.0, 4.0))
    scan.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))  # slices from top to bottom
    voxels[:6, 5:45, 4:36] = 1  # the upper tenth of the file's 240 mm
    brain = sitk.GetImageFromArray(voxels.astype("uint8"))
    brain.CopyInformation(scan)
    yellow, red = colors_of(overview.draw(scan, brain, None))
    assert yellow.shape == (400, 1200)
    assert not red.any()
    rows, columns = np.nonzero(yellow[:, 400:800])  # coronal: 240 mm high, so many pixels as in 400
    assert rows.max() < 45  # at the top
    assert 50 < np.ptp(columns) * 240 / 400 < 70  # 64 mm wide
    image = empty_image(4.0, image_size(4.0))
    yellow, red = colors_of(overview.draw(scan, None, sitk.Cast(image, sitk.sitkUInt8)))
    assert not yellow.any()
    assert not red[:400].any()
    assert red[400:].any(axis=0).sum() > 700  # the template's brain, of 150 to 190 mm, in each plane


def test_ratings_are_heeded(dataset, prepared_scans, tmp_path):
    """Left out: not in prepared.csv. To be redone: not there before it has a mask of its own. And the page shows it."""
    out, ratings = tmp_path / "out", tmp_path / "ratings.tsv"
    ratings.write_text(
        'participant_id\trating\tnote\nsub-01_ses-1\tleave out\t"half ""gone"""\nsub-02\tRedo\tn/a\nsub-03\tkeep\t\n'
    )
    options = ["--bids", dataset, "--output-folder", out, "--ratings", ratings]
    status, said = run(*options)
    assert status == 0, said
    assert "4 of 10 scans prepared, 0 of these to look at, 2 left out by ratings" in said
    assert read_cohort(out / "prepared.csv")["Rating"].to_dict() == {"sub-01_ses-2": "", "sub-03": "keep"}
    table = pd.read_csv(out / "registration.csv", keep_default_na=False).set_index("Subject")
    assert table.loc["sub-01_ses-1", ["Status", "Rating", "Note"]].tolist() == ["prepared", "leave out", 'half "gone"']
    page = (out / "overview.html").read_text()
    assert re.findall(r'value="([a-z ]*)" checked', page) == ["leave out", "redo", "keep"]
    assert 'value="half &#34;gone&#34;"' in page

    brain = np.zeros((33, 40, 33), "uint8")
    brain[5:28, 5:35, 5:28] = 1
    for name in ("02", "03"):
        nib.save(nib.Nifti1Image(brain, AFFINE), dataset / f"sub-{name}/anat/sub-{name}_T1w_mask.nii.gz")
    assert run(*options, "--overwrite", "--mask-pattern", "{folder}/{name}_mask.nii.gz")[0] == 0
    assert len(prepared_scans) == 6  # two are made again
    assert list(read_cohort(out / "prepared.csv")["Subject"]) == ["sub-02", "sub-03"]
    assert pd.read_csv(out / "registration.csv", keep_default_na=False)["Rating"][2] == ""  # not of this image

    # They are kept: what is told later changes the rating of the same image, and no other.
    ratings.write_text("participant_id\trating\tnote\nsub-03\tleave out\tn/a\n")
    status, said = run(*options, "--overwrite", "--t1w", "*sub-0[13]_*T1w.nii.gz")
    assert status == 0, said
    assert list(read_cohort(out / "prepared.csv")["Subject"]) == ["sub-01_ses-2"]
    kept = pd.read_csv(out / "ratings.tsv", sep="\t", keep_default_na=False).set_index("participant_id")
    assert kept["rating"].to_dict() == {"sub-01_ses-1": "leave out", "sub-02": "redo", "sub-03": "leave out"}
    assert kept["note"].to_dict() == {"sub-01_ses-1": 'half "gone"', "sub-02": "n/a", "sub-03": "n/a"}
    status, said = run(*options[:-2], "--overwrite", "--t1w", "*sub-03_T1w.nii.gz")
    assert (status, said.splitlines()[-1]) == (
        2, f"error: {out / 'ratings.tsv'}: leaves no image in {out / 'prepared.csv'}"
    )  # fmt: skip


HEADER = "participant_id\trating\tnote\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("participant_id\trating\na\tkeep\n", "no column note"),
        (HEADER + "a\tgood\t\n", "row 2: rating must be keep, leave out, redo or n/a ('good')"),
        (HEADER + "a\tkeep\t\na\tredo\t\n", "row 3: participant_id appears before, too ('a')"),
        (HEADER + "b\tkeep\t\n", "tells of none of the 1 images"),
    ],
)
def test_ratings_that_are_none(text, told, tmp_path):
    (tmp_path / "ratings.tsv").write_text(text)
    with pytest.raises(InputError) as error:
        read_ratings(tmp_path / "ratings.tsv", ["a"])
    assert told in str(error.value)


def test_what_is_in_a_folder_is_said_before_work_begins(dataset, prepared_scans, tmp_path):
    with (dataset / "participants.tsv").open("a") as file:
        file.writelines(
            f"sub-1{i}\tPD\tA\tM\t{age}\n" for i, age in enumerate(("60,5", "061Y", "18-38", "744", "732M"))
        )
    for number in range(5):
        shutil.copytree(dataset / "sub-02", dataset / f"sub-1{number}")
        (dataset / f"sub-1{number}/anat/sub-02_T1w.nii.gz").rename(
            dataset / f"sub-1{number}/anat/sub-1{number}_T1w.nii.gz"
        )
    status, said = run("--bids", dataset, "--output-folder", tmp_path / "out")
    assert status == 0
    before = said[: said.index("preparing scans")]
    for words in (
        "found: 14 people, 15 scans, 2 centers (A: 7, B: 7)",
        "people by diagnosis: 10 PD ('PD'), 2 HC ('Control', 'hc'), 2 neither ('', 'MSA')",
        "people by sex: 6 M ('M'), 6 F ('F', 'female'), 2 not read ('', 'n/a')",
        "ages of scans: 11 read (60.5 to 89 years), 2 not read ('18-38', '744'), 2 not told",
        "masks: 15 template",
        "the same image under two names: sub-02 and sub-10, one as HC and one as PD",
    ):
        assert words in before
    ages = read_cohort(tmp_path / "out" / "prepared.csv")["Age"]
    np.testing.assert_array_equal(ages[-5:], [60.5, 61, np.nan, np.nan, 61])
    assert "nobody is" not in said


@pytest.mark.parametrize(
    ("text", "years"),
    [("61", "61"), ("60.5", "60.5"), ("60,5", "60.5"), ("89+", "89"), ("061Y", "61"), ("018M", "1.5"), ("055y", "55"),
     ("18-38", ""), ("744", ""), ("n/a", ""), ("", ""), ("-3", ""), ("sixty", ""), ("60.5.1", ""), ("6e1", "")],
)  # fmt: skip
def test_ages_as_labs_write_them(text, years):
    assert bids.read_age(text) == years


def people(folder, *rows, columns="participant_id\tgroup\tsite\tsex\tage"):
    """A BIDS folder with the scan of each person in these rows."""
    write_participants(folder, *rows, columns=columns)
    for number, row in enumerate(rows):
        name = "sub-" + row.split("\t")[0].strip('"').removeprefix("sub-")
        write_scan(folder / name / "anat" / f"{name}_T1w.nii.gz", number)
    return folder


GROUPS = [f"sub-0{number}\t{{}}\tA\tM\t60" for number in range(4)]


def test_one_class_is_said_or_refused_first(prepared_scans, tmp_path):
    """A center may have one class only; a word that is not understood is a mistake."""
    out = ["--output-folder", tmp_path / "out"]
    folder = people(tmp_path / "bids", *[row.format("control") for row in GROUPS])
    status, said = run("--bids", folder, *out)
    assert status == 0
    assert said.index("notice: nobody is PD") < said.index("preparing scans")
    write_participants(
        folder, *[row.format(word) for row, word in zip(GROUPS, ["control", "patient"] * 2, strict=True)]
    )
    told = refusal("--bids", folder, *out, "--overwrite")
    assert "participants.tsv: nobody is PD; group is control, patient (see --pd and --hc)" in told
    options = ["--bids", folder, *out, "--overwrite", "--hc", "control"]
    assert run(*options, "--pd", "PD")[0] == 0  # nobody is, and the user knows
    assert run(*options, "--pd", "patient")[0] == 0
    assert list(read_cohort(tmp_path / "out/prepared.csv")["Group_bin"]) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("columns", "row", "told"),
    [
        ("participant_id\tgroup\tgroup\tsite\tsex", "sub-01\tPD\tHC\tA\tM", "row 1: two columns are named 'group'"),
        ("participant_id\tgroup\tGroup\tsite\tsex", "sub-01\tPD\tHC\tA\tM", "named 'group' and 'Group'"),
        ("participant_id\tparticipant_id\tgroup\tsite\tsex", "sub-01\ta\tPD\tA\tM", "named 'participant_id'"),
        ("participant_id\tgroup\tsite\tsex\tx", "1\tPD\tA\tM\t\"a\n2\tPD\tA\tM\tb\"", "row 2: a line break"),
        ("participant_id\tgroup\tnotes\tsite\tsex", "sub-01\tPD\t\"moved\tA\" lot\tM", "row 2: a line break"),
        ("participant_id\tgroup\tsite\tsex\tnotes", "sub-01\tPD\tA\tM\t\"moved", "not a TSV file"),
        ("participant_id\tgroup\tsite\tsex", "01\tPD\tA\tM\nsub-01\tHC\tA\tM", "row 3: participant_id is there twice"),
        ("participant_id\tgroup\tsite\tsex", "n/a\tPD\tA\tM", "row 2: participant_id is empty or n/a"),
        ("participant_id\tgroup\tsite\tsex", "sub-01\tPD\tA\tM\tx", "more cells than its header"),
        ("participant_id\tgroup\tsite\tsex", "sub-01\tPD\tA\tM\nsub-0;2\tHC\tA\tM", "must not contain ';'"),
    ],
)  # fmt: skip
def test_a_table_of_participants_has_the_rules_of_a_csv(columns, row, told, tmp_path):
    write_participants(tmp_path / "bids", row, columns=columns)
    for name in ("sub-01", "sub-0;2"):
        write_scan(tmp_path / f"bids/{name}/anat/{name}_T1w.nii")
    said = refusal("--bids", tmp_path / "bids", "--output-folder", tmp_path / "out")
    assert f"{tmp_path / 'bids/participants.tsv'}" in said
    assert told in said
    assert not (tmp_path / "out").exists()


def test_quotation_marks_around_whole_cells_do_not_count(tmp_path):
    """As R and Excel write them."""
    folder = people(tmp_path, '"sub-01"\t"PD"\t"A"\t"M"', columns='"participant_id"\t"group"\t"site"\t"sex"')
    assert bids.read_bids(folder, {})["Subject"].to_list() == ["sub-01"]


def test_files_beside_a_scan_are_no_scans(tmp_path):
    folder = people(tmp_path, *[row.format("PD") for row in GROUPS])
    anat = folder / "sub-00" / "anat"
    for name in ("._sub-00_T1w.nii.gz", ".sub-00_T1w.nii.gz", "sub-00_T1w.json"):
        (anat / name).write_bytes(b"\0")
    (folder / "sub-01/anat/sub-01_T1w.nii.gz").unlink()
    (folder / "sub-01/anat/sub-01_T1w.nii.gz").symlink_to("../.git/annex/objects/gone")
    found = bids.read_bids(folder, {}, t1w="*_T1w*")
    assert [Path(path).name for path in found["Path"]] == [f"sub-0{number}_T1w.nii.gz" for number in range(4)]
    assert "of git-annex or DataLad: not fetched yet?" in found["Reason"].iloc[1]
    assert (found["Reason"] == "").sum() == 3


def test_a_session_may_have_a_diagnosis_and_an_age_of_its_own(tmp_path):
    write_participants(tmp_path, "sub-01\tHC\tA\tM\t60", "sub-02\tPD\tA\tM\t70")
    for subject, session in (("sub-01", "ses-1"), ("sub-01", "ses-2"), ("sub-02", "ses-1")):
        write_scan(tmp_path / subject / session / "anat" / f"{subject}_{session}_T1w.nii")
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tgroup\tage\nses-1\tn/a\t60.5\n2\tPD\t66\n")
    found = bids.read_bids(tmp_path, {}).set_index("Subject")
    assert found[["Group_bin", "Age"]].to_numpy().tolist() == [["0", "60.5"], ["1", "66"], ["1", "70"]]


def test_levels_say_what_a_value_means(tmp_path):
    folder = people(tmp_path, *[row.format(number % 2) for number, row in enumerate(GROUPS)])
    with pytest.raises(InputError, match="nobody is PD or HC; group is 0, 1"):
        bids.read_bids(folder, {})
    levels = {"0": "Healthy control", "1": {"Description": "Parkinson's disease"}}
    (folder / "participants.json").write_text(json.dumps({"group": {"Levels": levels}}))
    assert bids.read_bids(folder, {})["Group_bin"].to_list() == ["0", "1", "0", "1"]
    (folder / "participants.json").write_text("[1]")
    with pytest.raises(InputError, match=r"participants\.json: not a description of columns"):
        bids.read_bids(folder, {})


def test_two_scans_of_a_session_are_told_apart_by_name(dataset, prepared_scans, tmp_path):
    run("--bids", dataset, "--output-folder", tmp_path / "out", "--t1w", "*run-2_T1w*")
    assert list(read_cohort(tmp_path / "out/prepared.csv")["Subject"]) == ["sub-06"]


def test_columns_and_values_by_option(prepared_scans, tmp_path):
    folder = tmp_path / "bids"
    write_participants(
        folder,
        "sub-1\t2\tx\tM\t50\tGE",
        "sub-2\t1\tx\tF\t51\tGE",
        columns="participant_id\tcode\tsite\tsex\tyears\tscanner",
    )
    for subject in ("sub-1", "sub-2"):
        write_scan(folder / subject / "anat" / f"{subject}_T1w.nii")
    options = ["--bids", folder, "--output-folder", tmp_path / "out", "--label-column", "code", "--age-column", "years"]
    assert "nobody is PD or HC; code is 1, 2 (see --pd and --hc)" in refusal(*options)
    status, _ = run(*options, "--pd", 2, "--hc", 1, "--center", "Home")
    cohort = read_cohort(tmp_path / "out" / "prepared.csv")
    assert status == 0
    assert list(cohort["Group_bin"]) == [1, 0]
    assert list(cohort["Study"]) == ["Home", "Home"]
    assert list(cohort["Age"]) == [50, 51]
    assert list(cohort["Scanner"]) == ["GE", "GE"]


def test_an_image_is_made_once(dataset, prepared_scans, tmp_path):
    """Interrupted, complete, with a new participant, with a changed scan, with other options."""
    out = tmp_path / "out"
    options = ["--bids", dataset, "--output-folder", out]
    with mock.patch("travelling.files.write_csv", side_effect=KeyboardInterrupt):
        assert run(*options)[0] == 130
    assert len(prepared_scans) == 4
    assert not (out / "prepared.csv").exists()
    status, _ = run(*options, "--workers", 1)
    assert (status, len(prepared_scans)) == (0, 4)
    status, said = run(*options)
    assert (status, len(prepared_scans)) == (0, 4)
    assert "done already" in said

    with (dataset / "participants.tsv").open("a") as file:
        file.write("sub-10\tPD\tA\tM\t61\n")
    write_scan(dataset / "sub-10/anat/sub-10_T1w.nii.gz", 10)
    assert "another run's result (--overwrite replaces it" in refusal(*options)
    assert run(*options, "--overwrite")[0] == 0
    assert len(prepared_scans) == 5
    write_scan(dataset / "sub-02/anat/sub-02_T1w.nii.gz", 99)
    assert run(*options, "--overwrite")[0] == 0
    assert len(prepared_scans) == 6
    assert run(*options, "--overwrite", "--spacing", 2)[0] == 0
    assert len(prepared_scans) == 11
    assert [call[2] for call in prepared_scans[-5:]] == [2.0] * 5


def job(folder, mask="template"):
    """To prepare scan.nii of a folder."""
    return Job(str(folder / "scan.nii"), str(mask), str(folder / "image.nii.gz"), str(folder / "image.jpg"), 4.0)


def test_an_image_without_its_sidecar_is_made_again(prepared_scans, monkeypatch, tmp_path):
    """The sidecar is written last: without it nobody knows of what the image was made."""
    write_scan(tmp_path / "scan.nii")
    first = one_scan.prepare_file(job(tmp_path))
    assert one_scan.prepare_file(job(tmp_path)) == first
    assert len(prepared_scans) == 1
    for times, change in enumerate(
        (
            lambda: (tmp_path / "image.json").write_text('{"MadeOf"'),
            lambda: (tmp_path / "image.jpg").unlink(),
            lambda: monkeypatch.setattr(one_scan, "__version__", "other"),
        ),
        2,
    ):
        change()
        one_scan.prepare_file(job(tmp_path))
        assert len(prepared_scans) == times


def test_a_csv_of_raw_scans_with_masks(prepared_scans, tmp_path):
    for number, name in enumerate("abc"):
        write_scan(tmp_path / f"{name}.nii.gz", number)
    brain = np.zeros((33, 40, 33), "uint8")
    brain[5:28, 5:35, 5:28] = 1  # 1.98 litres
    nib.save(nib.Nifti1Image(brain, AFFINE), tmp_path / "mask.nii.gz")
    pd.DataFrame(
        {
            "Subject": ["a 1", "a-1", "c"],
            "Study": "X",
            "Path": ["a.nii.gz", "b.nii.gz", "c.nii.gz"],
            "Group_bin": [0, 1, 1],
            "Sex": "F",
            "Mask": ["mask.nii.gz", "", "gone.nii.gz"],
            "Scanner": "GE",
        }
    ).to_csv(tmp_path / "raw.csv", index=False)
    status, _ = run("--csv", tmp_path / "raw.csv", "--output-folder", tmp_path / "out")
    assert status == 0
    cohort = read_cohort(tmp_path / "out/prepared.csv")
    assert list(cohort["Subject"]) == ["a 1", "a-1"]
    assert list(cohort["Scanner"]) == ["GE", "GE"]
    assert [Path(path).name[:8] for path in cohort["Path"]] == ["sub-a1_s", "sub-a1x2"]
    assert prepared_scans[0][1] is not None
    assert prepared_scans[1][1] is None
    table = pd.read_csv(tmp_path / "out/registration.csv", keep_default_na=False)
    assert list(table["Mask"]) == ["own", "template", "own"]
    assert table["Reason"][2] == f"{tmp_path / 'gone.nii.gz'}: no such image"  # never the template's in its place


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("derivatives/hd-bet/{subject}/{session}/anat/{name}_bet_mask.nii.gz",
         "derivatives/hd-bet/sub-01/ses-1/anat/sub-01_ses-1_T1w_bet_mask.nii.gz"),
        ("{folder}/{name}_synthstrip_mask.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_T1w_synthstrip_mask.nii.gz"),
        ("derivatives/freesurfer/{subject}_{session}/mri/brainmask.mgz",
         "derivatives/freesurfer/sub-01_ses-1/mri/brainmask.mgz"),
    ],
)  # fmt: skip
def test_masks_by_pattern(dataset, prepared_scans, tmp_path, pattern, place):
    """On another grid than the scan's, as FreeSurfer has them; they lie where their headers say."""
    brain = np.zeros((70, 90, 80), "uint8")
    brain[10:60, 20:70, 20:70] = 90  # 1 litre
    affine = np.array([[-2.0, 0, 0, 60], [0, 0, 2, -90], [0, -2, 0, 80], [0, 0, 0, 1]])
    (dataset / place).parent.mkdir(parents=True, exist_ok=True)
    nib.save((nib.MGHImage if place.endswith("mgz") else nib.Nifti1Image)(brain, affine), dataset / place)
    run("--bids", dataset, "--output-folder", tmp_path / "out", "--mask-pattern", pattern)
    table = pd.read_csv(tmp_path / "out/registration.csv", keep_default_na=False).set_index("Subject")
    assert (table["Status"] == "prepared").sum() == 1
    assert "no such image" in table.loc["sub-02", "Reason"]
    mask = prepared_scans[0][1]
    inside = np.argwhere(sitk.GetArrayFromImage(mask))[:, ::-1] @ AFFINE[:3, :3] + AFFINE[:3, 3]  # mm RAS
    corners = (affine @ [[10, 59], [20, 69], [20, 69], [1, 1]])[:3]
    np.testing.assert_allclose(inside.min(0), corners.min(1), atol=5)
    np.testing.assert_allclose(inside.max(0), corners.max(1), atol=5)


def test_a_mask_of_no_brain_is_a_reason(prepared_scans, tmp_path):
    write_scan(tmp_path / "scan.nii")
    for name, value in (("empty", 0), ("whole", 1)):
        nib.save(nib.Nifti1Image(np.full((33, 40, 33), value, "uint8"), AFFINE), tmp_path / f"{name}.nii")
    (tmp_path / "m.mgz").write_bytes(b"nothing")
    for mask, reason in (
        (tmp_path / "empty.nii", "litres; a brain has 0.5 to 2.5"),
        (tmp_path / "whole.nii", "litres; a brain has 0.5 to 2.5"),
        (tmp_path / "m.mgz", "not a FreeSurfer image"),
        ("stripped", "what differs from its background"),
    ):
        assert reason in one_scan.prepare_file(job(tmp_path, mask))["Reason"]
        assert (tmp_path / "image.jpg").is_file()  # of the scan
    assert prepared_scans == []


def stripped_scan(path, change=lambda voxels, brain: voxels):
    """A brain of 1.5 litres in background 0; ``change`` gives it other values."""
    brain = np.zeros((33, 40, 33), bool)
    brain[6:27, 7:34, 6:27] = True
    voxels = np.where(brain, np.random.default_rng(0).uniform(100, 1000, brain.shape), 0)
    nib.save(nib.Nifti1Image(change(voxels, brain).astype("f4"), AFFINE), path)
    return brain


@pytest.mark.parametrize(
    "change",
    [
        lambda voxels, brain: voxels,
        lambda voxels, brain: np.where(brain, (voxels - 550) / 260, 0),  # z-scored within the brain
        lambda voxels, brain: voxels - 300,  # the background is the minimum
        lambda voxels, brain: np.where(brain, -voxels, 0),
    ],
)
def test_what_differs_from_the_background_is_brain(change, tmp_path):
    brain = stripped_scan(path := tmp_path / "scan.nii", change)
    mask = one_scan.brain_of(job(tmp_path, "stripped"), read_image(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T == 1, brain)


def test_a_mask_that_tells_no_place(tmp_path):
    """Voxel for voxel where it has the scan's; never laid elsewhere without a word."""
    brain = stripped_scan(path := tmp_path / "scan.nii")
    scan = read_image(path)
    for name, voxels in (("mask", brain), ("other", brain[:, :, :-1])):
        mask = nib.Nifti1Image(voxels.astype("u1"), AFFINE)
        mask.set_qform(None, 0)
        mask.set_sform(None, 0)
        nib.save(mask, tmp_path / f"{name}.nii")
    found = one_scan.read_mask(tmp_path / "mask.nii", scan)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T == 1, brain)
    with pytest.raises(InputError, match="tells no place, and has not the voxels of the scan"):
        one_scan.read_mask(tmp_path / "other.nii", scan)
    nib.save(nib.Nifti1Image(brain.astype("u1"), np.diag([5, 5, 5, 1])), tmp_path / "corner.nii")  # as of numpy.eye
    with pytest.raises(InputError, match="lies partly outside the scan"):
        one_scan.read_mask(tmp_path / "corner.nii", scan)


def test_deepbet_cuts_where_no_mask_is_given(prepared_scans, monkeypatch, tmp_path):
    """A stand-in: it finds what is bright, and turns the image as it likes. Offered only where it is installed."""
    people(tmp_path / "bids", *[row.format("PD") for row in GROUPS[:2]])
    path = tmp_path / "bids/sub-00/anat/sub-00_T1w.nii.gz"
    brain = stripped_scan(path)
    own = tmp_path / "bids/sub-01/anat/sub-01_T1w_mask.nii.gz"
    nib.save(nib.Nifti1Image(brain.astype("u1"), AFFINE), own)
    options = ["--bids", tmp_path / "bids", "--output-folder", tmp_path / "out", "--brain-extraction", "deepbet"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "--brain-extraction deepbet: pip install -r requirements-deepbet.txt first" in refusal(*options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1")

    class BrainExtraction:
        def __init__(self, no_gpu):
            assert no_gpu

        def run(self, image):
            np.testing.assert_allclose(image.affine, AFFINE)
            voxels = image.get_fdata() > 0
            voxels[:10] = False
            voxels = voxels[::-1]
            return None, nib.Nifti1Image(voxels.astype("u1"), AFFINE @ [[-1, 0, 0, 32], *np.eye(4)[1:]]), None

    for name in ("torch", "deepbet", "deepbet.bet"):
        stand_in = SimpleNamespace(BrainExtraction=BrainExtraction, set_num_threads=lambda _: None)
        monkeypatch.setitem(sys.modules, name, stand_in)
    status, said = run(*options, "--mask-pattern", "{folder}/{name}_mask.nii.gz")
    assert status == 0, said
    assert "sub-00_T1w_mask.nii.gz: no such image" in said  # deepbet takes no mask's place that is asked for
    own.unlink()
    status, said = run(*options, "--overwrite")
    assert status == 0, said
    assert "2 deepbet" in said
    assert "--brain-extraction" not in said
    brain[:10] = False
    np.testing.assert_array_equal(sitk.GetArrayFromImage(prepared_scans[1][1]).T == 1, brain)


def test_masks_of_which_none_is_there_are_refused_first(prepared_scans, tmp_path):
    """A column Mask that says yes and no; a pattern with a mistake."""
    for name in "ab":
        write_scan(tmp_path / f"{name}.nii.gz")
    table = pd.DataFrame({"Subject": ["a", "b"], "Study": "X", "Path": ["a.nii.gz", "b.nii.gz"], "Group_bin": [0, 1]})
    table.assign(Sex="F", Mask=["yes", "no"]).to_csv(tmp_path / "raw.csv", index=False)
    options = ["--csv", tmp_path / "raw.csv", "--output-folder", tmp_path / "out"]
    assert f"{tmp_path / 'yes'}: no such image: so are all 2 masks (column Mask)" in refusal(*options)
    assert "all 2 masks (--mask-pattern)" in refusal(*options, "--mask-pattern", "{folder}/{name}_m.nii")
    table.assign(Sex="F", Mask="n/a").to_csv(tmp_path / "raw.csv", index=False)
    assert run(*options)[0] == 0
    folder = people(
        tmp_path / "bids", *[f"0{n}\tPD\tA\tM\tyes" for n in "12"], columns="participant_id\tgroup\tsite\tsex\tMask"
    )
    assert run("--bids", folder, "--output-folder", tmp_path / "o")[0] == 0  # no file there
    assert [call[1] for call in prepared_scans] == [None] * 4


INTACT = {"Similarity": 0.8, "Displacement": 0.5, "Empty": 0.0, "Seen": 1.0, "Litres": 1.5, "Stripped": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"Similarity": -0.83}, ["unlike the template (similarity -0.83)"]),
        ({"Displacement": 12.0}, ["ends 12 mm away"]),
        ({"Similarity": -0.83, "Displacement": 12.0}, ["unlike the template", "ends 12 mm away"]),  # inverted, not lost
        ({"Empty": 0.017}, ["1.7% of the brain is empty"]),
        ({"Seen": 0.9}, ["outside the scan"]),
        ({"Litres": 0.64}, ["0.64 litres"]),
        ({"Stripped": True}, ["(--stripped)"]),
    ],
)
def test_how_a_scan_ends(change, words):
    found = registration.verdict(INTACT | change)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_a_lost_head_fails():
    with pytest.raises(InputError, match="the head was not found: unlike the template"):
        registration.verdict(INTACT | {"Similarity": 0.3, "Displacement": 12.0})


@pytest.mark.parametrize("shape", [(10, 40, 33), (33, 40, 33, 2)])
def test_a_scan_that_is_no_volume_is_a_reason(shape, tmp_path):
    scan = write_scan(tmp_path / "scan.nii", shape=shape)
    assert one_scan.prepare_file(job(tmp_path))["Reason"].startswith(f"{scan}: ")
    assert not (tmp_path / "image.nii.gz").exists()


def test_what_is_refused_in_one_line(dataset, tmp_path):
    out = ["--output-folder", tmp_path / "out"]
    assert "one of --bids and --csv is needed" in refusal(*out)
    assert "{run} is none of" in refusal("--bids", dataset, "--mask-pattern", "{run}.nii", *out)
    assert "participants.tsv: no such file" in refusal("--bids", tmp_path, *out)
    assert "no column 'dx' (--label-column)" in refusal("--bids", dataset, "--label-column", "dx", *out)
    assert "no such file" in refusal("--csv", tmp_path / "none.csv", *out)
    write_participants(dataset, "sub-01\tPD", columns="participant_id\tgroup")
    assert "--center-column NAME, or --center NAME for all" in refusal("--bids", dataset, *out)
    assert "which column tells the sex" in refusal("--bids", dataset, "--center", "x", *out)
    write_participants(dataset, "sub-01,PD", columns="participant_id,group")
    assert "separated by tabs?" in refusal("--bids", dataset, *out)
    write_participants(dataset, "sub-01\tPD\tA\tM\t1", "sub-01\tPD\tA\tM\t1")
    assert "row 3: participant_id is there twice" in refusal("--bids", dataset, *out)
    write_participants(dataset, "sub-01\tPD\tA\tM\t1", "sub-02\tPD\ta\tM\t1")
    assert "row 3: site 'a' looks like 'A'" in refusal("--bids", dataset, *out)
    (dataset / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    assert "not a TSV file" in refusal("--bids", dataset, *out)
    assert not (tmp_path / "out").exists()


def test_nothing_prepared_is_an_error(tmp_path):
    write_participants(tmp_path / "bids", "sub-01\tPD\tA\tM\t61")
    status, said = run("--bids", tmp_path / "bids", "--output-folder", tmp_path / "out")
    assert status == 2
    assert said.splitlines()[-1].endswith("no scan could be prepared; the column Reason tells why")
    assert "no T1w image" in (tmp_path / "out/registration.csv").read_text()


# Real registrations


@pytest.fixture(scope="module")
def head():
    """A whole head in coarse voxels, tilted by 30 degrees, in oblique slices: scan, and its true transform."""
    return synthetic(30, protocol=4, spacing=2.5, seed=4)


@pytest.fixture(scope="module")
def whole_run(head, tmp_path_factory):
    """The script as a user runs it, on that head as a 4-D file, and on one without a head."""
    folder = tmp_path_factory.mktemp("whole")
    scan = sitk.Cast(head[0], sitk.sitkInt16)
    plain = folder / "plain.nii"
    sitk.WriteImage(scan, str(plain))
    voxels, header = read_voxels(plain)
    image = nib.Nifti1Image(voxels.T[..., None], header.affine)
    (folder / "bids/sub-01/anat").mkdir(parents=True)
    nib.save(image, folder / "bids/sub-01/anat/sub-01_T1w.nii.gz")
    (folder / "bids/sub-02/anat").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.full((20, 20, 20), 7, "int16"), AFFINE), folder / "bids/sub-02/anat/sub-02_T1w.nii.gz")
    write_participants(folder / "bids", "sub-01\tPD\tA\tM\t61", "sub-02\tHC\tA\tM\t61")
    done = subprocess.run(
        [sys.executable, SCRIPT, "--bids", folder / "bids", "--output-folder", folder / "out", "--spacing", "4",
         "--workers", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def sidecar_of(folder):
    (sidecar,) = (folder / "out/images/sub-01/anat").glob("*_T1w.json")
    return json.loads(sidecar.read_text())


def test_a_tilted_head_is_put_where_it_belongs(head, whole_run):
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix = turn @ sidecar_of(whole_run)["TransformToScan"] @ turn
    found = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    mean, largest = error(sitk.CompositeTransform([head[1], found]), sitk.AffineTransform(3), brain_points())
    assert mean < 2.0  # mm, in voxels of 2 x 2 x 5 mm; where the head lies now, it would be 30
    assert largest < 4.0


def test_the_prepared_image(whole_run):
    path = read_cohort(whole_run / "out/prepared.csv")["Path"].iloc[0]
    image = read_image(path)
    assert image.GetSize() == (40, 48, 40)
    assert image.GetSpacing() == (4.0, 4.0, 4.0)
    assert image.GetPixelID() == sitk.sitkUInt8
    assert read_header(path).remarks == []
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    assert middle == pytest.approx((0, 17, 5))  # as the demo cohort's images
    voxels = sitk.GetArrayFromImage(image)
    assert (voxels.min(), voxels.max()) == (0, 255)
    assert 1.6 < (voxels > 0).sum() * 0.064 / 1000 < 2.0  # litres of the template's brain
    row = pd.read_csv(whole_run / "out/registration.csv").iloc[0]
    assert row["Similarity"] > 0.7
    assert 25 < row["Rotation"] < 35


def test_one_value_is_a_reason(whole_run):
    table = pd.read_csv(whole_run / "out/registration.csv", keep_default_na=False)
    assert [path.name for path in (whole_run / "out/pictures").iterdir()] == ["sub-01.jpg"]
    assert list(table["Status"]) == ["prepared", "failed"]
    assert table["Reason"][1].endswith("every voxel has the same value")


def test_with_a_mask_of_its_own_only_the_brain_counts(head, whole_run):
    scan, truth = head
    mask = sitk.Resample(registration.reference()[1], scan, truth) >= 0.5
    made = registration.prepare(scan, mask, 4.0)
    assert made.measures["Dice_mask"] > 0.95
    assert made.measures["Similarity"] > 0.7
    assert one_scan.matrix(made.affine) != sidecar_of(whole_run)["TransformToScan"]
    assert (sitk.GetArrayFromImage(made.image) > 0).sum() * 0.064 / 1000 < 2.0  # litres
    assert (sitk.GetArrayFromImage(made.image)[sitk.GetArrayFromImage(made.brain) == 0] == 0).all()


@pytest.mark.slow
def test_the_same_scan_gives_the_same_image(head):
    first, second = (registration.prepare(head[0], None, 4.0) for _ in range(2))
    assert (sitk.GetArrayFromImage(first.image) == sitk.GetArrayFromImage(second.image)).all()
    assert first.measures == second.measures


def biased(scan, strength):
    """A scan under a field of exp(-strength) at its lowest to exp(strength) at its highest point, along z."""
    voxels = sitk.GetArrayFromImage(scan)
    up = np.array(scan.GetDirection()).reshape(3, 3)[2] * scan.GetSpacing()  # mm a voxel
    height = np.tensordot(up, np.indices(voxels.shape)[::-1], 1)
    field = np.exp(strength * (2 * (height - height.min()) / (height.max() - height.min()) - 1))
    image = sitk.GetImageFromArray((voxels * field).astype("float32"))
    image.CopyInformation(scan)
    return image


def test_n4_takes_a_field_away():
    t1, brain, white = (sitk.Shrink(image, [2] * 3) for image in registration.reference())
    uneven, inside = biased(t1, 0.5), sitk.GetArrayFromImage(white) > 0.9

    def variation(image):
        values = sitk.GetArrayFromImage(image)[inside]
        return values.std() / values.mean()

    assert variation(uneven) > 0.1
    assert variation(registration.without_bias(uneven, brain >= 0.5)) < 0.6 * variation(uneven)


def test_help_answers_at_once():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "python prepare_images.py --bids" in done.stdout
    assert not any(slow in done.stderr for slow in ("numpy", "pandas", "SimpleITK", "nilearn"))


def test_columns_of_ours_are_not_carried_along(tmp_path):
    """participants.tsv may have a column named as ours, in another case: the CSV would be refused."""
    write_participants(tmp_path, "sub-1\tPD\tX\tM\t50\tS", columns="participant_id\tgroup\tsite\tsex\tage\tstudy")
    write_scan(tmp_path / "sub-1/anat/sub-1_T1w.nii")
    assert list(bids.read_bids(tmp_path, {"center": "site"})["Study"]) == ["X"]
    assert "study" not in bids.read_bids(tmp_path, {"center": "site"})
    with pytest.raises(InputError, match="no column 'sites'"):
        bids.read_bids(tmp_path, {"center": "sites"})


def test_a_strong_bias_field_does_not_move_the_head():
    """Without N4 before it, the registration loses this head by 20 mm: the second start tells so."""
    scan, truth = synthetic(15, protocol=0, spacing=2.5, seed=0, deformed=True)
    made = registration.prepare(biased(scan, -1.2), None, 4.0)  # over 250 mm: 0.7 over the brain
    mean, _ = error(sitk.CompositeTransform([truth, made.affine]), sitk.AffineTransform(3), brain_points())
    assert mean < 4  # mm; the deformation alone is 2 to 3
    assert made.measures["Status"] == "look at it"
    assert made.measures["Displacement"] > 5


@pytest.mark.slow
def test_a_head_that_was_cut_is_to_be_looked_at(head):
    scan, _ = head
    voxels = sitk.GetArrayFromImage(scan)
    voxels[:, :, : voxels.shape[2] // 4] = 0  # of a half no head is found
    cut = sitk.GetImageFromArray(voxels)
    cut.CopyInformation(scan)
    assert "of the brain is empty" in registration.prepare(cut, None, 4.0).measures["Reason"]


@pytest.mark.slow
def test_the_raw_cohort(tmp_path):
    """make_demo_cohort.py --raw, then this script: the intact are prepared, the spoiled stand out but for the ghost.

    Three intact heads of one center, with a strong bias field, end elsewhere without N4: they are to be looked at.
    """
    make = [sys.executable, ROOT / "reproduce" / "make_demo_cohort.py", "--raw", "--output-folder", tmp_path / "raw"]
    subprocess.run([*make, "--spacing", "3"], check=True, capture_output=True)
    subprocess.run(
        [sys.executable, SCRIPT, "--bids", tmp_path / "raw/bids", "--output-folder", tmp_path / "out", "--spacing=4"],
        check=True, capture_output=True,
    )  # fmt: skip
    truth = pd.read_csv(tmp_path / "raw" / "truth.csv", keep_default_na=False)
    table = pd.read_csv(tmp_path / "out" / "registration.csv").merge(truth, on="Subject")
    intact = table[table["Kind"] == ""].set_index("Subject")
    doubtful = intact[intact["Status"] != "prepared"]
    assert len(doubtful) < 0.1 * len(intact)
    assert set(doubtful["Status"]) <= {"look at it"}
    assert doubtful["Reason"].str.fullmatch(r"with the bias field, the registration ends \d+ mm away").all()
    assert intact["Similarity"].min() > 0.6
    ended = table.groupby("Kind")["Status"].agg(set)
    assert ended["inverted_in_range"] == ended["noise_in_range"] == {"look at it"}
    assert set(table.nsmallest(2, "Similarity")["Kind"]) == {"inverted_in_range"}
    shutil.rmtree(tmp_path / "raw")


# The walk of docs/own_scans.md


def walk():
    """The commands at the top of the page, as lists of words after ``python``."""
    page = (ROOT / "docs" / "own_scans.md").read_text(encoding="utf-8")
    block = re.search(r"(?:^ {4}.*\n)+", page, re.MULTILINE).group().replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.mark.slow
def test_the_walk_from_scans_to_the_report(tmp_path):
    """Every command as it stands there; only the heads are coarser and fewer, so the screen's limit is another."""
    make, prepare, judge = walk()
    for words in ([*make, "--shrink", "32", "--spacing", "4"], prepare, [*judge, "--false-alarms", "0.2"]):
        done = subprocess.run(
            [sys.executable, ROOT / words[0], *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "<strong>Verdict: " in (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")
    listed = pd.read_csv(tmp_path / "judged" / "log_decisions.tsv", sep="\t")
    assert len(listed) == len(pd.read_csv(tmp_path / "judged" / "training_set.csv")) > 0


@pytest.mark.parametrize("number", range(3))
def test_every_command_of_the_walk_is_understood(number, tmp_path):
    """In an empty folder each fails for its missing input, not for an option; the first makes too few heads."""
    words = walk()[number]
    done = subprocess.run(
        [sys.executable, ROOT / words[0], *words[1:], *(["--shrink", "100000"] if number == 0 else [])],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert ("no such file", "too few subjects")[number == 0] in done.stderr


def cohort_of(persons, **columns):
    """An image or two of each person, at two centers."""
    rows = [(person, visit) for person in range(persons) for visit in range(1 + (person % 3 == 0))]
    table = pd.DataFrame({"Subject": [f"{person}_{visit}" for person, visit in rows]})
    number = np.array([person for person, _ in rows])
    table["Participant"], table["Study"] = number.astype(str), np.where(number % 4 < 2, "A", "B")
    table["Group_bin"] = number % 2
    return table.assign(**columns).set_index("Subject", drop=False)


def test_half_of_the_persons_are_tested_on(judge):
    cohort = cohort_of(40)
    halves = [judge.test_half(cohort, other) for other in (False, True)]
    assert (halves[0] ^ halves[1]).all()
    for tested in halves:
        assert not set(cohort["Participant"][tested]) & set(cohort["Participant"][~tested])
        persons = cohort[tested].drop_duplicates("Participant")
        assert (persons.groupby(["Study", "Group_bin"]).size() == 5).all()


def test_nobody_to_look_at_is_tested_on(judge):
    cohort = cohort_of(40)
    cohort["Status"] = ["look at it" if subject in ("3_0", "6_1") else "prepared" for subject in cohort["Subject"]]
    drawn = {person for other in (False, True) for person in cohort["Participant"][judge.test_half(cohort, other)]}
    assert set(cohort["Participant"]) - drawn == {"3", "6"}


def test_nobody_unlike_the_template_is_tested_on(judge):
    cohort = cohort_of(40)
    cohort["Similarity"] = [-0.8 if subject in ("3_0", "6_1") else 0.8 for subject in cohort["Subject"]]
    cohort["Mutual_information"] = [0.1 if subject == "9_0" else 0.6 for subject in cohort["Subject"]]
    for other in (False, True):
        tested = judge.test_half(cohort, other)
        assert not set(cohort["Participant"][tested]) & {"3", "6", "9"}


def test_what_a_person_says_goes_before_the_measures(judge, tmp_path):
    """What is kept may be drawn for the test set, what is to be left out or redone is in neither set."""
    table = cohort_of(6).drop_duplicates("Participant").assign(Similarity=0.8, Status="prepared", Study="A", Sex="F")
    table.loc["0_0", ["Similarity", "Status"]] = 0.1, "look at it"
    table["Path"] = [str(write_scan(tmp_path / f"{name}.nii")) for name in range(6)]
    table.assign(Rating=["keep", "redo", "leave out", "", "", "keep"]).to_csv(tmp_path / "all.csv", index=False)
    drawn, judged = [], []
    for other in (False, True):
        judgement = judge.Judgement(cohort=tmp_path / "all.csv", output_folder=tmp_path / f"{other}", other_half=other)
        judgement.check(str)
        judge.write_halves(judgement)
        drawn += pd.read_csv(judgement.test)["Subject"].tolist()
        judged += pd.read_csv(judgement.train)["Subject"].tolist()
    assert "0_0" in drawn
    assert {*drawn, *judged} == {"0_0", "3_0", "4_0", "5_0"}


def test_two_halves_have_one_list_of_whom_to_leave_out(judge, tmp_path, capsys):
    """An image that both have judged is in it if either eliminated it; halves of other tables have none."""
    table = cohort_of(6).drop_duplicates("Participant").assign(Study="A", Sex="F")
    table["Status"] = ["look at it", *["prepared"] * 5]  # judged in both halves
    table["Path"] = [str(write_scan(tmp_path / f"{name}.nii")) for name in range(6)]
    table.to_csv(tmp_path / "all.csv", index=False)
    out, gone = tmp_path / "judged", {False: set(), True: {"0_0"}}
    for other in (False, True):
        judgement = judge.Judgement(cohort=tmp_path / "all.csv", output_folder=out, other_half=other)
        judgement.check(str)
        judge.write_halves(judgement)
        judged = list(pd.read_csv(judgement.train)["Subject"])
        gone[other].add(judged[-1])
        decisions = ["eliminated" if name in gone[other] else "kept" for name in judged]
        about = {"participant_id": judged, "center": "A", "decision": decisions, "reason": f"row {judged[-1]}"}
        pd.DataFrame(about).to_csv(judgement.train.with_name("log_decisions.tsv"), sep="\t", index=False)
        judge.write_exclude_list(out)
        assert (out / "exclude.tsv").is_file() == other
    assert judgement.train.parent == out / "other_half"
    found = pd.read_csv(out / "exclude.tsv", sep="\t", keep_default_na=False).set_index("participant_id")
    assert set(found.index) == gone[False] | gone[True]
    assert found.loc["0_0", ["decision", "decision_other_half"]].tolist() == ["kept", "eliminated"]
    (first,) = gone[False]
    assert found.loc[first, ["decision", "reason_other_half"]].tolist() == ["eliminated", "n/a"]
    assert list(json.loads((out / "exclude.json").read_text())) == ["participant_id", *found.columns]
    assert f"3 images eliminated in either half: {out / 'exclude.tsv'}" in capsys.readouterr().out
    (out / "exclude.tsv").unlink()
    (out / "other_half" / "test_set.csv").write_text((out / "test_set.csv").read_text())
    judge.write_exclude_list(out)
    assert not (out / "exclude.tsv").exists()
    assert "halves of different tables" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cells", "strange", "told"),
    [
        (["-0.8", "", " 0.8", "n/a", "N/A", "0.9"], "0_0", None),
        ([""] * 6, None, None),
        (
            ["0.8", "0.8", "0,8", "0.8", "0,9", "0.8"],
            None,
            "row 4: Similarity is not a number, nor empty or n/a ('0,8'",
        ),
        (["0.8", "inf", "0.8", "0.8", "0.8", "0.8"], None, "row 3: Similarity is not a number"),
    ],
)
def test_a_measure_that_somebody_else_wrote(judge, cells, strange, told, tmp_path):
    table = cohort_of(6).drop_duplicates("Participant")
    table = table.assign(Similarity=cells, Study="A", Sex="F", Path=[f"{name}.nii" for name in range(6)])
    for name in table["Path"]:
        (tmp_path / name).touch()
    csv = tmp_path / "all.csv"
    table.to_csv(csv, index=False)
    drawn = []
    for other in (False, True):
        judgement = judge.Judgement(cohort=csv, output_folder=tmp_path / f"judged_{other}", other_half=other)
        judgement.check(str)
        if told:
            with pytest.raises(InputError) as error:
                judge.write_halves(judgement)
            assert f"{csv}, {told}" in str(error.value)
        else:
            judge.write_halves(judgement)
            drawn += pd.read_csv(judgement.test)["Subject"].tolist()
    assert sorted(drawn) == ([] if told else sorted(set(table["Subject"]) - {strange}))


def test_a_signal_to_all_processes_is_an_interruption_and_no_lack_of_memory(prepared_scans, monkeypatch, tmp_path):
    """SLURM and systemd send SIGTERM to the workers, too."""
    from concurrent.futures.process import BrokenProcessPool

    def end_all(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise BrokenProcessPool

    csv = tmp_path / "scans.csv"
    write_scan(tmp_path / "a.nii.gz", 1)
    csv.write_text("Subject,Study,Path,Group_bin,Sex\na,A,a.nii.gz,0,F\n")
    monkeypatch.setattr("concurrent.futures.wait", end_all)
    assert run("--csv", csv, "--output-folder", tmp_path / "out")[0] == 143


@pytest.fixture(scope="module")
def judge():
    sys.path.insert(0, str(ROOT / "reproduce"))
    import judge

    return judge
