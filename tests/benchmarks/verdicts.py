"""How often the verdict on a run is right, where a logistic regression takes the network's place.

The loop, the rule, the centers and their sizes are the real ones; images are 20 numbers, of which one tells PD from HC,
with an offset of each center. Training begins with ten cycles without quality control. Clean runs should be
trustworthy; with --harm, five centers hold five images each whose numbers are so many times too large. --drift rejects
steps, too, after which FPR or FNR is so much above the pre-trained model's.

Examples:
    python tests/benchmarks/verdicts.py --seeds 101 140 --rate 0.5
    python tests/benchmarks/verdicts.py --seeds 101 140 --rate 0.5 --harm 255 --drift 0.2

A network takes minutes for a run, this takes a second. It has no BatchNorm, so what harm does to a network it shows in
part only.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.method.extension import Extension
from travelling.method.metrics import Evaluation, evaluate, misdiagnosed
from travelling.method.order import batches
from travelling.method.protocol import PROTOCOLS
from travelling.method.quality_control import QualityControl
from travelling.method.settings import Control
from travelling.method.verification_log import LOG_COLUMNS
from travelling_quality_control.enc_PD_quality_control import control_quality
from travelling_quality_control.judging import Verdict
from travelling_quality_control.judging.logged_run import LoggedRun, read_log

CENTERS = Path(__file__).resolve().parents[2] / "reproduce" / "centers.csv"
NUMBERS, CYCLES = 20, 10  # of an "image"; with and without quality control


class Regression:
    """A trainer (:class:`travelling.method.trainer.Trainer`): logistic regression with Adam."""

    learning_rate = 0.0

    def __init__(self, images, features, test_images, test_features):
        self._rows = dict(zip(images["Subject"], np.c_[features, np.ones(len(features))], strict=True))
        self._labels = dict(zip(images["Subject"], images["Group_bin"], strict=True))
        self._test = np.c_[test_features, np.ones(len(test_features))]
        self._test_labels = test_images["Group_bin"].to_numpy()
        self._state = (*np.zeros((3, NUMBERS + 1)), 0)  # weights, moments, steps

    def train(self, subjects):
        rows = np.array([self._rows[subject] for subject in subjects])
        labels = np.array([self._labels[subject] for subject in subjects])
        weights, mean, square, step = self._state
        gradient = rows.T @ (_sigmoid(rows @ weights) - labels) / len(labels)
        mean, square, step = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2, step + 1
        change = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-7)
        self._state = weights - self.learning_rate * change, mean, square, step
        return 0.0

    def train_batches(self, several):
        return [self.train(batch) for batch in several][-1]

    def expect(self, subjects):
        pass

    def evaluate(self):
        return evaluate(self._test_labels, _sigmoid(self._test @ self._state[0]))

    def keep(self):
        return self._state

    def restore(self, kept):
        self._state = kept


class DriftGuard(Extension):
    """A step is harmful, too, if FPR or FNR is then more than ``limit`` above the pre-trained model's."""

    def __init__(self, limit):
        self._limit = limit

    def start(self, control):
        self._first = control.reference
        return {}

    def judge(self, control, batches, after):
        rises = [now - first for now, first in zip(control.protocol.rates(after), self._first, strict=True)]
        return max(rises) > self._limit, {}


class NoFiles:
    """Where the run is kept: nowhere."""

    def checkpoint(self, place):
        pass

    def after_cycle(self, cycle):
        pass


def _sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def make_images(part, divisor, random):
    """The "images" of a set, ``train`` or ``test``, and what they are: the real counts, divided and rounded up."""
    rows, features = [], []
    for center in pd.read_csv(CENTERS).to_dict("records"):
        offset = random.normal(0, 0.4, NUMBERS)
        kinds = [(label, sex) for label in (0, 1) for sex in "FM"]
        for label, sex in kinds:
            for _ in range(-(-center[f"{part}_{('HC', 'PD')[label]}_{sex}"] // divisor)):
                image = random.normal(0, 1, NUMBERS) + offset
                image[0] += 2.5 * label * np.exp(random.normal(0, 0.3))
                image[1] += 0.3 * (sex == "M")
                features.append(image)
                rows.append((f"{center['center']}_{len(rows)}", center["center"], label, sex))
    return pd.DataFrame(rows, columns=["Subject", "Study", "Group_bin", "Sex"]), np.array(features)


def run(
    seed: int, protocol: str, error: float, divisor: int, rate: float, harm: float, drift: float = 1.0
) -> tuple[Verdict, dict[str, float]]:
    """The verdict on one run, and what share of the good images it flagged and eliminated, and its last accuracy."""
    random = np.random.default_rng(seed)
    images, features = make_images("train", divisor, random)
    test_set = make_images("test", divisor, random)
    good = images
    if harm:
        bad = random.choice(len(images), 25, replace=False)
        more = images.iloc[bad].assign(Study=[f"harmful_{number // 5}" for number in range(25)])
        images = pd.concat([images, more.assign(Subject="h_" + more["Subject"])], ignore_index=True)
        features = np.r_[features, features[bad] * random.choice([-1, 1], (25, NUMBERS)) * harm]
    trainer = Regression(images, features, *test_set)
    centers = {center: list(rows["Subject"]) for center, rows in images.groupby("Study", sort=False)}
    generator, names = np.random.RandomState(seed), list(good["Study"].unique())
    for cycle in range(CYCLES):
        trainer.learning_rate = rate * np.exp(-0.1 * cycle)
        generator.shuffle(names)
        for center in names:
            for batch in batches(centers[center], 5, generator, True):
                trainer.train(batch)
    settings = Control(cycles=2 * CYCLES, protocol=protocol, error=error, revisit=1, seed=seed, learning_rate=rate)
    rows: list[dict] = []
    control = QualityControl(settings, trainer, centers, rows.append, extensions=[DriftGuard(drift)])
    baseline = trainer.evaluate()
    control.start(baseline)
    saved = rate * np.exp(-0.1 * CYCLES)
    rates = PROTOCOLS[protocol].learning_rate
    cycles = range(CYCLES, 2 * CYCLES)
    control_quality(control, cycles, lambda cycle: rates(rate, cycle, CYCLES, saved), NoFiles())
    record = {"finished": True, "changed": changed(baseline, control.accepted), "sessions": []}
    record["options"] = {"protocol": protocol, "error": error, "batch_size": 5, "revisit": 1, "rule": "published"}
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        pd.DataFrame(rows, columns=list(LOG_COLUMNS)).to_csv(file.name, index=False)
        log = read_log(Path(file.name), ())
    people = images.set_index("Subject")
    return LoggedRun(record=record, settings=settings, extensions=(), table=log, images=people).verdict, {
        "good flagged": np.mean([bool(control.flags[subject]) for subject in good["Subject"]]),
        "good eliminated": np.mean([subject in control.eliminated for subject in good["Subject"]]),
        "last accuracy": control.accepted.accuracy,
    }


def changed(before: Evaluation, after: Evaluation) -> dict:
    """As :meth:`travelling.runs.controlled_run.ControlledRun.changed`."""
    labels = np.array(before.labels)
    was, now = (misdiagnosed(labels, one.predictions) for one in (before, after))
    return {
        group: (int((now & ~was)[labels == label].sum()), int((was & ~now)[labels == label].sum()))
        for label, group in enumerate(("HC", "PD"))
    }


def main() -> None:
    """Run, and print the verdict on every run and how many there were of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(101, 140), metavar=("FIRST", "LAST"))
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="corrected")
    parser.add_argument("--error", type=float, default=0.02)
    parser.add_argument("--divisor", type=int, default=4, help="of the real numbers of images")
    parser.add_argument("--rate", type=float, default=0.2, help="Adam's, in cycle 0")
    parser.add_argument("--harm", type=float, default=0.0)
    parser.add_argument("--drift", type=float, default=1.0, help="1: any")
    told = vars(parser.parse_args())
    first, last = told.pop("seeds")
    runs = {seed: run(seed, **told) for seed in range(first, last + 1)}
    for seed, (verdict, _) in runs.items():
        lowering = [str(reason) for reason in verdict.reasons if reason.level]
        print(f"seed {seed}: {verdict.word}", *lowering, sep="\n    ")
    print(dict(Counter(verdict.word for verdict, _ in runs.values())))
    print(pd.DataFrame(found for _, found in runs.values()).mean().round(3).to_string())


if __name__ == "__main__":
    main()
