"""Diagnoses, and how many of them are wrong: what a verification looks at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

THRESHOLD = 0.5  # a prediction of at least this is a diagnosis of PD


@dataclass(frozen=True)
class Evaluation:
    """What a verification looks at: counts over the whole test set, its labels and the probabilities of PD."""

    false_positives: int
    false_negatives: int
    healthy: int
    patients: int
    labels: tuple = ()
    predictions: tuple = ()

    @property
    def accuracy(self) -> float:
        """Share of right diagnoses."""
        subjects = self.healthy + self.patients
        return (subjects - self.false_positives - self.false_negatives) / subjects


def diagnose(predictions: ArrayLike) -> np.ndarray:
    """Predicted probabilities of PD -> 1 (PD) or 0 (HC)."""
    return (np.asarray(predictions) >= THRESHOLD).astype(int)


def evaluate(labels: ArrayLike, predictions: ArrayLike) -> Evaluation:
    """Count the misdiagnoses; ``labels`` and ``predictions`` have shape (subjects,).

    A prediction that is not a number is a misdiagnosis, whatever the label: such a model is of no use.
    """
    labels = np.asarray(labels)
    wrong = misdiagnosed(labels, predictions)
    return Evaluation(
        false_positives=int(np.sum(wrong & (labels == 0))),
        false_negatives=int(np.sum(wrong & (labels == 1))),
        healthy=int(np.sum(labels == 0)),
        patients=int(np.sum(labels == 1)),
        labels=tuple(labels.tolist()),
        predictions=tuple(np.asarray(predictions, float).tolist()),
    )


def misdiagnosed(labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Whose diagnosis is wrong: booleans of shape (subjects,)."""
    return counted_diagnoses(labels, predictions) != labels


def counted_diagnoses(labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Diagnoses, of which one that rests on no number is wrong, whatever the label."""
    return np.where(np.isfinite(predictions), diagnose(predictions), 1 - np.asarray(labels))
