"""Runs of the demo that were measured on other processors, kernels and seeds, and where a run lies among them."""

import hashlib
from pathlib import Path

import pandas as pd

from evaluation.records import ControlRun, Study, in_words
from evaluation.render import MODEL_NAMES, setting_in_words

MEASURED = Path(__file__).resolve().parents[1] / "demo_runs.csv"
MADE_BY = ["processor", "kernels", "threads"]
CASE = ["experiment", "kind", "setting"]
COUNTS = ["harmful", "harmful_eliminated", "harmful_flagged", "good", "good_flagged", "good_eliminated"]
SHOWN = ["harmful_eliminated", "good_flagged", "good_eliminated"]
RATES = ["FPR", "FNR", "AUROC"]


def figures(study: Study) -> pd.DataFrame:
    """One row for every finished and tested model: ``CASE``, seed (1, 2, ...), ``COUNTS``, ``RATES`` and more.

    The setting of a model that had no quality control is its name, and its COUNTS are missing. The rates are those on
    the test set after the last cycle. ``eliminated`` is a digest of the ids of all eliminated images, by which runs on
    the same images are compared; ``version`` that of the code.
    """
    rows = []
    for model in study.models:
        if model.metrics is None or not model.record["finished"]:
            continue
        last, session = model.metrics.iloc[-1], model.record["sessions"][-1]
        row = {"seed": int(model.seed.removeprefix("seed_") or 1), "experiment": model.experiment, "kind": model.kind}
        row |= {"setting": model.name, "FPR": 1 - last["specificity"], "FNR": 1 - last["sensitivity"]}
        row |= {"AUROC": last["AUC_ROC"]}
        row["version"] = f"{session['packages'].get('travelling')} ({(session['git_commit'] or 'unknown')[:7]})"
        if isinstance(model, ControlRun):
            row["setting"] = model.setting
            for name, images in (("harmful", model.harmful), ("good", model.good)):
                row |= {name: len(images), f"{name}_flagged": images["Flagged"].sum()}
                row[f"{name}_eliminated"] = images["Eliminated"].sum()
            gone = sorted(model.images.index[model.images["Eliminated"]])
            row["eliminated"] = hashlib.sha256("\n".join(gone).encode()).hexdigest()[:8]
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["seed", *CASE, *COUNTS, "eliminated", *RATES, "version"])
    return frame.astype(dict.fromkeys(COUNTS, "Int64")).round(dict.fromkeys(RATES, 3))


def read_measured(path: Path) -> pd.DataFrame:
    """The rows that tests/benchmarks/demo_runs.py keeps: those of :func:`figures`, and how each was made."""
    return pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys((*COUNTS, *RATES), ""))


def ranges(measured: pd.DataFrame) -> pd.DataFrame:
    """Smallest and largest of COUNTS and RATES by CASE (the index): columns (figure, "min" or "max")."""
    return measured.groupby(CASE, sort=False)[[*COUNTS, *RATES]].agg(["min", "max"])


def span(low: float, high: float) -> str:
    """A range in words: one number where it has no width, nothing where it is not known."""
    if pd.isna(low):
        return ""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def place(study: Study, measured: pd.DataFrame) -> pd.DataFrame:
    """The figures of one run of the demo, each with the smallest and the largest that were measured in brackets.

    The last column says whether they are inside; what nobody has measured is left out.
    """
    rows, known = [], ranges(measured)
    for run in figures(study).to_dict("records"):
        case = tuple(run[name] for name in CASE)
        if case not in known.index:
            continue
        row = {"experiment": in_words(*case[:2]), "setting": MODEL_NAMES.get(case[2]) or setting_in_words(case[2])}
        outside = []
        for name in (*SHOWN, *RATES):
            low, high = known.loc[case, name]
            known_too = pd.notna(run[name]) and pd.notna(low)
            row[name.replace("_", " ")] = f"{run[name]:g} ({span(low, high)})" if known_too else ""
            if known_too and not low <= run[name] <= high:
                outside.append(name.replace("_", " "))
        rows.append(row | {"among those measured": f"outside: {', '.join(outside)}" if outside else "inside"})
    return pd.DataFrame(rows)
