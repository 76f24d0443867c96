"""The report of a study as one HTML file. Its words are in report.html.jinja; here is what they tell of."""

import base64
import hashlib
import itertools
import json
from pathlib import Path

import jinja2
import pandas as pd

from evaluation.diagnoses import ALL, CLEAN_KEY
from evaluation.figures import render
from evaluation.intervals import RESAMPLES
from evaluation.layout import CLEAN, DIRTY, HARM, SETTINGS, control_folder
from evaluation.records import Study, in_words
from evaluation.render import METRIC_NAMES, MISSING, MODEL_NAMES, by_cycle, number_text, setting_in_words
from evaluation.tables import GOOD, HARMFUL
from travelling.files import write_whole

FOLDER = Path(__file__).resolve().parent
TEMPLATE, SCRIPT = "report.html.jinja", "report.js"


def make_report(study: Study, tables: dict, figures: list, resamples: int = RESAMPLES) -> str:
    """The report as HTML text.

    ``tables`` and ``figures`` are those of the study, ``resamples`` the number of bootstrap resamples behind the
    tables. Everything is escaped: ids and names of centers are text, whatever they contain, and a content security
    policy lets the page run its own script alone and load nothing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"picture": _data_address, "number": number_text, "setting": setting_in_words}
    environment.tests["known"] = pd.notna
    script = (FOLDER / SCRIPT).read_text(encoding="utf-8")
    performance = tables["performance"].frame
    known = performance[(performance["subgroup"] == ALL) & performance["value"].notna()]
    records = sorted(study.records.items(), key=lambda item: (item[1].get("started") or "", item[0]))
    told = [_record(study, path, record) for path, record in records]
    # That harmful images were made without a device is no difference.
    sessions = [record["sessions"][-1] for path, record in study.records.items() if path.parent.name != HARM]
    return environment.get_template(TEMPLATE).render(
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        study=study,
        settings=[*study.settings],
        runs=study.shown_controls,
        told=[_run(run) for run in study.shown_controls],
        sizes=_sizes(study.shown_controls),
        summary=[_summary(study, tables, condition) for condition in study.conditions],
        tested=known.iloc[0] if len(known) else None,
        against_clean=CLEAN in set(known["model"]),
        notes=list(dict.fromkeys(note for table in tables.values() for note in table.notes)),
        tables=tables,
        figures=figures,
        records=told,
        record_rows=pd.DataFrame([record["row"] for record in told]),
        differing=_differing(sessions),
        versions=_versions(sessions[-1]) if sessions else "",
        resamples=resamples,
        started=[record["started"] for _, record in records if record.get("started")],
        finished=[record["finished"] for _, record in records if record.get("finished")],
        screens=bool(SETTINGS[study.main_setting].get("screen")),
        metric_names=METRIC_NAMES,
    )


def write_report(text: str, path: Path) -> None:
    """Write the report such that ``path`` is at any moment the old file or the whole new one; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def _data_address(picture, dark):
    return f"data:image/png;base64,{base64.b64encode(render(picture, dark=dark)).decode()}"


def _sizes(runs):
    """Numbers of images of all runs: {"harmful": {"number": ..., "flagged": ..., "eliminated": ...}, "good": ...}."""
    if not runs:
        return {}
    images = {HARMFUL: pd.concat([run.harmful for run in runs]), GOOD: pd.concat([run.good for run in runs])}
    return {
        name: {"number": len(of), "flagged": of["Flagged"].sum(), "eliminated": of["Eliminated"].sum()}
        for name, of in images.items()
    }


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
    return {
        "title": in_words(*condition).capitalize(),
        "found": found.loc[[HARMFUL, GOOD]].to_dict("index"),
        "locked_up": [(words, run) for run in study.controls if run.key[:2] == condition for words in run.locked_up],
        "models": [(MODEL_NAMES[key[2]], metrics.get(key)) for key in keys],
        "words": in_words(*condition),
        "run": next(iter(study.runs(condition)), None),
    }


def _run(run):
    """Tables of a run: the images that were flagged, the centers, and the images of those that lost any."""
    flags = run.flags.groupby("Subject")
    decisions = _decisions(run)
    eliminated = decisions["verdict"] == "eliminated"
    centers = run.images.groupby("Study", sort=False)
    numbers = centers.agg(
        images=("Harmful", "size"), harmful=("Harmful", "sum"), flagged=("Flagged", "sum"),
        eliminated=("Eliminated", "sum"),
    )  # fmt: skip
    numbers["good eliminated"] = (run.images["Eliminated"] & ~run.images["Harmful"]).groupby(run.images["Study"]).sum()
    touched = {}
    for center in numbers.index[(numbers["harmful"] > 0) | (numbers["flagged"] > 0)]:
        images, row = centers.get_group(center), numbers.loc[center]
        title = f"{center}: {row['flagged']} of {row['images']} flagged, {row['eliminated']} eliminated"
        cycles = [by_cycle(flags.get_group(one)["Cycle"]) if one in flags.groups else "" for one in images.index]
        outcome = "eliminated in cycle " + images["Eliminated_cycle"].astype(str)
        touched[center, title] = pd.DataFrame(
            {
                "subject": images.index, "truth": [_truth(harmful) for harmful in images["Harmful"]],
                "flags (cycle: number)": cycles, "outcome": outcome.where(images["Eliminated"], "in training"),
            }
        )  # fmt: skip
    return {
        "eliminated": decisions[eliminated],
        "kept": decisions[~eliminated],
        "centers": numbers.rename_axis("center").reset_index(),
        "touched": touched,
    }


def _truth(harmful):
    return HARMFUL if harmful else GOOD


def _decisions(run):
    """How every flagged image was decided upon: its last flag, and the revisit after it (n/a where none followed)."""
    last = run.flags.drop_duplicates("Subject", keep="last").set_index("Subject")
    rows = []
    for subject, image in run.images[run.images["Flagged"]].sort_values("First_flagged", kind="stable").iterrows():
        flag = last.loc[subject]
        later = run.revisits[(run.revisits["Subject"] == subject) & (run.revisits["Row"] > flag["Row"])]
        row = {"subject": subject, "center": image["Study"], "truth": _truth(image["Harmful"])}
        row["flags"] = image["Times_flagged"]
        row |= _step("flag", flag, run.rule) | _step("revisit", later.iloc[0] if len(later) else None, run.rule)
        if run.rule.by_tolerance:
            row["tolerated rise"] = MISSING if pd.isna(flag["Tolerance"]) else f"{flag['Tolerance']:g}"
        trains = "trains again" if len(later) else "waits for its revisit"
        rows.append(row | {"verdict": "eliminated" if image["Eliminated"] else trains})
    return pd.DataFrame(rows, columns=None if rows else ["verdict"])


def _step(name, row, rule):
    """Cells of a row of the log that decided; the screen has a score instead of what a step did."""
    columns = ("FPR", "FNR") if rule.by_tolerance else rule.columns
    if row is None:
        cells = [MISSING] * (2 + len(columns))
    elif pd.isna(row["PFP"]):
        cells = [row["Row"], row["Cycle"], f"score {row['Screen_score']:.3g}", f"limit {row['Screen_limit']:.3g}"]
    elif rule.by_tolerance:
        rises = [f"{number_text(row[f'Reference_{rate}'])} to {row[rate]:.3f}" for rate in ("PFP", "PFN")]
        cells = [row["Row"], row["Cycle"], *rises]
    else:
        cells = [row["Row"], row["Cycle"], *(f"{row[column]:.3g}" for column in columns)]
    labels = (f"{name}: {label}" for label in ("log row", "cycle", *columns))
    return dict(itertools.zip_longest(labels, cells, fillvalue=""))


def _record(study, path, record):
    """A run's record for readers: no path of the machine it ran on."""
    sessions = record["sessions"]
    last = sessions[-1] if sessions else {}
    changed = " with changes" if last.get("git_tree_was_dirty") else ""
    row = {
        "record": str(path.relative_to(study.folder)),
        "script": record.get("script", MISSING),
        "started": record.get("started") or MISSING,
        "finished": record.get("finished") or "not finished",
        "sessions": len(sessions),
        "device": last.get("device", MISSING),
        "git commit": (last.get("git_commit") or MISSING) + changed,
    }
    options = {name: _without_folder(value) for name, value in record["options"].items()}
    return {
        "row": row,
        "versions": _versions(last),
        "options": json.dumps(options, indent=1, ensure_ascii=False),
        "inputs": record.get("inputs_sha256", {}),
    }


def _without_folder(value):
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _versions(session):
    versions = {"Python": session.get("python")} | session.get("packages", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _differing(sessions):
    """In words, what was not the same for all runs: devices, commits, versions."""
    found = []
    for name, tell in (
        ("device", lambda session: session.get("device")),
        ("git commit", lambda session: session.get("git_commit")),
        ("versions", _versions),
    ):
        different = list(dict.fromkeys(str(value) for value in map(tell, sessions) if value))
        if len(different) > 1:
            found.append(f"{name}: {'; '.join(different)}")
    if any(session.get("git_tree_was_dirty") for session in sessions):
        found.append("some runs were made by code that differed from its git commit")
    return found
