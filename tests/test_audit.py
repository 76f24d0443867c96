"""The audit of a quality-control log: it agrees with what quality control does, and finds what was tampered with.

The logs are made by quality control itself, with a fake trainer. No image exists: the audit needs none.
"""

import csv
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_here
from fake_trainer import FakeTrainer, NoFiles, settings_of
from study_maker import write_record

from travelling.beyond import evidence
from travelling.beyond.evidence import possible_p_values
from travelling.beyond.screen import Screen, ScreenOptions, is_strange
from travelling.beyond.screen.labels import center_p_value
from travelling.beyond.screen.looks import LOOKS
from travelling.beyond.screen.scores import of_center
from travelling.beyond.screen_labels import LabelScreen
from travelling.errors import VisitFailed
from travelling.files import write_csv
from travelling.method import rule
from travelling.method.metrics import Evaluation
from travelling.method.protocol import Protocol
from travelling.method.quality_control import QualityControl, log_columns
from travelling.method.verification_log import LOG_COLUMNS
from travelling.runs.log_file import LogFile
from travelling_quality_control.enc_PD_quality_control import control_quality

AUDIT = ROOT / "travelling_quality_control" / "audit.py"
HEALTHY, PATIENTS = 30, 20
SIZES = (7, 1, 12, 3, 5, 6, 2, 9)  # of the centers
BAD = ("c0_3", "c1_0", "c2_5", "c2_6", "c5_1")
CYCLES = range(10, 16)


class RandomTrainer:
    """Training moves the counts of misdiagnoses a little by chance, and by a lot with a bad subject.

    One that harms at times only is flagged, comes back, and can be flagged again.
    """

    def __init__(self, seed, bad=BAD, harm=9, often=0.6):
        self.random, self.others = np.random.RandomState(seed), np.random.RandomState(seed)
        self.bad, self.harm, self.often = bad, harm, often
        self.counts = (4, 5)

    def train(self, subjects):
        moved = np.add(self.counts, self.random.randint(-1, 2, size=2))
        for _ in set(subjects) & set(self.bad):
            moved[self.random.randint(2)] += self.harm * (self.random.uniform() < self.often)
        self.counts = tuple(int(count) for count in np.clip(moved, 1, (HEALTHY, PATIENTS)))
        return 0.5

    def evaluate(self):
        labels = np.repeat([0, 1], (HEALTHY, PATIENTS))
        # Not always the same subjects: one gets worse and another better.
        wrong = np.concatenate(
            [
                np.roll(np.arange(most) < n, self.others.randint(2))
                for most, n in zip((HEALTHY, PATIENTS), self.counts, strict=True)
            ]
        )
        predictions = np.where(wrong, 1 - labels, labels) * 0.5 + 0.4 * self.others.uniform(size=len(labels))
        return Evaluation(*self.counts, HEALTHY, PATIENTS, tuple(labels), tuple(predictions))

    train_batches = FakeTrainer.train_batches

    def expect(self, subjects):
        pass

    def keep(self):
        return self.counts

    def restore(self, kept):
        self.counts = kept


class FakeScreen(Screen):
    """Scores by chance; bad subjects are suspects more often than others."""

    limit = 2.5

    def __init__(self, seed, fails=0.0, labels=False, mirrored=()):
        super().__init__(ScreenOptions(screen=True, false_alarms=0.01))
        self.random = np.random.RandomState(seed)
        self.fails = fails
        self.labels = labels
        self.mirrored = mirrored  # subjects

    def calibrate(self, control, centers):
        self.centers = centers

    def cells(self, control, subjects):
        if self.fails and self.random.uniform() < self.fails:
            raise VisitFailed("unreachable", "away")
        away, others = [4, 0, 0], [-5.0] * (len(LOOKS) - 3)  # the first looks decide
        looks = [
            [*(self.random.normal(size=3) + (np.array(away) if subject in BAD else 0)).tolist(), *others]
            for subject in subjects
        ]
        place = list(LOOKS).index("asymmetry")
        for subject, look in zip(subjects, looks, strict=True):
            if subject in self.mirrored:
                look[place] = 3 + look[place] / 8
        halves = [look[place] for look in looks]
        center = of_center(halves, halves)
        cells = [dict(zip(self.columns, (max(look), self.limit, *look, center, 0), strict=True)) for look in looks]
        if self.labels and self.cycle % 5 == 4:  # the model knows too little
            cells = [found | dict.fromkeys(LabelScreen.columns) for found in cells]
        elif self.labels:
            p_values = self.random.uniform(0, 0.3 if self.random.uniform() < 0.3 else 1, len(subjects))
            usual = [p for p, found in zip(p_values, cells, strict=True) if not is_strange(found)]
            for p, found in zip(p_values, cells, strict=True):
                about = p, center_p_value(usual), 0.05 / self.centers
                found |= dict(zip(LabelScreen.columns, about, strict=True))
        return cells


def write_rows(path, rows, columns=None):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path):
    """Rows as text; row 2 of the file is the first."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def make_run(
    folder,
    protocol="corrected",
    wait=2,
    seed=0,
    cycles=CYCLES,
    error=0.02,
    trainer=None,
    rule="published",
    screen=None,
    verify_every=1,
):
    """The CSVs, log, subject table and record of a run; returns its QualityControl."""
    centers = {f"c{number}": [f"c{number}_{i}" for i in range(size)] for number, size in enumerate(SIZES)}
    subjects = [(subject, center) for center, members in centers.items() for subject in members]
    subjects = [subjects[i] for i in np.random.RandomState(1).permutation(len(subjects))]  # centers interleave
    centers = {}
    for subject, center in subjects:
        centers.setdefault(center, []).append(subject)
    write_rows(
        folder / "train.csv",
        [{"Subject": name, "Study": center, "Path": f"{name}.nii.gz"} for name, center in subjects],
    )
    write_rows(
        folder / "test.csv",
        [{"Subject": f"t{i}", "Study": "home", "Group_bin": int(i < PATIENTS)} for i in range(HEALTHY + PATIENTS)],
    )
    trainer = trainer or RandomTrainer(seed)
    settings = settings_of(
        protocol=protocol, revisit=wait, error=error, rule=rule, verify_every=verify_every,
        **{"screen": True, "label_screen": screen.labels} if screen else {},
    )  # fmt: skip
    extensions = [screen if type(one) is Screen else one for one in settings.extensions]
    log = LogFile(folder / "log.csv", log_columns(extensions))
    control = QualityControl(settings, trainer, centers, log, extensions=extensions)
    control.start(trainer.evaluate())
    files = NoFiles(lambda cycle: write_csv(control.subject_table(), folder / "log_subjects.csv"))
    control_quality(control, cycles, lambda cycle: 1e-4, files)
    log.close()
    (folder / "log_run").mkdir()
    inputs = {"fn_save": "log", "fn_train": str(folder / "train.csv"), "fn_test": str(folder / "test.csv")}
    told = {name: value for name, value in settings.values().items() if not isinstance(value, Path)}
    write_record(folder / "log_run" / "run.json", **told | inputs)
    return control


def change_record(folder, finished="2026", **options):
    """Another record than the run's own."""
    path = folder / "log_run" / "run.json"
    record = json.loads(path.read_text()) | {"finished": finished}
    record["options"] |= options
    path.write_text(json.dumps(record))


def audit(folder, *options, **other):
    """Run the script in this process; returns (exit status, lines of stdout, stderr). ``other`` changes the record."""
    if other:
        change_record(folder, **other)
    files = [folder / "log.csv", "--train", folder / "train.csv", "--test", folder / "test.csv"]
    done = run_here(AUDIT, *files, *options)
    return done.returncode, done.stdout.splitlines(), done.stderr


def consistent(folder, **other):
    status, lines, err = audit(folder, **other)
    assert (status, len(lines), err) == (0, 1, ""), lines[:5]
    assert lines[0].startswith("consistent: ")
    return lines[0]


def found(folder, *options, file="log.csv", **other):
    """What follows "FILE, row " in every line, of an audit that must find something."""
    status, lines, err = audit(folder, *options, **other)
    assert (status, err) == (1, ""), lines
    start = f"{folder / file}, row "
    assert lines[0].startswith(start), lines[0]
    return [line.removeprefix(start) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything in it: flags, returns, eliminations."""
    folder = tmp_path_factory.mktemp("finished")
    control = make_run(folder)
    assert control.eliminated
    assert any(len(flags) > 1 for flags in control.flags.values())  # came back and was flagged again
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to tamper with: (folder, rows of the log as text)."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path, read_rows(tmp_path / "log.csv")


def first_index(rows, phase, start=1, **cells):
    """Index of the first row of a phase from ``start`` on whose cells are these, or are such that these are true."""

    def fits(row):
        return all(value(row[name]) if callable(value) else row[name] == value for name, value in cells.items())

    return next(i for i in range(start, len(rows)) if rows[i]["Phase"] == phase and fits(rows[i]))


@pytest.mark.parametrize("protocol", ["corrected", "published"])
@pytest.mark.parametrize(("wait", "seed"), [(1, 0), (2, 1), (3, 0)])
def test_it_agrees_with_quality_control(tmp_path, protocol, wait, seed):
    control = make_run(tmp_path, protocol, wait, seed)
    rows = read_rows(tmp_path / "log.csv")[1:]
    phases = Counter(row["Phase"] for row in rows)
    assert consistent(tmp_path) == (
        f"consistent: 6 cycles (10 to 15), {len(rows)} verifications ({phases['batch']} batch, {phases['subject']} "
        f"subject, {phases['revisit']} revisit), {sum(row['Ignored'] == '1' for row in rows)} steps rejected; "
        f"subjects: {sum(map(bool, control.flags.values()))} flagged, "
        f"{sum(map(bool, control.revisits.values()))} revisited, "
        f"{len(control.eliminated)} eliminated; log_subjects.csv"
    )
    assert phases["revisit"] > 3


@pytest.mark.parametrize(
    ("every", "protocol"), [(1, "corrected"), (1, "published"), (2, "corrected"), (5, "published")]
)
@pytest.mark.parametrize("rule", ["published", "evidence"])
@pytest.mark.parametrize("screened", [False, True])
def test_it_agrees_with_every_setting(tmp_path, every, protocol, rule, screened):
    screen = FakeScreen(1, fails=0.2 * (every > 1)) if screened else None
    make_run(tmp_path, protocol, rule=rule, screen=screen, verify_every=every)
    assert ("looks of the screen" in (line := consistent(tmp_path))) == screened
    groups = sum(row["Phase"] == "group" for row in read_rows(tmp_path / "log.csv"))
    assert (groups > 5, f", {groups} group)" in line) == ((True, True) if every > 1 else (False, False))
    # Consistent only where that is how it was run.
    other = {"screen": True, "rule": "published", "protocol": "corrected", "verify_every": 1}
    same = (screened, rule, protocol, every) == tuple(other.values())
    assert audit(tmp_path, **other)[0] == int(not same)


@pytest.mark.parametrize("protocol", ["corrected", "published"])
def test_it_decides_ties_as_the_protocol_does(tmp_path, protocol):
    """A rise of exactly the tolerance: harmful where floats say so, under the published protocol alone."""
    make_run(tmp_path, protocol, error=0.05, seed=2)
    consistent(tmp_path)
    rows = read_rows(tmp_path / "log.csv")
    ties = [
        number
        for number, row in enumerate(rows[1:], start=1)
        for rate in ("PFP", "PFN")
        if abs(float(row[rate]) - float(row[f"Reference_{rate}"]) - float(row["Tolerance"])) < 1e-9
        and float(row[rate]) > float(row[f"Reference_{rate}"]) + float(row["Tolerance"])
    ]
    assert ties
    assert all(rows[number]["Ignored"] == str(int(protocol == "published")) for number in ties)


@pytest.fixture(scope="module")
def better(tmp_path_factory):
    """A run with the evidence rule and a screen, in which both decided."""
    folder = tmp_path_factory.mktemp("better")
    control = make_run(folder, rule="evidence", screen=FakeScreen(4), trainer=RandomTrainer(4, harm=12))
    rows = read_rows(folder / "log.csv")
    decided = {(row["Phase"], row["Ignored"], row["FP"] == "") for row in rows}
    assert {("screen", "1", True), ("revisit", "1", True), ("revisit", "0", False), ("batch", "1", False)} <= decided
    spared = [
        row
        for row in rows
        if row["Ignored"] == "0"
        and row["Tolerance"]
        and float(row["PFP"]) > float(row["Reference_PFP"]) + float(row["Tolerance"]) + 1e-9
    ]
    assert spared  # the published rule would have rejected them
    assert any(0.5 < float(row["P_FP"]) < 1 for row in rows if row["P_FP"])  # as many got worse as better, or fewer
    assert control.eliminated
    return folder


@pytest.mark.parametrize("labels", [False, True])
def test_a_center_whose_images_are_all_mirrored(labels, tmp_path):
    """None is sure alone (the limit is 4), all are together; and one that is mirrored at a usual center is tried."""
    mirrored, alone = [f"c3_{number}" for number in range(3)], "c0_0"
    screen = FakeScreen(7, labels=labels, mirrored=[*mirrored, alone])
    control = make_run(tmp_path, screen=screen, trainer=RandomTrainer(0, bad=()))
    assert set(mirrored) <= control.eliminated.keys()
    rows = read_rows(tmp_path / "log.csv")
    decided = [row for row in rows if row["Phase"] == "revisit" and row["Subject"] in mirrored]
    assert [row["FP"] for row in decided] == [""] * 3
    assert all(2.75 < float(row["Screen_center"]) < float(row["Screen_score"]) + 0.5 < 4.5 for row in decided)
    assert any(row["FP"] for row in rows if row["Phase"] == "revisit" and row["Subject"] == alone)
    consistent(tmp_path)
    for row in rows:  # as if it had not been the center that decided, or another mean
        if row["Study"] == "c3" and row["Screen_center"]:
            row["Screen_center"] = "0" if labels else "3.5"
    write_rows(tmp_path / "log.csv", rows)
    lines = " ".join(found(tmp_path))
    assert ("no extension is sure" if labels else "(0, or the mean of Screen_asymmetry at its center)") in lines


def test_a_run_that_stopped_before_the_revisits_of_who_was_looked_at(tmp_path):
    """Until then these have no row of their look: the mean of their center cannot be checked."""
    mirrored = [f"c0_{number}" for number in range(5)]  # of seven
    make_run(tmp_path, screen=FakeScreen(7, labels=True, mirrored=mirrored), trainer=RandomTrainer(0, bad=()))
    rows = read_rows(tmp_path / "log.csv")
    number = next(i for i, row in enumerate(rows) if row["Phase"] == "revisit" and row["Subject"] in mirrored)
    looks = [row for row in rows[:number] if (row["Cycle"], row["Study"]) == (rows[number]["Cycle"], "c0")]
    assert any(row["Phase"] == "screen" and float(row["Screen_center"]) > 1 for row in looks)
    write_rows(tmp_path / "log.csv", rows[:number])
    (tmp_path / "log_subjects.csv").unlink()
    consistent(tmp_path, finished=None)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A run that verified up to eight batches together."""
    folder = tmp_path_factory.mktemp("grouped")
    make_run(folder, verify_every=8)
    return folder


def test_centers_that_are_away_when_their_images_are_screened(tmp_path):
    make_run(tmp_path, screen=FakeScreen(1, fails=0.3))
    assert "visits failed" in consistent(tmp_path)
    rows = read_rows(tmp_path / "log.csv")
    index = next(i for i, row in enumerate(rows) if row["Phase"] == "unreachable" and ";" in row["Subjects"])
    rows[index]["Subjects"] = rows[index]["Subjects"].rpartition(";")[0]
    write_rows(tmp_path / "log.csv", rows)
    assert found(tmp_path)[0].startswith(f"{index + 2}: ")


def test_a_center_cannot_answer_a_look_by_half(tmp_path):
    make_run(tmp_path, screen=FakeScreen(1, fails=0.3))
    rows = read_rows(tmp_path / "log.csv")
    looks = [index for index, row in enumerate(rows) if (row["Cycle"], row["Phase"]) == (rows[1]["Cycle"], "screen")]
    center = rows[looks[-1]]["Study"]
    own = [index for index in looks if rows[index]["Study"] == center]
    assert len(own) > 2
    rest = ";".join(rows[index]["Subject"] for index in own[1:])
    failure = next(row for row in rows if row["Phase"] == "unreachable")
    failure = failure | {"Cycle": rows[1]["Cycle"], "Study": center, "Subjects": rest, "Tolerance": 0.02 * len(own[1:])}
    kept = [row for index, row in enumerate(rows) if index not in own[1:]]
    kept.insert(own[0] + 1, failure)
    write_rows(tmp_path / "log.csv", kept)
    assert found(tmp_path)[0].startswith(f"{own[0] + 3}: Phase, Subjects: unreachable")


@pytest.mark.parametrize("score", ["inf", "nan"])
def test_an_image_whose_score_is_no_number(better, tmp_path, score):
    shutil.copytree(better, tmp_path, dirs_exist_ok=True)
    rows = read_rows(tmp_path / "log.csv")
    index = first_index(rows, "screen", Ignored="1")
    for row in rows:
        if row["Subject"] == rows[index]["Subject"] and row["Screen_score"]:
            row.update(Screen_score=score, Screen_spectrum=score)
    write_rows(tmp_path / "log.csv", rows)
    consistent(tmp_path)
    rows[index].update(Screen_spectrum="1")
    write_rows(tmp_path / "log.csv", rows)
    assert "Screen_score is" in found(tmp_path)[0]


def test_a_first_row_that_claims_to_be_the_screens(better, tmp_path):
    shutil.copytree(better, tmp_path, dirs_exist_ok=True)
    rows = read_rows(tmp_path / "log.csv")
    rows[0].update(Phase="screen", FP="")
    write_rows(tmp_path / "log.csv", rows)
    status, _, err = audit(tmp_path)
    assert (status, err.count("\n")) == (2, 1)
    assert "row 2: FP '' is not a whole number" in err


def test_a_rise_that_the_counts_prove_cannot_be_called_chance(tmp_path):
    """From no misdiagnosis to eight: nobody can have recovered, so p is one half to the power of eight."""
    assert possible_p_values(0, 8, 30) == [0.5**8]
    assert possible_p_values(2, 2, 3) == [1, 0.75]  # nobody changed, or one for another
    for before, after in itertools.product(range(HEALTHY + 1), repeat=2):
        values = possible_p_values(before, after, HEALTHY)
        assert (min(values) <= 0.5) == (after > before)


def test_cycles_in_which_everybody_waits_have_no_rows(tmp_path):
    everybody = [f"c{number}_{i}" for number, size in enumerate(SIZES) for i in range(size)]
    make_run(tmp_path, wait=3, trainer=RandomTrainer(0, bad=everybody, harm=30, often=1))
    assert {row["Cycle"] for row in read_rows(tmp_path / "log.csv")} == {"0", "10", "13"}
    assert f"{len(everybody)} eliminated" in consistent(tmp_path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run with the screen of labels, in which centers were doubted for those alone, and sometimes away."""
    folder = tmp_path_factory.mktemp("labelled")
    make_run(folder, screen=FakeScreen(3, fails=0.05, labels=True), verify_every=4)
    assert audit(folder, label_screen=False)[0] == 1
    change_record(folder, label_screen=True)
    consistent(folder)
    rows = read_rows(folder / "log.csv")
    for phase, eliminated in (("screen", "0"), ("revisit", "1")):
        assert first_index(rows, phase, **DOUBTED, Eliminated=eliminated)
    return folder


KEPT, REJECTED = {"Ignored": "0"}, {"Ignored": "1"}
DOUBTED = {"Center_p": lambda text: text and float(text) < 0.05 / 8, "Screen_score": lambda text: float(text) < 2.5}
TAMPERED = {  # run -> phase, cells of the row, the column that is changed, to what, and what must be said of the row
    "finished": [
        ("batch", {}, "PFP", "0.5", "PFP is 0.5, should be "),
        ("subject", {}, "PFN", "0.75", "PFN is 0.75, should be "),
        ("batch", {}, "PFP", "0.10000001", "PFP is 0.10000001, should be "),
        ("batch", {}, "ACC", "0.5", "ACC is 0.5, should be "),
        ("batch", {}, "FP", "31", "FP is 31, but the test set has 30 HC"),
        ("batch", {}, "FN", "0", "ACC is "),
        ("batch", KEPT, "Ignored", "1", "Ignored is 1, should be 0 (PFP "),
        ("batch", REJECTED, "Ignored", "0", "Ignored is 0, should be 1 (PFP "),
        ("subject", REJECTED, "Ignored", "0", "Ignored is 0, should be 1 (PFP "),
        ("subject", KEPT, "Ignored", "1", "Ignored is 1, should be 0 (PFP "),
        ("revisit", REJECTED, "Ignored", "0", "Ignored is 0, should be 1 (PFP "),
        ("batch", REJECTED, "Ignored", "2", "Ignored is 2, should be 1 (PFP "),
        ("batch", {}, "Tolerance", "0.9", "Tolerance is 0.9, should be "),
        ("batch", {}, "Tolerance", "", "Tolerance is empty, should be "),
        ("batch", {}, "Reference_PFP", "0.9", "Reference_PFP is 0.9, should be "),
        ("revisit", {}, "Reference_PFN", "0.001", "Reference_PFN is 0.001, should be "),
        ("revisit", {"Eliminated": "1"}, "Eliminated", "0", "Eliminated is 0, should be 1 (Phase revisit, harmful)"),
        ("revisit", {"Eliminated": "0"}, "Eliminated", "1", "Eliminated is 1, should be 0"),
        ("batch", REJECTED, "Eliminated", "1", "Eliminated is 1, should be 0 (Phase batch, harmful)"),
        ("batch", {"Study": "c2"}, "Study", "c1", "Study is 'c1', should be 'c2' (the center of c2_"),
        ("batch", {}, "Subject", "c2_0", "Subject is 'c2_0', should be 'batch' (Phase batch)"),
        ("subject", {}, "Subject", "batch", "Subject is 'batch', should be 'c"),
        ("batch", {"Subjects": "c1_0"}, "Phase", "subject", "Phase is 'subject', should be 'batch'"),
        ("revisit", {}, "Phase", "batch", "Phase is 'batch', should be 'revisit'"),
        ("batch", {"Cycle": "11"}, "Cycle", "12", "Cycle is 12, should be 11"),
        ("batch", {"Cycle": "11"}, "Cycle", "999999", "Cycle is 999999, should be 11"),
        ("baseline", {}, "Cycle", "9", "Cycle is 9, should be 0 (baseline)"),
        ("baseline", {}, "Subject", "", "Subject is empty, should be 'n/a' (baseline)"),
        ("baseline", {}, "Ignored", "1", "Ignored is 1, should be 0 (baseline)"),
        ("baseline", {}, "Tolerance", "0.1", "Tolerance is 0.1, should be empty (baseline)"),
        ("baseline", {}, "Subjects", "c0_0", "Subjects is 'c0_0', should be empty (baseline)"),
    ],
    "grouped": [
        ("group", KEPT, "Ignored", "1", "Ignored is 1, should be 0"),
        ("group", KEPT, "Tolerance", "0.5", "Tolerance is 0.5, should be 0."),
        ("group", KEPT, "Study", "c0", "Study is 'c0', should be '"),
        ("group", KEPT, "Subject", "batch", "Subject is 'batch', should be 'group'"),
        ("group", KEPT, "Subjects", "c0_1;c0_2", "should be group "),
        ("group", KEPT, "Phase", "batch", "Phase is 'batch', should be 'group'"),
    ],
    "better": [
        ("screen", REJECTED, "Ignored", "0", "Ignored is 0, should be 1 (Screen_score"),
        ("screen", KEPT, "Screen_score", "2.6", "Ignored is 0, should be 1 (Screen_score 2.6"),
        ("screen", KEPT, "Screen_score", "-9", "Screen_score is -9, should be"),
        ("screen", KEPT, "Screen_spectrum", "9", "should be 9 (the largest of"),
        ("screen", KEPT, "Screen_metrics", "", "is empty, should be a number"),
        ("screen", REJECTED, "Screen_limit", "9", "Screen_limit is 9, should be 2.5"),
        ("screen", KEPT, "FP", "3", "FP is 3, should be empty"),
        ("screen", KEPT, "Screen_score", "", "empty, should be a number"),
        ("revisit", {"FP": ""}, "Eliminated", "0", "Eliminated is 0, should be 1"),
        ("revisit", {"FP": ""}, "Screen_score", "1", "no extension is sure and the image must train"),
        ("revisit", KEPT, "Screen_metrics", "30", "is sure, but it trained"),
        ("batch", REJECTED, "P_AUROC", "0.9", "P_AUROC is 0.9, but AUROC was"),
        ("batch", KEPT, "P_AUROC", "1e-3", "Ignored is 0, should be 1 (PFP"),
        ("batch", KEPT, "P_FP", "1e-3", "P_FP is 0.001, but FP was"),
        ("batch", KEPT, "P_FP", "0.7", "P_FP is 0.7, but FP was"),  # no number of coins gives that
        ("batch", KEPT, "P_FN", "", "P_FN is empty, but FN was"),
        ("batch", KEPT | {"P_AUROC": "1.0"}, "P_AUROC", "0.2", "P_AUROC is 0.2, but AUROC was"),
        ("batch", KEPT | {"P_AUROC": "1.0"}, "P_AUROC", "0", "P_AUROC is 0, but AUROC was"),
        ("batch", KEPT, "AUROC", "1.5", "AUROC is 1.5 and P_AUROC"),
        ("batch", KEPT | {"P_AUROC": "1.0"}, "AUROC", "0.1", "P_AUROC is 1, but AUROC was"),
        ("batch", KEPT, "Screen_score", "1", "Screen_score is 1, should be empty"),
        ("baseline", {}, "AUROC", "", "AUROC is empty, should be from 0 to 1"),
    ],
    "labelled": [
        ("screen", DOUBTED, "Center_p", "1e-9", "Center_p is 1e-09, should be "),
        ("screen", DOUBTED, "Label_p", "0", "Label_p is 0, should be from 0 to 1"),
        ("screen", DOUBTED, "Label_p", "", "Label_p is empty, should be from 0 to 1"),
        ("screen", DOUBTED, "Center_limit", "0.05", "Center_limit is 0.05, should be 0.00"),
        ("screen", DOUBTED, "Label_p", "0.9", "(from Label_p of the center's usual images)"),
        ("screen", DOUBTED, "Ignored", "0", "Ignored is 0, should be 1 (Screen_score"),
    ],
}


@pytest.mark.parametrize(("which", "cell"), [(which, cell) for which, cells in TAMPERED.items() for cell in cells])
def test_a_tampered_cell_is_found_where_it_is(which, cell, request, tmp_path):
    shutil.copytree(request.getfixturevalue(which), tmp_path, dirs_exist_ok=True)
    phase, cells, column, text, names = cell
    rows = read_rows(tmp_path / "log.csv")
    index = first_index(rows, phase, 0 if phase == "baseline" else 3, **cells)
    assert rows[index][column] != text
    rows[index][column] = text
    write_rows(tmp_path / "log.csv", rows)
    lines = found(tmp_path)
    assert any(line.startswith(f"{index + 2}: ") and names in line for line in lines), lines
    assert lines[0].startswith(f"{index + 2}: "), lines
    assert len(lines) < 20, lines  # one fault is no flood


def drop(phase, **cells):
    def tamper(rows):
        index = first_index(rows, phase, 30, **cells)
        del rows[index]
        return index + 2  # now the row that followed

    return tamper


def swap(phase, **cells):
    """Tampering: two rows that follow each other."""

    def tamper(rows):
        wanted = {"Phase": phase, **cells}
        index = next(i for i in range(30, len(rows)) if all(row.items() >= wanted.items() for row in rows[i : i + 2]))
        rows[index], rows[index + 1] = rows[index + 1], rows[index]
        return index + 2

    return tamper


def subjects(change, **cells):
    """Tampering: ``change`` makes others of the list of a batch's subjects."""

    def tamper(rows):
        index = first_index(rows, "batch", 30, Study="c2", **cells)
        rows[index]["Subjects"] = ";".join(change(rows[index]["Subjects"].split(";")))
        return index + 2

    return tamper


of_another_center = subjects(lambda names: ["c0_0", *names[1:]])
a_subject_twice = subjects(lambda names: [names[0], *names[:-1]])
unknown_subject = subjects(lambda names: ["x_0", *names[1:]])


def move_revisit(by):
    """Tampering: a revisit moves to the end of another cycle."""

    def tamper(rows):
        index = first_index(rows, "revisit")
        while not any(row["Cycle"] == str(int(rows[index]["Cycle"]) + by) for row in rows):
            index = first_index(rows, "revisit", index + 1)
        row = rows.pop(index)
        row["Cycle"] = str(int(row["Cycle"]) + by)
        place = max(i for i, other in enumerate(rows) if other["Cycle"] == row["Cycle"]) + 1
        rows.insert(place, row)
        return min(index, place) + 2

    return tamper


def train_an_eliminated_subject(rows):
    index = first_index(rows, "revisit", Eliminated="1")
    gone = rows[index]
    again = first_index(rows, "batch", index, Study=gone["Study"])
    rows[again]["Subjects"] += f";{gone['Subject']}"
    rows[again]["Tolerance"] = str(0.02 * len(rows[again]["Subjects"].split(";")))
    return again + 2


def drop_baseline(rows):
    del rows[0]
    return 2


def drop_a_cycle(rows):
    index = first_index(rows, "batch", Cycle="12")
    rows[:] = [row for row in rows if row["Cycle"] != "12"]
    return index + 2


@pytest.mark.parametrize(
    ("tamper", "names"),
    [
        (drop("batch", Ignored="0"), "Phase, Subjects: "),
        (drop("batch", Ignored="1"), "Phase, Subjects: subject "),
        (drop("subject", Ignored="0"), "Phase, Subjects: "),
        (drop("subject", Ignored="1"), "Phase, Subjects: "),
        (drop("revisit"), "Phase, Subjects: "),
        (swap("batch", Ignored="0"), "Phase, Subjects: batch "),
        (swap("revisit"), "Phase, Subjects: revisit "),
        (of_another_center, "Phase, Subjects: batch c0_0;"),
        (a_subject_twice, "Phase, Subjects: batch "),
        (unknown_subject, "Phase, Subjects: batch "),
        (move_revisit(-1), "Phase, Subjects: revisit "),
        (move_revisit(1), "Phase, Subjects: "),
        (train_an_eliminated_subject, "Phase, Subjects: batch "),
        (subjects(lambda names: names[::-1], **KEPT), "Subjects is 'c2_"),
        (drop_baseline, "Phase is 'batch', should be 'baseline'"),
        (drop_a_cycle, "Phase, Subjects: batch "),
    ],
)
def test_tampering_is_found_where_it_is(run, tamper, names):
    folder, rows = run
    row = tamper(rows)
    write_rows(folder / "log.csv", rows)
    lines = found(folder)
    assert lines[0].startswith(f"{row}: {names}"), lines[:3]
    assert len(lines) < 20, lines  # one fault is no flood


def test_nothing_is_checked_that_rests_on_a_wrong_row(run):
    folder, rows = run
    index = first_index(rows, "batch", 30, **REJECTED)
    rows[index]["Ignored"] = "0"
    rows[index + 1]["ACC"] = "0.5"
    write_rows(folder / "log.csv", rows)
    (line,) = found(folder)
    assert re.fullmatch(rf"{index + 2}: Ignored is 0.*; what follows is not checked", line)


def test_what_is_wrong_with_a_row_is_named_beside_its_place(run):
    folder, rows = run
    for tamper, names in (
        (of_another_center, "Study is 'c2', should be 'c0' (the center of c0_0)"),
        (a_subject_twice, "2 times, should be once"),
        (unknown_subject, "which is not in the training set"),
    ):
        tampered = [dict(row) for row in rows]
        number = tamper(tampered)
        write_rows(folder / "log.csv", tampered)
        assert any(line.startswith(f"{number}: ") and names in line for line in found(folder)), names


@pytest.mark.parametrize(
    ("options", "row", "names"),
    [
        ({"error": 0.03}, 3, "Tolerance is "),
        ({"seed": 41}, 3, "Phase, Subjects: batch "),
        ({"protocol": "published"}, 2, "PFP is "),
        ({"batch_size": 4}, None, "Phase, Subjects: batch "),
        ({"revisit": 1}, None, "Phase, Subjects: batch "),
        ({"revisit": 3}, None, "Phase, Subjects: revisit "),
    ],
)
def test_other_options_than_the_runs_do_not_fit(run, options, row, names):
    folder, rows = run
    first = found(folder, **options)[0]
    if "revisit" in options:  # noticed where the first revisit is missing, or comes
        place = first_index(rows, "batch", Cycle="12") if options["revisit"] == 1 else first_index(rows, "revisit")
        row = place + 2
    assert names in first
    assert row is None or first.startswith(f"{row}: ")


@pytest.mark.parametrize("rows_left", [1, 2, 40])
def test_an_interrupted_run(run, rows_left):
    folder, rows = run
    write_rows(folder / "log.csv", rows[:rows_left])
    (folder / "log_subjects.csv").unlink()
    place = "before the first cycle" if rows_left == 1 else f"in the middle of cycle {rows[rows_left - 1]['Cycle']}"
    assert found(folder)[0].startswith(f"{rows_left + 1}: the log ends {place}")
    line = consistent(folder, finished=None)
    assert ("ends in the middle" in line) == (rows_left > 1)


@pytest.mark.parametrize("cycles_in_table", [2, 3])
def test_the_subject_table_of_an_interrupted_run_is_that_of_the_last_whole_cycle(
    run, tmp_path_factory, cycles_in_table
):
    folder, rows = run
    earlier = tmp_path_factory.mktemp("earlier")
    make_run(earlier, cycles=CYCLES[:cycles_in_table])  # the same run, which ended then
    (folder / "log_subjects.csv").write_bytes((earlier / "log_subjects.csv").read_bytes())
    end = first_index(rows, "batch", Cycle="13")
    write_rows(folder / "log.csv", rows[: end + 3])
    if cycles_in_table == 3:
        consistent(folder, finished=None)
    else:
        assert found(folder, finished=None, file="log_subjects.csv")
    write_rows(folder / "log.csv", rows[:end])  # of cycle 12 all rows are there, the table perhaps not
    consistent(folder, finished=None)
    assert audit(folder, finished="2026")[0] == (1 if cycles_in_table == 2 else 0)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("Study", "c9"), ("Times_flagged", "7"), ("First_flagged_cycle", ""), ("First_flagged_cycle", "11"),
        ("Revisits", "0"), ("Eliminated", "0"), ("Eliminated_cycle", "99"), ("Eliminated_cycle", ""),
    ],
)  # fmt: skip
def test_a_tampered_subject_table_is_found(run, column, text):
    folder, rows = run
    gone = next(row["Subject"] for row in rows if row["Eliminated"] == "1" and row["Cycle"] == "12")
    table = read_rows(folder / "log_subjects.csv")
    index = next(i for i, row in enumerate(table) if row["Subject"] == gone)
    table[index][column] = text
    write_rows(folder / "log_subjects.csv", table)
    (line,) = found(folder, file="log_subjects.csv")  # one a row
    assert line.startswith(f"{index + 2}: {column} is ")
    (folder / "log_subjects.csv").unlink()
    consistent(folder)  # no table beside the log


def test_rows_of_the_subject_table(run):
    folder, _ = run
    table = read_rows(folder / "log_subjects.csv")
    write_rows(folder / "log_subjects.csv", [{**table[0], "Subject": "x"}, table[2], table[2], *table[3:]])
    status, lines, _ = audit(folder)
    assert status == 1
    path = folder / "log_subjects.csv"
    assert lines == [
        f"{path}, row 2: Subject is 'x', which is not in the training set",
        f"{path}, row 4: Subject is '{table[2]['Subject']}', as in row 3",
        f"{path}: Subject '{table[0]['Subject']}' has no row",
        f"{path}: Subject '{table[1]['Subject']}' has no row",
    ]


def audit_alone(folder, *options, cwd=ROOT):
    """Only the log is named."""
    done = run_here(AUDIT, folder / "log.csv", *options, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_the_record_names_the_files_relative_to_where_the_run_was_started(run):
    folder, _ = run
    path = folder / "log_run" / "run.json"
    record = json.loads(path.read_text())
    record["options"] |= {"fn_train": "train.csv", "fn_test": "test.csv"}
    digests = {f"fn_{name}": hashlib.sha256((folder / f"{name}.csv").read_bytes()) for name in ("train", "test")}
    record["inputs_sha256"] = {name: digest.hexdigest() for name, digest in digests.items()}
    record["sessions"][0]["folder"] = str(folder)
    record["sessions"].append({"folder": str(folder / "of the session that went on")})
    path.write_text(json.dumps(record))
    assert audit_alone(folder)[0] == 0
    record["sessions"][0]["folder"] = str(folder / "moved")  # as the folder has been since
    path.write_text(json.dumps(record))
    status, _, err = audit_alone(folder)
    assert (status, err) == (2, f"error: train.csv: no such file, but {path} names it (--train tells where it is)\n")
    assert audit_alone(folder, cwd=folder)[0] == 0
    with open(folder / "test.csv", "a") as file:
        file.write("\n")
    status, _, err = audit_alone(folder, cwd=folder)
    told = f"error: test.csv: has changed since the run read it, by {path} (--test takes it as it is)\n"
    assert (status, err) == (2, told)
    assert audit_alone(folder, "--test", folder / "test.csv", cwd=folder)[0] == 0


def test_a_federations_subjects_are_those_of_its_table(run):
    folder, _ = run
    path = folder / "log_run" / "run.json"
    record = json.loads(path.read_text())
    del record["options"]["fn_train"]
    path.write_text(json.dumps(record))
    assert audit_alone(folder)[2] == f"error: {path}: names no fn_train (--train is needed)\n"
    order = list(dict.fromkeys(row["Study"] for row in read_rows(folder / "train.csv")))
    change_record(folder, centers=order)
    status, out, err = audit_alone(folder)
    assert (status, err) == (0, ""), out
    change_record(folder, centers=order[:-1])
    assert f": {order[-1]} is none of the centers that run.json names" in audit_alone(folder)[2]
    (folder / "log_subjects.csv").unlink()
    assert audit_alone(folder)[0] == 2


def test_columns_in_another_order(run):
    folder, rows = run
    write_rows(folder / "log.csv", rows, columns=sorted(LOG_COLUMNS))
    (line,) = found(folder)
    assert line.startswith("1: columns are ACC, Cycle, ")


def rewrite(name, function):
    """Bad input: a file whose rows ``function`` changes in place."""

    def spoil(folder):
        rows = read_rows(folder / name)
        function(rows)
        write_rows(folder / name, rows)
        return ()

    return spoil


def remove(name):
    return lambda folder: (folder / name).unlink() or ()


def overwrite(name, content):
    def spoil(folder):
        (folder / name).write_bytes(content)
        return ()

    return spoil


def record(**options):
    return lambda folder: change_record(folder, **options) or ()


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (remove("log.csv"), "log.csv: no such file"),
        (remove("train.csv"), "train.csv: no such file"),
        (remove("test.csv"), "test.csv: no such file"),
        (lambda folder: ("--record", folder / "none.json"), "none.json: no such file"),
        (lambda folder: ("--record", folder / "log.csv"), "log.csv: not a record of a run"),
        (remove("log_run/run.json"), "log.csv: found no run.json of its run"),
        (overwrite("log_run/run.json", b'{"options": {}, "sessions": [], "finished": ""}'), "found no run.json of"),
        (record(error="two"), "run.json: error: '\"two\"' is not a number from 0 to 1"),
        (record(screen="yes"), 'screen: "yes" is not one of False, True'),
        (record(batch_size=2.5), "batch_size: '2.5' is not a whole number of at least 1"),
        (record(seed=-1), "seed: '-1' is not a whole number from 0"),
        (record(rule="none"), 'rule: "none" is not one of published, evidence'),
        (record(protocol="none"), 'protocol: "none" is not one of corrected, published'),
        (overwrite("log.csv", b""), "log.csv: not a CSV file"),
        (overwrite("log.csv", b"\xff\xfe\x00"), "log.csv: not a CSV file"),
        (overwrite("log.csv", (",".join(LOG_COLUMNS) + "\n").encode()), "log.csv: has no rows"),
        (
            rewrite("log.csv", lambda rows: [row.pop("Tolerance") for row in rows]),
            "log.csv: missing column(s) Tolerance",
        ),
        (rewrite("log.csv", lambda rows: rows[5].update(FP="many")), "log.csv, row 7: FP 'many' is not a whole number"),
        (rewrite("log.csv", lambda rows: rows[5].update(Cycle="-1")), "log.csv, row 7: Cycle '-1' is not"),
        (rewrite("log.csv", lambda rows: rows[5].update(PFP="nan")), "log.csv, row 7: PFP 'nan' is not a number"),
        (rewrite("log.csv", lambda rows: rows[5].update(ACC="")), "log.csv, row 7: ACC '' is not a number"),
        (rewrite("log_subjects.csv", lambda rows: rows[1].update(Revisits="1.5")), "row 3: Revisits '1.5' is not"),
        (rewrite("log_subjects.csv", lambda rows: [row.pop("Study") for row in rows]), "missing column(s) Study"),
        (rewrite("train.csv", lambda rows: [row.pop("Study") for row in rows]), "train.csv: missing column(s) Study"),
        (rewrite("train.csv", lambda rows: rows.append(rows[0])), "train.csv, row 2, too"),
        (rewrite("train.csv", lambda rows: rows[3].update(Subject=" ")), "train.csv, row 5: Subject is empty"),
        (rewrite("train.csv", lambda rows: rows[3].update(Subject="t4")), "test.csv, row 6: Subject 't4' is in"),
        (rewrite("train.csv", lambda rows: [row.update(Subject=f"x{row['Subject']}") for row in rows]), "no subject"),
        (rewrite("test.csv", lambda rows: rows[3].update(Group_bin="2")), "test.csv: Group_bin must be 0 (HC) and 1"),
        (rewrite("test.csv", lambda rows: [row.update(Group_bin="0") for row in rows]), "test.csv: Group_bin must be"),
        (
            rewrite("test.csv", lambda rows: rows[3].update(Group_bin="PD")),
            "test.csv, row 5: Group_bin is not a number",
        ),
    ],
)
def test_bad_input_is_one_line(run, spoil, names):
    folder, _ = run
    status, lines, err = audit(folder, *spoil(folder))
    assert (status, lines) == (2, []), err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert names in err


def test_it_shares_no_code_with_quality_control(finished):
    """As a user runs it, and what it imported by then."""
    command = f"import runpy, sys\ntry:\n    runpy.run_path({str(AUDIT)!r}, run_name='__main__')\n"
    command += "finally:\n    print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command, finished / "log.csv"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    line, modules = done.stdout.splitlines()
    assert line.startswith("consistent: ")
    shared = {name for name in modules.split() if name.split(".")[0] == "travelling"}
    names = (
        "", ".console", ".errors", ".option", ".option_values", ".words",
        ".method", ".method.auditor", ".method.extension", ".method.protocol", ".method.rule", ".method.settings",
        ".beyond", ".beyond.evidence", ".beyond.groups", ".beyond.recommended", ".beyond.screen",
        ".beyond.screen_labels",
        ".runs", ".runs.command", ".runs.extensible", ".runs.stopping",
    )  # fmt: skip
    assert shared == {f"travelling{name}" for name in names}


def test_it_asks_nothing_that_made_decisions(better, monkeypatch):
    """Of extensions it runs what they say of a log, and nothing that they decide by."""

    def decides(*_):
        raise AssertionError

    for owner, names in (
        (evidence, ("risen", "more_misdiagnosed", "auroc_fell", "placements")),
        (rule, ("risen", "saturation")),
        (evidence.Evidence, ("judge", "start", "saturation", "cause_of_lock_up")),
        (Screen, ("before_cycle", "at_revisit", "cells")),
        (Protocol, ("rates", "exceeds", "largest_rates")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, decides)
    monkeypatch.setattr(evidence.Evidence, "ALPHA", 0.5)
    consistent(better)
