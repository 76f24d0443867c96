"""The tables of a study: diagnoses, detection, fairness and cost, each with its numbers and its text."""

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import numpy as np
import pandas as pd
from intervals import RESAMPLES, metric_replicates, paired_p_value, percentile_interval, wilson_interval
from scipy import stats
from study_layout import CENTER_SIZES, CLEAN, CONTROL_FOLDERS, DIRTY, PUBLISHED, control_folder
from study_records import SCREEN, harms, in_words

from travelling.cohort import SEPARATOR
from travelling.command import AGE_EDGES
from travelling.errors import InputError
from travelling.files import write_csv, write_whole
from travelling.metrics import METRICS, age_groups, performance, refuse_unordered_ages

METRIC_NAMES = {
    "AUC_ROC": "AUROC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "F1_SCORE": "F1",
}
MODEL_NAMES = {CLEAN: "clean", DIRTY: "dirty"} | {
    folder: "quality-controlled" + ("" if setting == PUBLISHED else f" ({setting.replace('_', ', ')})")
    for folder, setting in CONTROL_FOLDERS.items()
}
CLEAN_KEY = ("", "", CLEAN)
MISSING = "n/a"
ALL = "all"
HARMFUL, GOOD, WHOLE_CENTERS = "harmful", "good", "whole harmful centers"
PHASES = ("batch", "subject", "revisit")
OUTCOMES = ("flagged", "eliminated")
THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1)  # values of -error; the runs' own are added


@dataclass
class Table:
    """A table: ``frame`` has its numbers (for CSV), ``views`` what readers see: {title: DataFrame of text}.

    ``caption`` says what it shows and how it was computed, ``notes`` what is missing.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    views: dict
    notes: list = field(default_factory=list)


def make_tables(study, cycle=None, age_edges=AGE_EDGES, resamples=RESAMPLES, seed=0):
    """All tables of a :class:`study_records.Study`: a dict of :class:`Table`, by name.

    ``cycle`` is the one after which diagnoses are compared (None: the last that any model was tested after),
    ``age_edges`` the ages (years) at which a group begins, ``resamples`` and ``seed`` those of the bootstrap. Raises
    InputError where no model was tested after ``cycle`` or the edges do not increase.
    """
    refuse_unordered_ages(age_edges)
    diagnoses = Diagnoses(study, compared_cycle(study, cycle), age_edges, resamples, seed)
    made = [
        performance_table(study, diagnoses),
        detection_table(study),
        thresholds_table(study),
        centers_table(study),
        fairness_table(study, diagnoses),
        elimination_table(study, age_edges, seed),
        cost_table(study),
        settings_table(study, diagnoses),
        false_alarms_table(study),
    ]
    return {table.name: table for table in made}


def compared_cycle(study, cycle=None):
    """The cycle after which diagnoses are compared: the one asked for, or the last that any model was tested after.

    None where no model was tested. Raises InputError where none was tested after the one asked for.
    """
    tables = [model.predictions for model in study.models if model.predictions is not None]
    tested = sorted({int(number) for table in tables for number in table["cycle"].unique()})
    if cycle is not None and cycle not in tested:
        raise InputError(f"{study.folder}: no model was tested after cycle {cycle}; there are {tested}")
    return max(tested, default=None) if cycle is None else cycle


def subgroups(people, age_edges):
    """Boolean masks of the subgroups of a table with Sex and Age, by name: all, male, female, age groups."""
    return {
        ALL: np.ones(len(people), dtype=bool),
        "male": (people["Sex"] == "M").to_numpy(),
        "female": (people["Sex"] == "F").to_numpy(),
        **age_groups(people["Age"], age_edges),
    }


def subgroup_in_words(name):
    """``age_60_to_70`` -> ``age 60 to 70``."""
    return "all subjects" if name == ALL else name.replace("_", " ")


class Diagnoses:
    """Metrics of every model after one cycle, overall and by subgroup, with their bootstrap replicates.

    ``values`` maps (subgroup, model key, seed) to the METRICS, ``replicates`` to those of the resamples (metrics,
    resamples); ``sizes`` maps (subgroup, seed) to the numbers of HC and PD. Every subgroup is resampled on its own, so
    it keeps its size.
    """

    def __init__(self, study, cycle, age_edges, resamples, seed):
        self.cycle, self.keys, self.notes = cycle, study.keys, []
        self.values, self.replicates, self.sizes = {}, {}, {}
        streams = {}  # seeds with the same test set share its resamples; another test set has its own
        for name, tested in self._tested(study).items():
            people = tested[0][1]
            content = people[["Subject", "ground_truth", "Sex", "Age"]].astype(str).to_numpy()
            stream = streams.setdefault(tuple(content.ravel()), len(streams))
            for number, (subgroup, members) in enumerate(subgroups(people, age_edges).items()):
                labels = people["ground_truth"].to_numpy()[members]
                self.sizes[subgroup, name] = [int(np.sum(labels == label)) for label in (0, 1)]
                predictions = np.array([now["preds_raw"].to_numpy()[members] for _, now in tested])
                drawn = metric_replicates(labels, predictions, [seed, stream, number], resamples)
                for index, (key, _) in enumerate(tested):
                    metrics = performance(labels, predictions[index])
                    self.values[subgroup, key, name] = np.array([metrics[metric] for metric in METRICS])
                    self.replicates[subgroup, key, name] = drawn[index]
        self.subgroups = list(dict.fromkeys(subgroup for subgroup, _ in self.sizes))

    @property
    def when(self):
        """The cycle, in words."""
        return "(no model was tested)" if self.cycle is None else f"after cycle {self.cycle}"

    def _tested(self, study):
        """{seed: [(model key, its predictions by Subject)]} of the models that were tested after the cycle."""
        tested = {}
        for model in study.models:
            if model.predictions is None:
                continue
            now = model.predictions[model.predictions["cycle"] == self.cycle].sort_values("Subject")
            if now.empty:
                last = model.predictions["cycle"].max()
                place = model.folder.relative_to(study.folder)
                self.notes.append(f"{place}: not tested after cycle {self.cycle} (the last is {last})")
            else:
                tested.setdefault(model.seed, []).append((model.key, now))
        return tested

    def seeds(self, key):
        """The seeds whose model was tested."""
        return [seed for subgroup, other, seed in self.values if subgroup == ALL and other == key]

    def mean(self, subgroup, key, seeds):
        """Means over seeds: the METRICS (metrics,) and their replicates (metrics, resamples)."""
        return tuple(
            np.mean([source[subgroup, key, seed] for seed in seeds], axis=0)
            for source in (self.values, self.replicates)
        )


def performance_table(study, diagnoses):
    """Accuracy, sensitivity, specificity, F1 and AUROC of every model, overall and by subgroup, and against clean."""
    columns = (
        "experiment", "kind", "model", "subgroup", "metric", "cycle", "seeds", "HC", "PD", "value", "low", "high",
        "sd_over_seeds", "difference_to_clean", "difference_low", "difference_high", "p_value",
    )  # fmt: skip
    rows = [
        row
        for subgroup in diagnoses.subgroups
        for key in diagnoses.keys
        for row in _performance(diagnoses, subgroup, key)
    ]
    frame = pd.DataFrame(rows, columns=columns)
    views = {}
    for subgroup in diagnoses.subgroups:
        part = frame[frame["subgroup"] == subgroup]
        sizes = Counter(tuple(size) for (name, _), size in diagnoses.sizes.items() if name == subgroup)
        in_each = " or ".join(f"{healthy} HC and {patients} PD" for healthy, patients in sizes)
        views[f"{subgroup_in_words(subgroup).capitalize()}: {in_each}"] = wide(part, _value_cell)
    others = frame[(frame["subgroup"] == ALL) & (frame["model"] != CLEAN)]
    if len(others):
        view = wide(
            others, lambda row: with_interval(row, "difference_to_clean", "difference_low", "difference_high", True)
        )
        view["p (AUROC)"] = [p_text(value) for value in others[others["metric"] == "AUC_ROC"]["p_value"]]
        views["Difference to the clean model, all subjects"] = view
    caption = (
        f"Diagnoses of the test set {diagnoses.when}. Brackets: 95 % percentile intervals of a bootstrap over test "
        "subjects, stratified by class. "
        + ("Metrics are means over seeds ± standard deviation over seeds. " if len(study.seeds) > 1 else "")
        + "Differences are paired (the same resamples for both models); p: two-sided, by the same bootstrap, not "
        "corrected for the number of comparisons. An interval without width means that the model diagnosed everybody "
        "of a class alike. No interval says how another training run would differ."
    )
    return Table("performance", "Diagnoses", caption, frame, views, notes_of(study, diagnoses.notes))


def _performance(diagnoses, subgroup, key):
    """One row per metric of a model in a subgroup."""
    seeds = diagnoses.seeds(key)
    sizes = dict(zip(("HC", "PD"), diagnoses.sizes[subgroup, seeds[0]], strict=True)) if seeds else {}
    rows = metric_rows(diagnoses, key, lambda model, some: diagnoses.mean(subgroup, model, some), "difference")
    return [{"subgroup": subgroup} | sizes | row for row in rows]


def metric_rows(diagnoses, key, of, difference):
    """One row per metric of a model, with what it is against the clean model's.

    ``of(model key, seeds)`` gives what is told of a model: values (metrics,) and their replicates (metrics,
    resamples). ``difference`` is what that to the clean model is called in the names of columns.
    """
    identity = dict(zip(("experiment", "kind", "model"), key, strict=True))
    seeds = diagnoses.seeds(key)
    if not seeds:
        return [identity | {"metric": metric, "seeds": 0} for metric in METRICS]
    values, drawn = of(key, seeds)
    low, high = percentile_interval(drawn)
    each = np.array([of(key, [seed])[0] for seed in seeds])
    deviation = each.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(METRICS), np.nan)
    both = [seed for seed in seeds if seed in diagnoses.seeds(CLEAN_KEY)] if key != CLEAN_KEY else []
    if both:
        (mine, my_drawn), (clean, clean_drawn) = (of(model, both) for model in (key, CLEAN_KEY))
        changes, drawn_changes = mine - clean, my_drawn - clean_drawn
        below, above = percentile_interval(drawn_changes)
    rows = []
    for index, metric in enumerate(METRICS):
        row = identity | {"metric": metric, "cycle": diagnoses.cycle, "seeds": len(seeds)}
        row |= {"value": values[index], "low": low[index], "high": high[index], "sd_over_seeds": deviation[index]}
        if both:
            row[f"{difference}_to_clean"] = changes[index]
            row |= {f"{difference}_low": below[index], f"{difference}_high": above[index]}
            row["p_value"] = paired_p_value(drawn_changes[index]) if metric == "AUC_ROC" else np.nan
        rows.append(row)
    return rows


def wide(part, cell):
    """One row per model, one column per metric, from one row per model and metric; ``cell(row)`` gives the text.

    Where the study has several seeds, a column tells how many of them a row is about.
    """
    several = part["seeds"].max() > 1
    rows = []
    for key, group in part.groupby(["experiment", "kind", "model"], sort=False):
        by_metric = group.set_index("metric")
        seeds = {"seeds": count_text(group["seeds"].iloc[0])} if several else {}
        cells = {name: cell(by_metric.loc[metric]) for metric, name in METRIC_NAMES.items()}
        rows.append(identity_cells(*key) | seeds | cells)
    return pd.DataFrame(rows)


def identity_cells(experiment, kind, model=None, setting=None):
    """The cells that say which run a row is about."""
    cells = {"experiment": in_words(experiment), "kind": in_words(kind)}
    cells |= {"model": MODEL_NAMES[model]} if model else {}
    return cells | ({"setting": setting_in_words(setting)} if setting else {})


def setting_in_words(setting):
    """``evidence_screen`` -> ``evidence, screen``."""
    return setting.replace("_", ", ")


def experiments_and_settings(study):
    """Every (experiment, kind) in every setting of the study: [(condition, setting)]."""
    settings = study.settings or [study.main_setting]
    return [(condition, setting) for condition in study.conditions for setting in settings]


def of_shown_setting(study):
    """What a caption adds where a table is about one setting of several."""
    if len(study.settings) < 2:
        return ""
    return f" Of the setting '{setting_in_words(study.main_setting)}' only; the table settings compares all of them."


def number_text(value, sign=False, digits=3):
    """A number for readers, n/a where there is none."""
    if pd.isna(value):
        return MISSING
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no "-0.000"


def with_interval(row, value, low, high, sign=False):
    """A number with its interval, where there is one."""
    text = number_text(row[value], sign)
    if pd.isna(row[value]) or pd.isna(row[low]):
        return text
    return f"{text} [{number_text(row[low], sign)}, {number_text(row[high], sign)}]"


def _value_cell(row):
    deviation = "" if pd.isna(row["sd_over_seeds"]) else f" ± {row['sd_over_seeds']:.3f}"
    return with_interval(row, "value", "low", "high") + deviation


def p_text(value):
    """A p-value for readers."""
    if pd.isna(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def notes_of(study, more=()):
    """What is missing, each once."""
    return list(dict.fromkeys([*study.notes, *more]))


def image_groups():
    """The groups of images that detection is told for: {name: function of the images that returns a mask}."""
    groups = {
        HARMFUL: lambda images: images["Harmful"],
        GOOD: lambda images: ~images["Harmful"],
        "good, HC": lambda images: ~images["Harmful"] & (images["Group_bin"] == 0),
        "good, PD": lambda images: ~images["Harmful"] & (images["Group_bin"] == 1),
    }
    for name, bounds in CENTER_SIZES.items():
        groups[f"good, center of {name}"] = lambda images, bounds=bounds: (
            ~images["Harmful"] & images["Center_images"].between(*bounds)
        )
    return groups


def detection_table(study):
    """Who was flagged and eliminated: harmful images (found) and good ones (false alarms), by class and center size."""
    rows = []
    for condition, setting in experiments_and_settings(study):
        runs = study.runs(condition, setting)
        identity = {"experiment": condition[0], "kind": condition[1], "setting": setting, "seeds": len(runs)}
        for name, members in image_groups().items():
            rows.append(identity | {"images": name} | _outcome([run.images[members(run.images)] for run in runs]))
        rows.append(identity | {"images": WHOLE_CENTERS} | _outcome_of_whole_centers(runs))
    frame = pd.DataFrame(rows, columns=_DETECTION_COLUMNS)
    several = len(study.seeds) > 1
    caption = (
        "Images flagged (put aside at least once) and eliminated (harmful again at their revisit). The share of "
        "harmful images is the sensitivity of quality control, that of good ones its false alarms. "
        + ("Numbers are sums over seeds, shares ± standard deviation over seeds. " if several else "")
        + f"Brackets{' (single seeds)' if several else ''}: 95 % Wilson intervals. "
        + "Cycles: 'cycle: number of images', of the first flag and of the elimination. A center's size counts all "
        "its images. A harmful center counts as flagged or eliminated when all its images were."
    )
    return Table(
        "detection",
        "Images found",
        caption,
        frame,
        {"Images flagged and eliminated": _detection_view(frame)},
        notes_of(study),
    )


_SHARE_COLUMNS = ("", "_share", "_low", "_high", "_sd_over_seeds")
_DETECTION_COLUMNS = (
    "experiment", "kind", "setting", "images", "seeds", "number",
    *(f"flagged{ending}" for ending in _SHARE_COLUMNS), "first_flagged_cycles",
    *(f"eliminated{ending}" for ending in _SHARE_COLUMNS), "eliminated_cycles",
)  # fmt: skip


def _outcome(groups):
    """Numbers, shares and cycles of a group of images, given as one DataFrame per seed."""
    if not groups:
        return {}
    images = pd.concat(groups)
    return {
        "number": len(images),
        **_share("flagged", [group["Times_flagged"] > 0 for group in groups]),
        "first_flagged_cycles": by_cycle(images["First_flagged"]),
        **_share("eliminated", [group["Eliminated"] for group in groups]),
        "eliminated_cycles": by_cycle(images["Eliminated_cycle"]),
    }


def _outcome_of_whole_centers(runs):
    """The same for centers that hold only harmful images: found whole or not, and when the last image was."""
    if not runs:
        return {}
    cycles = [_last_cycles(run.images.groupby("Study").filter(lambda center: center["Harmful"].all())) for run in runs]
    every = pd.concat(cycles)
    return {
        "number": len(every),
        **_share("flagged", [seed["First_flagged"].notna() for seed in cycles]),
        "first_flagged_cycles": by_cycle(every["First_flagged"]),
        **_share("eliminated", [seed["Eliminated_cycle"].notna() for seed in cycles]),
        "eliminated_cycles": by_cycle(every["Eliminated_cycle"]),
    }


def _last_cycles(images):
    """By center, the cycle in which its last image was flagged and eliminated; NA where one never was."""
    columns = ["First_flagged", "Eliminated_cycle"]
    return images.groupby("Study")[columns].agg(lambda cycles: cycles.max(skipna=False))


def _share(name, marks):
    """Number and share of the marked, with Wilson's interval (one seed) or the standard deviation (several)."""
    number, total = sum(int(mark.sum()) for mark in marks), sum(map(len, marks))
    shares = [mark.mean() for mark in marks if len(mark)]
    low, high = wilson_interval(number, total) if len(marks) == 1 else (np.nan, np.nan)
    deviation = np.std(shares, ddof=1) if len(shares) > 1 else np.nan
    values = (number, number / total if total else np.nan, low, high, deviation)
    return {f"{name}{ending}": value for ending, value in zip(_SHARE_COLUMNS, values, strict=True)}


def by_cycle(cycles):
    """How many in which cycle: "10: 4, 11: 1"."""
    counts = cycles.dropna().astype(int).value_counts().sort_index()
    return ", ".join(f"{cycle}: {number}" for cycle, number in counts.items())


def _detection_view(frame):
    several = frame["seeds"].max() > 1
    rows = []
    for _, row in frame.iterrows():
        if row["number"] == 0 or (row["images"] == WHOLE_CENTERS and row["seeds"] == 0):
            continue  # a group that the experiment does not have, such as whole centers among single images
        cells = identity_cells(row["experiment"], row["kind"], setting=_setting_where_several(frame, row["setting"]))
        cells |= {"seeds": count_text(row["seeds"])} if several else {}
        cells |= {"images": row["images"], "number": count_text(row["number"])}
        for name, cycles in (("flagged", "first_flagged_cycles"), ("eliminated", "eliminated_cycles")):
            deviation = row[f"{name}_sd_over_seeds"]
            share = with_interval(row, f"{name}_share", f"{name}_low", f"{name}_high")
            cells[name] = count_text(row[name])
            cells[f"share {name}"] = share + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")
            cells[cycles.replace("_", " ").replace("cycles", "in cycle")] = (
                row[cycles] if isinstance(row[cycles], str) else MISSING
            )
        rows.append(cells)
    return pd.DataFrame(rows)


def _setting_where_several(frame, setting):
    """The setting, where the table is about several; otherwise None, which leaves the column out."""
    return setting if frame["setting"].nunique() > 1 else None


def count_text(value):
    """A whole number for readers, n/a where there is none."""
    return number_text(value, digits=0)


def summary_of_performance(table):
    """The metrics of all subjects without intervals, a DataFrame with a row per model: what the demo prints."""
    frame = table.frame[table.frame["subgroup"] == ALL]
    return wide(frame, lambda row: number_text(row["value"]))


def summary_of_detection(table):
    """Numbers of harmful and good images, flagged and eliminated by cycle: what the demo prints."""
    rows = []
    for (experiment, kind, setting), group in table.frame.groupby(["experiment", "kind", "setting"], sort=False):
        row = identity_cells(experiment, kind, setting=_setting_where_several(table.frame, setting))
        for name in (HARMFUL, GOOD):
            images = group.set_index("images").loc[name]
            row[f"{name} images"] = count_text(images["number"])
            for outcome, cycles in (("flagged", "first_flagged_cycles"), ("eliminated", "eliminated_cycles")):
                in_cycles = f" ({images[cycles]})" if images[outcome] > 0 else ""
                row[f"{name} {outcome}"] = count_text(images[outcome]) + in_cycles
        rows.append(row)
    return pd.DataFrame(rows)


def detection_by_threshold(run, thresholds=None):
    """What other values of -error would have done in the run's first cycle: a DataFrame, one row per threshold.

    ``threshold`` is the rise of FPR or FNR per image; None takes all values at which something changes, and the run's
    own. ``harmful_flagged`` and ``good_flagged`` are the shares of images for which the log shows that they would have
    been flagged: the batch and then the image alone rose by more than the threshold. ``..._eliminated`` are those of
    them whose revisit rose by more, too. ``..._at_most`` adds the images of which the log does not tell it: those of
    batches that a threshold below the run's own would have undone but the run did not, so that nobody tried the images
    alone, and those that were not revisited.

    Every row is taken as recorded, with the model and reference that this run had then; with another threshold other
    steps would have been undone and later rows would differ. Later cycles depend on the first, so it is the only one
    whose flags are used.
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
        rises = np.concatenate([steps["Rise"] for steps in (batch, own, again)])
        thresholds = np.unique(np.append(rises[~np.isnan(rises)], [0, run.error]).clip(min=0).round(12))
    harmful = images["Harmful"].to_numpy()
    rows = []
    for threshold in thresholds:
        row = {"threshold": threshold}
        flagged, flagged_at_most = True, True
        for outcome, steps in (("undone", batch), ("flagged", own), ("eliminated", again)):
            harmful_steps = harms(steps, steps["Images"] * threshold, run.protocol)
            flagged = flagged & harmful_steps
            flagged_at_most = flagged_at_most & (harmful_steps | steps["Rise"].isna().to_numpy())
            if outcome not in OUTCOMES:
                continue
            for name, those in ((HARMFUL, harmful), (GOOD, ~harmful)):
                row[f"{name}_{outcome}"] = flagged[those].mean() if those.any() else np.nan
                row[f"{name}_{outcome}_at_most"] = flagged_at_most[those].mean() if those.any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def thresholds_table(study):
    """Sensitivity and false alarms of other values of -error, as far as the logs tell: means over seeds."""
    outcomes = [f"{name}_{outcome}" for name in (HARMFUL, GOOD) for outcome in OUTCOMES]
    endings = ("", "_at_most", "_sd_over_seeds")
    columns = (
        "experiment", "kind", "seeds", "revisit", "threshold", "of_this_study",
        *(f"{outcome}{ending}" for outcome in outcomes for ending in endings),
    )  # fmt: skip
    rows = []
    for condition in study.conditions:
        runs = [run for run in study.runs(condition) if run.by_tolerance]
        own = {round(run.error, 9) for run in runs}
        grid = sorted({*THRESHOLDS, *own})
        tables = [detection_by_threshold(run, grid) for run in runs]
        waits = "; ".join(dict.fromkeys(str(run.revisit) for run in runs if run.revisit))
        for number, threshold in enumerate(grid if runs else ()):
            row = dict(zip(columns, (*condition, len(runs), waits, threshold, threshold in own), strict=False))
            for outcome in outcomes:
                values = [table[outcome][number] for table in tables]
                row[outcome] = np.mean(values)
                row[f"{outcome}_at_most"] = np.mean([table[f"{outcome}_at_most"][number] for table in tables])
                row[f"{outcome}_sd_over_seeds"] = np.std(values, ddof=1) if len(runs) > 1 else np.nan
            rows.append(row)
    frame = pd.DataFrame(rows, columns=columns)
    view = []
    for _, row in frame.iterrows():
        cells = identity_cells(row["experiment"], row["kind"])
        cells |= {"seeds": count_text(row["seeds"])} if len(study.seeds) > 1 else {}
        cells["-error"] = f"{row['threshold']:g}{' (as run)' if row['of_this_study'] else ''}"
        cells |= {outcome.replace("_", " "): _range_cell(row, outcome) for outcome in outcomes}
        view.append(cells)
    caption = (
        "Shares of images that other values of -error would have flagged in the first cycle, and eliminated at the "
        "revisit that followed: of harmful images the sensitivity, of good ones the false alarms. From the rises of "
        "FPR and FNR that the logs record, each step judged in the state that its own run was in: with another value "
        "other steps would have been undone, and everything after them would differ. 'to': up to so many, where the "
        "log does not tell because nobody tried these images alone. Images that the screen put aside before are no "
        "part of it. It says nothing of another -revisit, for which the study must be run again."
        + (" Means over seeds ± standard deviation over seeds." if len(study.seeds) > 1 else "")
        + of_shown_setting(study)
    )
    views = {"Images found by threshold": pd.DataFrame(view)}
    return Table("thresholds", "Other values of -error", caption, frame, views, notes_of(study))


def _range_cell(row, outcome):
    text = number_text(row[outcome])
    deviation = row[f"{outcome}_sd_over_seeds"]
    text += "" if pd.isna(deviation) else f" ± {deviation:.3f}"
    most = row[f"{outcome}_at_most"]
    return f"{text} to {number_text(most)}" if most > row[outcome] else text


def centers_table(study):
    """What every center lost: its images, harmful and good, flagged and eliminated; one row per run and center."""
    columns = (
        "experiment", "kind", "seed", "center", "images", "harmful", "harmful_flagged", "harmful_eliminated", "good",
        "good_flagged", "good_eliminated", "share_lost",
    )  # fmt: skip
    rows = []
    for run in study.shown_controls:
        for center, images in run.images.groupby("Study", sort=False):
            row = {
                "experiment": run.experiment,
                "kind": run.kind,
                "seed": run.seed,
                "center": center,
                "images": len(images),
            }
            for name, group in ((HARMFUL, images[images["Harmful"]]), (GOOD, images[~images["Harmful"]])):
                row[name] = len(group)
                row[f"{name}_flagged"] = int((group["Times_flagged"] > 0).sum())
                row[f"{name}_eliminated"] = int(group["Eliminated"].sum())
            rows.append(row | {"share_lost": images["Eliminated"].mean()})
    frame = pd.DataFrame(rows, columns=columns)
    touched = frame[(frame["harmful"] > 0) | (frame["good_flagged"] > 0)]
    view = touched.assign(
        experiment=touched["experiment"].str.replace("_", " "), share_lost=touched["share_lost"].map(number_text)
    ).astype(str)
    if len(study.seeds) == 1:
        view = view.drop(columns="seed")
    view.columns = [column.replace("_", " ") for column in view.columns]
    caption = (
        f"Images per center, and how many of them were flagged and eliminated. Shown are the {len(touched)} of "
        f"{len(frame)} centers (of all runs) that held a harmful image or had a good one flagged; the CSV has all."
        + of_shown_setting(study)
    )
    return Table(
        "centers",
        "What centers lost",
        caption,
        frame,
        {"Centers with harmful or flagged images": view},
        notes_of(study),
    )


def fairness_table(study, diagnoses):
    """Gaps between subgroups in each model: men minus women, and best minus worst age group."""
    columns = (
        "experiment", "kind", "model", "gap", "metric", "cycle", "seeds", "value", "low", "high", "sd_over_seeds",
        "change_to_clean", "change_low", "change_high",
    )  # fmt: skip
    kinds = {"male - female": ["male", "female"]}
    ages = [name for name in diagnoses.subgroups if name.startswith("age_")]
    if len(ages) > 1:
        kinds["best - worst age group"] = ages
    rows = [
        {"gap": gap} | row
        for gap, groups in kinds.items()
        for key in diagnoses.keys
        for row in metric_rows(diagnoses, key, partial(_gap, diagnoses, groups), "change")
    ]
    frame = pd.DataFrame(rows, columns=columns)
    views = {}
    for gap in kinds:
        part = frame[frame["gap"] == gap]
        views[gap.capitalize()] = wide(part, _value_cell)
        others = part[part["model"] != CLEAN]
        if len(others):
            views[f"{gap.capitalize()}: change of the gap to that of the clean model"] = wide(
                others, lambda row: with_interval(row, "change_to_clean", "change_low", "change_high", True)
            )
    caption = (
        f"Gaps between subgroups of the test set {diagnoses.when}, with 95 % bootstrap intervals (each subgroup "
        "resampled on its own, stratified by class). Best minus worst age group is never below 0 and larger by chance "
        "alone the smaller the groups: compare it with the clean model's. n/a: a group lacks the class that the "
        "metric needs, or its ages."
    )
    return Table("fairness", "Gaps between subgroups", caption, frame, views, notes_of(study, diagnoses.notes))


def _gap(diagnoses, groups, key, seeds):
    """The gap of the mean METRICS over seeds, and of its replicates: first minus second of two sexes, range of ages."""
    gaps = []
    for parts in zip(*(diagnoses.mean(group, key, seeds) for group in groups), strict=True):
        stacked = np.array(parts)  # NaN in one group makes the gap NaN: it would be one between other groups
        gaps.append(stacked[0] - stacked[1] if groups[0] == "male" else stacked.max(axis=0) - stacked.min(axis=0))
    return gaps


def elimination_table(study, age_edges, seed):
    """Whether the good images of one class, sex or age group were flagged and eliminated more often."""
    columns = (
        "experiment", "kind", "attribute", "subgroup", "seeds", "number", "flagged", "flagged_share", "flagged_p_value",
        "eliminated", "eliminated_share", "eliminated_p_value",
    )  # fmt: skip
    rows = []
    for condition in study.conditions:
        runs = study.runs(condition)
        good = pd.concat([run.images[~run.images["Harmful"]] for run in runs]) if runs else None
        for attribute, groups in _attributes(good, age_edges).items():
            identity = dict(zip(columns, (*condition, attribute), strict=False)) | {"seeds": len(runs)}
            rows += [identity | row for row in _outcome_by_group(good, groups, seed if len(runs) == 1 else None)]
    frame = pd.DataFrame(rows, columns=columns)
    view = []
    for _, row in frame.iterrows():
        cells = identity_cells(row["experiment"], row["kind"])
        cells |= {"subgroup": subgroup_in_words(row["subgroup"]), "good images": count_text(row["number"])}
        for outcome in OUTCOMES:
            cells[outcome] = count_text(row[outcome])
            cells[f"share {outcome}"] = number_text(row[f"{outcome}_share"])
            cells[f"p ({outcome})"] = p_text(row[f"{outcome}_p_value"])
        view.append(cells)
    caption = (
        "Good images flagged and eliminated, by class, sex and age group of the subject. p: Fisher's exact test that "
        "all groups of one attribute have the same share, not corrected for the number of tests (n/a where there is "
        "nothing to compare: nobody or everybody, or several seeds, whose images are of the same people)."
        + of_shown_setting(study)
    )
    views = {"Good images by subgroup": pd.DataFrame(view)}
    return Table("elimination", "Whose good images were lost", caption, frame, views, notes_of(study))


def _outcome_by_group(good, groups, seed):
    """One row per group of good images; p-values where there is a ``seed`` for their simulation."""
    marks = {"flagged": (good["Times_flagged"] > 0).to_numpy(), "eliminated": good["Eliminated"].to_numpy()}
    rows = [{"subgroup": name, "number": int(mask.sum())} for name, mask in groups.items()]
    for outcome, marked in marks.items():
        counts = [(int(marked[mask].sum()), int((~marked)[mask].sum())) for mask in groups.values()]
        p_value = np.nan if seed is None else _same_share_p_value(counts, seed)
        for row, (yes, no) in zip(rows, counts, strict=True):
            row |= {outcome: yes, f"{outcome}_share": yes / (yes + no), f"{outcome}_p_value": p_value}
    return rows


def _attributes(good, age_edges):
    """{attribute: {subgroup: mask}} of images; groups nobody is in are left out."""
    if good is None:
        return {}
    masks = subgroups(good, age_edges)
    attributes = {
        "class": {"HC": (good["Group_bin"] == 0).to_numpy(), "PD": (good["Group_bin"] == 1).to_numpy()},
        "sex": {name: masks[name] for name in ("male", "female")},
        "age": {name: mask for name, mask in masks.items() if name.startswith("age_")},
    }
    return {
        attribute: {name: mask for name, mask in groups.items() if mask.any()}
        for attribute, groups in attributes.items()
    }


def _same_share_p_value(counts, seed):
    """Fisher's exact test of (yes, no) counts of several groups: exact for two, by seeded simulation for more."""
    counts = np.array(counts)
    if len(counts) < 2 or not counts.sum(axis=0).all():
        return np.nan
    method = stats.MonteCarloMethod(rng=np.random.default_rng(seed)) if len(counts) > 2 else None
    return float(stats.fisher_exact(counts, method=method).pvalue)


def cost_table(study):
    """What quality control costs: time per cycle, verifications, and the share of steps that were undone."""
    columns = (
        "experiment", "kind", "model", "seeds", "finished", "timed_cycles", "seconds_per_cycle", "times_dirty",
        "cycles", "verifications", "undone", "undone_share",
        *(f"{phase}_{what}" for phase in PHASES for what in ("verifications", "undone")),
        "good_batches_undone", "screened", "screened_flagged", "screened_eliminated", "device",
    )  # fmt: skip
    by_key = {key: [model for model in study.models if model.key == key] for key in study.keys}
    seconds = {key: _mean_seconds(models) for key, models in by_key.items()}
    rows = []
    for key, models in by_key.items():
        row = dict(zip(columns, key, strict=False)) | {"seeds": len(models)}
        row["finished"] = sum(model.finished for model in models)
        row["timed_cycles"] = sum(len(model.cycle_seconds) for model in models)
        row["seconds_per_cycle"] = seconds[key]
        row["device"] = "; ".join(dict.fromkeys(device for model in models for device in devices(model)))
        if key[2] in CONTROL_FOLDERS:
            row["times_dirty"] = seconds[key] / seconds.get((*key[:2], DIRTY), np.nan)
            row |= _verifications([run for run in study.controls if run.key == key])
        rows.append(row)
    frame = pd.DataFrame(rows, columns=columns)
    caption = (
        "Wall-clock seconds per cycle (mean of the cycles that ran without interruption, from the plain logs; runs on "
        "a shared machine slow each other), 'times dirty' relative to the dirty baseline; the verifications of "
        "quality control (sums over seeds), how many of their steps were undone, in which phase, and how many undone "
        "batches held good images only."
    )
    screened = frame["screened"].sum() > 0
    if screened:
        caption += (
            " Screened: images that the screen judged, how many of them it put aside, and how many it eliminated at "
            "their revisit; it trains nothing, so these are no verifications."
        )
    views = {"Time and verifications": pd.DataFrame([_cost_cells(row, screened) for _, row in frame.iterrows()])}
    return Table("cost", "Cost", caption, frame, views, notes_of(study))


def _cost_cells(row, screened):
    cells = identity_cells(row["experiment"], row["kind"], row["model"])
    cells["seconds per cycle"] = number_text(row["seconds_per_cycle"], digits=1)
    further = {
        "times dirty": number_text(row["times_dirty"], digits=1),
        "verifications": count_text(row["verifications"]),
        "undone": count_text(row["undone"]),
        "share undone": number_text(row["undone_share"]),
    }
    for phase, plural in zip(PHASES, ("batches", "subjects", "revisits"), strict=True):
        further[f"{plural}, undone"] = ", ".join(
            count_text(row[f"{phase}_{what}"]) for what in ("verifications", "undone")
        )
    further["good batches undone"] = count_text(row["good_batches_undone"])
    if screened:
        further["screened, put aside, eliminated"] = ", ".join(
            count_text(row[column]) for column in ("screened", "screened_flagged", "screened_eliminated")
        )
    # The others verify nothing, which is not the same as not known.
    return cells | (further if row["model"] in CONTROL_FOLDERS else dict.fromkeys(further, ""))


def _mean_seconds(models):
    seconds = [duration for model in models for duration in model.cycle_seconds.values()]
    return float(np.mean(seconds)) if seconds else np.nan


def devices(model):
    """The devices on which a model was trained, as its record names them."""
    record = model.records.get(model.folder / "run.json", {"sessions": []})
    return list(dict.fromkeys(str(session["device"]) for session in record["sessions"] if "device" in session))


def _verifications(runs):
    """Numbers of verifications and of undone steps of one condition's runs of quality control."""
    if not runs:
        return {}
    log = pd.concat([run.log[1:] for run in runs])
    row = {"cycles": sum(run.log["Cycle"][1:].nunique() for run in runs), "verifications": len(log)}
    row |= {"undone": int(log["Ignored"].sum()), "undone_share": log["Ignored"].mean()}
    for phase in PHASES:
        part = log[log["Phase"] == phase]
        row |= {f"{phase}_verifications": len(part), f"{phase}_undone": int(part["Ignored"].sum())}
    undone = [
        (run, steps) for run in runs for steps in [run.log[(run.log["Phase"] == "batch") & (run.log["Ignored"] == 1)]]
    ]
    row["good_batches_undone"] = sum(int((~holds_harm(run, steps)).sum()) for run, steps in undone)
    screening = pd.concat([run.screening for run in runs])
    screens = screening[screening["Phase"] == SCREEN]
    row |= {"screened": len(screens), "screened_flagged": int(screens["Ignored"].sum())}
    return row | {"screened_eliminated": int(screening["Eliminated"].sum())}


# What the table of settings tells of each, per seed: {column: (name for readers, digits)}.
_SETTING_MEASURES = {
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


def settings_table(study, diagnoses):
    """The settings of quality control side by side: what each finds, loses and costs, and what it does to AUROC."""
    columns = ["experiment", "kind", "setting", "seeds", "cycle"]
    columns += [f"{name}{ending}" for name in _SETTING_MEASURES for ending in ("", "_sd_over_seeds")]
    rows, view = [], []
    for condition, setting in experiments_and_settings(study):
        key = (*condition, control_folder(setting))
        per_seed = [_measures(study, diagnoses, key, seed) for seed in study.seeds]
        known = pd.DataFrame(per_seed, columns=list(_SETTING_MEASURES), dtype=float)
        means, deviations = known.mean(), known.std(ddof=1)
        row = dict(
            zip(columns, (*condition, setting, len(study.runs(condition, setting)), diagnoses.cycle), strict=False)
        )
        cells = identity_cells(*condition, setting=setting)
        cells |= {"seeds": count_text(row["seeds"])} if len(study.seeds) > 1 else {}
        for name, (label, digits) in _SETTING_MEASURES.items():
            row |= {name: means[name], f"{name}_sd_over_seeds": deviations[name]}
            cells[label] = number_text(means[name], sign=name.startswith("difference"), digits=digits)
            if pd.notna(deviations[name]) and name not in (HARMFUL, GOOD):
                cells[label] += f" ± {deviations[name]:.{digits}f}"
        rows.append(row)
        view.append(cells)
    caption = (
        "Settings of quality control compared: published (a rise of FPR or FNR above -error), evidence (--rule "
        "evidence), screen (published, with --screen) and both. Shares of harmful images flagged (put aside at least "
        "once) and eliminated, and of good ones, which are false alarms; cycles until a harmful image was eliminated "
        "(median of those that were; the first cycle of the run counts as 1); the share of verifications whose step "
        f"was undone; AUROC {diagnoses.when} and its differences to the clean and to the dirty model of the same seed; "
        "seconds of the run from its record (n/a where it was interrupted: it does not tell for how long)."
        + (" Means over seeds ± standard deviation over seeds." if len(study.seeds) > 1 else "")
    )
    views = {"Settings of quality control": pd.DataFrame(view)}
    frame = pd.DataFrame(rows, columns=columns)
    return Table("settings", "Settings compared", caption, frame, views, notes_of(study, diagnoses.notes))


def _measures(study, diagnoses, key, seed):
    """What the table of settings tells of the run of one seed; what is not known is left out."""
    measures = {}
    run = next((run for run in study.controls if (run.key, run.seed) == (key, seed)), None)
    if run:
        first = run.cycles[0]
        for name, images in ((HARMFUL, run.images[run.images["Harmful"]]), (GOOD, run.images[~run.images["Harmful"]])):
            measures[name] = len(images)
            measures[f"{name}_flagged_percent"] = 100 * (images["Times_flagged"] > 0).mean()
            measures[f"{name}_eliminated_percent"] = 100 * images["Eliminated"].mean()
            if name == HARMFUL:
                cycles = images["Eliminated_cycle"].dropna().astype(float)
                measures["cycles_until_elimination"] = (cycles - first + 1).median()
        measures["undone_percent"] = 100 * run.log["Ignored"][1:].mean()
    for model in study.models:
        if (model.key, model.seed) == (key, seed):
            measures["run_seconds"] = _run_seconds(model)
    place = METRICS.index("AUC_ROC")
    values = {
        name: diagnoses.values[ALL, other, seed][place]
        for name, other in (("own", key), (CLEAN, CLEAN_KEY), (DIRTY, (*key[:2], DIRTY)))
        if (ALL, other, seed) in diagnoses.values
    }
    if "own" in values:
        measures["AUC_ROC"] = values["own"]
        measures["difference_to_clean"] = values["own"] - values.get(CLEAN, np.nan)
        measures["difference_to_dirty"] = values["own"] - values.get(DIRTY, np.nan)
    return measures


def _run_seconds(model):
    """Seconds from the start to the end of a run that was not interrupted, NaN of any other."""
    record = model.records.get(model.folder / "run.json")
    if not record or not record["finished"] or len(record["sessions"]) != 1:
        return np.nan
    begin, end = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
    return (end - begin).total_seconds()


def false_alarms_table(study):
    """Good images flagged and eliminated by the size of their center and by scanner, in every setting."""
    columns = ["experiment", "kind", "setting", "by", "group", "runs", "number"]
    columns += [f"{outcome}{ending}" for outcome in OUTCOMES for ending in ("", "_share")]
    rows, views = [], {}
    for condition, setting in experiments_and_settings(study):
        identity = dict(zip(columns, (*condition, setting), strict=False))
        rows += [identity | row for row in _false_alarms(study.runs(condition, setting))]
    frame = pd.DataFrame(rows, columns=columns)
    clean = frame["experiment"] == CLEAN
    for title, part in (("Good images beside harmful ones", frame[~clean]), ("Clean images alone", frame[clean])):
        if len(part) == 0:
            continue
        groups = part.groupby(["setting", "by", "group"], sort=False)[["runs", "number", *OUTCOMES]].sum()
        view = []
        for (setting, by, group), row in groups.iterrows():
            cells = {"setting": setting_in_words(setting), "by": by, "group": group, "runs": count_text(row["runs"])}
            cells["good images"] = count_text(row["number"])
            for outcome in OUTCOMES:
                cells[outcome] = count_text(row[outcome])
                cells[f"share {outcome}"] = number_text(row[outcome] / row["number"] if row["number"] else np.nan)
            view.append(cells)
        views[title] = pd.DataFrame(view)
    caption = (
        "Good images flagged (put aside at least once) and eliminated, by the number of images that their center has "
        "(harmful ones counted) and, where the training set has a column Scanner, by scanner. Sums over all runs of a "
        "setting, in which the same images come again: the shares are no independent samples, and have no intervals. "
        "The CSV has every experiment and kind of harm by itself."
    )
    if not views:
        views = {"Good images": pd.DataFrame()}
    return Table("false_alarms", "Whom false alarms hit", caption, frame, views, notes_of(study))


def _false_alarms(runs):
    """One row per group of good images, over all runs of one condition and setting."""
    if not runs:
        return []
    good = pd.concat([run.images[~run.images["Harmful"]] for run in runs])
    groups = [(ALL, ALL, np.ones(len(good), dtype=bool))]
    groups += [("center size", name, good["Center_images"].between(*size)) for name, size in CENTER_SIZES.items()]
    if "Scanner" in good.columns:
        scanners = good["Scanner"].fillna("").str.strip().replace("", MISSING)
        groups += [("scanner", name, scanners == name) for name in sorted(scanners.unique())]
    rows = []
    for by, group, members in groups:
        images = good[members]
        if images.empty:
            continue
        row = {"by": by, "group": group, "runs": len(runs), "number": len(images)}
        for outcome, marks in (("flagged", images["Times_flagged"] > 0), ("eliminated", images["Eliminated"])):
            row |= {outcome: int(marks.sum()), f"{outcome}_share": marks.mean()}
        rows.append(row)
    return rows


def holds_harm(run, steps):
    """Which rows of a run's log trained a harmful image: a boolean array."""
    harmful = set(run.images.index[run.images["Harmful"]])
    return np.array([not harmful.isdisjoint(subjects.split(SEPARATOR)) for subjects in steps["Subjects"]], dtype=bool)


def write_tables(tables, folder):
    """Write every table as ``<name>.csv``, ``.md`` and ``.tex`` to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_csv(table.frame, folder / f"{name}.csv")
        write_whole(folder / f"{name}.md", to_markdown(table).encode())
        write_whole(folder / f"{name}.tex", to_latex(table).encode())


def to_markdown(table):
    """A table as Markdown, whatever its cells hold."""
    parts = [f"## {table.title}\n"]
    for title, view in table.views.items():
        parts.append(f"**{_plain_markdown(title)}**\n")
        lines = [list(view.columns), ["---"] * len(view.columns), *view.to_numpy().tolist()] if len(view) else []
        cells = [[cell if cell == "---" else _plain_markdown(cell) for cell in line] for line in lines]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n" if lines else "Nothing to show.\n")
    parts.append(f"{_plain_markdown(table.caption)}\n")
    parts.extend(f"- {_plain_markdown(note)}" for note in table.notes)
    return "\n".join(parts).rstrip() + "\n"


def _plain_markdown(text):
    return re.sub(r"([\\`*_\[\]|<>#])", r"\\\1", " ".join(str(text).split()))


# What LaTeX would not print as it stands.
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "%_&#${}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
    }
)


def to_latex(table):
    """A table as LaTeX, one float per view; needs the package booktabs."""
    parts = ["% needs \\usepackage{booktabs}"]
    parts += [f"% missing: {' '.join(note.split())}" for note in table.notes]
    for number, (title, view) in enumerate(table.views.items(), 1):
        parts.append(
            view.map(_plain_latex)
            .rename(columns=_plain_latex)
            .to_latex(
                index=False,
                escape=False,
                caption=_plain_latex(f"{table.title}. {title}. {table.caption}"),
                label=f"tab:{table.name}_{number}",
            )
        )
    return "\n".join(parts)


def _plain_latex(text):
    return " ".join(str(text).split()).translate(_LATEX)
