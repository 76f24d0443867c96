"""Uncertainty of the metrics: bootstrap over test subjects, and Wilson's interval for counts."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from travelling.method.metrics import misdiagnosed
from travelling.method.performance import METRICS

CONFIDENCE = 0.95
RESAMPLES = 9999  # so that the smallest p-value is 2 / 10000
SMALLEST_CLASS = 2  # subjects, below which resampling a class changes nothing


def metric_replicates(
    labels: ArrayLike, predictions: ArrayLike, seed: int | list, resamples: int = RESAMPLES
) -> np.ndarray:
    """The METRICS of several models on resampled test subjects.

    ``labels`` (subjects,) are 0 or 1, ``predictions`` (models, subjects) probabilities. Stratified by class, because a
    test set has its numbers of HC and PD by design: HC and PD are resampled separately, with replacement, and each
    resample is the same for all models, so that differences between models are paired (Efron & Tibshirani, An
    Introduction to the Bootstrap, 1993, chapters 8 and 13). Returns an array (models, metrics, resamples); NaN where a
    metric is not defined or a class has fewer than SMALLEST_CLASS subjects, which resampling cannot vary.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions, dtype=float)
    groups = labels == 0, labels == 1
    healthy, patients = (int(group.sum()) for group in groups)
    if not len(labels) or any(0 < size < SMALLEST_CLASS for size in (healthy, patients)):
        return np.full((len(predictions), len(METRICS), resamples), np.nan)
    generator = np.random.default_rng(seed)
    drawn = [_times_drawn(size, resamples, generator) for size in (healthy, patients)]
    right = ~misdiagnosed(labels, predictions)
    true_negatives, true_positives = (
        right[:, group] @ times.T for group, times in zip(groups, drawn, strict=True)
    )  # (models, resamples)
    # 1 where the patient has the larger probability, 1/2 where both have the same: AUROC is its mean. A model whose
    # predictions are not all numbers has none.
    ranked = np.where(np.isfinite(predictions).all(axis=1, keepdims=True), predictions, np.nan)
    order = (np.sign(ranked[:, groups[1], None] - ranked[:, None, groups[0]]) + 1) / 2
    won = np.array([((drawn[1] @ pairs) * drawn[0]).sum(axis=1) for pairs in order])
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: not defined
        metrics = {
            "accuracy": (true_negatives + true_positives) / len(labels),
            "sensitivity": true_positives / patients,
            "specificity": true_negatives / healthy,
            "AUC_ROC": won / (healthy * patients),
            "F1_SCORE": 2 * true_positives / (true_positives + healthy - true_negatives + patients),
        }
    if not patients:
        metrics["F1_SCORE"][:] = np.nan
    return np.stack([metrics[name] for name in METRICS], axis=1)


def _times_drawn(size, resamples, generator):
    """How often each of ``size`` subjects is drawn for each resample: (resamples, size)."""
    subjects = generator.integers(size, size=(resamples, size)) if size else np.zeros((resamples, 0), int)
    places = subjects + size * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * size).reshape(resamples, size).astype(float)


def percentile_interval(replicates: np.ndarray) -> np.ndarray:
    """The CONFIDENCE interval between percentiles of bootstrap replicates; NaN where one of them is NaN."""
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(replicates, [tail, 100 - tail], axis=-1)


def paired_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of "no difference" from bootstrap replicates of a paired difference.

    The percentile interval turned round: twice the share of replicates on the rarer side of zero, at most 1. Each share
    counts one more replicate, so that no p-value is 0 (Davison & Hinkley, Bootstrap Methods and their Application,
    1997, chapter 4). NaN where a replicate is NaN.
    """
    differences = np.asarray(differences)
    if np.isnan(differences).any():
        return np.nan
    below, above = np.sum(differences <= 0), np.sum(differences >= 0)
    return min(1.0, 2 * (min(below, above) + 1) / (differences.size + 1))


def wilson_interval(number: int, total: int) -> tuple:
    """Wilson's CONFIDENCE interval for the share ``number / total``; NaN where ``total`` is 0."""
    if not total:
        return np.nan, np.nan
    return tuple(stats.binomtest(int(number), int(total)).proportion_ci(CONFIDENCE, method="wilson"))
