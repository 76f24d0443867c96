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
SCREENED = [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.9, 0.8, 0.7, 0.1]
LAST_CYCLE = 12

GOOD = {"A": "a1", "B": "b1 b2 b3", "C": "c1 c2 c3 c4 c5 c6 c7", "D": "d1 d2"}  # center -> subjects
HARMFUL = {"harmful_01": "h1 h2"}
SCANNERS = {"A": "X", "B": "X", "C": "Y", "D": "", "harmful_01": "Y"}
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
# The same by evidence with the screen, which trains nothing; a sixth value is the decision. The screen suspects h1
# (still at its revisit) and d1 (not any more), c7 is lost by mistake, and c6 is kept although its FPR rises.
SCREENED_STEPS = [
    *((10, "screen", subject, None, None, subject in ("h1", "d1")) for subject in
      [subject for subjects in (GOOD | HARMFUL).values() for subject in subjects.split()]),
    (10, "batch", "a1", 0.2, 0.25, False),
    (10, "batch", "h2", 1.0, 0.0, True),
    (10, "subject", "h2", 0.9, 0.0, True),
    (10, "batch", "b1;b2;b3", 0.2, 0.25, False),
    (10, "batch", "c1;c2;c3;c4;c5", 0.2, 0.25, False),
    (10, "batch", "c6;c7", 0.5, 0.25, True),
    (10, "subject", "c6", 0.3, 0.25, False),
    (10, "subject", "c7", 0.5, 0.25, True),
    *((cycle, "batch", batch, 0.2, 0.25, False)
      for cycle in (10, 11) for batch in ("d2", "b1;b2;b3", "a1", "c1;c2;c3;c4;c5", "c6")[: 1 if cycle == 10 else 5]),
    (11, "revisit", "h1", None, None, True),
    (11, "revisit", "d1", 0.2, 0.25, False),
    (11, "revisit", "h2", 0.9, 0.0, True),
    (11, "revisit", "c7", 0.5, 0.25, True),
    *((12, "batch", batch, 0.2, 0.25, False) for batch in ("b1;b2;b3", "a1", "c1;c2;c3;c4;c5", "c6", "d1;d2")),
]  # fmt: skip
SETTING = "evidence_screen"  # the setting that does so
MADE_BY = {"published": {"rule": "published", "screen": False}, SETTING: {"rule": "evidence", "screen": True}}


def control_folder(setting):
    """The folder of a setting."""
    return "quality_control" if setting == "published" else f"quality_control_{setting}"


def make_study(folder, experiment="whole_centers", kind="noise", names=None, steps=STEPS, settings=("published",)):
    """Write the study's records to a folder; ``names`` gives subjects and centers other names. Returns the folder."""
    condition = folder / f"{experiment}_{kind}"
    write_run(folder / "clean", CLEAN)
    write_run(condition / "dirty_baseline", DIRTY)
    write_harmful(condition / "harmful", experiment, kind, names or {})
    if "published" in settings:
        write_run(condition / "quality_control", CONTROLLED)
        write_control(condition / "quality_control", names or {}, steps)
    if SETTING in settings:
        place = condition / control_folder(SETTING)
        write_run(place, SCREENED, finished="2026-01-01T00:08:00+00:00", **MADE_BY[SETTING])
        write_control(place, names or {}, SCREENED_STEPS)
    return folder


def make_clean_control(folder, setting):
    """Add quality control of the clean images to a study."""
    place = folder / "clean" / control_folder(setting)
    (folder / "cohort").mkdir(exist_ok=True)
    pd.DataFrame(training_rows({})[:-2]).to_csv(folder / "cohort" / "training_set.csv", index=False)
    write_run(place, CONTROLLED, fn_train="cohort/training_set.csv", **MADE_BY[setting])
    steps = SCREENED_STEPS if setting == SETTING else STEPS
    write_control(place, {}, [step for step in steps if "h" not in step[2]], GOOD)


def write_run(folder, predictions, finished="2026-01-01T00:16:00+00:00", **options):
    """All records of a run that any script leaves, and of its inference."""
    write_inference(folder, predictions)
    write_record(folder / "run.json", finished, **options)
    write_record(folder / "inference_run.json")


def write_inference(folder, predictions, cycles=(11, LAST_CYCLE), test="inference"):
    """Predictions of the last cycle; the cycle before calls everybody HC. ``test`` may be "holdout"."""
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
    pd.concat(tables).to_csv(folder / f"{test}_predictions.csv", index=False)


def write_record(path, finished="2026-01-01T00:16:00+00:00", **options):
    """``run.json``."""
    session = {"started": "2026-01-01T00:00:00+00:00", "command_line": "script.py -x", "device": "CPU"}
    session |= {"python": "3.12.1", "platform": "Linux", "packages": {"keras": "3.15.1"}, "git_commit": "abc"}
    told = {"revisit": 1, "error": ERROR, "seed": 42, "batch_size": 5, "protocol": "corrected", "rule": "published"}
    told |= {"screen": False, "label_screen": False, "verify_every": 1, **options}
    content = {"script": "script.py", "options": told, "inputs_sha256": {}, "seed": 42}
    content |= {"started": session["started"], "sessions": [session], "finished": finished}
    path.write_text(json.dumps(content))


def write_harmful(folder, experiment, kind, names):
    """The training set of an experiment, and the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = training_rows(names)
    pd.DataFrame(rows).to_csv(folder / "training_set.csv", index=False)
    truth = pd.DataFrame(rows)[-2:][["Subject", "Study"]].assign(Kind=kind, Experiment=experiment, Source="a1")
    truth.to_csv(folder / "truth.csv", index=False)


def training_rows(names):
    """The rows of the training set, the harmful ones last."""
    rows = []
    for center, subjects in (GOOD | HARMFUL).items():
        for subject in subjects.split():
            row = {"Subject": names.get(subject, subject), "Study": names.get(center, center)}
            row |= {"Path": f"{subject}.nii.gz", "Group_bin": int(subject in PATIENTS), "Sex": "MF"[len(rows) % 2]}
            rows.append(row | {"Age": 50 + 2 * len(rows), "Scanner": SCANNERS[center]})
    return rows


def write_control(folder, names, steps, centers=GOOD | HARMFUL):
    """The verification log and the subject file: decisions by the published rule, where the steps do not tell them."""
    center_of = {subject: center for center, subjects in centers.items() for subject in subjects.split()}
    reference, rows = (0.2, 0.25), []
    flags, eliminated = {subject: [] for subject in center_of}, {}
    for cycle, phase, subjects, fpr, fnr, *decided in [(0, "baseline", "", *reference), *steps]:
        ids = subjects.split(";") if subjects else []
        tolerance = len(ids) * ERROR
        if decided:
            (harmful,) = decided
        else:
            harmful = phase != "baseline" and (fpr > reference[0] + tolerance or fnr > reference[1] + tolerance)
        if harmful and phase in ("subject", "screen"):
            flags[subjects].append(cycle)
        if harmful and phase == "revisit":
            eliminated[subjects] = cycle
        measured = fpr is not None
        known = phase != "baseline" and measured
        further = {}
        if len(steps[0]) > len(STEPS[0]):  # columns that only other settings have
            p_value = (0.0005 if harmful else 0.5) if known else None
            further = {"AUROC": 0.9 if measured else None, "P_AUROC": p_value}
            further |= dict.fromkeys(("P_FP", "P_FN"), 1.0 if known else None)
            score = (2.5 if harmful else 1.5) if not measured else None
            further |= {"Screen_score": score, "Screen_limit": None if measured else 2.0}
        rows.append(
            {
                "Cycle": cycle,
                "Subject": {"baseline": "n/a", "batch": "batch"}.get(phase, names.get(subjects, subjects)),
                "Study": names.get(center_of[ids[0]], center_of[ids[0]]) if ids else "n/a",
                "ACC": 0.8 if measured else None, "FP": 1 if measured else None, "FN": 1 if measured else None,
                "PFP": fpr, "PFN": fnr,
                "Ignored": int(harmful),
                "Phase": phase,
                "Subjects": ";".join(names.get(subject, subject) for subject in ids),
                "Tolerance": tolerance if known else None,
                "Reference_PFP": reference[0] if phase != "baseline" else None,
                "Reference_PFN": reference[1] if phase != "baseline" else None,
                "Eliminated": int(harmful and phase == "revisit"),
            } | further
        )  # fmt: skip
        reference = (fpr, fnr) if measured and not harmful else reference
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
