"""Group verification (``--verify-every``): several batches train, one evaluation, and harm is searched by halves."""

import json

import numpy as np
import pytest
from fake_trainer import HEALTHY, FakeTrainer, NoFiles, control_over, extension_of, judged, run_cycles, run_over

from travelling.beyond.groups import Groups
from travelling.errors import VisitFailed
from travelling.method.metrics import evaluate
from travelling_quality_control.enc_PD_quality_control import control_quality

CENTERS = {center: [f"{center}{number}" for number in range(7)] for center in "abcdefgh"}  # batches of 5 and of 2
BAD = {"c3": (HEALTHY, 0)}


def phases(rows):
    return [(row["Phase"], row["Subjects"].count(";") + 1, row["Ignored"]) for row in rows[1:]]


def test_a_clean_cycle_is_verified_once_for_every_group():
    _, rows, trainer = run_over(CENTERS, [10], verify_every=8)
    assert phases(rows) == [("group", 4 * 7, 0)] * 2
    assert trainer.weight == 16  # every batch has trained, one after another
    alone, rows_alone = control_over(CENTERS, other := FakeTrainer())
    run_cycles(alone, [10])
    assert other.fitted == trainer.fitted
    assert len(rows_alone) == 17
    assert rows[1]["Study"] == ";".join(dict.fromkeys(subject[0] for subject in rows[1]["Subjects"].split(";")))
    assert rows[1]["Subject"] == "group"


def test_the_tolerance_is_that_of_the_smallest_batch():
    _, rows, _ = run_over(CENTERS, [10], verify_every=4)
    assert {row["Tolerance"] for row in rows[1:]} == {2 * 0.02}


def test_harm_in_a_group_is_searched_by_halves_and_only_who_harms_alone_is_flagged():
    control, rows, trainer = run_over(CENTERS, [10], harm=BAD, verify_every=16, revisit=1)
    rejected = [row for row in rows[1:] if row["Ignored"] == 1]
    assert all("c3" in row["Subjects"].split(";") for row in rejected)
    sizes = [row["Subjects"].count(";") + 1 for row in rejected]
    assert sizes == sorted(sizes, reverse=True)
    assert [row["Phase"] for row in rejected[-2:]] == ["batch", "subject"]
    assert {row["Phase"] for row in rejected[:-2]} == {"group"}
    assert control.waiting == {"c3": 10}
    assert trainer.restored == len(rejected)
    # All others have trained once, none twice: in an accepted group, an accepted batch or alone.
    accepted = [subject for row in rows[1:] if not row["Ignored"] for subject in row["Subjects"].split(";")]
    assert sorted(accepted) == sorted(set(sum(CENTERS.values(), [])) - {"c3"})
    run_cycles(control, [11])
    assert control.eliminated == {"c3": 11}


def test_groups_grow_again_after_harm_was_found():
    _, rows, _ = run_over(CENTERS, [10], harm=BAD, verify_every=4)
    found = next(i for i, row in enumerate(rows) if row["Phase"] == "subject" and row["Ignored"])
    after = [row for row in rows[found:] if row["Phase"] in ("batch", "group")]
    assert [row["Phase"] for row in after][:2] == ["batch", "group"]  # one, two, four, ...


@pytest.mark.parametrize("harm", [{}, BAD, {"a0": (9, 0), "e4": (0, 30), "h6": (30, 0)}])
def test_every_batch_alone_is_the_published_method(harm):
    """Of one batch a group is what the paper verifies: the same rows in the same order."""
    _, rows, _ = run_over(CENTERS, [10, 11, 12], harm=harm, verify_every=1)
    assert {row["Phase"] for row in rows} <= {"baseline", "batch", "subject", "revisit"}
    by_center = [row["Study"] for row in rows[1:] if row["Cycle"] == 10 and row["Phase"] == "batch"]
    assert len(by_center) == 16
    assert all(a == b for a, b in zip(by_center[::2], by_center[1::2], strict=True))  # a center is done before the next


class Away(FakeTrainer):
    """A center does not answer, from its so manieth question on."""

    def __init__(self, center, question=0, **options):
        super().__init__(**options)
        self.center, self.left = center, question

    def train_batches(self, batches):
        if batches[0][0][0] == self.center:
            self.left -= 1
            if self.left < 0:
                raise VisitFailed("unreachable", "for a test")
        return super().train_batches(batches)


@pytest.mark.parametrize("question", [0, 1, 2, 3])
def test_the_batches_of_a_center_that_fails_are_dropped_and_the_others_train(question):
    trainer = Away("c", question, harm=BAD)
    control, rows = control_over(CENTERS, trainer, verify_every=16)
    run_cycles(control, [10])
    (failed,) = [row for row in rows if row["Phase"] == "unreachable"]
    assert failed["Study"] == "c"
    assert {subject[0] for subject in failed["Subjects"].split(";")} == {"c"}
    accepted = [
        subject
        for row in rows[1:]
        if not row["Ignored"] and row["Phase"] != "unreachable"
        for subject in row["Subjects"].split(";")
    ]
    assert len(accepted) == len(set(accepted))
    assert {subject for subject in accepted if subject[0] != "c"} == {
        subject for subject in sum(CENTERS.values(), []) if subject[0] != "c"
    }
    assert control.accepted.false_positives == 0
    assert "c" not in {batch[0][0] for batch in extension_of(control, Groups).queue}


@pytest.mark.parametrize("harm", [{}, {"a0": (9, 0), "c3": (HEALTHY, 0), "e4": (0, 60)}])
def test_a_run_goes_on_within_a_group_as_if_it_had_not_stopped(harm):
    trainer = FakeTrainer(harm=harm)
    whole, rows = control_over(CENTERS, trainer, verify_every=8)
    states = []

    class Keeps(NoFiles):
        def checkpoint(self, place):
            state = json.loads(json.dumps([place, whole.export_state()]))
            states.append((*state, trainer.keep(), len(rows)))

    control_quality(whole, [10, 11], lambda cycle: 1, Keeps())
    assert len(states) > 4
    for place, state, kept, logged in states:
        other = FakeTrainer(harm=harm)
        other.restore(kept)
        control, rest = control_over(CENTERS, other, verify_every=8)
        control.import_state(state)
        del rest[:]
        run_cycles(control, [10, 11], place)
        assert rows[:logged] + rest == rows


def test_a_lock_up_counts_batches():
    harm = dict.fromkeys(sum(CENTERS.values(), []), (HEALTHY, 0))
    control, _, _ = run_over(CENTERS, [10], harm=harm, verify_every=4)
    assert "16 of 16 batches of cycle 10 were rejected" in control.locked_up(10)


def test_bad_batches_in_one_half_leave_the_other_half_verified():
    harm = {"a0": (HEALTHY, 0), "a1": (HEALTHY, 0)}
    control, rows, _ = run_over(CENTERS, [10], harm, verify_every=16)
    assert control.waiting.keys() == {"a0", "a1"}
    assert len(rows) < 30


def test_a_group_is_suspect_before_a_step_is_harmful():
    """The rule of evidence searches a group at p < 0.05; nobody is flagged at more than 0.01."""
    labels = np.repeat([0, 1], 25)
    before = np.random.RandomState(1).normal(labels, 0.7)
    worse = before - 0.25 * labels + np.random.RandomState(2).normal(0, 0.3, 50)
    tried, cells = judged(evaluate(labels, before), evaluate(labels, worse), 1)
    assert 0.01 < cells["P_AUROC"] < 0.05
    assert not tried
    assert judged(evaluate(labels, before), evaluate(labels, worse), 1, batches=2) == (True, cells)
