"""Who was flagged and eliminated: harmful images (found) and good ones (false alarms), by class and center size."""

import numpy as np
import pandas as pd

from evaluation.intervals import wilson_interval
from evaluation.layout import CENTER_SIZES
from evaluation.render import by_cycle, count, leading, number, text, view
from evaluation.tables import GOOD, HARMFUL, OUTCOMES, Diagnoses, Study, cases, groups_of_good, table

WHOLE_CENTERS = "whole harmful centers"
CYCLES = {"flagged": "first_flagged_cycles", "eliminated": "eliminated_cycles"}
ENDINGS = ("", "_share", "_low", "_high", "_sd_over_seeds")
COLUMNS = (
    "experiment", "kind", "setting", "images", "seeds", "number",
    *(column for name in OUTCOMES for column in (*(f"{name}{ending}" for ending in ENDINGS), CYCLES[name])),
)  # fmt: skip


@table("Images found", section="found")
def detection(study: Study, diagnoses: Diagnoses) -> tuple:
    """Images flagged (at least once) and eliminated (harmful again at their revisit). The share of harmful
    images is the sensitivity of quality control, that of good ones its false alarms. {sums}Brackets{single}: 95 %
    Wilson intervals. Cycles: 'cycle: number of images', of the first flag and of the elimination. A center's size
    counts all its images. A harmful center counts as flagged or eliminated when all its images were.
    """
    rows = []
    for case, runs in cases(study):
        groups = [_groups(run) for run in runs]
        for name in (HARMFUL, GOOD, "good, HC", "good, PD", *map(_of_size, CENTER_SIZES), WHOLE_CENTERS):
            found = _found([by_name[name] for by_name in groups]) if runs else {}
            rows.append(case | {"images": name, "seeds": len(runs)} | found)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    # A group that an experiment does not have is not shown, such as whole centers among single images.
    shown = frame[(frame["number"] != 0) & ~((frame["images"] == WHOLE_CENTERS) & (frame["seeds"] == 0))]
    cells = {"images": text("images"), "number": count("number")}
    for name in OUTCOMES:
        low, high, deviation = (f"{name}{ending}" for ending in ENDINGS[2:])
        cells[name] = count(name)
        cells[f"share {name}"] = number(f"{name}_share", low=low, high=high, deviation=deviation)
        label = CYCLES[name].replace("_", " ").replace("cycles", "in cycle")
        cells[label] = text(CYCLES[name])
    settings = ["setting"] if len(study.settings) > 1 else []
    shown = view(shown, leading(study, "experiment", "kind", *settings), cells)
    sums = "Numbers are sums over seeds, shares ± standard deviation over seeds. "
    words = {"sums": sums, "single": " (single seeds)"} if len(study.seeds) > 1 else {"sums": "", "single": ""}
    return frame, {"Images flagged and eliminated": shown}, words


def _of_size(name):
    return f"good, center of {name}"


def _groups(run):
    """The images of every group, by its name; whole centers as if each were one image, found when its last one is."""
    good = groups_of_good([run])
    groups = {HARMFUL: run.harmful, GOOD: run.good} | {f"good, {name}": of for name, of in good["class"].items()}
    groups |= {_of_size(name): of for name, of in good["center size"].items()}
    whole = run.harmful[~run.harmful["Study"].isin(run.good["Study"])].groupby("Study")
    last = whole[["First_flagged", "Eliminated_cycle"]].agg(lambda cycles: cycles.max(skipna=False))
    return groups | {WHOLE_CENTERS: last}


def _found(groups):
    """Numbers, shares and cycles of a group of images, given as one DataFrame per seed."""
    row: dict = {"number": sum(map(len, groups))}
    for name, column in (("flagged", "First_flagged"), ("eliminated", "Eliminated_cycle")):
        cycles = pd.concat([group[column] for group in groups])
        found, shares = cycles.notna().sum(), [group[column].notna().mean() for group in groups if len(group)]
        low, high = wilson_interval(found, len(cycles)) if len(groups) == 1 else (np.nan, np.nan)
        deviation = np.std(shares, ddof=1) if len(shares) > 1 else np.nan
        values = (found, found / len(cycles) if len(cycles) else np.nan, low, high, deviation)
        row |= {f"{name}{ending}": value for ending, value in zip(ENDINGS, values, strict=True)}
        row[CYCLES[name]] = by_cycle(cycles)
    return row
