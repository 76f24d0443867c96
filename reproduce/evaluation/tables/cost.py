"""What quality control costs: time per cycle, verifications, and the share of steps that were rejected."""

import numpy as np
import pandas as pd

from evaluation.layout import CONTROL_FOLDERS, DIRTY
from evaluation.records import Study
from evaluation.render import count, number, view
from evaluation.tables import Diagnoses, table
from travelling.beyond.screen import PHASE as SCREEN
from travelling.method.verification_log import SEPARATOR

PHASES = {"batch": "batches", "group": "groups", "subject": "subjects", "revisit": "revisits"}
COLUMNS = (
    "experiment", "kind", "model", "seeds", "finished", "timed_cycles", "seconds_per_cycle", "times_dirty",
    "cycles", "verifications", "rejected", "rejected_share",
    *(f"{phase}_{what}" for phase in PHASES for what in ("verifications", "rejected")),
    "good_batches_rejected", "screened", "screened_flagged", "screened_eliminated", "device",
)  # fmt: skip
SCREENED = (
    " Screened: images that the screen judged, how many of them it flagged, and how many it eliminated at their "
    "revisit; it trains nothing, so these are no verifications."
)


@table("Cost", section="cost")
def cost(study: Study, diagnoses: Diagnoses) -> tuple:
    """Wall-clock seconds per cycle (mean of the cycles that ran without interruption; runs on a shared machine slow
    each other), 'times dirty' relative to the dirty baseline; the verifications of quality control (sums over seeds),
    how many of their steps were rejected, by phase, and how many rejected batches held only good images.{screened}
    """
    rows = {}
    for key in study.keys:
        models = [model for model in study.models if model.key == key]
        seconds = pd.concat([model.cycle_seconds for model in models])
        row = dict(zip(COLUMNS, key, strict=False)) | {"seeds": len(models)}
        row["finished"] = sum(bool(model.record["finished"]) for model in models)
        row |= {"timed_cycles": len(seconds), "seconds_per_cycle": seconds.mean()}
        sessions = [session for model in models for session in model.record["sessions"]]
        row["device"] = "; ".join(dict.fromkeys(str(one["device"]) for one in sessions if "device" in one))
        rows[key] = row | _verifications([run for run in study.controls if run.key == key])
    for (experiment, kind, model), row in rows.items():
        if model in CONTROL_FOLDERS:
            dirty = rows.get((experiment, kind, DIRTY), {}).get("seconds_per_cycle", np.nan)
            row["times_dirty"] = row["seconds_per_cycle"] / dirty
    frame = pd.DataFrame(rows.values(), columns=COLUMNS)
    controls = {
        "times dirty": number("times_dirty", 1), "verifications": count("verifications"), "rejected": count("rejected"),
        "share rejected": number("rejected_share"),
        **{f"{name}, rejected": count(f"{phase}_verifications", f"{phase}_rejected") for phase, name in PHASES.items()},
        "good batches rejected": count("good_batches_rejected"),
    }  # fmt: skip
    if not frame["group_verifications"].sum():
        del controls["groups, rejected"]
    screened = frame["screened"].sum() > 0
    if screened:
        controls["screened, flagged, eliminated"] = count("screened", "screened_flagged", "screened_eliminated")
    cells = {"seconds per cycle": number("seconds_per_cycle", 1)}
    # The others verify nothing, which is not the same as not known.
    cells |= {
        label: lambda row, cell=cell: cell(row) if row["model"] in CONTROL_FOLDERS else ""
        for label, cell in controls.items()
    }
    views = {"Time and verifications": view(frame, ["experiment", "kind", "model"], cells)}
    return frame, views, {"screened": SCREENED if screened else ""}


def _verifications(runs):
    """Numbers of verifications and of rejected steps of one condition's runs of quality control."""
    if not runs:
        return {}
    log = pd.concat([run.log[1:] for run in runs])
    row = {"cycles": sum(run.log["Cycle"][1:].nunique() for run in runs), "verifications": len(log)}
    row |= {"rejected": int(log["Ignored"].sum()), "rejected_share": log["Ignored"].mean(), "good_batches_rejected": 0}
    for phase in PHASES:
        rejected = log[log["Phase"] == phase]["Ignored"]
        row |= {f"{phase}_verifications": len(rejected), f"{phase}_rejected": int(rejected.sum())}
    for run in runs:
        batches = run.log[(run.log["Phase"] == "batch") & (run.log["Ignored"] == 1)]["Subjects"].str.split(SEPARATOR)
        row["good_batches_rejected"] += int(batches.map(set(run.harmful.index).isdisjoint).sum())
    screening = pd.concat([run.screening for run in runs])
    screens = screening[screening["Phase"] == SCREEN]
    row |= {"screened": len(screens), "screened_flagged": int(screens["Ignored"].sum())}
    return row | {"screened_eliminated": int(screening["Eliminated"].sum())}
