"""What other values of -error would have done, as far as the logs tell."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from evaluation.records import ControlRun, Study
from evaluation.render import leading, number, number_text, view
from evaluation.tables import GOOD, HARMFUL, OUTCOMES, Diagnoses, table
from travelling.protocol import PROTOCOLS
from travelling.verification_log import SEPARATOR

THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1)  # values of -error; the runs' own are added
FOUND = tuple(f"{name}_{outcome}" for name in (HARMFUL, GOOD) for outcome in OUTCOMES)
COLUMNS = (
    "experiment", "kind", "seeds", "revisit", "threshold", "of_this_study",
    *(f"{found}{ending}" for found in FOUND for ending in ("", "_at_most", "_sd_over_seeds")),
)  # fmt: skip


@table("Other values of -error", section="found", place=2)
def thresholds(study: Study, diagnoses: Diagnoses) -> tuple:
    """Shares of images that other values of -error would have flagged in the first cycle, and eliminated at the
    revisit that followed: of harmful images the sensitivity, of good ones the false alarms. From the rises of FPR and
    FNR that the logs record, each step judged in the state that its own run was in: with another value other steps
    would have been undone, and everything after them would differ. 'to': up to so many, where the log does not tell
    because nobody tried these images alone. Images that the screen put aside before are no part of it. It says nothing
    of another -revisit, for which the study must be run again.{means}{setting}
    """
    rows = []
    for condition in study.conditions:
        runs = [run for run in study.runs(condition) if run.tells_thresholds]
        own = {round(run.options["error"], 9) for run in runs}
        grid = sorted({*THRESHOLDS, *own})
        tables = pd.concat([detection_by_threshold(run, grid) for run in runs]) if runs else pd.DataFrame()
        waits = "; ".join(dict.fromkeys(str(run.options["revisit"]) for run in runs))
        for threshold, seeds in tables.groupby("threshold") if runs else ():
            row = dict(zip(COLUMNS, (*condition, len(runs), waits, threshold, threshold in own), strict=False))
            for found in FOUND:
                row |= {found: seeds[found].mean(skipna=False), f"{found}_sd_over_seeds": seeds[found].std(ddof=1)}
                row[f"{found}_at_most"] = seeds[f"{found}_at_most"].mean(skipna=False)
            rows.append(row)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {"-error": lambda row: f"{row['threshold']:g}{' (as run)' if row['of_this_study'] else ''}"}
    cells |= {found.replace("_", " "): _range_cell(found) for found in FOUND}
    shown = view(frame, leading(study, "experiment", "kind"), cells)
    return frame, {"Images found by threshold": shown}, {}


def _range_cell(found):
    text = number(found, deviation=f"{found}_sd_over_seeds")
    most = f"{found}_at_most"
    return lambda row: text(row) + (f" to {number_text(row[most])}" if row[most] > row[found] else "")


def detection_by_threshold(run: ControlRun, thresholds: Iterable[float] | None = None) -> pd.DataFrame:
    """What other values of -error would have done in the run's first cycle: one row per threshold.

    ``threshold`` is the rise of FPR or FNR per image; None takes all values at which something changes, and the run's
    own. ``harmful_flagged`` and ``good_flagged`` are the shares of images for which the log shows that they would have
    been flagged: the batch and then the image alone rose by more than the threshold. ``..._eliminated`` are those of
    them whose revisit rose by more, too. ``..._at_most`` adds the images of which the log does not tell it: those of
    batches that a threshold below the run's own would have undone but the run did not, so that nobody tried the images
    alone, and those that were not revisited. Later cycles depend on the first, so it is the only one that is used.
    """
    first = run.log[run.log["Cycle"] == run.log["Cycle"][1:].min()]  # none where the screen let nothing train
    batches = first[first["Phase"] == "batch"]
    members = batches["Subjects"].str.split(SEPARATOR).explode()
    images = run.images.loc[list(members)]
    batch = batches.loc[members.index]
    own = first[first["Phase"] == "subject"].set_index("Subject").reindex(images.index)
    revisits = run.log[run.log["Phase"] == "revisit"].drop_duplicates("Subject").set_index("Subject")
    again = revisits.reindex(images.index[own["Ignored"] == 1]).reindex(images.index)  # after a flag in this cycle
    if thresholds is None:
        rises = np.concatenate([steps["Rise_per_image"] for steps in (batch, own, again)])
        thresholds = np.unique(np.append(rises[~np.isnan(rises)], [0, run.options["error"]]).clip(min=0).round(12))
    harmful = images["Harmful"].to_numpy()
    rows = []
    for threshold in thresholds:
        row, found, at_most = {"threshold": threshold}, True, True
        for outcome, steps in (("undone", batch), ("flagged", own), ("eliminated", again)):
            harms = _harms(steps, threshold, run.options["protocol"])
            found, at_most = found & harms, at_most & (harms | steps["Rise_per_image"].isna().to_numpy())
            for name, those in ((HARMFUL, harmful), (GOOD, ~harmful)):
                row[f"{name}_{outcome}"] = found[those].mean() if those.any() else np.nan
                row[f"{name}_{outcome}_at_most"] = at_most[those].mean() if those.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _harms(steps, threshold, protocol):
    """Whether each step raised FPR or FNR by more than the threshold per image: booleans of shape (steps,)."""
    exceeds, tolerance = PROTOCOLS[protocol].exceeds, steps["Images"] * threshold
    fpr, fnr = (exceeds(steps[rate], steps[f"Reference_{rate}"], tolerance) for rate in ("PFP", "PFN"))
    return (fpr | fnr).to_numpy()
