"""A trainer without images or network, for tests of what decides: what travels, who is fitted, what is undone."""

import numpy as np

from travelling.cohort import travelling_order
from travelling.metrics import Evaluation
from travelling.protocol import PROTOCOLS
from travelling.quality_control import QualityControl

HEALTHY, PATIENTS = 50, 100


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
        self.strange = {}
        self.restored = 0

    def train(self, subjects):
        self.fitted.append(list(subjects))
        self.rates_seen.append(self.learning_rate)
        self.weight += 1
        for subject in subjects:
            self.misdiagnoses = self.misdiagnoses + self.harm.get(subject, (0, 0))
        return 0.5

    def expect(self, subjects):
        self.expected.append(subjects)

    def distances(self, subjects=None):
        """Of two layers: 1 to 120 in the test set; 10 of a good subject, or what ``strange`` says."""
        self.looked_at.append(subjects)
        if subjects is None:
            return [[number, 121 - number] for number in range(1, 121)]
        return [self.strange.get(subject, (10, 10)) for subject in subjects]

    def known(self, subjects):
        return {}

    def evaluate(self):
        return Evaluation(*(int(count) for count in self.misdiagnoses), HEALTHY, PATIENTS)

    def keep(self):
        return self.weight, self.misdiagnoses.copy()

    def restore(self, kept):
        self.weight, self.misdiagnoses = kept
        self.restored += 1


def control_over(centers, trainer, protocol="corrected", error=0.02, wait=2):
    """Quality control with that trainer, started, and the rows that it logs."""
    rows = []
    control = QualityControl(trainer, centers, PROTOCOLS[protocol], error, wait, rows.append)
    control.start(trainer.evaluate())
    return control, rows


def run_cycles(control, centers, cycles, batch_size=5):
    """What the script does, without images."""
    for cycle, order, generator in travelling_order(centers, 42, cycles):
        for center in order:
            list(control.visit(cycle, centers[center], batch_size, generator))
        list(control.revisit(cycle))
