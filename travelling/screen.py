"""The statistics screen: which images look like nothing that the model has learned of, before it learns of them.

Verification sees harm only where it moves the diagnoses of the test set. The screen needs no label: it looks at an
image (:mod:`travelling.looks`), mostly at what the network makes of it, and compares that with the test set, which is
the home's own and never trained on. All looks of a cycle are taken with the model of its beginning: beside a test set
that another model has seen, nearly every image looks strange.

How strange is too strange is not a number of ours: the limit is the conformal quantile (Vovk et al., "Algorithmic
Learning in a Random World", 2005) that a good image exceeds with the probability that the user states. Each test image
is scored by those that share neither person, anatomy nor scanner with it, as an image of a new scanner would be. The
images at the centers are no part of it: the screen itself has chosen them, and a limit made of those that passed sinks
from cycle to cycle.
"""

import math
from typing import Protocol

import numpy as np

from travelling import label_screen
from travelling.errors import InputError
from travelling.label_screen import Reference, center_p_value, is_doubted, reference_of
from travelling.looks import LOOKS, Yardstick
from travelling.metrics import Evaluation
from travelling.words import some

# Standard deviations of the test set: an image that two looks suspect, with scores whose mean is above it, is
# eliminated without a training step. A second look is no independent one: who looks a little strange does so to every
# model.
SURE = 4.0
COMPONENTS = tuple(f"Screen_{name}" for name in LOOKS)  # columns of the log


class Looking(Protocol):
    """What the screen asks of a :class:`travelling.trainer.Trainer`."""

    def look(self, subjects: list[str] | None = None, labels: Reference | None = None) -> dict[str, np.ndarray]:
        """As :meth:`travelling.trainer.LocalTrainer.look`; raises VisitFailed where a center does not answer."""

    def related(self) -> tuple[np.ndarray, str]:
        """As :meth:`travelling.trainer.LocalTrainer.related`."""


class Screen:
    """The limit of a cycle (:meth:`calibrate`), and what the log says of any images (:meth:`cells`).

    ``false_alarms`` is the share of good images that may exceed the limit, at one look and on average over test sets,
    if they come from where the test set does. An image has a score of each look, in standard deviations of those of the
    test set; the largest is its score.
    """

    def __init__(self, trainer: Looking, false_alarms: float, labels: bool = False):
        self._trainer = trainer
        self._false_alarms = false_alarms
        self._labels = labels
        self._reference: Reference | None = None  # of right labels, if labels are screened and the model knows enough
        self._centers = 0
        self.cycle: int | None = None  # whose model has looked
        self.limit: float = math.nan
        self._yardsticks: dict[str, tuple[Yardstick, float, float]] = {}  # with mean and unit of the test set
        self._test_scores: dict[str, np.ndarray] = {}  # by each look (test images,)

    def calibrate(self, cycle: int, accepted: Evaluation, centers: int) -> None:
        """Measure the test set with the model as it is now, once in a cycle; raises what :func:`limit_rank` raises.

        ``accepted`` is the model's evaluation, ``centers`` how many are to be looked at.
        """
        looks, related = self._trainer.look(), self._trainer.related()[0]
        rank = limit_rank(len(related), self._false_alarms)
        for name, look in LOOKS.items():
            if look.measure is None or name not in self._yardsticks:  # no model changes what the image alone tells
                self._measure(name, look.yardstick(looks[name]), looks[name], related)
        self._reference, self._centers = reference_of(accepted) if self._labels else None, centers
        scores = np.max(list(self._test_scores.values()), axis=0)
        self.cycle, self.limit = cycle, float(np.sort(scores)[rank - 1])

    def _measure(self, name, yardstick, looks, related):
        """Score the test images by one look, each by others, and note its unit."""
        strange = by_others(yardstick, looks, related)
        if not np.isfinite(strange).all():
            raise InputError(
                f"--screen: the look {name} gives no number for a test image; some of them may be the same"
            )
        least = yardstick.least_unit(strange)
        unit = max(float(strange.std(ddof=1)), least) or 1.0
        self._yardsticks[name] = yardstick, float(strange.mean()), unit
        self._test_scores[name] = beside_others(strange, least)

    def cells(self, subjects: list[str]) -> list[dict]:
        """The screen's cells of the log for each subject of a center: its score, the limit, and the score of each look.

        Where labels are screened, theirs, too; raises VisitFailed where the center does not answer.
        """
        looks = self._trainer.look(subjects, self._reference)
        with np.errstate(all="ignore"):  # an image may be infinitely far, or no number
            parts = [
                (yardstick(looks[name]) - mean) / unit for name, (yardstick, mean, unit) in self._yardsticks.items()
            ]
        found = [
            {"Screen_score": float(np.max(values)), "Screen_limit": self.limit}  # NaN where one is
            | dict(zip(COMPONENTS, values, strict=True))
            for values in np.transpose(parts).tolist()
        ]
        if self._labels:
            self._add_labels(found, looks)
        return found

    def _add_labels(self, found, looks):
        """Add the cells of the label screen, empty where the model knows too little."""
        p_values = looks["labels"][:, 0].tolist() if self._reference else [None] * len(found)
        usual = [p for p, cells in zip(p_values, found, strict=True) if p is not None and not is_strange(cells)]
        about = center_p_value(usual), label_screen.ALPHA / self._centers
        for p, cells in zip(p_values, found, strict=True):
            cells |= dict(zip(label_screen.COLUMNS, (p, *about), strict=True))

    def export_state(self) -> dict:
        """Which cycle's model has looked, as plain values: for a checkpoint."""
        return {"cycle": self.cycle, "limit": self.limit}

    def import_state(self, state: dict) -> None:
        """Take over what :meth:`export_state` gave; further looks need a new calibration."""
        self.cycle, self.limit = state["cycle"], state["limit"]


def by_others(yardstick: Yardstick, looks: np.ndarray, related: np.ndarray) -> np.ndarray:
    """How strange each image is (images,), by a yardstick of those that are not related to it.

    ``looks`` are (images, numbers), ``related`` is (images, images); ``yardstick`` is that of all.
    """
    strange = np.empty(len(looks))
    families, members = np.unique(related, axis=0, return_inverse=True)
    for number, family in enumerate(families):
        own = members == number
        strange[own] = type(yardstick)(looks[~family], yardstick)(looks[own])
    return strange


def beside_others(values: np.ndarray, least: float) -> np.ndarray:
    """Each of some values (images,) in standard deviations of the others, ``least`` at least, from their mean.

    Beside a mean and a deviation that it is a part of, no value could be far away, but those of new images could.
    """
    others = [np.delete(values, place) for place in range(len(values))]
    means = np.mean(others, axis=1)
    units = np.maximum(np.std(others, axis=1, ddof=1), least)
    return (values - means) / np.where(units > 0, units, 1.0)


def is_strange(cells: dict) -> bool:
    """Whether the cells of a look are those of a strange image: its score is above the limit, or not a number."""
    return not cells["Screen_score"] <= cells["Screen_limit"]


def is_suspect(cells: dict) -> bool:
    """Whether a look makes an image a suspect: it is strange, or the labels of its center are doubted."""
    return is_strange(cells) or is_doubted(cells)


def is_sure(looks: list[dict]) -> bool:
    """Whether the cells of two looks are enough to eliminate an image without a training step.

    It is strange in both, and in their mean by more than SURE; or the labels of its center are doubted in both.
    """
    strange = all(map(is_strange, looks)) and not np.mean([cells["Screen_score"] for cells in looks]) <= SURE
    return strange or all(map(is_doubted, looks))


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


def methods(options: dict) -> str:
    """What the screen does, for a paper: sentences. ``options`` are the run's."""
    looks = [f"({number}) {look.words}" for number, look in enumerate(LOOKS.values(), 1)]
    return (
        "At the beginning of every cycle each image that was to train or to be revisited was compared with those of "
        f"the test set, without its label, by {some(len(looks), 'look')}: {', '.join(looks)}. "
        "Its score was the largest of the looks, in standard deviations of the test set. The limit was the conformal "
        "quantile of the test images' own scores, each by test images of other persons, anatomies and scanners as far "
        "as these were known; an image like theirs exceeds it with a stated probability of "
        f"{options['false_alarms']:g}. Images above it were flagged without training. An image above it at its flag "
        f"and at its revisit, with a mean score of the two above {SURE:g}, was eliminated without a training step; in "
        "all other cases the step of the revisit decided."
    )
