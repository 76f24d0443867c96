"""The settings of quality control side by side: what each finds, loses and costs, and what it does to AUROC."""

from datetime import datetime

import numpy as np
import pandas as pd

from evaluation.diagnoses import ALL, CLEAN_KEY, Diagnoses
from evaluation.layout import DIRTY, control_folder
from evaluation.records import ControlRun, Study
from evaluation.render import leading, number, view
from evaluation.tables import GOOD, HARMFUL, OUTCOMES, cases, outcomes, table
from travelling.method.metrics import METRICS

# What is told of each setting, per seed: {column: (name for readers, digits)}.
MEASURES = {
    "harmful": ("harmful images", 0),
    "harmful_flagged_percent": ("harmful flagged %", 1),
    "harmful_eliminated_percent": ("harmful eliminated %", 1),
    "good": ("good images", 0),
    "good_flagged_percent": ("good flagged %", 1),
    "good_eliminated_percent": ("good eliminated %", 1),
    "cycles_until_elimination": ("cycles until elimination", 1),
    "undone_percent": ("steps undone %", 1),
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
    screen (published, with --screen) and both. Shares of harmful images flagged (put aside at least once) and
    eliminated, and of good ones, which are false alarms; cycles until a harmful image was eliminated (median of those
    that were; the first cycle of the run counts as 1); the share of verifications whose step was undone; AUROC {when}
    and its differences to the clean and to the dirty model of the same seed; seconds of the run from its record (n/a
    where it was interrupted: it does not tell for how long).{means}
    """
    rows = []
    for case, runs in cases(study):
        key = (case["experiment"], case["kind"], control_folder(case["setting"]))
        measures = [_measures(model) | _auroc(diagnoses, key, model.seed) for model in study.models if model.key == key]
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
        measures["undone_percent"] = 100 * model.log["Ignored"][1:].mean()
    return measures


def _auroc(diagnoses, key, seed):
    """The AUROC of one seed, and its differences to the clean and to the dirty model's; NaN where not known."""
    place, unknown = METRICS.index("AUC_ROC"), np.full(len(METRICS), np.nan)
    own, clean, dirty = (
        diagnoses.values.get((ALL, other, seed), unknown)[place] for other in (key, CLEAN_KEY, (*key[:2], DIRTY))
    )
    return {"AUC_ROC": own, "difference_to_clean": own - clean, "difference_to_dirty": own - dirty}
