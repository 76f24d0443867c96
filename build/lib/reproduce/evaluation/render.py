"""How tables look: numbers and names in words, and whole tables as CSV and LaTeX."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.layout import CLEAN, CONTROL_FOLDERS, DIRTY, PUBLISHED
from evaluation.records import Study, in_words
from travelling.files import write_csv, write_whole
from travelling_quality_control.reporting.pages import MISSING, number_text


@dataclass
class Table:
    """A table: ``frame`` has its numbers (for CSV), ``views`` what readers see: {title: DataFrame of text}.

    ``section`` is that of the report, ``caption`` says what is shown and how it was computed.
    """

    name: str
    title: str
    section: str
    caption: str
    frame: pd.DataFrame
    views: dict
    notes: list


METRIC_NAMES = {
    "AUC_ROC": "AUROC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
    "F1_SCORE": "F1",
}  # fmt: skip


def setting_in_words(setting: str) -> str:
    """``evidence_screen`` -> ``evidence, screen``."""
    return setting.replace("_", ", ")


MODEL_NAMES = {CLEAN: "clean", DIRTY: "dirty"} | {
    folder: "quality-controlled" + ("" if setting == PUBLISHED else f" ({setting_in_words(setting)})")
    for folder, setting in CONTROL_FOLDERS.items()
}


def subgroup_in_words(name: str) -> str:
    """``age_60_to_70`` -> ``age 60 to 70``."""
    return "all subjects" if name == "all" else name.replace("_", " ")


def p_text(value: float) -> str:
    """A p-value for readers."""
    return "< 0.001" if value < 0.001 else number_text(value)


def by_cycle(cycles: pd.Series) -> str:
    """How many in which cycle: "10: 4, 11: 1"."""
    counts = cycles.dropna().astype(int).value_counts().sort_index()
    return ", ".join(f"{cycle}: {number}" for cycle, number in counts.items())


def number(
    name: str, digits: int = 3, sign: bool = False, low: str = "", high: str = "", deviation: str = ""
) -> Callable:
    """A cell: a number of a row with its interval and its deviation over seeds, where the row has them."""

    def cell(row):
        text = number_text(row[name], sign, digits)
        if low and pd.notna(row[name]) and pd.notna(row[low]):
            text += f" [{number_text(row[low], sign)}, {number_text(row[high], sign)}]"
        return text + (f" ± {row[deviation]:.{digits}f}" if deviation and pd.notna(row[deviation]) else "")

    return cell


def count(*names: str) -> Callable:
    """A cell: whole numbers of a row."""
    return lambda row: ", ".join(number_text(row[name], digits=0) for name in names)


def text(name: str) -> Callable:
    """A cell: words of a row, n/a where there are none."""
    return lambda row: MISSING if pd.isna(row[name]) else row[name]


VALUE = number("value", low="low", high="high", deviation="sd_over_seeds")
_NAMES: dict[str, Callable] = {  # of what a row is about
    "experiment": in_words, "kind": in_words, "model": MODEL_NAMES.get, "setting": setting_in_words,
    "subgroup": subgroup_in_words, "seeds": str,
}  # fmt: skip


def leading(study: Study, *names: str) -> list:
    """The columns that say what a row is about, with the number of seeds where the study has several."""
    return [*names, *(["seeds"] if len(study.seeds) > 1 else [])]


def view(frame: pd.DataFrame, names: list, cells: dict) -> pd.DataFrame:
    """A table as readers see it: the columns ``names`` in words, then ``cells``, {label: function of a row}."""
    rows = [
        {name: _NAMES[name](row[name]) for name in names} | {label: cell(row) for label, cell in cells.items()}
        for row in frame.to_dict("records")
    ]
    return pd.DataFrame(rows)


def wide(frame: pd.DataFrame, names: list, cell: Callable) -> pd.DataFrame:
    """The same with one row per model and one column per metric, from one row per model and metric."""
    parts: list[pd.DataFrame] = []
    for metric, name in METRIC_NAMES.items():
        parts.append(view(frame[frame["metric"] == metric], [] if parts else names, {name: cell}))
    return pd.concat(parts, axis=1)


def write_tables(tables: dict, folder: Path) -> None:
    """Write every table as ``<name>.csv`` and ``.tex`` to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_csv(table.frame, folder / f"{name}.csv")
        write_whole(folder / f"{name}.tex", to_latex(table).encode())


def to_latex(table: Table) -> str:
    """A table as LaTeX, a tabular for each view; what it shows are comments."""
    about = [f"{table.title}. {table.caption}", "Needs the packages booktabs and, for < and >, fontenc with T1."]
    lines = [*map(_comment, [*about, *table.notes])]
    for title, shown in table.views.items():
        lines += ["", _comment(title), shown.to_latex(index=False, escape=True)]
    return "\n".join(lines)


def _comment(text):
    return f"% {' '.join(text.split())}"
