"""The report of a study: tables, figures, decisions and records as one HTML file."""

import base64
import hashlib
import json
from pathlib import Path

import jinja2
import pandas as pd
from intervals import RESAMPLES
from study_figures import render
from study_layout import CLEAN, DIRTY, SETTINGS, control_folder
from study_records import in_words
from study_tables import (
    ALL,
    CLEAN_KEY,
    GOOD,
    HARMFUL,
    METRIC_NAMES,
    MISSING,
    MODEL_NAMES,
    by_cycle,
    number_text,
    setting_in_words,
)

from travelling.files import write_whole
from travelling.rules import EvidenceRule

FOLDER = Path(__file__).resolve().parent
TEMPLATE, SCRIPT = "report.html.jinja", "report.js"
PAPER = (
    "Souza et al., Self-supervised identification and elimination of harmful datasets in distributed machine learning "
    "for medical image analysis, npj Digital Medicine 8 (2025), doi 10.1038/s41746-025-01499-0"
)
PAPER_ADDRESS = "https://doi.org/10.1038/s41746-025-01499-0"


def make_report(study, tables, figures, resamples=RESAMPLES):
    """The report as HTML text.

    ``tables`` and ``figures`` are what :func:`study_tables.make_tables` and :func:`study_figures.make_figures` gave,
    ``resamples`` the number of bootstrap resamples behind the tables. Everything is escaped: ids and names of centers
    are text, whatever they contain, and a content security policy lets the page run its own script alone and load
    nothing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["picture"] = _data_address
    script = (FOLDER / SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(TEMPLATE).render(
        script=script,
        script_digest=digest,
        lead=lead(study),
        summary=summarize(study, tables),
        notes=list(dict.fromkeys(note for table in tables.values() for note in table.notes)),
        tables=tables,
        figures=[picture for picture in figures if picture.run is None],
        runs=[_run(run, figures) for run in study.shown_controls],
        records=[
            _record(study, path, record)
            for path, record in sorted(study.records.items(), key=lambda item: (item[1].get("started") or "", item[0]))
        ],
        differing=_differing_versions(study),
        methods=methods(study, tables, resamples),
        paper=PAPER,
        paper_address=PAPER_ADDRESS,
        period=_period(study),
        has_images=any(picture.has_images for picture in figures),
    )


def write_report(text, path):
    """Write the report such that ``path`` is at any moment the old file or the whole new one; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def _data_address(picture, dark):
    return f"data:image/png;base64,{base64.b64encode(render(picture, dark=dark)).decode()}"


def lead(study):
    """The whole study in one sentence or two."""
    controls = study.shown_controls
    if not controls:
        return "No run of quality control has finished, so what it finds is not known."
    images = pd.concat([run.images for run in controls])
    harmful, good = images[images["Harmful"]], images[~images["Harmful"]]
    runs = f"{len(controls)} run{'s' if len(controls) != 1 else ''} of quality control"
    if len(study.settings) > 1:
        runs += f" in the setting '{setting_in_words(study.main_setting)}'"
    flagged = int((good["Times_flagged"] > 0).sum())
    if not len(harmful):
        return (
            f"In {runs}, {flagged} of {len(good)} images were flagged, that is put aside for a while at least, and "
            f"{good['Eliminated'].sum()} eliminated. The study made none of them harmful; if all are good, these are "
            "false alarms."
        )
    return (
        f"In {runs}, {harmful['Eliminated'].sum()} of {len(harmful)} harmful images were eliminated, and "
        f"{good['Eliminated'].sum()} of {len(good)} good ones by mistake. {_images(flagged, 'good')} "
        f"{'was' if flagged == 1 else 'were'} flagged, that is put aside for a while at least."
    )


def summarize(study, tables):
    """What was found and what it did to the diagnoses, in words, a dict per experiment: title, found, effects."""
    detection = tables["detection"].frame
    performance = tables["performance"].frame
    performance = performance[performance["subgroup"] == ALL]
    metrics = {
        key: group.set_index("metric")
        for key, group in performance.groupby(["experiment", "kind", "model"], sort=False)
    }
    clean = metrics.get(CLEAN_KEY)
    summary = []
    for condition in study.conditions:
        images = detection[
            (detection[["experiment", "kind", "setting"]] == [*condition, study.main_setting]).all(axis=1)
        ]
        images = images.set_index("images")
        names = [*([] if condition[0] == CLEAN else [DIRTY]), control_folder(study.main_setting)]
        summary.append(
            {
                "title": in_words(*condition).capitalize(),
                "found": _found_in_words(images.loc[HARMFUL], images.loc[GOOD]) + _lock_up_in_words(study, condition),
                "effects": _effects_in_words(
                    {CLEAN: clean} | {name: metrics.get((*condition, name)) for name in names}
                ),
            }
        )
    return summary


def _found_in_words(harmful, good):
    if not harmful["seeds"]:
        return "Quality control has not finished, so what it finds is not known."
    seeds = f" in {harmful['seeds']:.0f} seeds" if harmful["seeds"] > 1 else ""
    return (
        f"Of {_images(harmful['number'], 'harmful')}{seeds}, {harmful['flagged']:.0f} were flagged and "
        f"{harmful['eliminated']:.0f} eliminated. Of {_images(good['number'], 'good')}, {good['flagged']:.0f} were "
        f"flagged and {good['eliminated']:.0f} eliminated."
    )


def _lock_up_in_words(study, condition):
    """A notice where most batches of a cycle were undone, or most images suspected; empty where there is none."""
    notices = [
        f"{words} ({run.name})"
        for run in study.controls
        if (run.experiment, run.kind) == tuple(condition)
        for words in run.locked_up
    ]
    if not notices:
        return ""
    return (
        f" Lock-up: {', '.join(notices)}. Unless most images are harmful, what was flagged then says little about the "
        "images: an accepted evaluation was lucky, and no step from that model seems as good, or to the screen the "
        "images of the test set are unlike those of the centers."
    )


def _images(number, what):
    return f"{number:.0f} {what} image{'s' if number != 1 else ''}"


def _effects_in_words(models):
    """AUROC and accuracy of each model in words: [(model, sentence)]; ``models`` have a row for each metric.

    Both, because a model that calls everybody PD can rank as well as one that is right.
    """
    return [(MODEL_NAMES[key], _effect_in_words(metrics)) for key, metrics in models.items()]


def _effect_in_words(metrics):
    if metrics is None or pd.isna(metrics["value"]["accuracy"]):
        return "diagnoses not known"
    sentence = "; ".join(
        f"{METRIC_NAMES[metric]} {number_text(metrics['value'][metric])}{_against_clean(metrics.loc[metric])}"
        for metric in ("AUC_ROC", "accuracy")
    )
    called = tuple(metrics["value"].reindex(["sensitivity", "specificity"]))
    return sentence + {(1, 0): "; it calls everybody PD", (0, 1): "; it calls everybody HC"}.get(called, "")


def _against_clean(row):
    difference, low, high = row["difference_to_clean"], row["difference_low"], row["difference_high"]
    if pd.isna(difference):
        return ""
    if pd.isna(low):
        return f", {number_text(difference, sign=True)} against clean"
    if low <= 0 <= high:
        direction = "not told apart from clean"
    else:
        direction = f"{'higher' if difference > 0 else 'lower'} than clean"
    numbers = [number_text(value, sign=True) for value in (difference, low, high)]
    return f", {direction}: {numbers[0]} (95 % interval {numbers[1]} to {numbers[2]})"


def _run(run, figures):
    """What the report tells about a run of quality control."""
    images = run.images.assign(Place=range(len(run.images)))
    flags, revisits = run.flags.groupby("Subject"), run.revisits.groupby("Subject")
    touched = images[(images["Times_flagged"] > 0)].sort_values(["First_flagged", "Place"])
    decisions = [_decision(image, flags, revisits, run.by_tolerance) for _, image in touched.iterrows()]
    return {
        "name": run.name,
        "title": run.name.capitalize(),
        "by_tolerance": run.by_tolerance,
        "measured": ["FPR", "FNR"] if run.by_tolerance else ["AUROC (p)", "p of FP, FN"],
        "figures": [picture for picture in figures if picture.run is run],
        "eliminated": [decision for decision in decisions if decision["eliminated"]],
        "kept": [decision for decision in decisions if not decision["eliminated"]],
        "centers": [_center(name, group, flags) for name, group in images.groupby("Study", sort=False)],
    }


def _decision(image, flags, revisits, by_tolerance):
    """How a flagged image was decided upon: its last flag, and the revisit after it (None where none followed)."""
    flag = flags.get_group(image.name).iloc[-1]
    revisit = None
    if image.name in revisits.groups:
        later = revisits.get_group(image.name)
        revisit = next((row for _, row in later[later["Row"] > flag["Row"]].iterrows()), None)
    verdict = "waits for its revisit"
    if revisit is not None:
        verdict = "eliminated" if revisit["Eliminated"] else "trains again"
    return {
        "subject": image.name,
        "center": image["Study"],
        "harmful": bool(image["Harmful"]),
        "times_flagged": int(image["Times_flagged"]),
        "eliminated": bool(image["Eliminated"]),
        "verdict": verdict,
        "flag": _log_row(flag, by_tolerance),
        "revisit": None if revisit is None else _log_row(revisit, by_tolerance),
    }


def _log_row(row, by_tolerance):
    """A row of the log that decided, for readers; the screen has a score instead of what a step did."""
    if pd.isna(row["PFP"]):
        measured = [f"score {row['Screen_score']:.3g}", f"limit {row['Screen_limit']:.3g}"]
    elif by_tolerance:
        measured = [f"{number_text(row[f'Reference_{rate}'])} to {row[rate]:.3f}" for rate in ("PFP", "PFN")]
    else:
        measured = [f"{row['AUROC']:.3f} ({row['P_AUROC']:.2g})", f"{row['P_FP']:.2g}, {row['P_FN']:.2g}"]
    tolerance = MISSING if pd.isna(row["Tolerance"]) else f"{row['Tolerance']:g}"
    return {"row": int(row["Row"]), "cycle": int(row["Cycle"]), "measured": measured, "tolerance": tolerance}


def _center(name, images, flags):
    """What happened at a center: numbers, and its images where one is harmful or was flagged."""
    row = {"name": name, "images": len(images), "harmful": int(images["Harmful"].sum())}
    row["flagged"] = int((images["Times_flagged"] > 0).sum())
    row["eliminated"] = int(images["Eliminated"].sum())
    row["good_lost"] = int((images["Eliminated"] & ~images["Harmful"]).sum())
    row["subjects"] = []
    if row["harmful"] or row["flagged"]:
        for subject, image in images.iterrows():
            cycles = by_cycle(flags.get_group(subject)["Cycle"]) if subject in flags.groups else ""
            outcome = f"eliminated in cycle {image['Eliminated_cycle']}" if image["Eliminated"] else "in training"
            row["subjects"].append(
                {"id": subject, "harmful": bool(image["Harmful"]), "flagged": cycles, "outcome": outcome}
            )
    return row


def _record(study, path, record):
    """A run's record for readers: no path of the machine it ran on."""
    sessions = record["sessions"]
    last = sessions[-1] if sessions else {}
    commit = last.get("git_commit") or MISSING
    return {
        "place": str(path.relative_to(study.folder)),
        "script": record.get("script", MISSING),
        "started": record.get("started") or MISSING,
        "finished": record.get("finished") or "not finished",
        "sessions": len(sessions),
        "device": last.get("device", MISSING),
        "commit": commit + (" with changes" if last.get("git_tree_was_dirty") else ""),
        "versions": _versions(last),
        "options": json.dumps(
            {name: _without_folder(value) for name, value in record["options"].items()}, indent=1, ensure_ascii=False
        ),
        "inputs": record.get("inputs_sha256", {}),
    }


def _without_folder(value):
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _versions(session):
    versions = {"Python": session.get("python")} | session.get("packages", {})
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _last_sessions(study):
    """The last session of every run with a model; that harmful images were made without a device is no difference."""
    records = [record for path, record in study.records.items() if path.parent.name != "harmful"]
    return [record["sessions"][-1] for record in records if record["sessions"]]


def _differing_versions(study):
    """In words, what was not the same for all runs: devices, commits, versions."""
    sessions = _last_sessions(study)
    found = []
    for name, values in (
        ("device", [session.get("device") for session in sessions]),
        ("git commit", [session.get("git_commit") for session in sessions]),
        ("versions", [_versions(session) for session in sessions]),
    ):
        different = list(dict.fromkeys(str(value) for value in values if value))
        if len(different) > 1:
            found.append(f"{name}: {'; '.join(different)}")
    if any(session.get("git_tree_was_dirty") for session in sessions):
        found.append("some runs were made by code that differed from its git commit")
    return found


def _period(study):
    """When the first run began and the last ended, as far as the records tell."""
    started = [record["started"] for record in study.records.values() if record.get("started")]
    finished = [record["finished"] for record in study.records.values() if record.get("finished")]
    return (min(started), max(finished)) if started and finished else None


def methods(study, tables, resamples):
    """A paragraph for a paper's methods, with the study's own numbers; what no record tells is left out."""
    sentences = []
    if study.shown_controls:
        run = study.shown_controls[0]
        model = next(model for model in study.models if model.folder == run.folder)
        options = model.records.get(run.folder / "run.json", {"options": {}})["options"]
        good = run.images[~run.images["Harmful"]]
        batch = f", in batches of {options['batch_size']}" if "batch_size" in options else ""
        rate = f", with Adam at {options['learning_rate']:g} in cycle 0" if "learning_rate" in options else ""
        protocol = f" (protocol '{options['protocol']}')" if "protocol" in options else ""
        wait = f"{run.revisit} cycle{'s' if run.revisit != 1 else ''} later" if run.revisit else "later"
        sentences += [
            f"A pre-trained travelling model went on through {good['Study'].nunique()} centers with {len(good)} "
            f"T1-weighted images ({(good['Group_bin'] == 0).sum()} HC, {(good['Group_bin'] == 1).sum()} PD) in cycles "
            f"{min(run.cycles)} to {max(run.cycles)}{batch}{rate}.",
            *[f"Harmful images were added: {harm}." for harm in [_harm_in_words(study)] if harm],
            f"Decentralized quality control{protocol} verified every training step on the test set: a step that "
            f"{_judged_in_words(run)} was undone and its images were tried one by one; "
            f"those that harmed alone were flagged, revisited {wait}, and eliminated if they harmed again (Souza et "
            "al., 2025).",
            *_screened_in_words(run, options),
        ]
        others = [f"'{setting_in_words(setting)}'" for setting in study.settings if setting != run.setting]
        if others:
            sentences.append(f"It was compared with the setting{'s' if others[1:] else ''} {', '.join(others)}.")
    frame = tables["performance"].frame
    known = frame[(frame["subgroup"] == ALL) & frame["value"].notna()]
    if len(known):
        first = known.iloc[0]
        seeds = f", as means over {len(study.seeds)} seeds" if len(study.seeds) > 1 else ""
        clean = (
            " and compared with those of a model that trained on the good images alone"
            if CLEAN in set(known["model"])
            else ""
        )
        sentences.append(
            f"Diagnoses of {first['HC'] + first['PD']:.0f} test subjects ({first['HC']:.0f} HC, {first['PD']:.0f} PD) "
            f"were evaluated after cycle {first['cycle']:.0f}{seeds}{clean}; intervals are 95 % percentile intervals "
            f"of {resamples} bootstrap resamples of the test subjects, stratified by class and paired between models."
        )
    sessions = _last_sessions(study)
    if sessions:
        sentences.append(f"Software: {_versions(sessions[-1])}.")
    return " ".join(sentences)


def _judged_in_words(run):
    """Which steps a run's setting undid, in words."""
    rise = f"raised FPR or FNR by more than {run.error:g} per image"
    if run.by_tolerance:
        return rise
    alpha = f"one-sided p < {EvidenceRule.ALPHA:g}"
    return (
        f"lowered the AUROC (paired DeLong test, {alpha}), or {rise} with more new misdiagnoses than chance explains "
        f"(exact McNemar test, {alpha}),"
    )


def _screened_in_words(run, options):
    """What the screen did, in words: no sentence or one."""
    if "--screen" not in SETTINGS[run.setting]:
        return []
    rate = f" (stated rate of false alarms {options['false_alarms']:g})" if options.get("false_alarms") else ""
    return [
        "Before a center trained, the statistics of each of its images at the network's BatchNorm layers were compared "
        "with the moving ones; images farther from these than the conformal limit that the images of the test set "
        f"gave{rate} were flagged without training, and eliminated if they were beyond it at their revisit, too."
    ]


def _harm_in_words(study):
    parts = []
    for experiment, kind in study.conditions:
        run = next(iter(study.runs((experiment, kind))), None)
        if run and run.images["Harmful"].any():
            harmful = run.images[run.images["Harmful"]]
            parts.append(f"{in_words(experiment, kind)}: {len(harmful)} at {harmful['Study'].nunique()} centers")
    return "; ".join(parts)
