"""How probable labels are to the model, and how usual that is for right ones."""

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from travelling.method.metrics import Evaluation
from travelling.method.performance import performance

LEAST_AUROC = 0.8  # a model below knows too little to doubt a label
LEAST_IMAGES = 3  # of a center
RESEMBLANCE = 0.04  # correlation of the normal scores at one center

LEAST_SPREAD = 0.1  # of the way between the classes: test subjects who all look alike do not tell how others differ

Reference = dict[str, list[float]]  # "0" (HC), "1" (PD) -> mean and standard deviation of log-odds, and their number


def reference_of(accepted: Evaluation) -> Reference | None:
    """What right labels look like to the model of an Evaluation of the test set; None where it knows too little."""
    labels = np.array(accepted.labels)
    if not performance(labels, accepted.predictions)["AUC_ROC"] >= LEAST_AUROC:
        return None
    odds = log_odds_of_label(labels, accepted.predictions)
    classes = [odds[labels == label] for label in (0, 1)]
    least = LEAST_SPREAD * abs(classes[0].mean() + classes[1].mean())  # each is that of its own label
    spreads = [float(own.std(ddof=1)) if len(own) > 1 else 0.0 for own in classes]
    return {
        str(label): [float(own.mean()), max(spread, float(least)), len(own)]
        for label, (own, spread) in enumerate(zip(classes, spreads, strict=True))
    }


def log_odds_of_label(labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """Labels and probabilities of PD -> natural log-odds of the label, all of shape (subjects,)."""
    sure = np.clip(np.asarray(predictions, float), 1e-6, 1 - 1e-6)
    odds = np.log(sure / (1 - sure))
    return np.where(np.asarray(labels) == 1, odds, -odds)


def p_values(reference: Reference, labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """How probably a right label has such log-odds, or lower ones, (subjects,).

    By the limit of prediction of a normal sample, that of the test subjects of the same class.
    """
    from scipy import stats

    mean, spread, number = np.array([reference[str(label)] for label in np.asarray(labels)]).T
    away = (log_odds_of_label(labels, predictions) - mean) / (spread * np.sqrt(1 + 1 / number))
    return np.maximum(stats.t.cdf(away, np.maximum(number - 1, 1)), np.finfo(float).tiny)


def center_p_value(labels_p: list[float]) -> float | None:
    """The p-value of a center from those of its labels; None where they are too few."""
    number = len(labels_p)
    if number < LEAST_IMAGES:
        return None
    normal = NormalDist()
    # A p-value of 1 would outweigh all others, and one of 0 is infinitely far.
    scores = [normal.inv_cdf(1 - min(max(value, 1e-9), 0.999)) for value in labels_p]
    return 1 - normal.cdf(sum(scores) / (number + RESEMBLANCE * number**2) ** 0.5)
