"""Looks at the images that are on this machine: what the screen asks of a trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from travelling.beyond.screen.labels import Reference, p_values
from travelling.beyond.screen.looks import LOOKS
from travelling.images.cohort import RELATED, as_seen

if TYPE_CHECKING:
    import pandas as pd

    from travelling.images.local_trainer import LocalTrainer


@runtime_checkable
class Looking(Protocol):
    """What looks at images: :class:`Eyes`, or a trainer whose images are elsewhere."""

    def look(self, subjects: list[str] | None = None, labels: Reference | None = None) -> dict[str, np.ndarray]:
        """As :meth:`Eyes.look`; raises VisitFailed where a center does not answer."""

    def related(self) -> tuple[np.ndarray, str]:
        """As :meth:`Eyes.related`."""


class Eyes:
    """What a trainer's network and images tell."""

    def __init__(self, trainer: LocalTrainer):
        self._trainer = trainer
        self._measured: dict[str, dict] = {}  # subject -> its looks that need the image alone, not the model

    def look(self, subjects: list[str] | None = None, labels: Reference | None = None) -> dict[str, np.ndarray]:
        """What the screen measures of each subject's image (None: of every subject of the test set), by name.

        For each of :data:`travelling.beyond.screen.looks.LOOKS` an array (subjects, numbers). ``labels`` is what right
        labels look like to the model; then ``labels`` has the p-value of each training subject's own, (subjects, 1).
        """
        subjects = list(self._trainer.test_set["Subject"] if subjects is None else subjects)
        seen = self._trainer.seen(subjects)
        measured = [self._measure(subject) for subject in subjects]
        looks = {name: np.array([one[name] for one in measured], float) for name in measured[0]}
        looks["channels"] = seen[:, :-1]
        if labels:
            own = [self._trainer.labels[subject] for subject in subjects]
            looks["labels"] = p_values(labels, own, seen[:, -1])[:, None]
        return looks

    def _measure(self, subject: str) -> dict[str, Any]:
        """What is measured of a subject's image alone, by look: once, since no model changes it."""
        if subject not in self._measured:
            image = self._trainer.upright(subject)
            self._measured[subject] = {name: look.measure(image) for name, look in LOOKS.items() if look.measure}
        return self._measured[subject]

    def related(self) -> tuple[np.ndarray, str]:
        """Which test subjects share person, anatomy or scanner, see :func:`related`."""
        return related(self._trainer.test_set)


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
