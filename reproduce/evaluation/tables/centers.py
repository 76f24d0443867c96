"""What every center lost: one row per run and center."""

import pandas as pd

from evaluation.render import number_text
from evaluation.tables import GOOD, HARMFUL, Diagnoses, Study, outcomes, table

COLUMNS = (
    "experiment", "kind", "seed", "center", "images", "harmful", "harmful_flagged", "harmful_eliminated", "good",
    "good_flagged", "good_eliminated", "share_lost",
)  # fmt: skip


@table("What centers lost", section="runs")
def centers(study: Study, diagnoses: Diagnoses) -> tuple:
    """Images per center, and how many of them were flagged and eliminated. Shown are the {shown} of {all} centers (of
    all runs) that held a harmful image or had a good one flagged; the CSV has all.{setting}
    """
    rows = []
    for run in study.shown_controls:
        for center, images in run.images.groupby("Study", sort=False):
            row = dict(zip(COLUMNS, (run.experiment, run.kind, run.seed, center, len(images)), strict=False))
            for name, group in ((HARMFUL, images[images["Harmful"]]), (GOOD, images[~images["Harmful"]])):
                row |= {name: len(group)} | {f"{name}_{what}": found for what, found in outcomes(group).items()}
            rows.append(row | {"share_lost": images["Eliminated"].mean()})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    shown = frame[(frame["harmful"] > 0) | (frame["good_flagged"] > 0)]
    words = {"shown": len(shown), "all": len(frame)}
    shown = shown.assign(experiment=shown["experiment"].str.replace("_", " "))
    shown["share_lost"] = shown["share_lost"].map(number_text)
    shown = shown.drop(columns="seed" if len(study.seeds) == 1 else []).astype(str)
    shown.columns = shown.columns.str.replace("_", " ")
    return frame, {"Centers with harmful or flagged images": shown}, words
