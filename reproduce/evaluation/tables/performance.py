"""How well the models diagnose."""

import pandas as pd

from evaluation.diagnoses import ALL, Diagnoses
from evaluation.layout import CLEAN
from evaluation.render import VALUE, leading, number, number_text, p_text, subgroup_in_words, wide
from evaluation.tables import Study, table

NAMES = ("experiment", "kind", "model")
COLUMNS = (
    *NAMES, "subgroup", "metric", "cycle", "seeds", "HC", "PD", "value", "low", "high", "sd_over_seeds",
    "difference_to_clean", "difference_low", "difference_high", "p_value",
)  # fmt: skip
DIFFERENCE = number("difference_to_clean", sign=True, low="difference_low", high="difference_high")


@table("Diagnoses", section="diagnoses")
def performance(study: Study, diagnoses: Diagnoses) -> tuple:
    """Diagnoses of the test set {when}. Brackets: 95 % percentile intervals of a bootstrap over test subjects,
    stratified by class. {metrics}Differences are paired (the same resamples for both models); p: two-sided, by the same
    bootstrap, not corrected for the number of comparisons. An interval without width means that the model diagnosed
    everybody of a class alike. No interval says how another training run would differ.
    """
    rows, views = [], {}
    for subgroup in diagnoses.subgroups:
        for key in diagnoses.keys:
            seeds = diagnoses.seeds(key)
            sizes = dict(zip(("HC", "PD"), diagnoses.sizes[subgroup, seeds[0]], strict=True)) if seeds else {}
            rows += [{"subgroup": subgroup} | sizes | row for row in diagnoses.compare(key, subgroup)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for subgroup in diagnoses.subgroups:
        in_seeds = [size for (name, _), size in diagnoses.sizes.items() if name == subgroup]
        in_each = " or ".join(dict.fromkeys(f"{healthy} HC and {patients} PD" for healthy, patients in in_seeds))
        part = frame[frame["subgroup"] == subgroup]
        views[f"{subgroup_in_words(subgroup).capitalize()}: {in_each}"] = wide(part, leading(study, *NAMES), VALUE)
    others = frame[(frame["subgroup"] == ALL) & (frame["model"] != CLEAN)]
    if len(others):
        view = wide(others, leading(study, *NAMES), DIFFERENCE)
        view["p (AUROC)"] = [p_text(value) for value in others[others["metric"] == "AUC_ROC"]["p_value"]]
        views["Difference to the clean model, all subjects"] = view
    metrics = "Metrics are means over seeds ± standard deviation over seeds. " if len(study.seeds) > 1 else ""
    return frame, views, {"metrics": metrics}


def summary_of_performance(tables: dict) -> pd.DataFrame:
    """The metrics of all subjects without intervals, a row per model: what the demo prints."""
    frame = tables["performance"].frame
    frame = frame[frame["subgroup"] == ALL]
    seeds = ["seeds"] if frame["seeds"].max() > 1 else []
    return wide(frame, [*NAMES, *seeds], lambda row: number_text(row["value"]))
