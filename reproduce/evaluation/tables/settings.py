"""The settings of quality control side by side: what each finds, loses and costs, and what it does to AUROC."""

from datetime import datetime

import numpy as np
import pandas as pd

from evaluation.diagnoses import ALL, CLEAN_KEY, Diagnoses
from evaluation.layout import CLEAN, DIRTY, control_folder
from evaluation.records import ControlRun, Study, in_words
from evaluation.render import MISSING, leading, number, setting_in_words, view
from evaluation.tables import GOOD, HARMFUL, OUTCOMES, cases, outcomes, table
from travelling.method.performance import METRICS
from travelling.words import some

# What is told of each setting, per seed: {column: (name for readers, digits)}.
MEASURES = {
    "harmful": ("harmful images", 0),
    "harmful_flagged_percent": ("harmful flagged %", 1),
    "harmful_eliminated_percent": ("harmful eliminated %", 1),
    "good": ("good images", 0),
    "good_flagged_percent": ("good flagged %", 1),
    "good_eliminated_percent": ("good eliminated %", 1),
    "cycles_until_elimination": ("cycles until elimination", 1),
    "rejected_percent": ("steps rejected %", 1),
    "FPR": ("FPR", 3),
    "FNR": ("FNR", 3),
    "AUC_ROC": ("AUROC", 3),
    "difference_to_clean": ("difference to clean", 3),
    "difference_to_dirty": ("difference to dirty", 3),
    "run_seconds": ("seconds", 0),
}
COLUMNS = ("experiment", "kind", "setting", "seeds", "cycle")
DEVIATIONS = {name: f"{name}_sd_over_seeds" for name in MEASURES}


@table("Settings compared", section="found", place=3)
def settings(study: Study, diagnoses: Diagnoses) -> tuple:
    """Settings of quality control compared: published (a rise of FPR or FNR above -error), evidence (--rule evidence),
    screen (published, with --screen), both, and recommended (--recommended). Shares of harmful images flagged (put
    aside at least once) and eliminated, and of good ones, which are false alarms; cycles until a harmful image was
    eliminated (median of those that were; the first cycle of the run counts as 1); the share of verifications whose
    step was rejected; FPR, FNR and AUROC {when}, and its differences to the clean and to the dirty model of the same
    seed; seconds of the run from its record (n/a where it was interrupted: it does not tell for how long).{means}
    """
    rows = []
    for case, runs in cases(study):
        key = (case["experiment"], case["kind"], control_folder(case["setting"]))
        models = [model for model in study.models if model.key == key]
        measures = [_measures(model) | _diagnosed(diagnoses, key, model.seed) for model in models]
        known = pd.DataFrame(measures, columns=list(MEASURES), dtype=float)
        row = case | {"seeds": len(runs), "cycle": diagnoses.cycle} | known.mean().to_dict()
        rows.append(row | known.std(ddof=1).rename(DEVIATIONS).to_dict())
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *(column for pair in DEVIATIONS.items() for column in pair)])
    cells = {}
    for name, (label, digits) in MEASURES.items():
        deviation = "" if name in (HARMFUL, GOOD) else DEVIATIONS[name]
        cells[label] = number(name, digits, sign=name.startswith("difference"), deviation=deviation)
    shown = view(frame, leading(study, "experiment", "kind", "setting"), cells)
    return frame, {"Settings of quality control": shown}, {}


def _measures(model):
    """What is told of the run of one seed; what is not known is left out."""
    measures, record = {}, model.record
    if record["finished"] and len(record["sessions"]) == 1:
        begin, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
        measures["run_seconds"] = (end - begin).total_seconds()
    if isinstance(model, ControlRun):
        for name, images in ((HARMFUL, model.harmful), (GOOD, model.good)):
            shares = outcomes(images)
            measures |= {f"{name}_{outcome}_percent": 100 * shares[f"{outcome}_share"] for outcome in OUTCOMES}
            measures[name] = len(images)
        cycles = model.harmful["Eliminated_cycle"].dropna().astype(float)
        measures["cycles_until_elimination"] = (cycles - model.cycles[0] + 1).median()
        measures["rejected_percent"] = 100 * model.log["Ignored"][1:].mean()
    return measures


def _diagnosed(diagnoses, key, seed):
    """Rates and AUROC of one seed, and its differences to the clean and to the dirty model's; NaN where not known."""
    unknown = np.full(len(METRICS), np.nan)
    own, clean, dirty = (
        dict(zip(METRICS, diagnoses.values.get((ALL, other, seed), unknown), strict=True))
        for other in (key, CLEAN_KEY, (*key[:2], DIRTY))
    )
    auroc = own["AUC_ROC"]
    differences = {"difference_to_clean": auroc - clean["AUC_ROC"], "difference_to_dirty": auroc - dirty["AUC_ROC"]}
    return {"FPR": 1 - own["specificity"], "FNR": 1 - own["sensitivity"], "AUC_ROC": auroc} | differences


def _side_by_side(tables):
    """The table of settings with the numbers of images that were flagged and eliminated, sums over seeds."""
    frame = tables["settings"].frame
    found = tables["detection"].frame
    for name in (HARMFUL, GOOD):
        numbers = found[found["images"] == name][[*COLUMNS[:3], "number", *OUTCOMES]]
        numbers = numbers.rename(columns={column: f"{name}_{column}" for column in ("number", *OUTCOMES)})
        frame = frame.merge(numbers, on=list(COLUMNS[:3]), how="left")
    return frame


def _eliminated(row, name):
    return f"{row[f'{name}_eliminated']:.0f} of {row[f'{name}_number']:.0f}"


def summary_of_settings(tables: dict) -> pd.DataFrame:
    """What each setting found and lost, and its model's rates: what the demo prints last."""
    cells: dict = {
        f"{name} eliminated (flagged)": lambda row, name=name: (
            MISSING if pd.isna(row[f"{name}_number"]) else f"{_eliminated(row, name)} ({row[f'{name}_flagged']:.0f})"
        )
        for name in (HARMFUL, GOOD)
    }
    cells |= {MEASURES[name][0]: number(name) for name in ("FPR", "FNR", "AUC_ROC")}
    return view(_side_by_side(tables), list(COLUMNS[:3]), cells)


def settings_in_words(tables: dict) -> list[str]:
    """What these figures say, a line for each setting: it follows from them, whatever they are."""
    of_models = tables["performance"].frame
    of_clean = of_models[(of_models["model"] == CLEAN) & (of_models["subgroup"] == ALL)].set_index("metric")["value"]
    lines = []
    for setting, rows in _side_by_side(tables).groupby("setting", sort=False):
        known = rows.dropna(subset=[f"{HARMFUL}_number"])
        if known.empty:
            continue
        spoiled = known[known[f"{HARMFUL}_number"] > 0]
        missed = spoiled[spoiled[f"{HARMFUL}_eliminated"] < spoiled[f"{HARMFUL}_number"]]
        lost = known[known[f"{GOOD}_eliminated"] > 0]
        found = (
            f"all harmful images eliminated in {len(spoiled) - len(missed)} of {some(len(spoiled), 'experiment')}"
            f"{_where(missed, HARMFUL)}; "
        )
        told = (
            f"{setting_in_words(setting)}: {found if len(spoiled) else ''}good images eliminated in {len(lost)} of "
            f"{some(len(known), 'experiment') if spoiled.empty else len(known)}{_where(lost, GOOD)}."
        )
        rises = [
            (row[rate] - (1 - of_clean.get(metric, np.nan)), rate, in_words(row["experiment"], row["kind"]))
            for row in known.to_dict("records")
            for rate, metric in (("FPR", "specificity"), ("FNR", "sensitivity"))
        ]
        if rises := [rise for rise in rises if rise[0] == rise[0]]:  # NaN is not equal to itself
            most, rate, place = max(rises)
            told += (
                f" Its rates exceed the clean model's by {most:.2f} at most ({rate}; {place})."
                if most > 0
                else " No rate exceeds the clean model's."
            )
        lines.append(told)
    return lines


def _where(rows, name):
    """In brackets: which experiments, and how many images."""
    told = [f"{in_words(row['experiment'], row['kind'])}: {_eliminated(row, name)}" for row in rows.to_dict("records")]
    return f" ({'; '.join(told)})" if told else ""
