"""The set that decides and the hold-out set side by side: how much the first one flatters."""

import pandas as pd

from evaluation.diagnoses import ALL, HOLDOUT
from evaluation.intervals import percentile_interval
from evaluation.render import METRIC_NAMES, leading, number, view
from evaluation.tables import Diagnoses, Study, table
from travelling.method.performance import METRICS

NAMES = ("experiment", "kind", "model")
FIGURES = ("deciding", "holdout", "optimism")
COLUMNS = (
    *NAMES, "metric", "cycle", "seeds", "holdout_HC", "holdout_PD",
    *(f"{name}{ending}" for name in FIGURES for ending in ("", "_low", "_high")),
)  # fmt: skip
LABELS = dict(zip(FIGURES, ("deciding set", "hold-out set", "optimism"), strict=True))


@table("The set that decides, and a hold-out set", section="diagnoses", place=2)
def holdout(study: Study, diagnoses: Diagnoses) -> tuple | None:
    """Diagnoses {when} of the test set, which decided which steps and images were kept, and of a hold-out set of other
    subjects, by which nothing was decided ({sizes}). Optimism is the first minus the second. Brackets: 95 % percentile
    intervals of a bootstrap over the subjects of each set on its own, stratified by class. Nothing decided about the
    clean model: its optimism is a difference between the subjects.
    """
    rows = []
    for key in diagnoses.keys:
        seeds = [seed for seed in diagnoses.seeds(key, HOLDOUT) if seed in diagnoses.seeds(key)]
        if not seeds:
            continue
        healthy, patients = diagnoses.sizes[HOLDOUT, seeds[0]]
        (decided, drawn), (held, drawn_held) = (diagnoses.mean(of, key, seeds) for of in (ALL, HOLDOUT))
        found = dict(
            zip(FIGURES, ((decided, drawn), (held, drawn_held), (decided - held, drawn - drawn_held)), strict=True)
        )
        for place, metric in enumerate(METRICS):
            row = dict(zip(NAMES, key, strict=True)) | {"metric": metric, "cycle": diagnoses.cycle, "seeds": len(seeds)}
            row |= {"holdout_HC": healthy, "holdout_PD": patients}
            for name, (values, replicates) in found.items():
                row[name] = values[place]
                row[f"{name}_low"], row[f"{name}_high"] = percentile_interval(replicates[place])
            rows.append(row)
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {
        label: number(name, sign=name == "optimism", low=f"{name}_low", high=f"{name}_high")
        for name, label in LABELS.items()
    }
    views = {
        label: view(frame[frame["metric"] == metric], leading(study, *NAMES), cells)
        for metric, label in METRIC_NAMES.items()
    }
    return frame, views, {"sizes": f"{healthy} HC and {patients} PD"}


def summary_of_holdout(tables: dict) -> pd.DataFrame:
    """AUROC on both sets, and the optimism with its interval: what the demo prints."""
    return tables["holdout"].views[METRIC_NAMES["AUC_ROC"]]
