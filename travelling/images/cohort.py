"""The cohort: one CSV row per image, and its centers.

Columns: ``Subject`` (unique id), ``Study`` (center), ``Path`` (image; relative paths are relative to the CSV),
``Group_bin`` (1 = Parkinson's disease, PD; 0 = healthy control, HC), ``Sex`` (M or F) and, optionally,
``Age`` (years), ``Participant`` (the person, where one has several images), ``Scanner`` (its model) and ``Anatomy``
(the brain that a synthetic image is made of). Further columns are carried along.
"""

import csv
import io
import os
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from travelling.errors import InputError
from travelling.method.verification_log import SEPARATOR

REQUIRED_COLUMNS = ("Subject", "Study", "Path", "Group_bin", "Sex")
RELATED = ("Participant", "Anatomy", "Scanner")  # columns: who shares one of these looks alike for reasons of his own
UNKNOWN = ("", "n/a", "na", "nan")  # in lower case: cells that say nothing
_NO_CELL = {",": re.compile(r"[\r\n]"), "\t": re.compile(r"[\r\n\t]")}  # what a cell cannot hold, by separator
_UNSEEN = re.compile("[\u034f\u115f\u1160\ufe00-\ufe0f]")  # joiner, fillers, variation selectors
RESERVED_IDS = ("batch", "n/a")  # stand for something else in that log


def read_cohort(path: Path | str) -> pd.DataFrame:
    """Read and check a cohort CSV.

    Returns a DataFrame indexed by ``Subject`` (the column stays as well), in the order of the file: ``Path``
    absolute, ``Group_bin`` int, ``Age`` float (NaN where unknown), every other column as text.
    Raises InputError, naming file and line, for anything that would go wrong later.
    """
    return check_cohort(Path(path), read_text_table(path))


def check_cohort(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The cohort of a table of text, as :func:`read_cohort`; the index of ``table`` is that of the rows of its file."""
    for column in (*REQUIRED_COLUMNS, "Age", *RELATED):
        for other in table.columns:
            if other != column and as_seen(other) == as_seen(column):
                raise InputError(f"{path}, row 1: column {other!r} must be written {column!r}")
    missing = [column for column in REQUIRED_COLUMNS if column not in table.columns]
    if missing:
        others = [words for sign, words in ((";", "semicolons"), ("\t", "tabs")) if sign in "".join(table.columns)]
        why = f" (separated by {others[0]}? commas are needed)" if others else ""
        raise InputError(
            f"{path}: missing column(s) {', '.join(missing)}; needed are {', '.join(REQUIRED_COLUMNS)}, "
            f"there are {', '.join(map(repr, table.columns))[:200]}{why}"
        )
    if table.empty:
        raise InputError(f"{path}: no subjects")
    table = table.copy()
    for column in {"Age", *RELATED} & set(table.columns):
        table[column] = table[column].mask(is_unknown(table[column]), "")

    for column in REQUIRED_COLUMNS:
        refuse_rows(path, table[column] == "", f"{column} is empty")
    refuse_rows(path, table["Study"].str.lower() == "n/a", "Study is n/a: the center must be known")
    refuse_rows(path, table["Subject"].isin(RESERVED_IDS), "Subject must not be 'batch' or 'n/a'")
    refuse_rows(path, table["Subject"].str.contains(SEPARATOR, regex=False), f"Subject must not contain '{SEPARATOR}'")
    refuse_rows(path, table["Subject"].duplicated(), "Subject appears before, too", table["Subject"])
    for column in ("Subject", "Study"):
        refuse_look_alikes(path, table[column])
    labels = pd.to_numeric(table["Group_bin"], errors="coerce")
    refuse_rows(path, ~labels.isin([0, 1]), "Group_bin must be 0 or 1", table["Group_bin"])
    refuse_rows(path, ~table["Sex"].isin(["M", "F"]), "Sex must be M or F", table["Sex"])
    if "Age" not in table.columns:
        table["Age"] = ""
    ages = pd.to_numeric(table["Age"], errors="coerce")
    refuse_rows(path, (table["Age"] != "") & ~ages.between(0, 120), "Age must be years from 0 to 120", table["Age"])

    found = pd.DataFrame([find_image(path.parent, name) for name in table["Path"]], table.index, ["file", "reason"])
    for reason in found["reason"].unique():
        refuse_rows(path, (found["reason"] == reason) & (reason != ""), reason, table["Path"])
    table["Path"] = found["file"]
    refuse_rows(path, files_of(table).duplicated(), "the image belongs to another subject, too", table["Path"])

    table["Group_bin"] = labels.astype(int)
    table["Age"] = ages.astype(float)
    return table.set_index("Subject", drop=False).rename_axis(None)


def read_measure(path: Path | str, cohort: pd.DataFrame, column: str) -> pd.Series:
    """A further column of numbers of a cohort, which :func:`read_cohort` has read: floats by Subject.

    NaN where it is empty or n/a; raises InputError for anything else that is no number.
    """
    text = read_text_table(path)[column]
    numbers = pd.to_numeric(text, errors="coerce")
    refuse_rows(
        Path(path), ~is_unknown(text) & ~np.isfinite(numbers), f"{column} is not a number, nor empty or n/a", text
    )
    return numbers.set_axis(cohort.index)


def is_unknown(cells: pd.Series) -> pd.Series:
    """Which cells of text say nothing: they are empty, or n/a."""
    return cells.str.lower().isin(UNKNOWN)


def find_image(folder: Path, name: str) -> tuple[str, str]:
    """The absolute path of a file as text, and why it cannot be read (empty where it can)."""
    file = folder / name
    try:
        file = Path(os.path.abspath(file))  # links stay: in some stores, what they lead to has no ending
        os.fsencode(file)  # is_file() would take what cannot be encoded for missing
        return str(file), "" if file.is_file() else _why_missing(file, name)
    except PermissionError as error:
        return str(file), f"the image cannot be read, {error.strerror}"
    except UnicodeEncodeError:
        reason = f"names of files are {sys.getfilesystemencoding()} here (PYTHONUTF8=1 makes them UTF-8)"
        return str(file), f"the image cannot be found, {reason}"
    except (OSError, RuntimeError):  # a name too long, or links in a circle
        return str(file), "no such image"


def _why_missing(file, name):
    if file.is_symlink():
        return "no such image (a link to a file that is not there; of git-annex or DataLad: not fetched yet?)"
    if name.startswith("~"):
        return "no such image ('~' does not stand for the home folder here: write the whole path)"
    if "\\" in name:
        return "no such image (a backslash, as of Windows, separates no folders here: write '/')"
    return "no such image"


def refuse_look_alikes(path: Path, names: pd.Series) -> None:
    """Raise InputError where two different names of a column look alike: one subject or center, or two?"""
    first_of: dict[str, str] = {}
    for name in names.unique():
        first = first_of.setdefault(as_seen(name), name)
        if first != name:
            shown, other = (word.encode("unicode_escape").decode() for word in (name, first))  # what nobody sees, too
            refuse_rows(
                path, names == name, f"{names.name} '{shown}' looks like '{other}', but is written in another way"
            )


def as_seen(name: str) -> str:
    """A name without what nobody sees: case, ways to write one letter, kinds of blanks, invisible signs."""
    letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = [letter for letter in letters if letter.isspace() or unicodedata.category(letter)[0] != "C"]
    return " ".join(_UNSEEN.sub("", "".join(seen)).split())


def read_text_table(path: Path | str) -> pd.DataFrame:
    """A CSV, or a TSV where its name ends so: every cell as text, without the blanks around it; no blank lines.

    An id such as 007 or NA stays what it is. Row r of the file has the index r - 2. Raises InputError where the file
    is no such table.
    """
    path = Path(path)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        content = path.read_bytes()
        if b"\0" in content:  # what follows it in a cell, pandas would cut off
            raise ValueError("it holds a zero byte")
        header = [
            name.strip()
            for name in next(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=separator), [])
        ]
        if header[:1] and header[0].lower().startswith("sep="):
            raise InputError(f"{path}, row 1: is Excel's line 'sep=', which no CSV file has; remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would cut off surplus cells
            table = pd.read_csv(
                io.BytesIO(content),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
                skip_blank_lines=False,
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except pd.errors.ParserWarning:
        raise InputError(f"{path}: its rows have more cells than its header (a decimal comma?)") from None
    except (ValueError, csv.Error, pd.errors.ParserError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "empty"
        raise InputError(f"{path}: not a {'TSV' if separator != ',' else 'CSV'} file ({reason})") from None
    first_of: dict[str, str] = {}
    for name in filter(None, header):
        if look := first_of.get(as_seen(name)):
            also = f" and {name!r}" * (name != look)
            raise InputError(f"{path}, row 1: two columns are named {look!r}{also}")
        first_of[as_seen(name)] = name
    table.columns = [name.strip() for name in table.columns]
    table = table[(table.fillna("") != "").any(axis=1)].fillna("")
    # Between two stray quotation marks whole rows, or cells of a row, would become one cell.
    mark, reason = _NO_CELL[separator], "a line break inside a cell (a quotation mark too many?)"
    if any(mark.search(column) for column in table.columns):
        raise InputError(f"{path}, row 1: {reason}")
    refuse_rows(path, table.apply(lambda column: column.str.contains(mark)).any(axis=1), reason)
    return table.apply(lambda column: column.str.strip())


def refuse_rows(path: Path, bad: pd.Series, reason: str, values: pd.Series | None = None) -> None:
    """Raise InputError for the first row marked in ``bad``, a boolean Series indexed by the rows of the file."""
    if not bad.any():
        return
    first = int(bad.to_numpy().argmax())
    value = f" ({values.iloc[first][:100]!r})" if values is not None else ""
    more = f" (and {int(bad.sum()) - 1} more rows)" if bad.sum() > 1 else ""
    raise InputError(f"{path}, row {bad.index[first] + 2}: {reason}{value}{more}")  # row 1 is the header


def files_of(table: pd.DataFrame) -> pd.Series:
    """The files of all images, whatever links lead to them."""
    return table["Path"].map(os.path.realpath)


def persons(cohort: pd.DataFrame) -> pd.Series:
    """Who is in each image: the participant where that is told, else the subject; two that look alike are one."""
    told = cohort["Participant"] if "Participant" in cohort.columns else cohort["Subject"]
    return told.where(told != "", cohort["Subject"]).map(as_seen)


def copies(images: dict[str, dict], training_set: pd.DataFrame, test_set: pd.DataFrame | None = None) -> list[str]:
    """What to tell of images that are there twice under different names: a list of lines.

    ``images`` is :attr:`travelling.images.volumes.Volumes.images`. Raises InputError where the same image is in both
    sets.
    """
    owners: dict[str, str] = {}
    pairs = []
    for table in [training_set] if test_set is None else [training_set, test_set]:
        for subject in table["Subject"]:
            first = owners.setdefault(images[subject]["sha256"], subject)
            if first == subject:
                continue
            if first in training_set["Subject"] and subject not in training_set["Subject"]:
                raise InputError(
                    f"{table['Path'][subject]}: the test subject {subject} has the same image as {first} of the "
                    f"training set ({training_set['Path'][first]}); the test set must be unseen"
                )
            labels = [table["Group_bin"][name] for name in (first, subject)]
            pairs.append(f"{first} and {subject}{', one as HC and one as PD' * int(labels[0] != labels[1])}")
    if not pairs:
        return []
    more = f" (and {len(pairs) - 3} more)" if len(pairs) > 3 else ""
    return [f"the same image under two names: {'; '.join(pairs[:3])}{more}"]


def subjects_by_center(cohort: pd.DataFrame) -> dict[str, list[str]]:
    """Subject ids of every center, centers and subjects in order of first appearance in the CSV."""
    return {center: list(cohort["Subject"][cohort["Study"] == center]) for center in cohort["Study"].unique()}
