"""A BIDS folder of raw scans: who is in participants.tsv, and the T1w image of each session.

The Brain Imaging Data Structure: https://bids-specification.readthedocs.io
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from travelling.errors import InputError
from travelling.images.cohort import (
    RELATED,
    UNKNOWN,
    find_image,
    is_unknown,
    read_text_table,
    refuse_look_alikes,
    refuse_rows,
)

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
_OURS = ("Subject", "Study", "Path", "Group_bin", "Sex", "Age", "Participant", "Mask", "Status")
_OTHERS = {name.lower(): name for name in RELATED}  # further columns that are written in one way
WORDS = ("Label_word", "Sex_word", "Age_word")  # columns: what the tables say, as they say it
_AGE = re.compile(r"(\d+(?:[.,]\d+)?)([+ymwd]?)", re.IGNORECASE)  # 61, 60.5, 60,5, 89+ and, of DICOM, 061Y
_YEARS = {"m": 12, "w": 52.1775, "d": 365.2425}  # so many a year


def participants_file(folder: Path) -> Path:
    """``participants.tsv`` of a BIDS folder; raises InputError where there is none."""
    path = Path(folder) / "participants.tsv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; a BIDS folder tells there who its participants are (or use --csv)")
    return path


def read_bids(
    folder: Path,
    columns: dict,
    pd_values: Sequence[str] | None = None,
    hc_values: Sequence[str] | None = None,
    center: str | None = None,
    t1w: str = "*_T1w.nii*",
) -> pd.DataFrame:
    """One row per session of every participant, as the text of a cohort's CSV, and ``Reason`` where it cannot be used.

    The index is that of the rows of participants.tsv (as :func:`read_text_table` has it). ``columns`` maps "label",
    "center", "sex" and "age" to a column of participants.tsv, or to None: a common name is looked for. What a session's
    row in ``sub-*_sessions.tsv`` says goes before that. ``pd_values`` and ``hc_values`` are the words for the diagnosis
    (None: common ones). ``center`` is that of all participants where no column tells it. ``t1w`` is the pattern of the
    scan's file name. Columns that mean nothing here are carried along, :data:`WORDS` are added. Raises InputError where
    a table is missing, is no table, lacks a column, or where nobody is PD or HC.
    """
    folder, path = Path(folder).absolute(), participants_file(folder)
    table = _read_tsv(path, "participant_id", "sub-")
    names = {what: _column(path, table, what, columns.get(what)) for what in COLUMNS if what != "center" or not center}
    labels = {_plain(value): "0" for value in hc_values or HC_VALUES}
    labels |= {_plain(value): "1" for value in pd_values or PD_VALUES}
    if "label" in names and names["label"].lower() == "group_bin":
        labels = {"0": "0", "1": "1", **labels}
    for name in ("participant_id", *filter(None, [names.get("center")])):
        refuse_look_alikes(path, table[name])
    levels = {what: _levels(path.with_suffix(".json"), names[what]) for what in ("label", "sex")}
    known = {*map(str.lower, _OURS), *(name.lower() for name in names.values() if name), "participant_id"}
    rest = [name for name in table.columns if name.lower() not in known]

    rows, places = [], []
    for place, person in zip(table.index, table.to_dict("records"), strict=True):
        participant = person["participant_id"]
        visits = _visits(folder / participant)
        for session, scan, missing in scans(folder / participant, t1w):
            cells = person | visits.get(session, {})
            words = [cells[names[what]] if names[what] else "" for what in ("label", "sex", "age")]
            study = center or cells[names["center"]]
            label, sex = (
                next(
                    (values[_plain(word)] for word in (told, levels[what].get(told, "")) if _plain(word) in values), ""
                )
                for what, told, values in (("label", words[0], labels), ("sex", words[1], _SEXES))
            )
            reasons = []
            if not label:
                reasons.append(f"{names['label']} {words[0]!r} is neither PD nor HC (see --pd and --hc)")
            if not sex:
                reasons.append(f"{names['sex']} {words[1]!r} is neither M nor F")
            if study.lower() in UNKNOWN:
                reasons.append(f"{names['center']} is not told")
            row = {
                "Subject": f"{participant}_{session}" if session else participant,
                "Study": study,
                "Path": scan,
                "Group_bin": label,
                "Sex": sex,
                "Age": read_age(words[2]),
                "Participant": participant,
                **{_OTHERS.get(name.lower(), name): "" if person[name] == "n/a" else person[name] for name in rest},
                **dict(zip(WORDS, words, strict=True)),
                "Reason": "; ".join([*reasons, *missing]),
            }
            rows.append(row)
            places.append(place)
    found = pd.DataFrame(rows, index=places)
    _refuse_one_class(path, found, names["label"], None not in (pd_values, hc_values))
    told = set(table["participant_id"])
    extra = sorted(place.name for place in folder.glob("sub-*") if place.is_dir() and place.name not in told)
    unknown = [{"Subject": name, "Participant": name, "Reason": f"not in {path.name}"} for name in extra]
    return pd.concat([found, pd.DataFrame(unknown, dtype=str)]).fillna("")


def _refuse_one_class(path, found, column, is_chosen):
    """Refuse where a class is empty and words were not understood, unless these were chosen; or both are empty."""
    classes = set(found["Group_bin"])
    missing = [name for label, name in (("1", "PD"), ("0", "HC")) if label not in classes]
    if len(missing) == 2 or (missing and "" in classes and not is_chosen):
        values = ", ".join(sorted(found["Label_word"].unique()))[:200]
        raise InputError(f"{path}: nobody is {' or '.join(missing)}; {column} is {values} (see --pd and --hc)")


def scans(folder: Path, t1w: str) -> list[tuple[str, str, list]]:
    """A participant's sessions: (its name or "", T1w image, reasons why there is none)."""
    sessions = sorted(place for place in folder.glob("ses-*") if place.is_dir()) or [folder]
    found: list[tuple[str, str, list]] = []
    for session in sessions:
        # Hidden files are none: macOS writes ._NAME beside each file on foreign disks.
        images = [
            image
            for image in sorted((session / "anat").glob(t1w))
            if image.name.endswith((".nii", ".nii.gz")) and not image.name.startswith(".")
        ]
        name = "" if session == folder else session.name
        if len(images) == 1:
            file, reason = find_image(folder, str(images[0]))
            found.append((name, file, [f"{file}: {reason}"] if reason else []))
        elif images or len(sessions) == 1:
            names = f": {', '.join(image.name for image in images)}; --t1w chooses" if images else ""
            found.append((name, "", [f"{len(images) or 'no'} T1w images in {session / 'anat'}{names}"]))
    return found or [("", "", [f"no T1w image in {folder}"])]


def _read_tsv(path, key, prefix):
    table = read_text_table(path)
    if key not in table.columns:
        raise InputError(f"{path}: no column {key} (separated by tabs?); there are {_listed(table)}")
    if table.empty:
        raise InputError(f"{path}: no rows")
    refuse_rows(path, is_unknown(table[key]), f"{key} is empty or n/a")
    table[key] = prefix + table[key].str.removeprefix(prefix)
    refuse_rows(path, table[key].duplicated(), f"{key} is there twice", table[key])
    return table


def _visits(folder):
    """What ``sub-*_sessions.tsv`` tells of a participant's sessions: {session: {column: cell}}, without empty cells."""
    path = folder / f"{folder.name}_sessions.tsv"
    if not path.is_file():
        return {}
    rows = _read_tsv(path, "session_id", "ses-").to_dict("records")
    return {
        row["session_id"]: {name: cell for name, cell in row.items() if cell.lower() not in UNKNOWN} for row in rows
    }


def _levels(path, column):
    """What participants.json says that the values of a column mean: {value: words}."""
    try:
        levels = json.loads(path.read_text(encoding="utf-8")).get(column, {}).get("Levels", {})
        return {
            value: str(words.get("Description", "")) if isinstance(words, dict) else str(words)
            for value, words in levels.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a description of columns ({error})") from None


def _column(path, table, what, told):
    """The name of a column; None for an age that nobody tells."""
    if told is not None and told not in table.columns:
        raise InputError(f"{path}: no column {told!r} (--{what}-column); there are {_listed(table)}")
    by_look = {name.lower(): name for name in table.columns}
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


def read_age(text: str) -> str:
    """Years, as text: of 61, 60.5, 60,5, 89+ (BIDS: older ones, too) and 061Y or 732M (DICOM); else empty."""
    if not (match := _AGE.fullmatch(text)):
        return ""
    number, unit = match.groups()
    years = float(number.replace(",", ".")) / _YEARS.get(unit.lower(), 1)
    return f"{years:.4g}" if years <= 120 else ""
