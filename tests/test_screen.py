"""What the screen sees of one image, and how it judges labels: against images and numbers whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from fake_trainer import FakeTrainer, control_over, run_cycles
from sklearn.covariance import LedoitWolf

from travelling.beyond.screen.eyes import Eyes
from travelling.beyond.screen.labels import center_p_value, p_values, reference_of
from travelling.beyond.screen.looks import LOOKS, Distance, Mirrored, asymmetry, spectrum
from travelling.beyond.screen.scores import beside_others, by_others
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
        channels = (1,)

        def look(self, images, largest_batch):
            asked.append(len(images))
            return np.full((len(images), 3), 0.25 * len(asked))

    eyes = Eyes(LocalTrainer(Model(), volumes, cohort.set_index("Subject", drop=False), cohort))
    looks = eyes.look(["a"], {"0": [0.5], "1": [0.1, 0.2, 0.9]})
    np.testing.assert_allclose(looks["asymmetry"], [asymmetry(head)], atol=1e-5)
    np.testing.assert_allclose(looks["channels"], [[0.25, 0.25]])
    assert looks["labels"] == (1 + 2) / 4  # PD with probability 0.25
    again = eyes.look(["a"])
    assert "labels" not in again
    assert again["spectrum"] is not looks["spectrum"]
    np.testing.assert_array_equal(again["spectrum"], looks["spectrum"])
    assert len(asked) == 2


def reference_at(auroc):
    """Test subjects whose ranking has about that AUROC."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2
    shift = {0.95: 2.3, 0.7: 0.7}[auroc]
    return labels, 1 / (1 + np.exp(-random.normal(shift * (labels - 0.5), 1)))


def test_a_model_that_knows_little_doubts_no_label():
    assert reference_of(evaluate(*reference_at(0.7))) is None
    reference = reference_of(evaluate(*reference_at(0.95)))
    assert {label: len(values) for label, values in reference.items()} == {"0": 200, "1": 200}
    assert reference["0"] == sorted(reference["0"])


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
