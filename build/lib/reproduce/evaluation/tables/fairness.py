"""Gaps between subgroups in each model: men minus women, and best minus worst age group."""

from functools import partial

import numpy as np
import pandas as pd

from evaluation.layout import CLEAN
from evaluation.render import VALUE, leading, number, wide
from evaluation.tables import Diagnoses, Study, table

NAMES = ("experiment", "kind", "model")
COLUMNS = (
    *NAMES, "gap", "metric", "cycle", "seeds", "value", "low", "high", "sd_over_seeds", "change_to_clean",
    "change_low", "change_high",
)  # fmt: skip
CHANGE = number("change_to_clean", sign=True, low="change_low", high="change_high")


@table("Gaps between subgroups", section="fairness")
def fairness(study: Study, diagnoses: Diagnoses) -> tuple:
    """Gaps between subgroups of the test set {when}, with 95 % bootstrap intervals (each subgroup resampled on its
    own, stratified by class). Best minus worst age group is never below 0 and larger by chance alone the smaller the
    groups: compare it with the clean model's. n/a: a group lacks the class that the metric needs, or its ages.
    """
    gaps: dict[str, tuple] = {"male - female": (np.subtract, ["male", "female"])}
    ages = [name for name in diagnoses.subgroups if name.startswith("age_")]
    if len(ages) > 1:
        gaps["best - worst age group"] = (lambda *groups: np.ptp(groups, axis=0), ages)
    rows, views = [], {}
    for gap, (between, groups) in gaps.items():
        of = partial(_gap, diagnoses, between, groups)
        rows += [{"gap": gap} | row for key in diagnoses.keys for row in diagnoses.compare(key, of, "change")]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for gap in gaps:
        part = frame[frame["gap"] == gap]
        views[gap.capitalize()] = wide(part, leading(study, *NAMES), VALUE)
        others = part[part["model"] != CLEAN]
        if len(others):
            title = f"{gap.capitalize()}: change of the gap to that of the clean model"
            views[title] = wide(others, leading(study, *NAMES), CHANGE)
    return frame, views, {}


def _gap(diagnoses, between, groups, key, seeds):
    """The gap of the mean METRICS over seeds, and of its replicates; NaN where one group has none."""
    means = zip(*(diagnoses.mean(group, key, seeds) for group in groups), strict=True)
    return tuple(between(*of_groups) for of_groups in means)
