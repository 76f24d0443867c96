"""A study small enough to compute every number of its tables by hand: ten test subjects, fifteen training images."""

import json

import pandas as pd
from conftest import ROOT

LABELS = [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
SEXES = "MFMFMFMFMF"
AGES = [50, 55, 60, 65, 70, 75, 50, 65, 72, ""]
CLEAN = [0.1, 0.2, 0.3, 0.4, 0.6, 0.2, 0.9, 0.8, 0.7, 0.3]
DIRTY = [0.9] * 9 + [0.1]
CONTROLLED = [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.9, 0.8, 0.7, 0.3]
LAST_CYCLE = 12

GOOD = {"A": "a1", "B": "b1 b2 b3", "C": "c1 c2 c3 c4 c5 c6 c7", "D": "d1 d2"}  # center -> subjects
HARMFUL = {"harmful_01": "h1 h2"}
PATIENTS = {"b3", "c5", "c6", "c7", "d2"}
C_BATCHES = ("c1;c2;c3;c4;c5", "c6;c7")
ERROR = 0.05

# cycle, phase, subjects, FPR, FNR; the decisions follow. h2 escapes once, b1 is flagged by mistake and comes back.
STEPS = [
    (10, "batch", "a1", 0.2, 0.25),
    (10, "batch", "h1;h2", 1.0, 0.0),
    (10, "subject", "h1", 0.9, 0.0),
    (10, "subject", "h2", 0.2, 0.25),
    (10, "batch", "b1;b2;b3", 0.2, 0.5),
    (10, "subject", "b1", 0.2, 0.5),
    (10, "subject", "b2", 0.2, 0.25),
    (10, "subject", "b3", 0.2, 0.25),
    *((10, "batch", batch, 0.2, 0.25) for batch in (*C_BATCHES, "d1;d2")),
    (11, "batch", "h2", 0.8, 0.0),
    (11, "subject", "h2", 0.8, 0.0),
    *((11, "batch", batch, 0.2, 0.25) for batch in ("b2;b3", "a1", *C_BATCHES, "d1;d2")),
    (11, "revisit", "h1", 0.9, 0.0),
    (11, "revisit", "b1", 0.2, 0.25),
    *((12, "batch", batch, 0.2, 0.25) for batch in ("b3;b1;b2", "a1", *C_BATCHES, "d1;d2")),
    (12, "revisit", "h2", 0.9, 0.0),
]


def make_study(folder, experiment="whole_centers", kind="noise", names=None, steps=STEPS):
    """Write the study's records to a folder; ``names`` gives subjects and centers other names. Returns the folder."""
    condition = folder / f"{experiment}_{kind}"
    for place, predictions in (
        (folder / "clean", CLEAN), (condition / "dirty_baseline", DIRTY), (condition / "quality_control", CONTROLLED),
    ):  # fmt: skip
        write_inference(place, predictions)
        write_log(place / ("log.log" if place.name == "quality_control" else "training.log"), place.name)
        write_record(place / "run.json")
        write_record(place / "inference_run.json")
    write_harmful(condition / "harmful", experiment, kind, names or {})
    write_control(condition / "quality_control", names or {}, steps)
    return folder


def write_inference(folder, predictions, cycles=(11, LAST_CYCLE)):
    """Predictions of the last cycle; the cycle before calls everybody HC."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [
        pd.DataFrame(
            {
                "cycle": cycle,
                "ground_truth": LABELS,
                "preds": 0,
                "preds_raw": predictions if cycle == cycles[-1] else 0.0,
                "Subject": [f"t{number}" for number in range(len(LABELS))],
                "Sex": list(SEXES),
                "Age": AGES,
            }
        )
        for cycle in cycles
    ]
    pd.concat(tables).to_csv(folder / "inference_predictions.csv", index=False)


def write_log(path, name):
    """A plain log: cycles of 10, 20 and 30 s, ten times that with quality control; one was interrupted."""
    times = 10 if name == "quality_control" else 1
    lines = [(0, "command: x"), (0, "device: CPU"), (5, "training set: 15 images"), (5 + 10 * times, "cycle 10: done")]
    lines += [
        (5 + 30 * times, "cycle 11: done"),
        (900, "command: x"),
        (900, "going on in cycle 12, 2 centers to visit"),
    ]
    lines += [(950, "cycle 12: done"), (951, "done: models")]
    stamps = [f"2026-01-01 00:{second // 60:02d}:{second % 60:02d},000  {message}" for second, message in lines]
    path.write_text("\n".join(stamps) + "\n")


def write_record(path, finished="2026-01-01T00:16:00+00:00", **options):
    """``run.json``."""
    session = {"started": "2026-01-01T00:00:00+00:00", "command_line": "script.py -x", "device": "CPU"}
    session |= {"python": "3.12.1", "platform": "Linux", "packages": {"keras": "3.15.1"}, "git_commit": "abc"}
    content = {"script": "script.py", "options": {"revisit": 1, **options}, "inputs_sha256": {}, "seed": 42}
    content |= {"started": session["started"], "sessions": [session], "finished": finished}
    path.write_text(json.dumps(content))


def write_harmful(folder, experiment, kind, names):
    """The training set of an experiment, and the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for center, subjects in (GOOD | HARMFUL).items():
        for subject in subjects.split():
            row = {"Subject": names.get(subject, subject), "Study": names.get(center, center)}
            row |= {"Path": f"{subject}.nii.gz", "Group_bin": int(subject in PATIENTS), "Sex": "MF"[len(rows) % 2]}
            rows.append(row | {"Age": 50 + 2 * len(rows)})
    pd.DataFrame(rows).to_csv(folder / "training_set.csv", index=False)
    truth = pd.DataFrame(rows)[-2:][["Subject", "Study"]].assign(Kind=kind, Experiment=experiment, Source="a1")
    truth.to_csv(folder / "truth.csv", index=False)


def write_control(folder, names, steps):
    """The verification log and the subject file: decisions by the rule of quality control."""
    center_of = {subject: center for center, subjects in (GOOD | HARMFUL).items() for subject in subjects.split()}
    reference, rows = (0.2, 0.25), []
    flags, eliminated = {subject: [] for subject in center_of}, {}
    for cycle, phase, subjects, fpr, fnr in [(0, "baseline", "", *reference), *steps]:
        ids = subjects.split(";") if subjects else []
        tolerance = len(ids) * ERROR
        harmful = phase != "baseline" and (fpr > reference[0] + tolerance or fnr > reference[1] + tolerance)
        if harmful and phase == "subject":
            flags[subjects].append(cycle)
        if harmful and phase == "revisit":
            eliminated[subjects] = cycle
        known = phase != "baseline"
        rows.append(
            {
                "Cycle": cycle,
                "Subject": {"baseline": "n/a", "batch": "batch"}.get(phase, names.get(subjects, subjects)),
                "Study": names.get(center_of[ids[0]], center_of[ids[0]]) if ids else "n/a",
                "ACC": 0.8, "FP": 1, "FN": 1, "PFP": fpr, "PFN": fnr,
                "Ignored": int(harmful),
                "Phase": phase,
                "Subjects": ";".join(names.get(subject, subject) for subject in ids),
                "Tolerance": tolerance if known else None,
                "Reference_PFP": reference[0] if known else None,
                "Reference_PFN": reference[1] if known else None,
                "Eliminated": int(harmful and phase == "revisit"),
            }
        )  # fmt: skip
        reference = reference if harmful else (fpr, fnr)
    pd.DataFrame(rows).to_csv(folder / "log.csv", index=False)
    subjects = [
        {
            "Subject": names.get(subject, subject),
            "Times_flagged": len(cycles),
            "Eliminated": int(subject in eliminated),
        }
        for subject, cycles in flags.items()
    ]
    pd.DataFrame(subjects).to_csv(folder / "log_subjects.csv", index=False)


def change(path, column, value, **where):
    """Overwrite a cell of a CSV, where other columns have the given values."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = pd.concat([table[name] == str(wanted) for name, wanted in where.items()], axis=1).all(axis=1)
    assert rows.sum() == 1
    table.loc[rows, column] = str(value)
    table.to_csv(path, index=False)


REPRODUCE = ROOT / "reproduce"
