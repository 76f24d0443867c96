"""What the screen sees of one image, and how it judges labels: against images and numbers whose truth is known."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fake_trainer import FakeTrainer, control_over, run_cycles
from scipy.ndimage import gaussian_filter
from scipy.stats import t
from sklearn.covariance import LedoitWolf

from travelling.beyond.screen import is_strange, scores
from travelling.beyond.screen.eyes import Eyes, summed
from travelling.beyond.screen.labels import LEAST_SPREAD, center_p_value, p_values, reference_of
from travelling.beyond.screen.looks import LOOKS, Distance, Mirrored, asymmetry, spectrum
from travelling.beyond.screen.metrics import MEANINGS, image_metrics
from travelling.beyond.screen.scores import Scores, beside_others, by_others, person_limit
from travelling.beyond.screen_labels import LabelOptions, LabelScreen
from travelling.images.local_trainer import LocalTrainer
from travelling.images.volumes import Volumes
from travelling.method.metrics import evaluate


@pytest.fixture
def head():
    """An image (z, y, x) with structure, and more of it on one side."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 48, 41)), indexing="ij")
    inside = z**2 + y**2 + x**2 < 0.8
    random = np.random.default_rng(0)
    image = inside * (1 + 0.3 * np.cos(5 * y) + 0.2 * (x > 0.2) * (y > 0)) + 0.05 * random.normal(size=z.shape) * inside
    return image.astype(np.float32)


def test_distance_is_that_of_scikit_learns_shrunk_covariance():
    random = np.random.default_rng(0)
    usual, others = random.normal(size=(40, 60)) * np.linspace(1, 9, 60), random.normal(size=(5, 60))
    mean, sd = usual.mean(axis=0), usual.std(axis=0, ddof=1)
    shrunk = LedoitWolf(assume_centered=True).fit((usual - mean) / sd)
    expected = 0.5 * np.log(shrunk.mahalanobis((others - mean) / sd) / 60)
    yardstick = Distance(usual)
    assert yardstick.shrinkage == pytest.approx(shrunk.shrinkage_)
    np.testing.assert_allclose(yardstick(others), expected, rtol=1e-4, atol=1e-4)
    assert Distance(usual[:20], yardstick).shrinkage == yardstick.shrinkage  # it takes long to find out


@pytest.mark.parametrize("shape", [(9, 10, 11), (40, 48, 40)])
def test_a_stripe_is_seen_in_the_spectrum_whatever_its_direction(shape):
    random = np.random.default_rng(1)
    image = random.normal(size=shape)
    z, y, x = np.indices(shape)
    usual = spectrum(image)
    assert usual.shape == (1,)
    for stripes in (np.cos(2 * np.pi * x / 4), np.cos(2 * np.pi * (y / 6 + z / 5))):
        assert spectrum(image + stripes)[0] > usual[0] + 0.7
    np.testing.assert_allclose(spectrum(1000 * image), usual, rtol=1e-3)
    assert spectrum(np.zeros(shape)) == 0


def test_a_mirrored_image_has_the_opposite_asymmetry(head):
    look = asymmetry(head)
    assert look.shape == (LOOKS["asymmetry"].numbers,)
    np.testing.assert_allclose(asymmetry(head[:, :, ::-1]), -look, atol=1e-6)
    np.testing.assert_allclose(asymmetry(7 * head), look, atol=1e-3)
    assert np.abs(asymmetry(head + head[:, :, ::-1])).max() < 1e-5
    random = np.random.default_rng(0)
    usual = np.array([asymmetry(head + 0.2 * random.normal(size=head.shape)) for _ in range(30)])
    good, mirrored = Mirrored(usual)(usual), Mirrored(usual)(-usual)
    assert mirrored.min() > good.max()
    # Where the two sides differ by chance, it says nothing.
    symmetric = head + head[:, :, ::-1]
    by_chance = np.array([asymmetry(symmetric + 0.2 * random.normal(size=head.shape)) for _ in range(30)])
    alone = np.eye(30, dtype=bool)
    strange = by_others(Mirrored(usual), usual, alone)
    assert Mirrored(usual).least_unit(strange) == pytest.approx(-strange.mean() / 10)
    assert Mirrored(by_chance).least_unit(by_others(Mirrored(by_chance), by_chance, alone)) == np.inf


def test_no_block_that_hardly_differs_decides_alone():
    """All blocks have one unit: an image that is unusual in one of them is not flipped."""
    random = np.random.default_rng(0)
    usual = np.column_stack([np.full(30, 0.9), 0.3 + 0.2 * random.normal(size=(30, 50))])
    usual[:, 0] += 1e-4 * random.normal(size=30)
    yardstick, unusual = Mirrored(usual), usual.copy()
    unusual[:, 0] *= -1
    way = (yardstick(unusual) - yardstick(usual)) / (yardstick(-usual) - yardstick(usual))
    assert way.max() < 0.5


@pytest.mark.parametrize(("look", "axis"), [("up_down", 0), ("front_back", 1)])
def test_an_image_that_is_upside_down_is_told_from_all_others(head, look, axis):
    random = np.random.default_rng(0)
    z, y, _ = np.indices(head.shape)
    heads = [head * (1 + 0.01 * (z + y)) + 0.1 * random.normal(size=head.shape) for _ in range(30)]
    measure = LOOKS[look].measure
    usual, flipped = (np.array([measure(image) for image in images]) for images in (
        heads, [np.flip(image, axis) for image in heads]
    ))  # fmt: skip
    np.testing.assert_allclose(flipped, -usual, atol=1e-6)
    yardstick = Mirrored(usual)
    strange = by_others(yardstick, usual, np.eye(30, dtype=bool))
    unit = max(strange.std(ddof=1), yardstick.least_unit(strange))
    assert ((yardstick(flipped) - strange.mean()) / unit > 10).all()
    assert beside_others(strange, yardstick.least_unit(strange)).max() < 4


def test_looks_are_taken_upright_and_once(head, tmp_path):
    """Whatever the files' axes are, left is left; no model changes what an image alone tells."""
    import nibabel as nib

    affine = np.array([[0.0, 0, 4, 0], [-4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 1]])  # x to the back, y up, z right
    nib.save(nib.Nifti1Image(head.transpose(1, 0, 2)[::-1], affine), tmp_path / "a.nii.gz")
    cohort = pd.DataFrame({"Subject": ["a"], "Path": [str(tmp_path / "a.nii.gz")], "Group_bin": [1]})
    volumes = Volumes(None, tmp_path)
    volumes.add(cohort)
    volumes.decode()
    asked = []

    class Model:
        def predict(self, images, largest_batch):
            asked.append(len(images))
            return np.full(len(images), 0.25)

    eyes = Eyes(LocalTrainer(Model(), volumes, cohort.set_index("Subject", drop=False), cohort))
    read = []
    volumes.batch, batch = lambda subjects: read.append(subjects) or batch(subjects), volumes.batch
    again = eyes.look(["a"])
    assert not asked  # images alone need no model
    looks = eyes.look(["a"], {"0": [1.0, 1.0, 9], "1": [1.0, 2.0, 3]})
    np.testing.assert_allclose(looks["asymmetry"], [asymmetry(head)], atol=1e-5)
    np.testing.assert_allclose(looks["metrics"], [image_metrics(head)], rtol=1e-4, atol=1e-4)
    assert looks["labels"][0, 0] == pytest.approx(t.cdf((-np.log(3) - 1) / 2 / (4 / 3) ** 0.5, 2))  # PD at 0.25
    assert "labels" not in again
    usual = np.random.default_rng(0).normal(1, 1, (9, again["asymmetry"].shape[1]))
    yardstick = Mirrored(usual)
    told = eyes.look(["a"], weights={"asymmetry": yardstick.weights})
    np.testing.assert_array_equal(told["asymmetry"], yardstick(again["asymmetry"])[:, None])  # all that a center tells
    np.testing.assert_array_equal(told["up_down"], again["up_down"])
    np.testing.assert_array_equal(again["spectrum"], looks["spectrum"])
    assert asked == [1]
    assert len(read) <= 2  # once for the looks, once for the label


def reference_at(auroc):
    """Test subjects whose ranking has about that AUROC."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    shift = {0.95: 2.3, 0.7: 0.7}[auroc]
    return labels, 1 / (1 + np.exp(-random.normal(shift * (labels - 0.5), 1)))


def test_a_model_that_knows_little_doubts_no_label():
    assert reference_of(evaluate(*reference_at(0.7))) is None
    reference = reference_of(evaluate(*reference_at(0.95)))
    labels, predictions = reference_at(0.95)
    for label in (0, 1):
        own = np.array(predictions)[np.array(labels) == label]
        odds = np.log(own / (1 - own)) * (1 if label else -1)
        assert reference[str(label)] == pytest.approx([odds.mean(), odds.std(ddof=1), 200])


def test_a_label_is_judged_beside_the_test_subjects_of_its_class():
    """By Student's t; and by a spread of some size, where all of them look alike to the model."""
    reference = {"0": [2.0, 1.0, 10], "1": [1.0, 2.0, 2]}
    predictions = 1 / (1 + np.exp([3.0, -1.0, -1.0, 1.0]))  # log-odds of PD: -3, 1, 1, -1
    found = p_values(reference, [0, 0, 1, 1], predictions)
    expected = [t.cdf(1 / 1.1**0.5, 9), t.cdf(-3 / 1.1**0.5, 9), 0.5, t.cdf(-1 / 1.5**0.5, 1)]
    np.testing.assert_allclose(found, expected)
    assert 0 < p_values({"0": [13, 0.5, 500]}, [0], [1.0])[0] < 1e-90
    assert reference_of(evaluate([0, 1] * 50, [0.2, 0.8] * 50))["1"] == pytest.approx(
        [np.log(4), LEAST_SPREAD * 2 * np.log(4), 50]
    )


def test_where_the_model_knows_little_no_cell_says_anything_of_labels():
    """Not even the limit: the audit takes a limit without a p-value for a cell that somebody has removed."""
    screen = LabelScreen(LabelOptions(label_screen=True))
    control = SimpleNamespace(accepted=evaluate([0, 1] * 20, np.linspace(0.6, 0.4, 40)))
    screen.calibrate(control, centers=5)
    cells = [{"Screen_score": 1.0, "Screen_limit": 2.0} for _ in range(4)]
    screen.add_cells(cells, {})
    assert all(cell[column] is None for cell in cells for column in screen.columns)
    assert not any(map(screen.doubts, cells))


def test_centers_with_right_labels_are_doubted_as_rarely_as_stated_and_those_with_wrong_ones_are_not_spared():
    reference = reference_of(evaluate(*reference_at(0.95)))
    random = np.random.default_rng(1)
    doubted = {False: [], True: []}
    for number in range(2000):
        labels = np.full(6, number % 2)  # centers of one class, too
        predictions = 1 / (1 + np.exp(-random.normal(2.3 * (labels - 0.5), 1)))
        for swapped in doubted:
            found = p_values(reference, 1 - labels if swapped else labels, predictions)
            doubted[swapped].append(center_p_value(found.tolist()))
    assert np.mean(np.array(doubted[False]) < 0.01) < 0.015
    assert np.mean(np.array(doubted[True]) < 0.05 / 83) > 0.9
    assert center_p_value([0.001, 0.001]) is None


LABELS_SCREENED = {"revisit": 1, "screen": True, "label_screen": True, "false_alarms": 0.1}


class Doubting(FakeTrainer):
    """A trainer whose model knows its test set."""

    def evaluate(self):
        return evaluate([0, 1] * 50, [0.2, 0.8] * 50)


def test_a_center_whose_labels_are_doubted_twice_is_eliminated():
    centers = {"a": ["a0", "a1", "a2", "a3"], "b": ["b0", "b1", "b2"], "c": ["c0"]}
    trainer = Doubting()
    trainer.label_p = dict.fromkeys(centers["a"], 0.01) | {"c0": 0.001}
    control, rows = control_over(centers, trainer, **LABELS_SCREENED)
    run_cycles(control, [10, 11])
    assert not set(sum(trainer.fitted, [])) & set(centers["a"])
    assert set(control.eliminated) == set(centers["a"])
    assert set(trainer.references[0]) == {"0", "1"}
    row = next(row for row in rows if row["Subject"] == "a0")
    assert row["Screen_score"] <= row["Screen_limit"]
    assert row["Center_p"] < row["Center_limit"] == 0.05 / 3
    alone = next(row for row in rows if row["Subject"] == "c0" and row["Phase"] == "screen")
    assert (alone["Label_p"], alone["Center_p"], alone["Ignored"]) == (0.001, None, 0)


def test_a_center_that_is_doubted_once_is_tried_and_comes_back():
    centers = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"]}
    trainer = Doubting()
    control, _ = control_over(centers, trainer, **LABELS_SCREENED)
    trainer.label_p = dict.fromkeys(centers["a"], 0.001)
    run_cycles(control, [10])
    assert set(control.waiting) == set(centers["a"])
    trainer.label_p = {}
    run_cycles(control, [11, 12])
    assert not control.eliminated
    assert [batch for batch in trainer.fitted if len(batch) == 1][:3] == [["a0"], ["a1"], ["a2"]]
    assert sorted(max(trainer.fitted, key=len)) == centers["a"]


def test_strange_images_say_nothing_of_their_centers_labels():
    centers = {"a": ["a0", "a1", "a2", "a3"]}
    trainer = Doubting()
    trainer.label_p = dict.fromkeys(["a0", "a1"], 1e-4)
    trainer.strange = {"a0": 50, "a1": 50}
    control, rows = control_over(centers, trainer, **LABELS_SCREENED)
    run_cycles(control, [10])
    assert set(control.waiting) == {"a0", "a1"}
    assert all(row["Center_p"] is None for row in rows if row["Phase"] == "screen")  # two images are too few


def test_metrics_are_what_their_names_say(head):
    """Against numbers that are known: of a ramp, which has no noise, in a box."""
    image = np.zeros((20, 24, 30), np.float32)
    image[2:12, 4:16, 5:25] = 1 + np.arange(20)  # along x
    found = dict(zip(MEANINGS, image_metrics(image), strict=True))
    assert found["summary_fg_median"] == 10.5
    assert found["summary_fg_p75"] == pytest.approx(15.25)
    assert found["cv"] == pytest.approx(np.std(np.arange(20)) / 10.5, rel=1e-3)
    assert found["volume"] == pytest.approx(np.log(10 * 12 * 20 / image.size))
    assert (found["extent_z"], found["extent_x"]) == pytest.approx((9 / 20, 19 / 30))
    assert found["middle_y"] == pytest.approx((4 + 15) / 2 / 24)
    assert found["center_x"] == pytest.approx(14.5 / 30)
    assert found["weight_x"] > 0
    assert found["weight_z"] == pytest.approx(0, abs=1e-9)
    assert found["tilt_zx"] == pytest.approx(0, abs=1e-9)
    assert found["variogram_x_2"] == pytest.approx(np.log(2**2 / 2 / np.var(np.arange(20)) + 1e-4), rel=1e-3)
    assert found["variogram_y_1"] == pytest.approx(np.log(1e-4))  # nothing differs
    assert found["curvature_x"] == pytest.approx(np.log(1e-4))
    scaled = dict(zip(MEANINGS, image_metrics(7 * head), strict=True))
    unscaled = dict(zip(MEANINGS, image_metrics(head), strict=True))
    differs = {name for name in MEANINGS if not np.isclose(scaled[name], unscaled[name], rtol=1e-2, atol=1e-2)}
    assert differs == {name for name in MEANINGS if name.startswith("summary_fg")} - {"summary_fg_k"}
    assert np.isnan(image_metrics(np.zeros((9, 9, 9)))).all()


@pytest.fixture
def image_of(head):
    """Makes an image of a person, of whom there is a number."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in head.shape), indexing="ij")

    def image(number):
        random = np.random.default_rng(number)
        own = random.normal(1, 0.05, 4)
        inside = own[0] * z**2 + own[1] * y**2 + own[2] * x**2 < 0.8
        texture = 1 + 0.3 * own[3] * np.cos(5 * y) + 0.2 * (x > 0.2) * (y > 0) + 0.1 * random.normal(size=z.shape)
        return (inside * texture.clip(0.1)).astype(np.float32)

    return image


def screened(test, others):
    """The cells of other images, which the screen compares with test images; and the eyes."""
    images = dict(enumerate([*test, *others]))
    cohort = pd.DataFrame({"Subject": range(len(test))})
    trainer = SimpleNamespace(test_set=cohort, upright=images.__getitem__, scanners={})
    eyes = Eyes(trainer)
    screen = Scores(eyes, 0.05)
    screen.calibrate()
    return screen.cells(list(images)[len(test) :])[0], eyes


def test_harm_within_the_brain_is_seen_by_the_metrics_and_a_good_image_is_not(image_of, tmp_path):
    test, good = [image_of(number) for number in range(40)], image_of(99)
    blurred = np.where(good > 0, gaussian_filter(good, 1), 0)
    noisy = np.where(good > 0, good + 0.3 * np.random.default_rng(1).normal(size=good.shape), 0)
    cells, eyes = screened(test, [good, blurred, noisy, np.zeros_like(good)])
    assert [is_strange(one) for one in cells] == [False, True, True, True]
    assert all(max(LOOKS, key=lambda name: one[f"Screen_{name}"]) == "metrics" for one in cells[1:3])
    eyes.write_metrics(tmp_path / "run_iqm.tsv")
    table = pd.read_csv(tmp_path / "run_iqm.tsv", sep="\t", index_col="subject")
    assert list(table.columns) == ["set", *MEANINGS, "farthest"]
    assert table["set"].value_counts().to_dict() == {"test": 40, "training": 4}
    assert table["farthest"][41].startswith(("variogram", "curvature", "laplacian", "noise", "gradient"))  # the blur
    np.testing.assert_allclose(table.loc[40, list(MEANINGS)].astype(float), image_metrics(good), rtol=1e-6)
    assert table.loc[43, list(MEANINGS)].isna().all()
    assert json.loads((tmp_path / "run_iqm.json").read_text()).keys() == MEANINGS.keys()


def test_people_are_counted_by_all_that_tells_them():
    def people(**columns):
        return Eyes(SimpleNamespace(test_set=pd.DataFrame({"Subject": list("abcdef")} | columns))).people()

    assert people() == people(Scanner=list("AAABBB")) == 6
    assert people(Anatomy=list("xxyyzz")) == 3
    assert people(Anatomy=list("xxxyyy"), Participant=list("pqrstu")) == 2
    assert people(Participant=["p", "p", "q", "", "", "r"]) == 5


def test_few_people_with_many_images_do_not_set_a_limit_by_rank_alone():
    """Their images are alike: the limit has to reserve room for how another person differs."""
    random = np.random.default_rng(0)
    person = np.repeat(range(6), 20)
    related = person[:, None] == person

    def images(people, number):
        return (random.normal(size=(people, 1)) + random.normal(0, 0.3, (people, number))).ravel()

    limits = [(person_limit(test, related, 0.05), np.sort(test)[-6]) for test in (images(6, 20) for _ in range(400))]
    above = np.array([[(images(50, 1) > limit).mean() for limit in both] for both in limits]).mean(axis=0)
    assert above[0] == pytest.approx(0.05, abs=0.015)
    assert above[1] > 0.1
    assert person_limit(images(6, 1), np.eye(6, dtype=bool), 0.05) == -math.inf  # nobody has several
    assert person_limit(images(1, 6), np.ones((6, 6), bool), 0.05) == -math.inf  # there is one person


def test_the_limit_knows_who_has_several_test_images(monkeypatch):
    random = np.random.default_rng(1)
    people = np.repeat(range(5), 20)
    looks = {"spectrum": random.normal(size=(5, 1))[people] + random.normal(0, 0.1, (100, 1))}
    monkeypatch.setattr(scores, "LOOKS", {"spectrum": LOOKS["spectrum"]})

    def limit(**columns):
        eyes = Eyes(SimpleNamespace(test_set=pd.DataFrame({"Subject": range(100)} | columns), scanners={}))
        eyes.look = lambda subjects=None: looks
        screen = Scores(eyes, 0.05)
        screen.calibrate()
        return screen.scales[True].limit

    strangers, people_known = limit(), limit(Participant=people.astype(str))
    monkeypatch.setattr(scores, "person_limit", lambda *_: -math.inf)
    assert limit() == strangers
    assert limit(Participant=people.astype(str)) < people_known


def test_an_image_of_a_scanner_that_the_test_set_has_is_compared_with_more():
    """With the test set's images of that scanner, too: they are nearer, and so is its limit."""
    random = np.random.default_rng(0)
    scanners = np.repeat(list("ABCDEFGH"), 10)
    centers = 4 * random.normal(size=(8, 6))[np.arange(80) // 10]
    usual = centers + random.normal(size=(80, 6))
    test_set = pd.DataFrame({"Subject": range(80), "Scanner": scanners})
    eyes = Eyes(SimpleNamespace(test_set=test_set, scanners={80: "A", 81: "Z", 82: ""}))
    others = {name: random.normal(1, 1, (83, 4)) for name in LOOKS if name not in ("metrics", "spectrum")}
    taken = {"metrics": np.vstack([usual, np.tile(centers[0], (3, 1)) + 3]), "spectrum": np.zeros((83, 1)), **others}
    eyes.look = lambda subjects=None, weights=None: summed(
        {name: rows[:80] if subjects is None else rows[80:] for name, rows in taken.items()}, weights
    )
    screen = Scores(eyes, 0.05)
    screen.calibrate()
    known, new, unknown = screen.cells([80, 81, 82])[0]
    assert [cells["Screen_known"] for cells in (known, new, unknown)] == [1, 0, 0]
    assert (known["Screen_limit"], new["Screen_limit"]) == (screen.scales[True].limit, screen.scales[False].limit)
    assert known["Screen_metrics"] > new["Screen_metrics"] + 1 == pytest.approx(unknown["Screen_metrics"] + 1)
