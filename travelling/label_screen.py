"""The label screen: centers whose labels, all together, contradict what the model has learned elsewhere.

A wrong label shows in no image. But before a center trains, the model tells how probable its labels are, and the test
set how probable right ones may be: the conformal p-value of an image (Vovk et al., "Algorithmic Learning in a Random
World", 2005) is the share of test subjects of its class whose label is no more probable. One small p-value is a hard
case, or a wrong label: who was put aside for it would often be the case that the model must learn. Many at one center
are no chance. They are pooled as normal scores (Stouffer), whose sum is given a larger variance than independent ones
would have, since images of one center resemble each other.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from travelling.metrics import Evaluation, performance

COLUMNS = ("Label_p", "Center_p", "Center_limit")  # of the log
LEAST_AUROC = 0.8  # a model below knows too little to doubt a label
LEAST_IMAGES = 3  # of a center
ALPHA = 0.05  # that any center is suspected at a look, if all labels are right
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


def is_doubted(cells: dict) -> bool:
    """Whether the center of an image is under suspicion, by the image's cells of the log."""
    return cells.get("Center_p") is not None and cells["Center_p"] < cells["Center_limit"]


def methods() -> str:
    """What the label screen does, for a paper: sentences."""
    return (
        "Labels were examined by center at the same looks. The conformal p-value of a label was the share of test "
        "subjects of its class whose label the model found no more probable; those of a center, without images above "
        "the limit, were pooled as normal scores (Stouffer's method, with a correlation of "
        f"{RESEMBLANCE:g} within a center). All images of a center with a pooled p-value below {ALPHA:g} divided by "
        "the number of centers were flagged without training, and eliminated if it was so again at their revisit. "
        f"Centers of fewer than {LEAST_IMAGES} images were not examined, and none was by a model with an AUROC below "
        f"{LEAST_AUROC:g}."
    )
