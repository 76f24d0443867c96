"""How good the diagnoses are: counts, rates and the usual metrics, overall and by subgroup."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from travelling.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

THRESHOLD = 0.5  # a prediction of at least this is a diagnosis of PD

METRICS = ("accuracy", "sensitivity", "specificity", "AUC_ROC", "F1_SCORE")


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
    return _counted_diagnoses(labels, predictions) != labels


def _counted_diagnoses(labels, predictions):
    """Diagnoses, of which one that rests on no number is wrong, whatever the label."""
    return np.where(np.isfinite(predictions), diagnose(predictions), 1 - labels)


def performance(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """The METRICS as a dict; NaN where one is not defined (no subjects, only one class, predictions not finite)."""
    labels = np.asarray(labels)
    if len(labels) == 0:
        return dict.fromkeys(METRICS, np.nan)
    diagnoses = _counted_diagnoses(labels, predictions)
    ranks = len(np.unique(labels)) == 2 and np.isfinite(predictions).all()
    return {
        "accuracy": accuracy_score(labels, diagnoses),
        "sensitivity": recall_score(labels, diagnoses, pos_label=1, zero_division=np.nan),
        "specificity": recall_score(labels, diagnoses, pos_label=0, zero_division=np.nan),
        "AUC_ROC": roc_auc_score(labels, predictions) if ranks else np.nan,
        # Of whom nobody has the disease: scikit-learn would call a single false positive 0, and none undefined.
        "F1_SCORE": f1_score(labels, diagnoses) if labels.any() else np.nan,
    }


def refuse_unordered_ages(edges: Sequence[float]) -> None:
    """Raise InputError where the ages (years) that separate groups do not increase."""
    if sorted(set(edges)) != list(edges):
        raise InputError("--age-edges: must increase")


def age_groups(ages: ArrayLike, edges: Sequence[float]) -> dict[str, np.ndarray]:
    """Boolean masks of the age groups that ``edges`` (years, increasing) separate, by name.

    An age equal to an edge belongs to the older group; unknown ages (NaN) to none. Without edges there is no group.
    """
    if not len(edges):
        return {}
    ages = np.asarray(ages, dtype=float)
    bounds = [-np.inf, *edges, np.inf]
    masks = {}
    for low, high in itertools.pairwise(bounds):
        if low == -np.inf:
            name = f"age_below_{high:g}"
        elif high == np.inf:
            name = f"age_{low:g}_and_over"
        else:
            name = f"age_{low:g}_to_{high:g}"
        masks[name] = (ages >= low) & (ages < high)
    return masks


def subgroups(people: pd.DataFrame, age_edges: Sequence[float]) -> dict[str, np.ndarray]:
    """Boolean masks of the subgroups of a table with Sex and Age, by name: male, female, and :func:`age_groups`."""
    sexes = {name: (people["Sex"] == letter).to_numpy() for name, letter in (("male", "M"), ("female", "F"))}
    return sexes | age_groups(people["Age"], age_edges)


def metrics_by_subgroup(
    labels: ArrayLike, predictions: ArrayLike, subgroups: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The METRICS of all subjects and of each subgroup (name -> boolean mask), as one row for a table.

    The columns of the published script come first, under their published names (``male AUC_ROC`` with a
    space); what it lacks (F1 by sex, age groups) follows.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    row = performance(labels, predictions)
    later: dict[str, float] = {}
    for name, members in subgroups.items():
        for metric, value in performance(labels[members], predictions[members]).items():
            published = name in ("male", "female") and metric != "F1_SCORE"
            column = f"{name} {metric}" if published and metric == "AUC_ROC" else f"{name}_{metric}"
            (row if published else later)[column] = value
    return row | later
