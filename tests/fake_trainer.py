"""A trainer without images or network, for tests of what decides: what travels, who is fitted, what is rejected."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from travelling.beyond.screen.eyes import summed
from travelling.method.metrics import Evaluation
from travelling.method.protocol import PROTOCOLS
from travelling.method.quality_control import QualityControl
from travelling.method.settings import WithoutControl
from travelling.runs.control_options import QualityControl as QualityControlOptions
from travelling_quality_control.enc_PD_quality_control import control_quality

HEALTHY, PATIENTS = 50, 100
TEST_IMAGES = 120  # that the screen sees
HALVES = ("asymmetry", "up_down", "front_back")


class FakeTrainer:
    """Its only weight counts training steps; ``harm`` maps a subject to (FP, FN) it adds to the test set."""

    def __init__(self, harm=(), start=(0, 0)):
        self.weight = 0
        self.learning_rate = None
        self.harm = dict(harm)
        self.misdiagnoses = np.array(start)
        self.fitted = []  # every batch, in order
        self.rates_seen = []
        self.expected = []
        self.looked_at = []
        self.strange = {}  # subject -> standard deviations
        self.label_p = {}  # subject -> p-value of its label
        self.references = []
        self.restored = 0

    def train(self, subjects):
        self.fitted.append(list(subjects))
        self.rates_seen.append(self.learning_rate)
        self.weight += 1
        for subject in subjects:
            self.misdiagnoses = self.misdiagnoses + self.harm.get(subject, (0, 0))
        return 0.5

    def train_batches(self, batches):
        return [self.train(batch) for batch in batches][-1]

    def expect(self, subjects):
        self.expected.append(subjects)

    def look(self, subjects=None, labels=None, weights=None):
        """A test set of 120 by chance; a subject in its middle, or as far away as ``strange`` says."""
        self.looked_at.append(subjects)
        if subjects is None:
            random = np.random.default_rng(0)
            return {
                "metrics": random.normal(size=(TEST_IMAGES, 4)),
                "spectrum": random.normal(size=(TEST_IMAGES, 1)),
                **{name: random.normal([1, 0], size=(TEST_IMAGES, 2)) for name in HALVES},
            }
        away = np.array([self.strange.get(subject, 0.5) for subject in subjects])[:, None]
        looks = {"metrics": away * np.ones(4), "spectrum": 0 * away} | {name: [1, 0] + 0 * away for name in HALVES}
        looks = summed(looks, weights)
        if labels:
            self.references.append(labels)
            looks["labels"] = np.array([[self.label_p.get(subject, 0.5)] for subject in subjects])
        return looks

    def related(self, scanners=True):
        return np.eye(TEST_IMAGES, dtype=bool), ""

    def knows_scanners(self, subjects):
        return [False] * len(subjects)

    def people(self):
        return TEST_IMAGES

    def known(self, subjects):
        return {}

    def evaluate(self):
        return Evaluation(*(int(count) for count in self.misdiagnoses), HEALTHY, PATIENTS)

    def keep(self):
        return self.weight, self.misdiagnoses.copy()

    def restore(self, kept):
        self.weight, self.misdiagnoses = kept
        self.restored += 1


def settings_of(**changes):
    """The options of quality control and its extensions, at their defaults but for ``changes``."""
    files = {"en": Path("en"), "pd": Path("pd"), "fn_test": Path("test.csv"), "fn_save": Path("qc")}
    return QualityControlOptions.knowing(changes).made_of(files | changes, str)


def plain_settings(**changes):
    """The options of plain training, at their defaults but for ``changes``."""
    return WithoutControl.made_of(changes, str)


def control_over(centers, trainer, **changes):
    """Quality control with that trainer and those options, started, and the rows that it logs."""
    rows = []
    settings = settings_of(**changes)
    control = QualityControl(settings, trainer, centers, rows.append, extensions=settings.extensions)
    control.start(trainer.evaluate())
    return control, rows


def extension_of(control, kind):
    """The one of a class, which quality control has."""
    (found,) = [extension for extension in control.extensions if isinstance(extension, kind)]
    return found


def judged(before, after, tolerance, batches=1):
    """What the rule of evidence says of a step on one batch, or several, between two evaluations."""
    (rule,) = settings_of(rule="evidence").extensions
    control = SimpleNamespace(accepted=before, protocol=PROTOCOLS["corrected"], tolerance=lambda batches: tolerance)
    return rule.judge(control, [[]] * batches, after)


class NoFiles:
    """In place of the files of a run: notes what would be written."""

    def __init__(self, after_cycle=lambda *about: None):
        self.places = []
        self.cycles = []
        self._after_cycle = after_cycle

    def checkpoint(self, place):
        self.places.append(place)

    def trained(self, *about):
        pass

    def after_cycle(self, *about):
        self.cycles.append(about)
        self._after_cycle(*about)


def run_cycles(control, cycles, resumed_at=None):
    """What the script does, without images; returns the :class:`NoFiles`."""
    files = NoFiles()
    control_quality(control, cycles, lambda cycle: 1 / (1 + cycle), files, resumed_at)
    return files


def run_over(centers, cycles, harm=(), start=(0, 0), **changes):
    """Cycles of quality control: (control, rows, its FakeTrainer)."""
    trainer = FakeTrainer(harm, start)
    control, rows = control_over(centers, trainer, **changes)
    run_cycles(control, cycles)
    return control, rows, trainer
