"""Good images flagged and eliminated by class, sex, age, size of their center and scanner, in every setting."""

import pandas as pd

from evaluation.diagnoses import ALL, Diagnoses
from evaluation.layout import CLEAN
from evaluation.render import count, number, text, view
from evaluation.tables import OUTCOMES, Study, cases, groups_of_good, outcomes, table
from travelling.beyond.screen import SCORE

GROUP = ["setting", "by", "group"]
COLUMNS = (
    "experiment", "kind", *GROUP, "runs", "number", "flagged", "flagged_share", "eliminated", "eliminated_share",
    "mean_score",
)  # fmt: skip


@table("Whom false alarms hit", section="found", place=4)
def false_alarms(study: Study, diagnoses: Diagnoses) -> tuple:
    """Good images flagged (at least once) and eliminated, by class, sex and age group of the subject, by the
    number of images that their center has (harmful ones counted) and, where the training set has a column Scanner, by
    scanner. Sums over all runs of a setting, in which the same images come again: the shares are no independent
    samples, and have no intervals. The mean score is that of each image in its last look, in standard deviations of the
    test set: where it is high, scores are uniformly raised, be it by harm or by a scanner that the test set lacks, and
    no decision rests on it. The CSV has every experiment and kind of harm by itself.
    """
    rows = []
    for case, runs in cases(study):
        groups = groups_of_good(runs)
        scored = all(SCORE in run.image_columns.values() for run in runs)  # the training set may have such a column
        rows += [
            case
            | {"by": by, "group": group, "runs": len(runs), "number": len(images)}
            | outcomes(images)
            | {"mean_score": images[SCORE].mean() if scored else None}
            for by in (ALL, "class", "sex", "age", "center size", "scanner")
            for group, images in groups.get(by, {}).items()
            if len(images)
        ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {"by": text("by"), "group": text("group")}
    cells |= {"runs": count("runs"), "good images": count("number")}
    for outcome in OUTCOMES:
        cells |= {outcome: count(outcome), f"share {outcome}": number(f"{outcome}_share")}
    if frame["mean_score"].notna().any():
        cells["mean score"] = number("mean_score")
    clean, views = frame["experiment"] == CLEAN, {}
    for title, part in (("Good images beside harmful ones", frame[~clean]), ("Clean images alone", frame[clean])):
        if len(part):
            part = part.assign(mean_score=part["mean_score"].astype(float) * part["number"])
            added = part.groupby(GROUP, sort=False)[["runs", "number", *OUTCOMES, "mean_score"]]
            sums = added.sum(min_count=1).reset_index()
            sums["mean_score"] /= sums["number"]
            for outcome in OUTCOMES:
                sums[f"{outcome}_share"] = sums[outcome] / sums["number"]
            views[title] = view(sums, ["setting"], cells)
    return frame, views or {"Good images": pd.DataFrame()}, {}
