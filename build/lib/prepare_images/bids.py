"""A BIDS folder of raw scans: who is in participants.tsv, and the T1w image of each session.

The Brain Imaging Data Structure: https://bids-specification.readthedocs.io
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from travelling.errors import InputError
from travelling.images.cohort import RELATED, refuse_look_alikes

# Columns by their common names, in lower case; the first one that is there counts.
COLUMNS = {
    "label": ("group_bin", "group", "diagnosis", "dx", "disease"),
    "center": ("center", "centre", "site", "study", "institution"),
    "sex": ("sex", "gender"),
    "age": ("age", "age_years", "age_at_scan"),
}
PD_VALUES = ("PD", "Parkinson", "Parkinsons", "Parkinson's disease")
HC_VALUES = ("HC", "control", "controls", "healthy", "healthy control", "CTL")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}
_OURS = ("Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Participant")
_OTHERS = {name.lower(): name for name in RELATED}  # further columns that are written in one way


def participants_file(folder: Path) -> Path:
    """``participants.tsv`` of a BIDS folder; raises InputError where there is none."""
    path = Path(folder) / "participants.tsv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; a BIDS folder tells there who its participants are (or use --csv)")
    return path


def read_bids(
    folder: Path,
    columns: dict,
    pd_values: Sequence[str] = PD_VALUES,
    hc_values: Sequence[str] = HC_VALUES,
    center: str | None = None,
    t1w: str = "*_T1w.nii*",
) -> pd.DataFrame:
    """One row per session of every participant, as the cohort's CSV has them, and ``Reason`` where it cannot be used.

    ``columns`` maps "label", "center", "sex" and "age" to a column of participants.tsv, or to None: a common name is
    looked for. ``center`` is that of all participants where no column tells it. ``t1w`` is the pattern of the scan's
    file name. Columns that mean nothing here are carried along. Raises InputError where participants.tsv is missing,
    is no table, or lacks a column.
    """
    folder, path = Path(folder).absolute(), participants_file(folder)
    table = _read_tsv(path)
    names = {what: _column(path, table, what, columns.get(what)) for what in COLUMNS if what != "center" or not center}
    labels = {**{_plain(value): 0 for value in hc_values}, **{_plain(value): 1 for value in pd_values}}
    if "label" in names and names["label"].lower() == "group_bin":
        labels = {"0": 0, "1": 1, **labels}
    for name in ("participant_id", *filter(None, [names.get("center")])):
        refuse_look_alikes(path, table[name])
    if not table[names["label"]].map(_plain).isin(labels).any():
        values = ", ".join(sorted(table[names["label"]].unique()))[:200]
        raise InputError(f"{path}: nobody is PD or HC; {names['label']} is {values} (see --pd and --hc)")
    known = {*map(str.lower, _OURS), *(name.lower() for name in names.values() if name), "participant_id"}
    rest = [name for name in table.columns if name.lower() not in known]

    rows, told = [], set()
    for person in table.to_dict("records"):
        participant = "sub-" + person["participant_id"].removeprefix("sub-")
        told.add(participant)
        label, sex = person[names["label"]], person[names["sex"]]
        reasons = []
        if _plain(label) not in labels:
            reasons.append(f"{names['label']} {label!r} is neither PD ({', '.join(pd_values)}) nor HC "
                           f"({', '.join(hc_values)}); see --pd and --hc")  # fmt: skip
        if _plain(sex) not in _SEXES:
            reasons.append(f"{names['sex']} {sex!r} is neither M nor F")
        study = center or person[names["center"]]
        if study in ("", "n/a"):
            reasons.append(f"{names['center']} is not told")
        about = {
            "Study": study,
            "Group_bin": labels.get(_plain(label), ""),
            "Sex": _SEXES.get(_plain(sex), ""),
            "Age": _age(person[names["age"]]) if names["age"] else "",
            "Participant": participant,
            **{_OTHERS.get(name.lower(), name): "" if person[name] == "n/a" else person[name] for name in rest},
        }
        for subject, scan, reason in scans(folder / participant, t1w):
            rows.append({"Subject": subject, **about, "Path": scan, "Reason": "; ".join([*reasons, *reason])})
    for extra in sorted(place.name for place in folder.glob("sub-*") if place.is_dir() and place.name not in told):
        rows.append({"Subject": extra, "Participant": extra, "Reason": f"not in {path.name}"})
    return pd.DataFrame(rows).astype(object).fillna("")


def scans(folder: Path, t1w: str) -> list[tuple[str, str, list]]:
    """A participant's sessions: (subject id, T1w image, reasons why there is none); a folder without them is one."""
    sessions = sorted(place for place in folder.glob("ses-*") if place.is_dir()) or [folder]
    found: list[tuple[str, str, list]] = []
    for session in sessions:
        images = sorted((session / "anat").glob(t1w))
        subject = folder.name if session == folder else f"{folder.name}_{session.name}"
        if len(images) == 1:
            found.append((subject, str(images[0]), []))
        elif images or len(sessions) == 1:
            names = f": {', '.join(image.name for image in images)}; --t1w chooses" if images else ""
            found.append((subject, "", [f"{len(images) or 'no'} T1w images in {session / 'anat'}{names}"]))
    return found or [(folder.name, "", [f"no T1w image in {folder}"])]


def _read_tsv(path):
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a table ({str(error).strip().splitlines()[-1]})") from None
    table = table.fillna("").rename(columns=str.strip).apply(lambda column: column.str.strip())
    if "participant_id" not in table.columns:
        raise InputError(f"{path}: no column participant_id (separated by tabs?); there are {_listed(table)}")
    for bad, what in (
        ((table["participant_id"] == ""), "is empty"),
        (table["participant_id"].duplicated(), "is there twice"),
    ):
        if bad.any():
            raise InputError(f"{path}, row {bad.idxmax() + 2}: participant_id {what}")
    if table.empty:
        raise InputError(f"{path}: no participants")
    return table


def _column(path, table, what, told):
    """The name of a column; None for an age that nobody tells."""
    if told is not None and told not in table.columns:
        raise InputError(f"{path}: no column {told!r} (--{what}-column); there are {_listed(table)}")
    by_look = {name.lower(): name for name in reversed(table.columns)}
    found = told or next((by_look[name] for name in COLUMNS[what] if name in by_look), None)
    if found is None and what != "age":
        more = ", or --center NAME for all" if what == "center" else ""
        raise InputError(
            f"{path}: which column tells the {what}? --{what}-column NAME{more}; there are {_listed(table)}"
        )
    return found


def _listed(table):
    return ", ".join(map(repr, table.columns))[:200]


def _plain(value):
    return " ".join(value.casefold().split())


def _age(text):
    """Years; BIDS has 89+ for all who are older. Empty where it is no number."""
    years = pd.to_numeric(text.removesuffix("+"), errors="coerce")
    return years if 0 <= years <= 120 else ""
