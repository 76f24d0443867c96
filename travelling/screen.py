"""The statistics screen: which images look like nothing that the model has learned of, before it learns of them.

Verification sees harm only where it moves the diagnoses of the test set. But the BatchNorm layers of the network
keep the mean and the variance of what they are given, and so one pass of an image through the network tells, without
any label, how far it lies from all images before (:func:`travelling.inference_network.distance_function`).

How far is too far is not a number of ours: the test set, which is the home's own and never trained on, is measured
as well, and the limit is the conformal quantile (Vovk et al., "Algorithmic Learning in a Random World", 2005) that a
good image exceeds with the probability that the user states. The images that trained at the centers are no part of
it: the screen itself has chosen them, and a limit made of those that passed sinks from cycle to cycle.
"""

import math
from typing import Any, Protocol

import numpy as np

from travelling.errors import InputError

_STATE = ("cycle", "mean", "sd", "limit")


class Measures(Protocol):
    """What the screen asks of a :class:`travelling.trainer.Trainer`."""

    def distances(self, subjects: list[str] | None = None) -> list[list[float]]:
        """As :meth:`travelling.trainer.LocalTrainer.distances`; raises VisitFailed where a center does not answer."""


class Screen:
    """The limit of a cycle (:meth:`calibrate`), and the score of any image (:meth:`scores`).

    ``false_alarms`` is the share of good images that may exceed the limit, at one look and on average over test sets,
    if they come from where the test set does and the model is that of the cycle's beginning. A score is the largest of
    the standardized log-distances of an image at all layers, in standard deviations of the test set.
    """

    def __init__(self, trainer: Measures, false_alarms: float):
        self._trainer = trainer
        self._false_alarms = false_alarms
        self.cycle: int | None = None
        self.mean = self.sd = None  # of the test set's log-distances, one for each
        self.limit: Any = None  # a float from calibrate() on

    def calibrate(self, cycle: int) -> None:
        """Measure the test set with the model as it is now; once in a cycle. Raises what :func:`limit_rank` raises."""
        distances = np.log(self._trainer.distances())
        rank = limit_rank(len(distances), self._false_alarms)
        # Each by the others: an image that took part in its own standard would look better than a new one.
        scores = [
            largest(distance, *standard(np.delete(distances, index, axis=0)))
            for index, distance in enumerate(distances)
        ]
        mean, sd = standard(distances)
        self.cycle, self.mean, self.sd = cycle, mean.tolist(), sd.tolist()
        self.limit = float(np.sort(scores)[rank - 1])

    def scores(self, subjects: list[str]) -> list[float]:
        """The score of each subject's image, a list; above ``limit``, or not a number, it is a suspect."""
        return [
            largest(np.log(distance), np.array(self.mean), np.array(self.sd))
            for distance in self._trainer.distances(subjects)
        ]

    def suspects(self, score: float) -> bool:
        """Whether a score is that of a suspect: above the limit, or not a number."""
        return not score <= self.limit

    def export_state(self) -> dict:
        """The calibration of this cycle, as plain values: for a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def import_state(self, state: dict) -> None:
        """Take over what :meth:`export_state` gave."""
        for name in _STATE:
            setattr(self, name, state[name])


def standard(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over subjects (subjects, layers) -> (layers,), (layers,)."""
    return distances.mean(axis=0), distances.std(axis=0, ddof=1)


def largest(distance: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> float:
    """The largest of an image's standardized distances."""
    return float(np.max((distance - mean) / sd))


def limit_rank(subjects: int, false_alarms: float) -> int:
    """The rank, from 1, of the limit among the scores of so many test subjects.

    Raises InputError where they are too few for any limit to be exceeded so rarely.
    """
    if subjects < 3:
        raise InputError(f"--screen: a test set of {subjects} subjects is too small to tell what is usual")
    rank = math.ceil((subjects + 1) * (1 - false_alarms) - 1e-9)  # 100 x 0.99 is 99, whatever floats make of it
    if rank > subjects:
        raise InputError(
            f"--false-alarms {false_alarms:g}: a test set of {subjects} subjects can tell "
            f"{1 / (subjects + 1):.3g} at best"
        )
    return rank
