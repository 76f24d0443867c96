"""How good the diagnoses are: the usual metrics, overall and by subgroup."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from travelling.method.metrics import counted_diagnoses

if TYPE_CHECKING:
    import pandas as pd

AGE_EDGES = (60.0, 70.0)  # years, at which an age group begins
METRICS = ("accuracy", "sensitivity", "specificity", "AUC_ROC", "F1_SCORE")


def performance(labels: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """The METRICS as a dict; NaN where one is not defined (no subjects, only one class, predictions not finite)."""
    labels = np.asarray(labels)
    if len(labels) == 0:
        return dict.fromkeys(METRICS, np.nan)
    diagnoses = counted_diagnoses(labels, predictions)
    ranks = len(np.unique(labels)) == 2 and np.isfinite(predictions).all()
    return {
        "accuracy": accuracy_score(labels, diagnoses),
        "sensitivity": recall_score(labels, diagnoses, pos_label=1, zero_division=np.nan),
        "specificity": recall_score(labels, diagnoses, pos_label=0, zero_division=np.nan),
        "AUC_ROC": roc_auc_score(labels, predictions) if ranks else np.nan,
        # Of whom nobody has the disease: scikit-learn would call a single false positive 0, and none undefined.
        "F1_SCORE": f1_score(labels, diagnoses) if labels.any() else np.nan,
    }


def age_groups(ages: ArrayLike) -> dict[str, np.ndarray]:
    """Boolean masks of the age groups, by name; ``ages`` are years.

    An age equal to an edge belongs to the older group; unknown ages (NaN) to none.
    """
    ages = np.asarray(ages, dtype=float)
    bounds = [-np.inf, *AGE_EDGES, np.inf]
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


def subgroups(people: pd.DataFrame) -> dict[str, np.ndarray]:
    """Boolean masks of the subgroups of a table with Sex and Age, by name: male, female, and :func:`age_groups`."""
    sexes = {name: (people["Sex"] == letter).to_numpy() for name, letter in (("male", "M"), ("female", "F"))}
    return sexes | age_groups(people["Age"])


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
