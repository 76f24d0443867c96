"""What people say of images that they have looked at: ratings.tsv, which every page of pictures exports.

One row per image, as BIDS has it: ``participant_id`` (its Subject), ``rating`` (keep, leave out, or redo: prepare it
again with another mask) and ``note``; n/a where nothing is said.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from travelling.errors import InputError
from travelling.files import write_whole
from travelling.images.cohort import UNKNOWN, read_text_table, refuse_rows

COLUMNS = NAME, RATING, NOTE = ("participant_id", "rating", "note")
RATINGS = KEEP, LEAVE_OUT, REDO = ("keep", "leave out", "redo")
OUT = (LEAVE_OUT, REDO)  # not used, or not as it is
SCRIPT = Path(__file__).with_suffix(".js")  # of the pages


def read_ratings(path: Path, subjects: Iterable[str]) -> pd.DataFrame:
    """``rating`` and ``note`` by participant_id, empty where nothing is said; others than these subjects may be there.

    Raises InputError where it is no such table, or tells of none of them.
    """
    found = _read(path)
    if not found.index.isin(subjects := list(subjects)).any():
        raise InputError(f"{path}: tells of none of the {len(subjects)} images; is it of another cohort?")
    return found


def _read(path):
    table = read_text_table(path)
    if missing := [name for name in COLUMNS if name not in table]:
        raise InputError(f"{path}: no column {missing[0]}; needed are {', '.join(COLUMNS)}, separated by tabs (.tsv)")
    table = table.assign(
        **{name: table[name].mask(table[name].str.lower().isin(UNKNOWN), "") for name in (RATING, NOTE)}
    )
    refuse_rows(path, table[NAME].duplicated(), f"{NAME} appears before, too", table[NAME])
    rated = table[RATING].str.lower()
    refuse_rows(path, ~rated.isin(["", *RATINGS]), f"{RATING} must be {', '.join(RATINGS)} or n/a", table[RATING])
    return table.assign(rating=rated).set_index(NAME)[[RATING, NOTE]]


def all_ratings(given: Path | None, kept: Path, subjects: Iterable[str]) -> pd.DataFrame:
    """As :func:`read_ratings`: what an earlier command has ``kept``, and over it what is ``given``."""
    found = _read(kept) if kept.is_file() else pd.DataFrame(columns=[RATING, NOTE], dtype=str)
    if given is None:
        return found
    new = read_ratings(given, subjects)
    return pd.concat([found.drop(new.index, errors="ignore"), new])


def keep_ratings(ratings: pd.DataFrame, path: Path) -> None:
    """Write what :func:`all_ratings` gave, for the next command."""
    text = ratings.rename_axis(NAME).replace("", "n/a").to_csv(sep="\t", lineterminator="\n")
    write_whole(path, text.encode())
