"""What a test set must be beside a training set: unseen, and of both classes."""

from pathlib import Path

import pandas as pd

from travelling.errors import InputError
from travelling.images.cohort import as_seen, files_of, persons, refuse_rows


def refuse_overlap(training_set: pd.DataFrame, test_set: pd.DataFrame, training_path: Path, test_path: Path) -> None:
    """Raise InputError where a subject, a person or an image is in both sets: the test set must be unseen."""
    for column, of in (("Subject", _subject), ("Path", files_of), ("Participant", persons)):
        tested = of(test_set).reset_index(drop=True)
        refuse_rows(test_path, tested.isin(set(of(training_set))), f"{column} is in {training_path}, too", tested)


def refuse_one_class(test_set: pd.DataFrame, path: Path) -> None:
    """Raise InputError where the test set lacks HC or PD: then FPR or FNR does not exist."""
    if test_set["Group_bin"].nunique() < 2:
        only = "PD" if test_set["Group_bin"].iloc[0] == 1 else "HC"
        raise InputError(f"{path}: every subject is {only}; verification needs test subjects of both classes")


def _subject(table):
    return table["Subject"].map(as_seen)
