"""The report of a study as one HTML file: its words are in report.html.jinja, here is what they tell of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.diagnoses import ALL, CLEAN_KEY, Diagnoses
from evaluation.figures import make_figures, write_figures
from evaluation.intervals import RESAMPLES
from evaluation.layout import CLEAN, DIRTY, HARM, control_folder
from evaluation.records import LOG, Study, in_words
from evaluation.render import METRIC_NAMES, MODEL_NAMES, setting_in_words, write_tables
from evaluation.tables import GOOD, HARMFUL, make_tables
from evaluation.tables.settings import settings_in_words
from travelling.files import write_whole
from travelling_quality_control.reporting.one_run import write_page
from travelling_quality_control.reporting.pages import make_page, versions

FOLDER = Path(__file__).resolve().parent
TEMPLATE = "report.html.jinja"


def evaluate(study: Study, folder: Path, **options: Any) -> dict:
    """Write tables, figures and report of a study to a folder; returns the tables.

    ``options`` are those of :class:`evaluation.diagnoses.Diagnoses`.
    """
    diagnoses = Diagnoses(study, **options)
    tables, figures = make_tables(study, diagnoses), make_figures(study)
    write_tables(tables, folder / "tables")
    write_figures(figures, folder / "figures")
    text = make_report(study, tables, figures, diagnoses.resamples, write_pages(study, folder))
    write_whole(folder / "report.html", text.encode())
    return tables


def write_pages(study: Study, folder: Path) -> list:
    """Write the report of every run that could be audited, as report.py makes it: [(run, its page in the folder)]."""
    audited = [run for run in study.controls if run.outcome]
    pages = [(run, run.folder.relative_to(study.folder) / "report.html") for run in audited]
    for run, page in pages:
        write_page(run, run.folder / LOG, folder / page)
    return pages


def make_report(study: Study, tables: dict, figures: list, resamples: int = RESAMPLES, pages: Sequence = ()) -> str:
    """The report as HTML text.

    ``tables`` and ``figures`` are those of the study, ``resamples`` the number of bootstrap resamples behind the
    tables, ``pages`` what :func:`write_pages` gives.
    """
    performance = tables["performance"].frame
    known = performance[(performance["subgroup"] == ALL) & performance["value"].notna()]
    records = sorted(study.records.items(), key=lambda item: (item[1].get("started") or "", item[0]))
    # That harmful images were made without a device is no difference.
    sessions = [record["sessions"][-1] for path, record in study.records.items() if path.parent.name != HARM]
    return make_page(
        TEMPLATE,
        FOLDER,
        study=study,
        settings=study.settings,
        pages=pages,
        runs=study.shown_controls,
        lead=settings_in_words(tables),
        summary=[_summary(study, tables, condition) for condition in study.conditions],
        tested=known.iloc[0] if len(known) else None,
        against_clean=CLEAN in set(known["model"]),
        notes=list(dict.fromkeys(note for table in tables.values() for note in table.notes)),
        tables=tables,
        figures=figures,
        records=[(path.relative_to(study.folder), record) for path, record in records],
        differing=_differing(sessions),
        sessions=sessions,
        resamples=resamples,
        metric_names=METRIC_NAMES,
        setting_in_words=setting_in_words,
    )


def _summary(study, tables, condition):
    """What was found in an experiment, and the metrics of its models."""
    case = [*condition, study.main_setting]
    detection, performance = tables["detection"].frame, tables["performance"].frame
    found = detection[(detection[["experiment", "kind", "setting"]] == case).all(axis=1)].set_index("images")
    metrics = {
        key: rows.set_index("metric").to_dict("index")
        for key, rows in performance[performance["subgroup"] == ALL].groupby(["experiment", "kind", "model"])
    }
    dirty = [] if condition[0] == CLEAN else [(*condition, DIRTY)]
    keys = [CLEAN_KEY, *dirty, (*condition, control_folder(study.main_setting))]
    runs = [run for run in study.controls if run.key[:2] == condition]
    return {
        "title": in_words(*condition).capitalize(),
        "found": found.loc[[HARMFUL, GOOD]].to_dict("index"),
        "verdicts": runs,
        "level": max((run.verdict.level for run in runs), default=None),
        "models": [(MODEL_NAMES[key[2]], metrics.get(key)) for key in keys],
        "words": in_words(*condition),
        "run": next(iter(study.runs(condition)), None),
    }


def _differing(sessions):
    """In words, what was not the same for all runs: devices, commits, versions."""
    told = pd.DataFrame(
        {"device": one.get("device"), "git commit": one.get("git_commit"), "versions": versions(one) or None}
        for one in sessions
    )
    found = [f"{name}: {'; '.join(cells.dropna().unique())}" for name, cells in told.items() if cells.nunique() > 1]
    if any(session.get("git_tree_was_dirty") for session in sessions):
        found.append("some runs were made by code that differed from its git commit")
    return found
