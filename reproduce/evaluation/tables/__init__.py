"""The tables of a study, one file each.

A file has a function with :func:`table` that gives a frame with all numbers, and views of it for readers. The text of
the function is the table's caption; what it has in braces is filled in. A new file needs to be named nowhere else.
"""

import importlib
import pkgutil
from collections.abc import Callable

import pandas as pd

from evaluation.diagnoses import ALL, Diagnoses
from evaluation.layout import CENTER_SIZES
from evaluation.records import Study
from evaluation.render import MISSING, Table, setting_in_words
from travelling.errors import InputError
from travelling.method.performance import age_groups

HARMFUL, GOOD = "harmful", "good"
OUTCOMES = ("flagged", "eliminated")
SECTIONS = ("diagnoses", "found", "runs")  # of the report
_FOUND: list[tuple] = []


def table(title: str, section: str, place: int = 1) -> Callable:
    """Make a table of a function: ``function(study, diagnoses)`` returns frame, views and words for the caption.

    It returns None where the study has nothing for it. ``place`` is that in its section.
    """

    def register(function):
        _FOUND.append((SECTIONS.index(section), place, title, function))
        return function

    return register


def make_tables(study: Study, diagnoses: Diagnoses) -> dict:
    """All tables of a study: a dict of :class:`Table`, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    words = {"when": diagnoses.when, "means": "", "setting": ""}
    if len(study.seeds) > 1:
        words["means"] = " Means over seeds ± standard deviation over seeds."
    if len(study.settings) > 1:
        shown = setting_in_words(study.main_setting)
        words["setting"] = f" Of the setting '{shown}' only; the table settings compares all of them."
    notes = list(dict.fromkeys([*study.notes, *diagnoses.notes]))
    tables = {}
    for section, _, title, function in sorted(_FOUND, key=lambda found: found[:2]):
        if function.__doc__ is None:
            raise InputError("PYTHONOPTIMIZE=2 takes the tables' captions away; run without it")
        made = function(study, diagnoses)
        if made is None:
            continue
        frame, views, more = made
        caption = " ".join(function.__doc__.split()).format(**words, **more)
        name = function.__name__
        tables[name] = Table(name, title, SECTIONS[section], caption, frame, views, notes)
    return tables


def cases(study: Study) -> list:
    """What the rows of a table of settings are about: [(dict of experiment, kind and setting, runs)]."""
    return [
        ({"experiment": condition[0], "kind": condition[1], "setting": setting}, study.runs(condition, setting))
        for condition in study.conditions
        for setting in study.settings or [study.main_setting]
    ]


def groups_of_good(runs: list) -> dict[str, dict]:
    """The good images of some runs in groups: {what they are grouped by: {name: images}}; nothing without runs."""
    if not runs:
        return {}
    good = pd.concat([run.good for run in runs])
    masks = {
        "class": {"HC": good["Group_bin"] == 0, "PD": good["Group_bin"] == 1},
        "sex": {"male": good["Sex"] == "M", "female": good["Sex"] == "F"},
        "age": age_groups(good["Age"]),
        "center size": {name: good["Center_images"].between(*size) for name, size in CENTER_SIZES.items()},
    }
    if "Scanner" in good.columns:
        scanners = good["Scanner"].fillna("").str.strip().replace("", MISSING)
        masks["scanner"] = {name: scanners == name for name in sorted(scanners.unique())}
    groups = {by: {name: good[mask] for name, mask in each.items()} for by, each in masks.items()}
    return {ALL: {ALL: good}} | groups


def outcomes(images: pd.DataFrame) -> dict:
    """How many images were flagged and eliminated, and their shares."""
    marks = {outcome: images[outcome.capitalize()] for outcome in OUTCOMES}
    numbers = {outcome: int(marked.sum()) for outcome, marked in marks.items()}
    return numbers | {f"{outcome}_share": marked.mean() for outcome, marked in marks.items()}
