"""How probable labels are to the model, and how usual that is for right ones."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from travelling.method.metrics import Evaluation
from travelling.method.performance import performance

LEAST_AUROC = 0.8  # a model below knows too little to doubt a label
LEAST_IMAGES = 3  # of a center
RESEMBLANCE = 0.04  # correlation of the normal scores at one center

Reference = dict[str, list[float]]  # "0" (HC), "1" (PD) -> probabilities of the right label, ascending


def reference_of(accepted: Evaluation) -> Reference | None:
    """What right labels look like to the model of an Evaluation of the test set; None where it knows too little."""
    labels = np.array(accepted.labels)
    if not performance(labels, accepted.predictions)["AUC_ROC"] >= LEAST_AUROC:
        return None
    right = probability_of_label(labels, accepted.predictions)
    return {str(label): np.sort(right[labels == label]).tolist() for label in (0, 1)}


def probability_of_label(labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Labels and probabilities of PD -> probabilities of the label, all of shape (subjects,)."""
    return np.where(np.asarray(labels) == 1, predictions, 1 - np.asarray(predictions))


def p_values(reference: Reference, labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Conformal p-values of labels, (subjects,)."""
    right = probability_of_label(labels, predictions)
    usual = [np.array(reference[str(label)]) for label in np.asarray(labels)]
    return np.array([(1 + np.sum(test <= value)) / (len(test) + 1) for test, value in zip(usual, right, strict=True)])


def center_p_value(labels_p: list[float]) -> float | None:
    """The p-value of a center from those of its labels; None where they are too few."""
    number = len(labels_p)
    if number < LEAST_IMAGES:
        return None
    normal = NormalDist()
    # A p-value of 1 would outweigh all others, and one of 0 is infinitely far.
    scores = [normal.inv_cdf(1 - min(max(value, 1e-9), 0.999)) for value in labels_p]
    return 1 - normal.cdf(sum(scores) / (number + RESEMBLANCE * number**2) ** 0.5)
