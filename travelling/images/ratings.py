"""What people say of images that they have looked at: ratings.tsv, which pages of pictures export.

Columns: ``Subject``, ``Rating`` (keep, leave out, or redo: prepare it again with another mask; empty: not rated) and
``Note``.
"""

from pathlib import Path

import pandas as pd

from travelling.errors import InputError
from travelling.images.cohort import read_text_table, refuse_rows

RATINGS = KEEP, LEAVE_OUT, REDO = ("keep", "leave out", "redo")
OUT = (LEAVE_OUT, REDO)  # not used, or not as it is
SCRIPT = Path(__file__).with_suffix(".js")  # of the pages


def read_ratings(path: Path | None, subjects: pd.Series) -> pd.DataFrame:
    """``Rating`` and ``Note`` of each of these subjects, with their index; empty where nothing is said (None: at all).

    Others may be in the file, too. Raises InputError where it is no such table, or tells of none of these.
    """
    if path is None:
        return pd.DataFrame("", subjects.index, ["Rating", "Note"])
    table = read_text_table(path)
    columns = ["Subject", "Rating", "Note"]
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{path}: no column {missing[0]}; needed are {', '.join(columns)}, separated by tabs (.tsv)")
    refuse_rows(path, table["Subject"].duplicated(), "Subject appears before, too", table["Subject"])
    rated = table["Rating"].str.lower()
    refuse_rows(path, ~rated.isin(["", *RATINGS]), f"Rating must be {', '.join(RATINGS)} or empty", table["Rating"])
    if not table["Subject"].isin(subjects).any():
        raise InputError(f"{path}: tells of none of the {len(subjects)} subjects; is it of another cohort?")
    found = table.assign(Rating=rated).set_index("Subject").reindex(subjects, fill_value="")
    return found[["Rating", "Note"]].set_axis(subjects.index)
