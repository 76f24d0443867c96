"""How strange images look beside the test set: their scores, and their limit.

How strange is too strange is not a number of ours: the limit is the conformal quantile (Vovk et al., "Algorithmic
Learning in a Random World", 2005) that a good image exceeds with the probability that the user states. Each test image
is scored by those that share neither person, anatomy nor scanner with it, as an image of a new scanner would be. Many
images of few people do not tell how another person differs, so then the limit is that of :func:`person_limit` where it
is larger. The images at the centers are no part of it: the screen itself has chosen them, and a limit made of those
that passed sinks from cycle to cycle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from travelling.beyond.screen.looks import LOOKS, Yardstick
from travelling.errors import InputError

if TYPE_CHECKING:
    from travelling.beyond.screen.eyes import Looking

SURE_OF_CENTER = 2.75  # standard deviations: what _RARE of a normal distribution exceed
_FEWEST = 3  # images of a center, of which the mean says something
_RARE = 0.003  # so rarely may a limit of elimination be exceeded for want of people; see docs/results.md


class Scale(NamedTuple):
    """How far from the test set is strange: the limit of scores, and mean and unit of each look."""

    limit: float
    units: dict[str, tuple[float, float]]


class Scores:
    """The limits (:meth:`calibrate`), and what the log says of any images (:meth:`cells`).

    ``false_alarms`` is the share of good images that may exceed the limit, at one look and on average over test sets,
    if they come from where the test set does. An image has a score of each look, in standard deviations of those of the
    test set times :func:`caution`; the largest is its score. There are two scales: for images of a scanner that the
    test set has, and of others, beside which test images are scored without those of their own scanner.
    """

    def __init__(self, eyes: Looking, false_alarms: float):
        self.eyes = eyes
        self._false_alarms = false_alarms
        self.scales: dict[bool, Scale] = {}  # by whether the test set has images of the scanner
        self._yardsticks: dict[str, Yardstick] = {}

    def calibrate(self) -> None:
        """Measure the test set; raises what :func:`limit_rank` raises."""
        looks = self.eyes.look()
        self._yardsticks = {name: look.yardstick(looks[name]) for name, look in LOOKS.items()}
        everything, persons = (self.eyes.related(scanners)[0] for scanners in (True, False))
        new = self._scale(looks, everything, persons)
        same = np.array_equal(everything, persons)
        self.scales = {False: new, True: new if same else self._scale(looks, persons, persons)}

    def _scale(self, looks, related, persons):
        """Score the test images by each look, each by others, and note its unit."""
        rank = limit_rank(len(related), self._false_alarms)
        wider = caution(self.eyes.people())
        units, scores = {}, []
        for name, yardstick in self._yardsticks.items():
            strange = by_others(yardstick, looks[name], related)
            if not np.isfinite(strange).all():
                raise InputError(
                    f"--screen: the look {name} gives no number for a test image; some of them may be the same"
                )
            least = yardstick.least_unit(strange)
            unit = max(float(strange.std(ddof=1)), least) or 1.0
            units[name] = float(strange.mean()), unit * wider
            scores.append(beside_others(strange, least) / wider)
        highest = np.max(scores, axis=0)
        by_rank = float(np.sort(highest)[rank - 1])
        return Scale(max(by_rank, person_limit(highest, persons, self._false_alarms)), units)

    def cells(self, subjects: list[str], **question: Any) -> tuple[list[dict], dict[str, np.ndarray]]:
        """The cells of the log for each subject of a center: its score, the limit, and the score of each look.

        And all that was measured; ``question`` is what else is asked. Raises VisitFailed where the center does not
        answer.
        """
        weights = {name: one.weights for name, one in self._yardsticks.items() if one.weights is not None}
        with np.errstate(all="ignore"):  # an image may be infinitely far, or no number
            looks, found = self.eyes.look(subjects, weights=weights, **question), []
            strange = {
                name: (looks[name][:, 0] if name in weights else yardstick(looks[name])).tolist()
                for name, yardstick in self._yardsticks.items()
            }
            for place, known in enumerate(self.eyes.knows_scanners(subjects)):
                limit, units = self.scales[known]
                scores = {name: (strange[name][place] - mean) / unit for name, (mean, unit) in units.items()}
                score = float(np.max(list(scores.values())))  # NaN where one is
                cells = {"Screen_score": score, "Screen_limit": limit, "Screen_known": int(known)}
                found.append(cells | {f"Screen_{name}": value for name, value in scores.items()})
        center = of_center([cells["Screen_asymmetry"] for cells in found], strange["asymmetry"])
        return [cells | {"Screen_center": center} for cells in found], looks


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


def of_center(scores: list[float], strange: list[float]) -> float:
    """The mean score of ``asymmetry`` of a center's images, at least three of them, missing ones having 0.

    All images of one scanner or one upload are mirrored, or none is: what is no proof for each is one for all. 0 where
    they lie nearer to usual images than to mirrored ones: ``strange``, what the yardstick gave, is below 0 on average.
    A scanner may move all of its images, but hardly so far.
    """
    return sum(scores) / max(len(scores), _FEWEST) if np.mean(strange) > 0 else 0.0


def caution(people: int) -> float:
    """By how much the unit of scores is larger, as so few people tell badly how far another can lie from them.

    It is the ratio of two limits of prediction of a normal sample (Student's t): of so many, and of endlessly many.
    """
    from scipy import stats

    few, many = stats.t.ppf(1 - _RARE, max(people, 2) - 1), stats.norm.ppf(1 - _RARE)
    return float(few / many * math.sqrt(1 + 1 / max(people, 2)))


def person_limit(scores: np.ndarray, related: np.ndarray, false_alarms: float) -> float:
    """What the score of an image of another person exceeds with the probability ``false_alarms``.

    ``scores`` are (images,), ``related`` tells which images are of one person, (images, images). The limit is that of
    prediction in a one-way analysis of variance with random effects (Searle et al., "Variance Components", 1992):
    the images of a person lie about a mean of their own, and the means about that of all people, both normally. Minus
    infinity where there is one person, or nobody has several images: then ranks need no such assumption.
    """
    from scipy import stats

    _, person = np.unique(related, axis=0, return_inverse=True)
    images = np.bincount(person)
    people, total = len(images), len(scores)
    if not 1 < people < total:
        return -math.inf
    means = np.bincount(person, scores) / images
    within = np.sum((scores - means[person]) ** 2) / (total - people)
    alike = (total - np.sum(images**2) / total) / (people - 1)
    among = np.sum(images * (means - scores.mean()) ** 2) / (people - 1)
    between = max(0.0, (among - within) / alike)
    spread = math.sqrt(between * (1 + 1 / people) + within)
    return float(means.mean() + stats.t.ppf(1 - false_alarms, people - 1) * spread)


def limit_rank(subjects: int, false_alarms: float) -> int:
    """The rank, from 1, of the limit among the scores of so many test subjects.

    Raises InputError where they are too few for any limit to be exceeded so rarely.
    """
    if subjects < 3:
        raise InputError(f"--screen: a test set of {subjects} subjects is too small to tell what is usual")
    rank = math.ceil((subjects + 1) * (1 - false_alarms) - 1e-9)  # 100 x 0.99 is 99, whatever floats make of it
    if rank > subjects:
        raise InputError(
            f"--screen: at a false-alarm rate of {false_alarms:g} it needs "
            f"{math.ceil(1 / false_alarms - 1 - 1e-9)} test subjects, and this set has {subjects}; "
            f"--false-alarms {least_rate(subjects):g} would do"
        )
    return rank


def least_rate(subjects: int) -> float:
    """The smallest false-alarm rate that so many test subjects can tell, in hundredths."""
    return math.ceil(100 / (subjects + 1) - 1e-9) / 100
