"""Uncertainty of the metrics: bootstrap over test subjects, and Wilson's interval for counts."""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from travelling.metrics import METRICS, diagnose

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
    nothing = np.full((len(predictions), len(METRICS), resamples), np.nan)
    sizes = [int(np.sum(labels == group)) for group in (0, 1)]
    if any(0 < size < SMALLEST_CLASS for size in sizes) or not any(sizes):
        return nothing
    # As in travelling.metrics: a prediction that is not a number is wrong.
    right = (diagnose(predictions) == labels) & np.isfinite(predictions)
    by_class = [right[:, labels == group].astype(float) for group in (0, 1)]
    ranks = all(sizes) and np.isfinite(predictions).all(axis=1)
    patients, healthy = predictions[:, labels == 1], predictions[:, labels == 0]
    # 1 where the patient has the larger probability, 1/2 where both have the same: AUROC is its mean.
    order = (np.sign(patients[:, :, None] - healthy[:, None, :]) + 1) / 2 if all(sizes) else None

    def metrics(*drawn, axis):
        weights = {group: _times_drawn(indices, sizes[group]) for group, indices in zip(present, drawn, strict=True)}
        # (resamples, models)
        correct = [weights[group] @ by_class[group].T if group in weights else 0 for group in (0, 1)]
        result = np.full((len(predictions), len(METRICS), len(drawn[0])), np.nan)
        true_positives, false_positives = correct[1], sizes[0] - correct[0]
        result[:, METRICS.index("accuracy")] = ((correct[0] + correct[1]) / sum(sizes)).T
        if sizes[1]:
            result[:, METRICS.index("sensitivity")] = (correct[1] / sizes[1]).T
            f1 = 2 * true_positives / (true_positives + false_positives + sizes[1])
            result[:, METRICS.index("F1_SCORE")] = f1.T
        if sizes[0]:
            result[:, METRICS.index("specificity")] = (correct[0] / sizes[0]).T
        for model in np.flatnonzero(ranks):
            pairs = ((weights[1] @ order[model]) * weights[0]).sum(axis=1)
            result[model, METRICS.index("AUC_ROC")] = pairs / (sizes[0] * sizes[1])
        return result

    present = [group for group in (0, 1) if sizes[group]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # metrics that are not defined: NaN, as promised
        numbers = [np.arange(sizes[group]) for group in present]
        options = {"n_resamples": resamples, "method": "percentile", "rng": np.random.default_rng(seed)}
        return stats.bootstrap(numbers, metrics, vectorized=True, paired=False, **options).bootstrap_distribution


def _times_drawn(indices, size):
    """How often each of ``size`` subjects is among the drawn ``indices`` (resamples, draws): (resamples, size)."""
    shifted = indices + size * np.arange(len(indices))[:, None]
    return np.bincount(shifted.ravel(), minlength=len(indices) * size).reshape(-1, size).astype(float)


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
