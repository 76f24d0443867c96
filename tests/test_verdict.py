"""The verdict on a run: each check goes red on a log that has it, and on no other; its words come out everywhere."""

import json
import logging
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import run_here
from test_run_report import SCRIPT, Page

from travelling.method.verification_log import LOG_COLUMNS
from travelling_quality_control.auditing.run_record import settings_of
from travelling_quality_control.judging import checks, judge_at_end
from travelling_quality_control.judging import verdict as judging
from travelling_quality_control.judging.logged_run import LoggedRun, read_images, read_log

DRIFT = Path(__file__).resolve().parent / "data" / "drift"
HC, PD = 60, 50
OPTIONS = {"protocol": "corrected", "error": 0.02, "batch_size": 5, "revisit": 1, "seed": 42, "rule": "published"}
LOOKS = {"screen": True, "label_screen": True}
UNSCREENED = dict.fromkeys(LOOKS, False)
IMAGES = pd.DataFrame(
    [
        (f"{center}_{number}", center, str(number % 2), "FM"[number // 2 % 2])
        for center, size in [*((f"big{i}", 5) for i in range(24)), *((f"small{i}", 1) for i in range(30))]
        for number in range(size)
    ],
    columns=["Subject", "Study", "Group_bin", "Sex"],
).set_index("Subject")


class Log:
    """A log, row by row: rates are those of 60 HC and 50 PD."""

    def __init__(self, false_positives=6, false_negatives=10, published=False):
        self.now, self.rows = (false_positives, false_negatives), []
        self.below = (PD, HC) if published else (HC, PD)
        self.step(0, "baseline", "", 0, 0, subject="n/a")

    def step(self, cycle, phase, subjects, fp=0, fn=0, rejected=False, subject=None):
        """A step that changes the counts by ``fp`` and ``fn``."""
        reference, after = self.now, (self.now[0] + fp, self.now[1] + fn)
        cells = dict.fromkeys(LOG_COLUMNS, "") | {"Cycle": cycle, "Subject": subject or phase, "Phase": phase}
        cells |= {"Subjects": subjects, "Ignored": int(rejected), "Eliminated": int(rejected and phase == "revisit")}
        cells |= {"FP": after[0], "FN": after[1], "ACC": 1 - sum(after) / (HC + PD)}
        cells |= {f"P{name}": count / of for name, count, of in zip(("FP", "FN"), after, self.below, strict=True)}
        if phase != "baseline":
            cells["Tolerance"] = 0.02 * (subjects.count(";") + 1)
            cells |= {"Reference_PFP": reference[0] / self.below[0], "Reference_PFN": reference[1] / self.below[1]}
        self.rows.append(cells)
        if not rejected:
            self.now = after
        return self

    def look(self, cycle, subject, suspect):
        """A decision without a step."""
        cells = dict.fromkeys(LOG_COLUMNS, "") | {"Cycle": cycle, "Subject": subject, "Phase": "screen"}
        self.rows.append(cells | {"Subjects": subject, "Ignored": int(suspect), "Eliminated": 0})
        return self

    def cycle(self, number, fp=(0,), fn=(0,), rejected=()):
        """A batch of each center; the i-th changes the counts by the i-th of ``fp`` and ``fn``, over and over."""
        for place, (_, images) in enumerate(IMAGES.groupby("Study", sort=False)):
            change = fp[place % len(fp)], fn[place % len(fn)]
            harms = place in rejected
            self.step(number, "batch", ";".join(images.index[:5]), *((9, 0) if harms else change), harms)
        return self

    def put_aside(self, cycle, subjects, rise=9):
        """Flags."""
        for subject in subjects:
            self.step(cycle, "subject", subject, rise, 0, True, subject)
        return self

    def revisit(self, cycle, subjects, eliminate=True, rise=9):
        """Revisits, at which all are eliminated or none."""
        for subject in subjects:
            self.step(cycle, "revisit", subject, rise * eliminate, 0, eliminate, subject)
        return self

    def verdict(self, record=None, images=IMAGES, **options):
        return self.run(record, images, **options).verdict

    def run(self, record=None, images=IMAGES, **options):
        record = record_of(**options) | (record or {})
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder) / "log.csv")
            return logged(record, Path(folder) / "log.csv", images)

    def write(self, path):
        pd.DataFrame(self.rows).to_csv(path, index=False)


def logged(record, log_csv, images):
    settings = settings_of(record)
    extensions = settings.extensions
    table = read_log(log_csv, extensions)
    return LoggedRun(record=record, settings=settings, extensions=extensions, table=table, images=images)


def record_of(**options):
    return {"options": OPTIONS | LOOKS | options, "finished": "2026-01-01", "sessions": []}


def clean():
    """Three cycles whose rates go up and down a little; an image is flagged and comes back."""
    log = Log()
    for cycle in (10, 11, 12):
        log.cycle(cycle, fp=(1, -1), fn=(0, 1, -1, 0))
    return log.put_aside(12, ["big0_0"]).revisit(13, ["big0_0"], eliminate=False)


def found(verdict):
    """(level, beginning) of every reason."""
    return [(judging.WORDS[one.level], str(one)) for one in verdict.reasons]


def test_a_clean_run_is_trustworthy_and_nothing_is_said():
    verdict = clean().verdict()
    assert (verdict.word, verdict.reasons) == ("trustworthy", ())
    assert clean().run().size == {"FP": HC, "FN": PD}
    assert Log(0, 10).run().size == {"FP": HC, "FN": PD}  # of HC nobody was ever misdiagnosed


def drifting(back=0):
    """24 steps, each within its tolerance (5 images: 6 of 60); then as many as ``back`` take FPR down again."""
    return Log().cycle(10, fp=[1] * 24 + [0] * 30).cycle(11, fp=[-1] * back + [0] * (54 - back))


def locked(cycles):
    log = Log()
    for cycle in range(10, 14):
        log.cycle(cycle, rejected=range(40) if cycle in cycles else ())
    return log


def one_class():
    subjects = list(IMAGES.index[(IMAGES["Group_bin"] == "0") & (IMAGES["Study"] != "big0")][:20])
    return clean().put_aside(12, subjects).revisit(13, subjects, eliminate=False)


def small_centers():
    subjects = [f"small{number}_0" for number in range(12)]
    return clean().put_aside(12, subjects).revisit(13, subjects, eliminate=False)


def waiting(number):
    return clean().put_aside(13, list(IMAGES.index[:: 150 // number][:number]))


def eliminated(number, rise):
    subjects = list(IMAGES.index[:: 150 // number][:number])
    return clean().put_aside(12, subjects, rise=rise).revisit(13, subjects, rise=rise)


RED = {  # name: (log, options and record, verdict, a reason)
    "unfinished": (clean, {"record": {"finished": None}}, "look closer", "By its record the run is not finished"),
    "nothing verified": (Log, {}, "look closer", "No training step was verified"),
    "worse, by pairs": (
        lambda: Log().cycle(10, fn=[1] * 10 + [0] * 44), {"record": {"changed": {"PD": (10, 0), "HC": (0, 0)}}},
        "look closer", "FNR is 0.40 at the end and was 0.20 at the start (10 of 50 PD misdiagnosed, now 20; p 0.00098)",
    ),
    "drift": (drifting, {}, "do not use", "Drift: 24 accepted rises, each within its tolerance, took FPR from 0.10"),
    "much worse": (drifting, {}, "do not use", "FPR is 0.50 at the end and was 0.10 at the start"),
    "drift that went away": (lambda: drifting(back=24), {}, "look closer", "Drift: 24 accepted rises"),
    "one answer": (
        lambda: Log(0, PD).cycle(10), UNSCREENED, "do not use", "FNR is 1.00 at the end: the model misdiag",
    ),
    "one answer, screened": (lambda: Log(0, PD).cycle(10), {}, "look closer", "FNR is 1.00 at the end"),
    "one lock-up": (lambda: locked([11]), {}, "look closer", "Lock-up: 40 of 54 batches of cycle 11 were rejected"),
    "locked up": (lambda: locked([11, 12, 13]), {}, "do not use", "were rejected; 40 of 54 batches of cycle 13"),
    "one class": (one_class, {}, "look closer", "One-sided: 21 of 102 images of HC and 0 of 48 images of PD"),
    "small centers": (small_centers, {}, "look closer", "12 of 30 images of centers of fewer than 5 images"),
    "waiting": (lambda: waiting(10), {}, "look closer", "10 images of 150 still wait for the revisit"),
    "few subjects": (lambda: eliminated(5, 2), {}, "look closer", "5 of 5 eliminations rest on one or two test"),
    "small test set": (clean, {"error": 0.009}, "look closer", "The test set is small for -error 0.009: with 50"),
    "scale": (
        clean, {"record": {"sessions": [{"notices": ["5 images of another scale: no: /home/x y/a.nii"]}]}},
        "look closer", "Intensities: 5 images of another scale; look at them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RED)
def test_a_check_goes_red(name):
    make, options, word, reason = RED[name]
    verdict = make().verdict(**options)
    assert verdict.word == word, found(verdict)
    assert [one for one in found(verdict) if reason in one[1] and one[0] == word], found(verdict)
    assert "check" not in str(verdict.lines())  # none failed
    assert "/home" not in str(verdict.lines())
    assert all(re.search(r"; .{15,}\.$", str(one)) for one in verdict.reasons)  # and what to do


REMARKS = {
    "one waits": (lambda: waiting(2), {}, "2 images of 150 still wait"),
    "saturated": (clean, {"allow_saturated": True}, "to begin with a saturated model (--allow-saturated; FPR 0.100"),
    "sure at its flag": (
        lambda: clean().put_aside(12, ["big0_0"]).revisit(13, ["big0_0"], rise=2),
        {},
        "1 of 1 elimination rests on",
    ),
    "one elimination": (lambda: eliminated(1, 2), {}, "1 of 1 elimination rests on one or two test subjects (big0_0)"),
    "resolution": (clean, {"error": 0.019}, "one more misdiagnosis is a rise of 0.020 and flags an image"),
    "no screen": (clean, UNSCREENED, "images or labels (--screen and --label-screen off)"),
    "no label screen": (clean, {"label_screen": False}, "Nobody has examined labels (--label-screen off)"),
}


@pytest.mark.parametrize("name", REMARKS)
def test_a_remark_does_not_lower_the_verdict(name):
    make, options, reason = REMARKS[name]
    verdict = make().verdict(**options)
    assert verdict.word == "trustworthy", found(verdict)
    assert reason in str(verdict.reasons[0])
    assert verdict.lines()[1].startswith("remark: ")


def test_sure_decisions_are_no_matter():
    assert clean().verdict().reasons == eliminated(5, 9).verdict().reasons == ()


def test_a_center_flagged_as_a_whole_is_not_one_sided():
    subjects = list(IMAGES.index[IMAGES["Study"].isin(["big3", "big4"])])
    log = clean().put_aside(12, subjects).revisit(13, subjects)
    images = IMAGES.assign(Group_bin=IMAGES["Group_bin"].mask(IMAGES.index.isin(subjects), "0"))
    assert log.verdict(images=images).word == "trustworthy"


def test_images_put_aside_without_a_step_lock_up_too():
    log = clean()
    for number, subject in enumerate(IMAGES.index[:9]):
        log.look(13, subject, number < 5)
    assert "Lock-up: 5 of 9 images of cycle 13 were flagged without a step" in str(log.verdict().lines())


def test_batches_of_a_kept_group_count_one_by_one():
    log = Log().step(10, "group", ";".join(IMAGES.index[:50])).step(10, "batch", "big5_0;big5_1", 9, 0, True)
    log.step(10, "batch", "big6_0;big6_1", 9, 0, True)
    assert "ock-up" not in str(log.verdict().lines())  # 2 of 12


def test_the_published_rates_are_of_the_other_class():
    log = Log(published=True).cycle(10, fp=[1] * 24 + [0] * 30)
    assert log.run(protocol="published").size == {"FP": HC, "FN": PD}
    assert "took FPR from 0.10 to 0.50 (30 of 60 HC" in str(log.verdict(protocol="published").lines())


def test_without_pairs_those_are_taken_that_prove_least():
    log = Log().cycle(10, fn=[1] * 10 + [0] * 44)  # 10 of 50, then 20: at most 20 wrong and 10 right, p 0.049
    assert log.verdict().word == "trustworthy"


def test_a_check_that_fails_is_not_trustworthy(monkeypatch, tmp_path):
    def broken(account):
        raise KeyError("x")

    monkeypatch.setattr(judging, "CHECKS", (broken,))
    assert clean().verdict().lines() == [
        "verdict: look closer",
        "look closer: The check broken failed (KeyError: 'x'); look into the log.",
    ]
    (tmp_path / "log.csv").write_text("a\n1\n")
    told = ended(tmp_path / "log.csv", logging.getLogger("of this test"))
    assert told["verdict"] == "look closer"
    assert "log.csv: missing column(s) Cycle" in told["verdict_reasons"][0]


@pytest.mark.parametrize(
    ("name", "word"), [("whole_centers_inverted", "trustworthy"), ("whole_centers_noise", "do not use")]
)
def test_two_runs_of_one_machine_one_of_which_drifts(name, word):
    record = record_of(screen=False, label_screen=False)
    verdict = logged(record, DRIFT / f"{name}.csv", read_images(DRIFT / f"{name}_training_set.csv")).verdict
    assert verdict.word == word, found(verdict)
    if word == "do not use":
        told = str(verdict.lines())
        assert "FPR is 0.71 at the end and was 0.04 at the start" in told
        assert "Drift: 52 accepted rises, each within its tolerance, took FPR from 0.04 to 0.89 (49 of 55 HC" in told
        assert "24 of 198 images of HC and 1 of 176 images of PD were flagged" in told
        assert "42 images of 412 still wait" in told


def test_the_words_come_out_in_log_record_and_report(controlled, dirty_cohort, cohort, tmp_path):
    record = json.loads((controlled / "qc_run" / "run.json").read_text())
    text = (controlled / "qc.log").read_text()
    assert record["verdict"] in judging.WORDS.values()
    assert set(record["changed"]) == {"HC", "PD"}
    assert "6 images of another scale" in str(record["verdict_reasons"])  # 255 - x
    end = [line.split("  ", 1)[1] for line in text.splitlines()]
    place = end.index(f"verdict: {record['verdict']}")
    assert end[place + 1 :] == record["verdict_reasons"]

    # The report judges again, from the files, and says the same.
    train, log = dirty_cohort / "training_set.csv", controlled / "qc.csv"
    assert logged(record, log, read_images(train)).verdict.lines() == end[place:]
    done = run_here(SCRIPT, log, "--train", train, "--test", cohort / "test_set.csv", "--output-folder", tmp_path)
    assert f"verdict: {record['verdict']}\n" in done.stdout
    page = Page(tmp_path / "qc_report.html")
    assert page.words.index(f"Verdict: {record['verdict']}") < page.words.index("images at")
    for line in record["verdict_reasons"]:
        assert line.split(": ", 1)[1] in page.words


def ended(log_csv, log):
    """What a run's record says of its end."""
    run = SimpleNamespace(files=[log_csv], record=record_of() | {"finished": None}, log=log)
    control = SimpleNamespace(settings=settings_of(run.record), extensions=())
    return judge_at_end(run, SimpleNamespace(changed=lambda: {}, control=control), IMAGES.reset_index())


def test_the_end_of_a_run_is_told_on_the_terminal(tmp_path):
    clean().write(tmp_path / "log.csv")
    log = logging.getLogger("of this test")
    heard = []
    log.addHandler(
        SimpleNamespace(level=0, handle=lambda record: heard.append((record.levelname, record.getMessage())))
    )
    log.setLevel(logging.INFO)
    told = ended(tmp_path / "log.csv", log)
    assert told == {"changed": {}, "verdict": "trustworthy", "verdict_reasons": []}
    assert heard == [("INFO", "verdict: trustworthy")]


def test_chance_of_a_sum_is_exact():
    rng = np.random.default_rng(0)
    steps = np.array([1, 2, 2, 0, 3, 1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(steps))).reshape(len(steps), -1)
    sums = steps @ signs
    for least in rng.integers(0, 10, 5):
        assert checks._chance_of_sum(steps, least) == np.mean(sums >= least)
