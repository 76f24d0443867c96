"""Looks at the images that are on this machine: what the screen asks of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from travelling.beyond.screen.labels import Reference, p_values
from travelling.beyond.screen.looks import LOOKS
from travelling.beyond.screen.metrics import write_table
from travelling.images.cohort import RELATED, as_seen

if TYPE_CHECKING:
    import pandas as pd

    from travelling.images.local_trainer import LocalTrainer


@runtime_checkable
class Looking(Protocol):
    """What looks at images: :class:`Eyes`, or a trainer whose images are elsewhere."""

    def look(
        self,
        subjects: list[str] | None = None,
        labels: Reference | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """As :meth:`Eyes.look`; raises VisitFailed where a center does not answer."""

    def related(self, scanners: bool = True) -> tuple[np.ndarray, str]:
        """As :meth:`Eyes.related`."""

    def knows_scanners(self, subjects: list[str]) -> list[bool]:
        """As :meth:`Eyes.knows_scanners`."""

    def people(self) -> int:
        """As :meth:`Eyes.people`."""


class Eyes:
    """What a trainer's images tell, and its network of their labels."""

    def __init__(self, trainer: LocalTrainer):
        self._trainer = trainer
        self._measured: dict[str, dict] = {}  # subject -> its looks

    def look(
        self,
        subjects: list[str] | None = None,
        labels: Reference | None = None,
        weights: dict[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """What the screen measures of each subject's image (None: of every subject of the test set), by name.

        For each of :data:`travelling.beyond.screen.looks.LOOKS` an array (subjects, numbers). ``labels`` is what right
        labels look like to the model; then ``labels`` has the p-value of each training subject's own, (subjects, 1).
        Looks that have ``weights`` (numbers,) are summed up by them, (subjects, 1).
        """
        subjects = list(self._trainer.test_set["Subject"] if subjects is None else subjects)
        measured = [self._measure(subject) for subject in subjects]
        looks = {name: np.array([one[name] for one in measured], float) for name in LOOKS}
        looks = summed(looks, weights)
        if labels:
            own = [self._trainer.labels[subject] for subject in subjects]
            looks["labels"] = p_values(labels, own, self._trainer.predict_training(subjects))[:, None]
        return looks

    def _measure(self, subject: str) -> dict[str, Any]:
        """What is measured of a subject's image, by look: once, since no model changes it."""
        if subject not in self._measured:
            image = self._trainer.upright(subject)
            self._measured[subject] = {name: look.measure(image) for name, look in LOOKS.items()}
        return self._measured[subject]

    def write_metrics(self, path: Path) -> None:
        """Write the table of all images that were looked at, as :func:`write_table`."""
        metrics = {subject: looks["metrics"] for subject, looks in self._measured.items()}
        test = {subject: metrics.pop(subject) for subject in self._trainer.test_set["Subject"]}
        write_table(path, test, metrics)

    def related(self, scanners: bool = True) -> tuple[np.ndarray, str]:
        """Which test subjects share person, anatomy or, unless not asked for, scanner, see :func:`related`."""
        test_set = self._trainer.test_set
        return related(test_set if scanners else test_set.drop(columns="Scanner", errors="ignore"))

    def knows_scanners(self, subjects: list[str]) -> list[bool]:
        """Whether the test set has images of the scanner of each of some training subjects, as far as CSVs tell."""
        known = set(self._trainer.test_set.get("Scanner", ())) - {""}
        return [self._trainer.scanners.get(subject) in known for subject in subjects]

    def people(self) -> int:
        """How many different people the test set has, as far as Participant and Anatomy tell them."""
        told = self._trainer.test_set.filter(["Participant", "Anatomy"])
        different = [told[column][told[column] != ""].nunique() + (told[column] == "").sum() for column in told]
        return min([len(told), *different])


def summed(looks: dict[str, np.ndarray], weights: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Looks (subjects, numbers) by name, those that have weights (numbers,) summed up by them, (subjects, 1)."""
    return looks | {name: (looks[name] @ along)[:, None] for name, along in (weights or {}).items()}


def related(cohort: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Which images of a cohort share person, anatomy or scanner with which: (images, images), and that in words.

    Each is related to itself. A column with fewer than three values, or by which more than half of the cohort would be
    related to an image, is not heeded.
    """
    matrix, words = np.eye(len(cohort), dtype=bool), []
    for column in RELATED:
        if column not in cohort.columns:
            continue
        values = cohort[column].map(as_seen).to_numpy(dtype=str)
        different, untold = len(set(values) - {""}), (values == "").sum()
        with_column = matrix | ((values[:, None] == values) & (values != ""))
        share = with_column.sum(axis=1).max() / len(cohort)
        if different + untold < 3 or share > 0.5:
            words.append(
                f"{column} (not heeded: {different} different ones, and {share:.0%} would have to be left out)"
            )
        else:
            matrix = with_column
            words.append(f"{column} ({different} different ones)")
    return matrix, " and ".join(words)
