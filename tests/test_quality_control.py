"""The method itself, with a fake trainer: what travels, who is fitted, what is rejected, when."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from fake_trainer import (
    HALVES,
    HEALTHY,
    PATIENTS,
    TEST_IMAGES,
    FakeTrainer,
    NoFiles,
    control_over,
    extension_of,
    judged,
    plain_settings,
    run_cycles,
    run_over,
    settings_of,
)

from travelling.beyond.evidence import Evidence, EvidenceOptions, auroc_fell, more_misdiagnosed
from travelling.beyond.screen import Screen, is_strange, is_surely_strange
from travelling.beyond.screen.eyes import related, summed
from travelling.beyond.screen.looks import LOOKS, Distance, Mirrored
from travelling.beyond.screen.scores import Scores, by_others, caution, least_rate, limit_rank, of_center
from travelling.errors import InputError, VisitFailed
from travelling.method.metrics import Evaluation, evaluate
from travelling.method.order import travelling_order
from travelling.method.protocol import PROTOCOLS
from travelling.method.quality_control import QualityControl, log_columns
from travelling.method.rule import saturation as saturation_of
from travelling.method.travel import travel
from travelling.method.verification_log import LOG_COLUMNS
from travelling_quality_control.enc_PD_quality_control import control_quality


def test_the_model_travels_through_all_centers_in_order():
    centers = {"a": ["a1", "a2"], "b": ["b1"], "c": [f"c{i}" for i in range(7)]}
    trainer = FakeTrainer()
    saved = []
    files = NoFiles(lambda cycle, rate, loss: saved.append((cycle, trainer.weight, loss, rate, trainer.learning_rate)))
    travel(trainer, centers, range(3), plain_settings(seed=40, epochs=2), lambda cycle: 1 / (1 + cycle), files)
    steps = 2 * (1 + 1 + 2)  # epochs x batches of the three centers
    # One weight goes through all; a model is saved with the learning rate of the next cycle.
    assert saved == [
        (0, steps, 0.5, 1, 1 / 2), (1, 2 * steps, 0.5, 1 / 2, 1 / 3), (2, 3 * steps, 0.5, 1 / 3, 1 / 4),
    ]  # fmt: skip
    assert trainer.rates_seen == [1.0] * steps + [0.5] * steps + [1 / 3] * steps
    visited = [batch[0][0] for batch in trainer.fitted]
    expected = []
    for _, order, _ in travelling_order(centers, 40, range(3)):
        for center in order:
            expected += [center] * (4 if center == "c" else 2)
    assert visited == expected
    for batch in trainer.fitted:
        assert len({subject[0] for subject in batch}) == 1  # a batch never mixes centers
    assert sorted(sum(trainer.fitted, [])) == sorted(sum(centers.values(), []) * 6)


@pytest.mark.parametrize("controlled", [False, True])
def test_at_every_center_the_next_one_is_expected(controlled):
    centers = {"a": ["a1", "a2"], "b": ["b1"], "c": ["c1", "c2"]}
    trainer = FakeTrainer()
    if controlled:
        control, _ = control_over(centers, trainer)
        saved = []
        files = NoFiles(lambda _: saved.append(trainer.learning_rate))
        control_quality(control, range(2), lambda cycle: 1 / (1 + cycle), files)
        assert saved == [1 / 2, 1 / 3]  # of the next cycle
    else:
        travel(trainer, centers, range(2), plain_settings(), lambda cycle: 1, NoFiles())
    expected = []
    for _, order, _ in travelling_order(centers, 42, range(2)):
        expected += [centers[center] for center in order[1:]] + [[]]
    assert trainer.expected == expected


def test_accepted_steps_accumulate_and_move_the_reference():
    centers = {"a": [f"a{i}" for i in range(5)]}
    trainer = FakeTrainer(harm={"a0": (1, 0)})  # 1/50 = 0.02: far within 5 x 0.02
    control, rows = control_over(centers, trainer)
    run_cycles(control, range(10, 13))
    assert trainer.weight == 3
    assert trainer.restored == 0
    assert [row["Reference_PFP"] for row in rows] == [None, 0.0, 0.02, 0.04]
    assert [row["PFP"] for row in rows] == [0.0, 0.02, 0.04, 0.06]
    assert control.reference == (0.06, 0.0)


@pytest.mark.parametrize(("harm", "harmful"), [((5, 0), False), ((6, 0), True), ((0, 10), False), ((0, 11), True)])
def test_the_tolerance_is_n_times_error_and_strict(harm, harmful):
    # 5 images x 0.02 = 0.1 = 5 of 50 healthy subjects, or 10 of 100 patients: just that is tolerated
    _, rows, _ = run_over({"a": [f"a{i}" for i in range(5)]}, [10], harm={"a0": harm})
    assert rows[1]["Ignored"] == int(harmful)
    assert rows[1]["Tolerance"] == pytest.approx(0.1)


def test_a_harmful_batch_is_rejected_and_its_subjects_are_verified_alone():
    subjects = ["a0", "a1", "bad", "a3", "a4"]
    control, rows, trainer = run_over({"a": subjects}, [10], harm={"bad": (20, 0), "a1": (1, 0)})
    batch, *alone = trainer.fitted
    assert sorted(batch) == sorted(subjects)
    assert alone == [[subject] for subject in batch]  # in training order
    assert trainer.weight == 4  # the four good ones; batch and bad one are rejected
    assert control.waiting == {"bad": 10}
    assert [row["Phase"] for row in rows] == ["baseline", "batch"] + ["subject"] * 5
    assert rows[1]["Subject"] == "batch"
    assert rows[1]["Subjects"] == ";".join(batch)
    assert {row["Subject"]: row["Ignored"] for row in rows[2:]} == {
        subject: int(subject == "bad") for subject in subjects
    }
    assert all(row["Tolerance"] == 0.02 for row in rows[2:])
    assert control.reference == (0.02, 0.0)


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_revisit_and_elimination_come_at_their_time(wait):
    centers = {"a": ["a0", "bad", "a2"], "b": ["b0"]}
    control, rows, _ = run_over(centers, range(10, 10 + wait + 2), harm={"bad": (30, 0)}, revisit=wait)
    of_bad = [(row["Cycle"], row["Phase"]) for row in rows if "bad" in row["Subjects"].split(";")]
    assert of_bad == [(10, "batch"), (10, "subject"), (10 + wait, "revisit")]  # and never again
    revisit = next(row for row in rows if row["Phase"] == "revisit")
    assert (revisit["Ignored"], revisit["Eliminated"]) == (1, 1)
    last_of_cycle = [row for row in rows if row["Cycle"] == 10 + wait][-1]
    assert last_of_cycle is revisit  # after that cycle's centers
    assert control.eliminated == {"bad": 10 + wait}
    assert sum(row["Eliminated"] for row in rows) == 1


def test_a_subject_that_no_longer_harms_is_back_in_the_next_cycle():
    centers = {"a": ["a0", "was_bad"]}
    control, rows, trainer = run_over(centers, range(10, 11), harm={"was_bad": (30, 0)}, revisit=2)
    trainer.harm = {"was_bad": (1, 0)}
    weight = trainer.weight
    run_cycles(control, range(11, 14))
    revisits = [row for row in rows if row["Phase"] == "revisit"]
    assert [(row["Cycle"], row["Ignored"], row["Eliminated"]) for row in revisits] == [(12, 0, 0)]
    assert trainer.weight == weight + 3 + 1  # three cycles of one batch, and the revisit's update stays
    with_it = [row["Cycle"] for row in rows if row["Phase"] == "batch" and "was_bad" in row["Subjects"]]
    assert with_it == [10, 13]
    assert not control.waiting
    assert not control.eliminated


def test_it_can_be_flagged_again_after_its_return():
    centers = {"a": ["a0", "bad"]}
    control, _, trainer = run_over(centers, [10], harm={"bad": (30, 0)}, revisit=1)
    trainer.harm = {}
    run_cycles(control, [11])
    trainer.harm = {"bad": (30, 0)}
    run_cycles(control, [12, 13])
    table = control.subject_table().set_index("Subject")
    assert table.loc["a0"].drop("Study").dropna().eq(0).all()
    assert table.loc["bad"].to_dict() == {
        "Study": "a", "Times_flagged": 2, "First_flagged_cycle": 10, "Revisits": 2, "Eliminated": 1,
        "Eliminated_cycle": 13,
    }  # fmt: skip


def test_the_log_has_the_published_columns_first():
    _, rows = control_over({"a": ["a0"]}, FakeTrainer(start=(5, 10)))
    assert tuple(rows[0]) == LOG_COLUMNS
    assert LOG_COLUMNS[:9] == ("Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored")
    assert rows[0] == {
        "Cycle": 0, "Subject": "n/a", "Study": "n/a", "ACC": 0.9, "FP": 5, "FN": 10, "PFP": 0.1, "PFN": 0.1,
        "Ignored": 0, "Phase": "baseline", "Subjects": "", "Tolerance": None,
        "Reference_PFP": None, "Reference_PFN": None, "Eliminated": 0,
    }  # fmt: skip


def test_published_rates_have_the_other_class_below():
    _, rows = control_over({"a": ["a0"]}, FakeTrainer(start=(50, 10)), protocol="published")
    assert (rows[0]["PFP"], rows[0]["PFN"]) == (50 / PATIENTS, 10 / HEALTHY)
    counts = Evaluation(50, 10, HEALTHY, PATIENTS)
    assert PROTOCOLS["published"].largest_rates(counts) == (0.5, 2.0)
    assert PROTOCOLS["corrected"].largest_rates(counts) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("protocol", "start", "saturation"),
    [
        ("corrected", (44, 0), []),
        ("corrected", (45, 0), ["FPR"]),  # 45/50 + 5 x 0.02 = 1
        ("corrected", (50, 95), ["FPR", "FNR"]),
        ("published", (45, 0), ["FPR"]),  # 45/100 + 0.1 >= 50/100
        ("published", (0, 94), []),  # 94/50 + 0.1 < 2
        ("published", (0, 95), ["FNR"]),
    ],
)
def test_saturation_is_noticed(protocol, start, saturation):
    directions = saturation_of(Evaluation(*start, HEALTHY, PATIENTS), 5 * 0.02, PROTOCOLS[protocol])
    assert [direction[:3] for direction in directions] == saturation


def test_learning_rates_of_the_protocols():
    corrected, published = PROTOCOLS["corrected"], PROTOCOLS["published"]
    for cycle in range(5):
        from_scratch = 1e-4 * math.exp(-0.1 * cycle)
        assert corrected.learning_rate(1e-4, cycle) == published.learning_rate(1e-4, cycle) == from_scratch
    assert corrected.learning_rate(1e-4, 10, first_cycle=10, saved=7e-5) == pytest.approx(1e-4 * math.exp(-1))
    assert published.learning_rate(1e-4, 10, first_cycle=10, saved=7e-5) == 7e-5
    assert published.learning_rate(1e-4, 12, first_cycle=10, saved=7e-5) == pytest.approx(1e-4 * math.exp(-0.2))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ties_are_decided_by_floats_under_the_published_protocol_alone(protocol):
    """220 HC, 5 images and -error 0.02: exactly 22 test subjects; the numbers are those of SPEC, section 9."""
    harmful = [
        PROTOCOLS[protocol].exceeds((false_positives + 22) / 220, false_positives / 220, 5 * 0.02)
        for false_positives in range(199)
    ]
    assert sum(harmful) == {"corrected": 0, "published": 29}[protocol]
    assert all(
        PROTOCOLS[protocol].exceeds((false_positives + 23) / 220, false_positives / 220, 5 * 0.02)
        for false_positives in range(198)
    )


def test_published_protocol_drops_the_short_batch_of_a_visit():
    subjects = [f"a{i}" for i in range(7)]
    _, _, trainer = run_over({"a": subjects}, [10], protocol="published")
    assert [len(batch) for batch in trainer.fitted] == [5]


def test_the_fall_of_the_auroc_is_tested_pair_by_pair():
    """Against the textbook's covariance matrix, term by term."""
    random = np.random.RandomState(0)
    labels = random.permutation([0] * 30 + [1] * 20)
    before = random.normal(labels, 0.8)
    after = before - 0.5 * labels + random.normal(0, 0.4, 50)
    auroc, p_value = auroc_fell(labels, before, after)
    patients, healthy = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    v10 = np.array([[np.mean([x[i] > x[j] for j in healthy]) for i in patients] for x in (before, after)])
    v01 = np.array([[np.mean([x[i] > x[j] for i in patients]) for j in healthy] for x in (before, after)])
    covariance = np.cov(v10) / 20 + np.cov(v01) / 30
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (v10[0].mean() - v10[1].mean()) / math.sqrt(variance)
    assert z > 1
    assert auroc == pytest.approx(v10[1].mean())
    assert p_value == pytest.approx(math.erfc(z / math.sqrt(2)) / 2)


@pytest.mark.parametrize(
    ("change", "harmful"),
    [
        (lambda labels, before: before, False),
        (lambda labels, before: before + 3, True),  # everybody is PD now, though ranked as before
        (lambda labels, before: before - 3, True),  # everybody is HC now
        (lambda labels, before: before + 0.05, False),  # a few are PD now
        (lambda labels, before: 3 * before - 1, False),  # as before, and surer
        (lambda labels, before: np.zeros(len(before)), True),  # nobody is ranked
        (lambda labels, before: -before, True),
        (lambda labels, before: np.full(len(before), np.nan), True),
        (lambda labels, before: before + labels, False),  # better
        (lambda labels, before: np.where(np.arange(len(before)) == 0, 9, before), False),  # one subject
    ],
)
def test_evidence_is_a_worse_ranking_wherever_the_threshold_lies(change, harmful):
    random = np.random.RandomState(1)
    labels = np.repeat([0, 1], 25)
    before = random.normal(labels, 0.7)
    after = change(labels, before)
    verdict, cells = judged(evaluate(labels, before), evaluate(labels, after), 0.02)
    assert verdict == harmful
    assert tuple(cells) == Evidence.columns
    assert (min(cells["P_AUROC"], cells["P_FP"], cells["P_FN"]) < 0.01) == harmful


def test_a_rise_of_the_rates_must_be_beyond_the_tolerance_too():
    labels = np.repeat([0, 1], 500)
    before = np.random.RandomState(1).normal(labels, 0.7)
    after = before + 0.15  # 7 % of the HC more are PD now
    for tolerance, harmful in ((0.01, True), (0.1, False)):
        verdict, cells = judged(evaluate(labels, before), evaluate(labels, after), tolerance)
        assert verdict == harmful
        assert cells["P_FP"] < 0.01
        assert cells["P_AUROC"] == 1
        assert cells["P_FN"] == 1


def test_the_exact_test_of_mcnemar():
    labels, before = np.zeros(10, int), np.array([0.1] * 8 + [0.9] * 2)
    after = np.array([0.9] * 6 + [0.1] * 2 + [0.1, 0.9])  # six worse, one better
    p_fp, p_fn = more_misdiagnosed(labels, before, after)
    assert p_fp == pytest.approx(8 / 128)  # seven coins, six or seven heads
    assert p_fn == 1


def test_a_pre_trained_model_that_ranks_nobody_is_blind():
    labels = np.repeat([0, 1], 25)
    evidence = Evidence(EvidenceOptions(rule="evidence"))
    good = np.random.RandomState(1).normal(labels, 0.7)
    bad = np.random.RandomState(1).normal(0, 1, 50)
    assert evidence.saturation(evaluate(labels, good), 0.1, PROTOCOLS["corrected"]) == []
    (words,) = evidence.saturation(evaluate(labels, bad), 0.1, PROTOCOLS["corrected"])
    assert words.startswith("AUROC 0.")
    (words,) = evidence.saturation(evaluate([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]), 0.1, PROTOCOLS["corrected"])
    assert "chance alone" in words


def test_the_rule_decides_what_is_rejected_and_against_whom():
    """A step is compared with the last accepted one; the state of a run that goes on holds it."""
    labels = np.repeat([0, 1], 25)
    start = np.random.RandomState(1).normal(labels, 0.7)

    class Ranks(FakeTrainer):
        def evaluate(self):
            worse = self.misdiagnoses[0]
            return Evaluation(0, 0, 25, 25, tuple(labels), tuple(start - worse * labels))

    centers = {"a": ["a0", "bad", "a2"]}
    rows = []
    trainer = Ranks(harm={"bad": (2, 0), "a0": (0, 0)})
    settings = settings_of(error=0, revisit=1, rule="evidence")
    control = QualityControl(settings, trainer, centers, rows.append, extensions=settings.extensions)
    control.start(trainer.evaluate())
    run_cycles(control, [10, 11])
    assert control.eliminated == {"bad": 11}
    assert [row["P_AUROC"] < 0.01 for row in rows if row["Ignored"]] == [True] * 3
    assert all(row["AUROC"] > 0.5 for row in rows if not row["Ignored"] and row["Phase"] != "baseline")
    other = QualityControl(settings, trainer, centers, rows.append, extensions=settings.extensions)
    other.import_state(control.export_state())
    assert other.accepted == control.accepted


def screened_control(centers, trainer):
    return control_over(centers, trainer, revisit=1, screen=True, false_alarms=0.1)


def test_a_suspect_never_trains_and_is_eliminated_at_its_revisit():
    centers = {"a": ["a0", "strange", "a2"], "b": ["b0"]}
    trainer = FakeTrainer()
    trainer.strange = {"strange": 50}
    control, rows = screened_control(centers, trainer)
    run_cycles(control, range(10, 13))
    assert "strange" not in sum(trainer.fitted, [])
    assert control.eliminated == {"strange": 11}
    unmeasured = [row for row in rows if row["Subject"] == "strange"]
    decisions = [(row["Cycle"], row["Phase"], row["Ignored"], row["Eliminated"]) for row in unmeasured]
    assert decisions == [(10, "screen", 1, 0), (11, "revisit", 1, 1)]
    assert all(row[column] is None for row in unmeasured for column in ("ACC", "FP", "FN", "PFP", "PFN", "Tolerance"))
    assert all(row["Screen_score"] > row["Screen_limit"] for row in unmeasured)
    assert all(tuple(row) == log_columns(control.extensions) for row in rows)
    phases = [(row["Cycle"], row["Phase"], row["Subject"]) for row in rows[1:]]
    assert sorted(phases[:4]) == [
        (10, "screen", subject) for subject in ("a0", "a2", "b0", "strange")
    ]  # before any step
    assert {phase for _, phase, _ in phases[4:]} == {"batch", "revisit"}
    assert sorted(map(sorted, filter(None, trainer.looked_at))) == [["a0", "a2", "strange"], ["b0"]]  # each image once
    assert trainer.looked_at.count(None) == 1  # and the test set
    good = next(row for row in rows if (row["Phase"], row["Subject"]) == ("screen", "a0"))
    assert (good["Ignored"], good["Study"]) == (0, "a")
    assert good["Screen_score"] <= good["Screen_limit"]


@pytest.mark.parametrize(("strange", "harm", "sure"), [(2.2, 0, False), (2.2, 30, False), (50, 0, True)])
def test_a_suspect_of_which_no_look_is_sure_is_tried_and_then_left_to_verification(strange, harm, sure):
    trainer = FakeTrainer(harm={"strange": (harm, 0)})
    trainer.strange = {"strange": strange}
    control, rows = screened_control({"a": ["a0", "strange"]}, trainer)
    run_cycles(control, [10, 11, 12])
    revisit = next(row for row in rows if row["Phase"] == "revisit")
    assert revisit["Screen_score"] > revisit["Screen_limit"]
    assert (revisit["Screen_metrics"] > LOOKS["metrics"].sure) == sure
    assert (["strange"] in trainer.fitted) == (not sure)
    assert revisit["Eliminated"] == (sure or harm > 0)
    assert control.flags["strange"] == [10]
    back = not revisit["Eliminated"]
    assert (sorted(trainer.fitted[-1]) == ["a0", "strange"]) == back  # not flagged again for the same look


def test_each_look_has_a_limit_of_elimination_of_its_own(monkeypatch):
    cells = {"Screen_score": 5.0, "Screen_limit": 2.0, "Screen_center": 0.0} | {f"Screen_{name}": 0.0 for name in LOOKS}
    for name, look in LOOKS.items():
        assert is_surely_strange(cells | {f"Screen_{name}": look.sure + 0.01})
        assert not is_surely_strange(cells | {f"Screen_{name}": look.sure})
        assert is_surely_strange(cells | {f"Screen_{name}": float("nan")})
    assert not is_surely_strange(cells | {"Screen_metrics": 50, "Screen_limit": 60.0})


def test_images_that_look_mirrored_are_eliminated_where_their_center_looks_so_too():
    cells = {"Screen_score": 3.5, "Screen_limit": 2.0} | {f"Screen_{name}": 0.0 for name in LOOKS}
    mirrored = cells | {"Screen_asymmetry": 3.5}
    assert is_surely_strange(mirrored | {"Screen_center": 2.8})
    assert not is_surely_strange(mirrored | {"Screen_center": 2.7})
    assert not is_surely_strange(cells | {"Screen_metrics": 3.5, "Screen_center": 9.0})  # another look flagged it
    assert of_center([3, 4, 5], [1, 1, 1]) == 4
    assert of_center([3, 4], [1, 1]) == pytest.approx(7 / 3)  # two say less than three, and one hardly anything
    assert of_center([6], [1]) == 2
    assert of_center([9, 9, 9], [-1, -1, 1]) == 0  # moved, but nearer to usual images than to mirrored ones


def test_a_center_that_does_not_let_the_screen_look_is_not_visited():
    centers = {"a": ["a0", "a1"], "b": ["b0"]}
    trainer = FakeTrainer()
    look = trainer.look

    def fails(subjects=None, **question):
        if subjects == ["a0", "a1"]:
            raise VisitFailed("unreachable", "away")
        return look(subjects, **question)

    trainer.look = fails
    control, rows = screened_control(centers, trainer)
    run_cycles(control, [10])
    assert trainer.fitted == [["b0"]]
    assert [(row["Phase"], row["Subjects"]) for row in rows if row["Study"] == "a"] == [("unreachable", "a0;a1")]
    trainer.look = look
    run_cycles(control, [11])
    assert sorted(sum(trainer.fitted[1:], [])) == ["a0", "a1", "b0"]


def test_an_image_that_harms_the_rates_is_found_behind_the_screen_as_well():
    centers = {"a": ["a0", "bad"]}
    control, _ = screened_control(centers, FakeTrainer(harm={"bad": (30, 0)}))
    run_cycles(control, [10, 11])
    assert control.eliminated == {"bad": 11}


def test_the_limit_is_the_test_sets_quantile_each_measured_by_the_others():
    trainer = FakeTrainer()
    screen = Scores(trainer, 0.1)
    screen.calibrate()
    looks = trainer.look()
    scores, units = [], {}
    for name, look in LOOKS.items():
        others = [look.yardstick(np.delete(looks[name], i, axis=0), look.yardstick(looks[name])) for i in range(120)]
        strange = np.array([one(looks[name][[i]])[0] for i, one in enumerate(others)])
        least = others[0].least_unit(strange)
        units[name] = strange.mean(), max(strange.std(ddof=1), least)
        rest = [np.delete(strange, i) for i in range(120)]
        pairs = zip(strange, rest, strict=True)
        scores.append([(one - some.mean()) / max(some.std(ddof=1), least) for one, some in pairs])
    wider = caution(120)
    rank = np.sort(np.max(scores, axis=0))[108]  # rank 109 of 120: 0.9 x 121, rounded up
    assert screen.scales[False].limit == pytest.approx(rank / wider)
    trainer.strange = {"somebody": 3}
    ((cells,), _) = screen.cells(["somebody"])
    seen = trainer.look(["somebody"])
    for name, look in LOOKS.items():
        mean, sd = units[name]
        assert cells[f"Screen_{name}"] == pytest.approx(
            (look.yardstick(looks[name])(seen[name])[0] - mean) / sd / wider
        )
    assert cells["Screen_score"] == max(cells[f"Screen_{name}"] for name in LOOKS) == cells["Screen_metrics"]
    assert is_strange(cells | {"Screen_score": float("nan")})


def test_few_people_change_no_flag_but_make_it_harder_to_eliminate(monkeypatch):
    trainer = FakeTrainer()
    trainer.strange = {"a": 2.2, "b": 50}
    found = {}
    for people in (8, 120):
        monkeypatch.setattr(trainer, "people", lambda people=people: people)
        screen = Scores(trainer, 0.1)
        screen.calibrate()
        found[people] = screen.cells(["a", "b", "c"])[0]
    assert caution(8) == pytest.approx(1.5, abs=0.02)
    assert 1 < caution(120) < 1.03
    assert caution(1) == caution(2) > caution(3) > caution(4)
    for few, enough in zip(found[8], found[120], strict=True):
        assert is_strange(few) == is_strange(enough)
        for column in set(few) - {"Screen_known"}:
            assert caution(120) * enough[column] == pytest.approx(caution(8) * few[column])


def test_test_images_are_not_scored_by_their_relatives():
    """Copies of one brain look usual beside each other, however strange it is."""
    random = np.random.default_rng(0)
    brains = np.repeat(np.arange(8), 5)
    images = 5 * random.normal(size=(8, 6))[brains] + 0.1 * random.normal(size=(40, 6))
    by_images, by_brains = (
        by_others(Distance(images), images, kin) for kin in (np.eye(40, dtype=bool), brains[:, None] == brains)
    )
    assert (by_brains > by_images + 0.2).all()


def test_who_is_related():
    cohort = pd.DataFrame({"Anatomy": list("xyzxyzxy"), "Participant": ["p", "p", *[""] * 6]})
    matrix, words = related(cohort)
    assert words == "Participant (1 different ones) and Anatomy (3 different ones)"
    assert np.flatnonzero(matrix[0]).tolist() == [0, 1, 3, 6]
    assert np.array_equal(matrix, matrix.T)
    scanned, words = related(cohort.assign(Scanner=list("AAAAABCD")))
    assert words.endswith(" and Scanner (not heeded: 4 different ones, and 75% would have to be left out)")
    assert np.array_equal(scanned, matrix)
    two = cohort.drop(columns="Anatomy").assign(Scanner=list("AAAABBBB"))
    assert related(two)[1].endswith("Scanner (not heeded: 2 different ones, and 50% would have to be left out)")
    assert np.array_equal(related(cohort.assign(Anatomy=list("xyzXYZxy")))[0], matrix)
    assert related(cohort.assign(Scanner=list("AABCDEFG")))[0][1].tolist() == [True, True, *2 * [False, False, True]]
    assert np.array_equal(related(cohort[[]])[0], np.eye(8, dtype=bool))


@pytest.mark.parametrize(("subjects", "stated", "runs"), [(60, 0.05, 40), (9, 0.1, 200)])
def test_as_many_good_images_are_suspected_as_stated(subjects, stated, runs):
    random = np.random.RandomState(0)

    class Chance:
        def look(self, some=None, labels=None, weights=None):
            number = subjects if some is None else len(some)
            looks = {
                "metrics": random.normal(0, np.linspace(1, 5, 30), (number, 30)),
                "spectrum": random.exponential(size=(number, 1)),
                **{name: random.normal(1, 1, (number, 5)) for name in HALVES},
            }
            return summed(looks, weights)

        def related(self, scanners=True):
            return np.eye(subjects, dtype=bool), ""

        def knows_scanners(self, some):
            return [False] * len(some)

        def people(self):
            return subjects

    shares = []
    for _ in range(runs):
        screen = Scores(Chance(), stated)
        screen.calibrate()
        shares.append(np.mean([is_strange(cells) for cells in screen.cells(range(100))[0]]))
    assert 0.5 * stated < np.mean(shares) < 1.25 * stated


def test_a_test_set_whose_looks_are_all_the_same_is_no_reason_to_stop():
    trainer = FakeTrainer()
    look = trainer.look
    trainer.look = lambda subjects=None, **question: (
        look(subjects, **question) | ({"asymmetry": np.zeros((TEST_IMAGES, 2))} if subjects is None else {})
    )
    screen = Scores(trainer, 0.1)
    screen.calibrate()
    assert [cells["Screen_asymmetry"] for cells in screen.cells(["a"])[0]] == [0]


def test_what_an_image_alone_tells_is_measured_once(monkeypatch):
    made = []
    make = Distance.__init__
    monkeypatch.setattr(Distance, "__init__", lambda self, *about: made.append(type(self)) or make(self, *about))
    control, _ = screened_control({"a": ["a0", "a1"]}, FakeTrainer())
    run_cycles(control, [10, 11])
    assert made.count(Distance) == 1 + TEST_IMAGES
    assert made.count(Mirrored) == len(HALVES) * (1 + TEST_IMAGES)


def test_a_test_set_too_small_for_the_stated_false_alarms_is_refused():
    assert limit_rank(99, 0.01) == 99
    assert limit_rank(407, 0.01) == 404
    words = (
        r"at a false-alarm rate of 0.01 it needs 99 test subjects, and this set has 51; --false-alarms 0.02 would do"
    )
    with pytest.raises(InputError, match=words):
        limit_rank(51, 0.01)
    for subjects in range(3, 99):  # what is said is true
        rate = least_rate(subjects)
        assert limit_rank(subjects, rate) <= subjects
        with pytest.raises(InputError, match=f"this set has {subjects}; --false-alarms {rate:g} would do") as refusal:
            limit_rank(subjects, rate - 0.01)
        limit_rank(int(re.findall(r"needs (\d+)", str(refusal.value))[0]), rate - 0.01)
    with pytest.raises(InputError, match="too small"):
        limit_rank(2, 0.5)


def test_state_of_the_screen_goes_on_where_it_was():
    centers = {"a": ["a0", "strange"]}
    trainer = FakeTrainer()
    trainer.strange = {"strange": 50}
    control, _ = screened_control(centers, trainer)
    run_cycles(control, [10])
    other, _ = screened_control(centers, trainer)
    other.import_state(control.export_state())
    assert extension_of(other, Screen).export_state() == extension_of(control, Screen).export_state()
    assert other.accepted == control.accepted
    looked = trainer.looked_at.count(None)
    run_cycles(other, [10])  # the same cycle: not calibrated anew
    assert trainer.looked_at.count(None) == looked


def test_a_cycle_in_which_most_batches_are_rejected_is_told_with_its_cause():
    centers = {center: [f"{center}{i}" for i in range(2)] for center in "abcde"}
    harm = {f"{center}{i}": (20, 0) for center in "abc" for i in range(2)}
    control, _, _ = run_over(centers, [10], harm=harm)
    assert control.counts == {"cycle": 10, "verified": 5, "rejected": 3}
    run_cycles(control, [11])
    assert control.counts == {"cycle": 11, "verified": 2, "rejected": 0}
    assert control.locked_up(11) is None
    control.counts = {"cycle": 10, "verified": 5, "rejected": 3}
    words = control.locked_up(10)
    assert "3 of 5 batches of cycle 10 were rejected" in words
    assert "FPR 0.000, FNR 0.000" in words
    assert "150 test subjects" in words
    assert control.locked_up(12) is None


def test_a_cycle_in_which_most_images_are_suspects_is_told_too():
    centers = {"a": ["a0", "a1", "a2"]}
    trainer = FakeTrainer()
    trainer.strange = {"a0": 50, "a2": 50}
    control, _ = screened_control(centers, trainer)
    run_cycles(control, [10])
    assert "2 of 3 images screened in cycle 10 were suspected" in control.locked_up(10)
