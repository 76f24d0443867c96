"""Whether the good images of one class, sex or age group were flagged and eliminated more often."""

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.render import count, number, p_text, view
from evaluation.tables import OUTCOMES, Diagnoses, Study, groups_of_good, outcomes, table

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
        groups = groups_of_good(runs, diagnoses.age_edges)
        for attribute in ("class", "sex", "age") if runs else ():
            found = [{"subgroup": name, "number": len(of)} | outcomes(of) for name, of in groups[attribute].items()]
            counts = pd.DataFrame([row for row in found if row["number"]], columns=COLUMNS)
            counts = counts.assign(experiment=condition[0], kind=condition[1], attribute=attribute, seeds=len(runs))
            for outcome in OUTCOMES if len(runs) == 1 else ():
                both = counts[outcome], counts["number"] - counts[outcome]
                counts[f"{outcome}_p_value"] = _same_share_p_value(np.column_stack(both), diagnoses.seed)
            rows += counts.to_dict("records")
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {"good images": count("number")}
    for outcome in OUTCOMES:
        cells |= {outcome: count(outcome), f"share {outcome}": number(f"{outcome}_share")}
        cells[f"p ({outcome})"] = lambda row, outcome=outcome: p_text(row[f"{outcome}_p_value"])
    return frame, {"Good images by subgroup": view(frame, ["experiment", "kind", "subgroup"], cells)}, {}


def _same_share_p_value(counts, seed):
    """Fisher's exact test of (yes, no) counts of several groups: exact for two, by seeded simulation for more."""
    if len(counts) < 2 or not counts.sum(axis=0).all():
        return np.nan
    method = stats.MonteCarloMethod(rng=np.random.default_rng(seed)) if len(counts) > 2 else None
    return float(stats.fisher_exact(counts, method=method).pvalue)
