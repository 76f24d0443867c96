"""The report of a study as one HTML file: its words are in report.html.jinja, here is what they tell of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.diagnoses import ALL, CLEAN_KEY, Diagnoses
from evaluation.figures import make_figures, write_figures
from evaluation.intervals import RESAMPLES
from evaluation.layout import CLEAN, DIRTY, HARM, PARTS, control_folder
from evaluation.records import Study, in_words
from evaluation.render import METRIC_NAMES, MISSING, MODEL_NAMES, by_cycle, setting_in_words, write_tables
from evaluation.tables import GOOD, HARMFUL, make_tables, outcomes
from travelling.files import write_whole
from travelling_quality_control.reporting.one_run import decided_in_words, write_report
from travelling_quality_control.reporting.pages import make_page, versions
from travelling_quality_control.reporting.runs import DECISIONS

FOLDER = Path(__file__).resolve().parent
TEMPLATE = "report.html.jinja"


def evaluate(study: Study, folder: Path, parts: tuple = PARTS, **options: Any) -> tuple:
    """Write parts of the evaluation of a study to a folder; returns (tables, figures), empty where no part needs them.

    ``options`` are those of :class:`evaluation.diagnoses.Diagnoses`.
    """
    diagnoses = Diagnoses(study, **options)
    tables = make_tables(study, diagnoses) if {"tables", "report"} & set(parts) else {}
    figures = make_figures(study) if {"figures", "report"} & set(parts) else []
    folder.mkdir(parents=True, exist_ok=True)
    if "tables" in parts:
        write_tables(tables, folder / "tables")
    if "figures" in parts:
        write_figures(figures, folder / "figures")
    if "report" in parts:
        pages = write_pages(study, folder)
        text = make_report(study, tables, figures, diagnoses.resamples, pages)
        write_whole(folder / "report.html", text.encode())
    return tables, figures


def write_pages(study: Study, folder: Path) -> list:
    """Write the report of every run that could be audited, as report.py makes it: [(run, its page in the folder)]."""
    audited = [run for run in study.controls if run.files]
    pages = [(run, run.folder.relative_to(study.folder) / "report.html") for run in audited]
    for run, page in pages:
        write_report(**run.files, page=folder / page, record=run.record)
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
        told=[(run, _run(run)) for run in study.shown_controls],
        sizes=_sizes(study.shown_controls),
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


def _sizes(runs):
    """Numbers of harmful and good images of all runs, and how many of them were flagged and eliminated."""
    images = {HARMFUL: [run.harmful for run in runs], GOOD: [run.good for run in runs]} if runs else {}
    return {name: {"number": sum(map(len, each)), **outcomes(pd.concat(each))} for name, each in images.items()}


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
    verdicts = [(run, run.verdict()) for run in study.controls if run.key[:2] == condition]
    return {
        "title": in_words(*condition).capitalize(),
        "found": found.loc[[HARMFUL, GOOD]].to_dict("index"),
        "verdicts": verdicts,
        "level": max((verdict.level for _, verdict in verdicts), default=None),
        "models": [(MODEL_NAMES[key[2]], metrics.get(key)) for key in keys],
        "words": in_words(*condition),
        "run": next(iter(study.runs(condition)), None),
    }


def _run(run):
    """Tables of a run: the images that were flagged, the centers, and the images of those that lost any."""
    decisions = _decisions(run)
    eliminated = decisions["decision"] == DECISIONS["eliminated"]
    columns = {"images": "one", "harmful": "Harmful", "flagged": "Flagged", "eliminated": "Eliminated"}
    columns["good eliminated"] = "lost"
    images = run.images.assign(one=1, lost=run.images["Eliminated"] & ~run.images["Harmful"])
    centers = images.groupby("Study", sort=False)[[*columns.values()]].sum().set_axis([*columns], axis=1)
    images["subject"], images["truth"] = images.index, np.where(images["Harmful"], HARMFUL, GOOD)
    flags = run.flags.groupby("Subject")["Cycle"].agg(by_cycle) if len(run.flags) else pd.Series()
    images["flags (cycle: number)"] = flags.reindex(images.index).fillna("")
    outcome = "eliminated in cycle " + images["Eliminated_cycle"].astype(str)
    images["outcome"] = outcome.where(images["Eliminated"], "in training")
    images = images.set_index("Study")[["subject", "truth", "flags (cycle: number)", "outcome"]]
    return {
        "eliminated": decisions[eliminated],
        "kept": decisions[~eliminated],
        "centers": centers.rename_axis("center").reset_index(),
        "touched": [
            (name, row, images.loc[[name]]) for name, row in centers.iterrows() if row["harmful"] or row["flagged"]
        ],
    }


def _decisions(run):
    """What was decided about every flagged image, and the rows of the log that decided."""
    rows = []
    for subject, image in run.images[run.images["Flagged"]].sort_values("First_flagged", kind="stable").iterrows():
        row = {"subject": subject, "center": image["Study"], "truth": HARMFUL if image["Harmful"] else GOOD}
        told = dict(zip(("last flag", "revisit"), [*decided_in_words(run, subject), MISSING], strict=False))
        rows.append(row | {"flags": image["Times_flagged"], **told, "decision": DECISIONS[image["Decision"]]})
    return pd.DataFrame(rows, columns=None if rows else ["decision"])


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
