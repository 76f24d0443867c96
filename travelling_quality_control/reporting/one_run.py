"""The report of one run of quality control: a page for readers, and lists for a lab's own use. No truth is known."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from travelling.errors import InputError
from travelling.files import write_tsv, write_whole
from travelling.images.ratings import RATINGS, SCRIPT, all_ratings, keep_ratings
from travelling.method.extension import Finding
from travelling.method.performance import age_groups
from travelling.words import some
from travelling_quality_control.auditing import audit_log
from travelling_quality_control.auditing.run_record import settings_of
from travelling_quality_control.judging.logged_run import DECISIONS, LoggedRun, read_images, read_log
from travelling_quality_control.reporting.agreement import agreement
from travelling_quality_control.reporting.drawing import rates_along_run
from travelling_quality_control.reporting.pages import MISSING, make_page, number_text
from travelling_quality_control.reporting.slices import Slices

VIOLATIONS_SHOWN = 10
RATES = {"FPR": "PFP", "FNR": "PFN"}
COLUMNS: dict[str, dict] = {  # of the list of decisions, in the manner of BIDS
    "participant_id": {"Description": "The image: Subject of the training set"},
    "center": {"Description": "Where it is from: Study of the training set"},
    "decision": {
        "Description": "What quality control decided, at the end of its log",
        "Levels": {
            "kept": "Never flagged",
            "came_back": "Flagged, and back in training after its revisit",
            "waiting": "Flagged, and not revisited yet",
            "eliminated": "Flagged, and out for good after its revisit",
        },
    },
    "times_flagged": {"Description": "How often it was flagged", "Units": "count"},
    "cycles": {"Description": "The cycles in which it was flagged, separated by commas"},
    "reason": {"Description": "The rows of the log that decided: its last flag, and the revisit after it"},
}


def write_report(
    record: dict,
    log_csv: Path,
    train_csv: Path,
    test_csv: Path,
    subjects_csv: Path | None,
    page: Path,
    with_images: bool = False,
    ratings: Path | None = None,
    why_not: Mapping[str, str] = MappingProxyType({}),
    further: Sequence[tuple[str, pd.DataFrame]] = (),
) -> tuple[LoggedRun, list[Path]]:
    """Audit a log, and write the report of its run as :func:`write_page` does. Returns the run and the files.

    The first five are what :func:`travelling_quality_control.auditing.run_record.run_of` gives, the last ones as
    :func:`write_page`. Raises InputError for files that cannot be read.
    """
    if with_images and "centers" in record["options"]:
        raise InputError("--with-images: the images of a run between hospitals are not here, and are not shown")
    outcome = audit_log(log_csv, train_csv, test_csv, record, subjects_csv)
    settings = settings_of(record)
    run = LoggedRun(
        record=record, settings=settings, extensions=settings.extensions, outcome=outcome,
        images=read_images(train_csv), table=read_log(log_csv, settings.extensions),
    )  # fmt: skip
    slices = None
    if with_images and run.images["Flagged"].any():
        slices = Slices(run.images, train_csv, read_images(test_csv), test_csv)
    return run, write_page(run, log_csv, page, slices, ratings, why_not, further)


def write_page(
    run: LoggedRun,
    log_csv: Path,
    page: Path,
    slices: Slices | None = None,
    ratings: Path | None = None,
    why_not: Mapping[str, str] = MappingProxyType({}),
    further: Sequence[tuple[str, pd.DataFrame]] = (),
) -> list[Path]:
    """Write the report of an audited run and, unless the audit refuses its log, the lists beside it.

    ``slices`` are those of its flagged images, if these are shown, ``ratings`` is a TSV of a person's ratings,
    ``why_not`` tells by option why something was not examined, ``further`` are tables with their captions. Returns the
    files.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    kept = log_csv.with_name(f"{log_csv.stem}_ratings.tsv")
    told = all_ratings(ratings, kept, run.images.index)
    if ratings:
        keep_ratings(told, kept)
    rated = told.loc[told.index.isin(run.images.index) & (told["rating"] != ""), "rating"]
    found = slices.of(_flagged(run).index) if slices else ()
    seen = {subject: (picture, words) for subject, picture, words in found}
    # Without their folder: of the machine no reader needs to know.
    violations = [line.replace(f"{log_csv.parent}/", "") for line in run.violations[:VIOLATIONS_SHOWN]]
    text = make_page(
        "run.html.jinja",
        run=run,
        name=log_csv.name,
        violations=violations,
        decided={decision: run.images[run.images["Decision"] == decision] for decision in DECISIONS},
        flagged_images=_flagged_in_words(run, {subject: words for subject, (_, words) in seen.items()}),
        pictures={subject: picture for subject, (picture, _) in seen.items()},
        ratings=told,
        choices=RATINGS,
        page=hashlib.sha256(f"{log_csv.name} {run.record.get('started')} {told.to_csv()}".encode()).hexdigest()[:16],
        further_script=SCRIPT.read_text(encoding="utf-8") if run.images["Flagged"].any() else "",
        agreement=agreement(rated, run.images["Decision"]) if len(rated) else None,
        not_examined=run.not_examined(why_not),
        details=[(name, image, rows_of(run, name)) for name, image in _flagged(run).iterrows()],
        rates=rates_along_run(run) if len(run.log) else None,
        further=further,
        centers=_shares(run, {"center": run.images["Study"]}).sort_values(
            ["share flagged", "images"], ascending=False, kind="stable"
        ),
        groups=_shares(run, _groups(run.images)),
        failures=_failures(run),
        decisions=DECISIONS,
    )
    write_whole(page, text.encode())
    return [page] if run.violations else [page, *_write_lists(run, page.parent, log_csv.stem)]


def in_one_line(run: LoggedRun) -> str:
    """What was decided, and that the audit refuses the log if it does."""
    decided = run.images["Decision"]
    told = ", ".join(f"{(decided == name).sum()} {name.replace('_', ' ')}" for name in DECISIONS)
    refused = f"; the audit refuses the log, so no list was written: {run.violations[0]}" if run.violations else ""
    return f"{some(len(decided), 'image')}: {told}{refused}; verdict: {run.verdict.word}"


def rows_of(run: LoggedRun, subject: str) -> pd.DataFrame:
    """The rows of the log about an image alone, as readers see them."""
    rows = run.rows[(run.rows["Subject"] == subject) & run.rows["Phase"].isin([*run.phases, "revisit"])]
    return pd.DataFrame([_cells(run, row) for _, row in rows.iterrows()])


def _cells(run, row):
    """The cells of a row about an image alone; what was not measured in it is empty."""
    cells = {
        "log row": row["Row"],
        "cycle": row["Cycle"],
        "step": ({"revisit": "revisited"} | run.phases)[row["Phase"]],
    }
    trained = pd.notna(row["PFP"])
    for name, rate in RATES.items():
        cells[name] = f"{number_text(row[f'Reference_{rate}'])} to {number_text(row[rate])}" if trained else ""
    if not run.replaces_rule:
        cells["tolerated rise"] = "" if pd.isna(row["Tolerance"]) else f"{row['Tolerance']:.3g}"
    for extension in run.extensions:
        cells |= extension.explain(row)
    if row["Phase"] == "revisit":
        outcome = "eliminated" if row["Eliminated"] else "came back"
    else:
        outcome = "flagged" if row["Ignored"] else "kept"
    return cells | {"outcome": outcome}


def decided_in_words(run: LoggedRun, subject: str) -> list[str]:
    """The rows that decided about a flagged image: its last flag, and the revisit after it, if one followed."""
    told = []
    for row in run.decided_by(subject):
        if row is None:
            continue
        cells = _cells(run, row)
        place = f"row {cells.pop('log row')}, cycle {cells.pop('cycle')}, {cells.pop('step')}"
        outcome = cells.pop("outcome")
        told.append(f"{place}: {', '.join(f'{name} {cell}' for name, cell in cells.items() if cell)}; {outcome}")
    return told


def _flagged(run):
    """The images that were flagged or eliminated, the eliminated ones first, then in the order of their flags."""
    images = run.images[run.images["Decision"] != "kept"]
    order = images["Decision"].map(list(DECISIONS).index)
    return images.assign(order=order).sort_values(["order", "First_flagged"], kind="stable").drop(columns="order")


def _cycles(run, images, none):
    """The cycles of the flags of some images, as text, or ``none``."""
    cycles = run.flags.groupby("Subject")["Cycle"].agg(lambda cycles: ",".join(map(str, cycles)))
    return [cycles.get(subject, none) for subject in images.index]


def _flagged_in_words(run, seen):
    """One row for every image that was flagged or eliminated, as readers see it; ``seen`` is what its picture tells."""
    images = _flagged(run)
    told = {"image": images.index, "center": images["Study"], "decision": images["Decision"].map(DECISIONS)}
    found = {name: run.findings(name) for name in images.index}
    for column in Finding._fields:
        told[column] = ["; ".join(getattr(one, column) for one in found[name]) or MISSING for name in images.index]
    reasons = zip(images.index, told["reason"], strict=True)
    told["reason"] = [f"{seen[name]} ({words})" if seen.get(name) else words for name, words in reasons]
    told |= {name: labels.reindex(images.index) for name, labels in _groups(run.images).items()}
    told |= {"times flagged": images["Times_flagged"], "cycles": _cycles(run, images, "")}
    return pd.DataFrame(told)


def _groups(images):
    """What images are grouped by, as far as the training set tells it: {name: labels}."""
    groups = {}
    if "Scanner" in images.columns:
        groups["scanner"] = images["Scanner"].replace("", MISSING)
    if "Group_bin" in images.columns:
        groups["class"] = images["Group_bin"].map({0: "HC", 1: "PD"}).fillna(MISSING)
    if "Sex" in images.columns:
        groups["sex"] = images["Sex"].replace("", MISSING)
    if images["Age"].notna().any():
        ages = age_groups(images["Age"])
        names = [name.removeprefix("age_").replace("_", " ") for name in ages]
        labels = np.select(list(ages.values()), names, MISSING)
        groups["age"] = pd.Series(pd.Categorical(labels, [*names, MISSING]), images.index)  # in this order
    return groups


def _shares(run, groups):
    """How many images of each group were flagged, and what was decided about them; their mean outlier scores.

    The latter tell of a center or a scanner whose scores are uniformly raised; no decision rests on them.
    """
    rows = []
    for by, labels in groups.items():
        for label, members in run.images.groupby(labels, sort=by != "center", observed=True):
            decisions = members["Decision"]
            row = {"by": by, "group": label, "images": len(members), "flagged": int(members["Flagged"].sum())}
            row["share flagged"] = number_text(members["Flagged"].mean())
            row |= {name: number_text(members[column].mean()) for name, column in run.image_columns.items()}
            rows.append(row | {name.replace("_", " "): int((decisions == name).sum()) for name in list(DECISIONS)[:-1]})
    table = pd.DataFrame(rows)
    return table.drop(columns="by").rename(columns={"group": "center"}) if list(groups) == ["center"] else table


def _failures(run):
    """Visits that failed, by center and kind."""
    counts = run.failures.groupby(["Study", "Phase"], sort=False)["Cycle"].agg(["size", "min", "max"]).reset_index()
    return counts.set_axis(["center", "what", "times", "first cycle", "last cycle"], axis=1)


def decisions(run: LoggedRun) -> pd.DataFrame:
    """One row per image with the columns of ``COLUMNS``; n/a where there is nothing to tell."""
    images = run.images
    reasons = {name: " | ".join(decided_in_words(run, name)) for name in images.index[images["Flagged"]]}
    told: Mapping = {
        "participant_id": images.index,
        "center": images["Study"],
        "decision": images["Decision"],
        "times_flagged": images["Times_flagged"],
        "cycles": _cycles(run, images, MISSING),
        "reason": images.index.map(lambda name: reasons.get(name, MISSING)),
    }
    return pd.DataFrame(told).reset_index(drop=True)


def _write_lists(run, folder, name):
    """The list of decisions and that of images to leave out, each with its description."""
    table = decisions(run)
    out = {column: told for column, told in COLUMNS.items() if column != "decision"}
    return [
        *write_tsv(table, folder / f"{name}_decisions.tsv", COLUMNS),
        *write_tsv(table[table["decision"] == "eliminated"], folder / f"{name}_exclude.tsv", out),
    ]
