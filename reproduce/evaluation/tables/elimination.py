"""Whether the good images of one class, sex or age group were flagged and eliminated more often."""

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.diagnoses import ALL, Diagnoses, subgroups
from evaluation.render import count, number, p_text, view
from evaluation.tables import OUTCOMES, Study, outcomes, table

COLUMNS = (
    "experiment", "kind", "attribute", "subgroup", "seeds", "number", "flagged", "flagged_share", "flagged_p_value",
    "eliminated", "eliminated_share", "eliminated_p_value",
)  # fmt: skip


@table("Whose good images were lost", section="fairness", place=2)
def elimination(study: Study, diagnoses: Diagnoses) -> tuple:
    """Good images flagged and eliminated, by class, sex and age group of the subject. p: Fisher's exact test that all
    groups of one attribute have the same share, not corrected for the number of tests (n/a where there is nothing to
    compare: nobody or everybody, or several seeds, whose images are of the same people).{setting}
    """
    rows = []
    for condition in study.conditions:
        runs = study.runs(condition)
        for attribute, groups in _attributes(runs, diagnoses.age_edges).items():
            counts = pd.DataFrame([{"subgroup": name, "number": len(of)} | outcomes(of) for name, of in groups.items()])
            for outcome in OUTCOMES:
                table_of_counts = np.column_stack([counts[outcome], counts["number"] - counts[outcome]])
                p_value = _same_share_p_value(table_of_counts, diagnoses.seed) if len(runs) == 1 else np.nan
                counts[f"{outcome}_p_value"] = p_value
            identity = dict(zip(COLUMNS, (*condition, attribute), strict=False)) | {"seeds": len(runs)}
            rows += [identity | row for row in counts.to_dict("records")]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {"good images": count("number")}
    for outcome in OUTCOMES:
        cells |= {outcome: count(outcome), f"share {outcome}": number(f"{outcome}_share")}
        cells[f"p ({outcome})"] = lambda row, outcome=outcome: p_text(row[f"{outcome}_p_value"])
    return frame, {"Good images by subgroup": view(frame, ["experiment", "kind", "subgroup"], cells)}, {}


def _attributes(runs, age_edges):
    """The good images of some runs as {attribute: {subgroup: images}}; groups nobody is in are left out."""
    if not runs:
        return {}
    good = pd.concat([run.good for run in runs])
    sexes = subgroups(good, ())
    ages = {name: mask for name, mask in subgroups(good, age_edges).items() if name not in sexes}
    del sexes[ALL]
    classes = {"HC": good["Group_bin"] == 0, "PD": good["Group_bin"] == 1}
    return {
        attribute: {name: good[mask] for name, mask in masks.items() if mask.any()}
        for attribute, masks in (("class", classes), ("sex", sexes), ("age", ages))
    }


def _same_share_p_value(counts, seed):
    """Fisher's exact test of (yes, no) counts of several groups: exact for two, by seeded simulation for more."""
    if len(counts) < 2 or not counts.sum(axis=0).all():
        return np.nan
    method = stats.MonteCarloMethod(rng=np.random.default_rng(seed)) if len(counts) > 2 else None
    return float(stats.fisher_exact(counts, method=method).pvalue)
