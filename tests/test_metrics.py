"""Metrics against values computed by hand."""

import numpy as np
import pytest

from travelling.method.metrics import diagnose, evaluate
from travelling.method.performance import age_groups, metrics_by_subgroup, performance

LABELS = [0, 0, 0, 0, 1, 1]
PREDICTIONS = [0.1, 0.5, 0.2, 0.9, 0.8, 0.3]  # HC: 2 of 4 right; PD: 1 of 2


def test_threshold_belongs_to_pd():
    assert diagnose([0.4999, 0.5, 0.5001]).tolist() == [0, 1, 1]


def test_counts():
    found = evaluate(LABELS, PREDICTIONS)
    assert (found.false_positives, found.false_negatives, found.healthy, found.patients) == (2, 1, 4, 2)
    assert found.accuracy == 0.5
    found = evaluate([0, 1, 1], [np.nan, np.nan, 0.9])  # what is not a number is wrong
    assert (found.false_positives, found.false_negatives) == (1, 1)


def test_performance_by_hand():
    # Of the pairs (PD, HC) in the right order: 0.8 beats 0.1, 0.5, 0.2; 0.3 beats 0.1, 0.2.
    expected = {"accuracy": 3 / 6, "sensitivity": 1 / 2, "specificity": 2 / 4, "AUC_ROC": 5 / 8, "F1_SCORE": 2 / 5}
    assert performance(LABELS, PREDICTIONS) == pytest.approx(expected)


def test_one_class_has_no_auroc_and_only_its_own_rate():
    only_healthy = performance([0, 0], [0.1, 0.9])
    assert only_healthy["specificity"] == 0.5
    assert np.isnan(only_healthy["AUC_ROC"])
    assert np.isnan(only_healthy["sensitivity"])
    assert np.isnan(only_healthy["F1_SCORE"])  # of whom nobody has the disease, with a false positive and without
    assert np.isnan(performance([0, 0], [0.1, 0.2])["F1_SCORE"])
    assert performance([1, 0], [0.1, 0.2])["F1_SCORE"] == 0
    assert np.isnan(performance([], [])["accuracy"])


def test_age_groups_share_no_subject():
    masks = age_groups([59.9, 60, 69, 70, np.nan])
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "age_below_60": [True, False, False, False, False],
        "age_60_to_70": [False, True, True, False, False],
        "age_70_and_over": [False, False, False, True, False],
    }


def test_published_columns_come_first():
    male = np.array([True, True, False, False, True, False])
    row = metrics_by_subgroup(LABELS, PREDICTIONS, {"male": male, "female": ~male})
    assert list(row) == [
        "accuracy", "sensitivity", "specificity", "AUC_ROC", "F1_SCORE",
        "male_accuracy", "male_sensitivity", "male_specificity", "male AUC_ROC",
        "female_accuracy", "female_sensitivity", "female_specificity", "female AUC_ROC",
        "male_F1_SCORE", "female_F1_SCORE",
    ]  # fmt: skip
    assert row["male_accuracy"] == pytest.approx(2 / 3)
    assert row["male AUC_ROC"] == 1.0
    assert row["female_specificity"] == 0.5
