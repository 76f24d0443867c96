"""Good images flagged and eliminated by the size of their center and by scanner, in every setting."""

import pandas as pd

from evaluation.diagnoses import ALL, Diagnoses
from evaluation.layout import CLEAN
from evaluation.render import count, number, text, view
from evaluation.tables import OUTCOMES, Study, cases, groups_of_good, outcomes, table

GROUP = ["setting", "by", "group"]
COLUMNS = (
    "experiment", "kind", *GROUP, "runs", "number", "flagged", "flagged_share", "eliminated", "eliminated_share",
)  # fmt: skip


@table("Whom false alarms hit", section="found", place=4)
def false_alarms(study: Study, diagnoses: Diagnoses) -> tuple:
    """Good images flagged (put aside at least once) and eliminated, by the number of images that their center has
    (harmful ones counted) and, where the training set has a column Scanner, by scanner. Sums over all runs of a
    setting, in which the same images come again: the shares are no independent samples, and have no intervals. The CSV
    has every experiment and kind of harm by itself.
    """
    rows = []
    for case, runs in cases(study):
        groups = groups_of_good(runs)
        rows += [
            case | {"by": by, "group": group, "runs": len(runs), "number": len(images)} | outcomes(images)
            for by in (ALL, "center size", "scanner")
            for group, images in groups.get(by, {}).items()
            if len(images)
        ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    cells = {"by": text("by"), "group": text("group")}
    cells |= {"runs": count("runs"), "good images": count("number")}
    for outcome in OUTCOMES:
        cells |= {outcome: count(outcome), f"share {outcome}": number(f"{outcome}_share")}
    clean, views = frame["experiment"] == CLEAN, {}
    for title, part in (("Good images beside harmful ones", frame[~clean]), ("Clean images alone", frame[clean])):
        if len(part):
            sums = part.groupby(GROUP, sort=False)[["runs", "number", *OUTCOMES]].sum().reset_index()
            for outcome in OUTCOMES:
                sums[f"{outcome}_share"] = sums[outcome] / sums["number"]
            views[title] = view(sums, ["setting"], cells)
    return frame, views or {"Good images": pd.DataFrame()}, {}
