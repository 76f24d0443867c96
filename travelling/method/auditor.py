"""What checks an extension's part of a log, apart from how it decides: the audit asks for nothing else of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator
from typing import Any, NamedTuple, Protocol

ROUNDING = 1e-9  # smaller differences do not count, but for what --protocol published decides
Row = dict[str, Any]  # of the log: columns -> numbers (None: an empty cell), texts, and Subjects, a list


class Step(NamedTuple):
    """A row that the log must have."""

    phase: str
    subjects: list[str]
    if_failed: dict[str, list[str]] | None = None  # center -> the row's subjects where that one fails, if others
    smallest: int | None = None  # images of the smallest batch, where there are several
    only_if_failed: bool = False  # there is no row otherwise


Steps = Generator[Step, bool | None, None]  # is sent whether the step was harmful (None: the center failed)


class Replayed(Protocol):
    """What an auditor may know of the replay of a log."""

    subjects_of: dict[str, list[str]]
    center_of: dict[str, str]
    absent: set[str]  # centers that failed in this cycle
    cycle: int

    def present(self, center: str) -> list[str]:
        """Who trains at a center."""

    def due(self) -> list[str]:
        """Who is to be revisited at the end of this cycle."""

    def is_untold(self, center: str) -> bool:
        """Whether a center has not told its subjects."""

    def batches_of(self, center: str, generator: Any) -> Generator[Step, bool | None, list[list[str]]]:
        """Returns a center's batches, none where it has failed; yields where it has not told its subjects."""


class Auditor:
    """The audit of an extension. A fault is one line of words, which begins with the column.

    ``columns`` are those of the log: they must be empty in each row for which the extension says nothing else.
    """

    may_be_nan: tuple[str, ...] = ()  # those of ``columns`` that need not be finite
    deciding: tuple[str, ...] = ()  # those that explain a decision without a step
    judging: tuple[str, ...] = ()  # those that explain whether a step was rejected
    phases: tuple[str, ...] = ()  # of its rows that verify steps
    flagging: tuple[str, ...] = ()  # of its rows that may flag an image without a step

    def __init__(self, columns: tuple[str, ...]):
        self.columns = columns

    def read(self, rows: list[Row], replayed: Replayed, finished: bool) -> None:
        """All rows of the log, before any is checked; ``finished``: the run is."""

    def is_decision(self, row: Row) -> bool:
        """Whether a row tells what was decided about an image without a step. Its cells are still texts."""
        return row["Phase"] in self.flagging

    def before_cycle(self, replayed: Replayed, order: list[str]) -> Steps:
        """Yields the rows that must come before the first visit of a cycle; ``order`` is that of the centers."""
        yield from ()

    def train(self, replayed: Replayed, order: list[str], generator: Any) -> Steps | None:
        """The rows of all visits of a cycle, where they are otherwise than published; ``generator`` cuts batches."""

    def check_baseline(self, row: Row) -> list[str]:
        """The faults of the first row."""
        return all_empty(row, self.columns, "baseline")

    def check_step(
        self, row: Row, phase: str, accepted: Row, risen: list[bool], test_set: tuple[int, int]
    ) -> tuple[bool, list[str]]:
        """Whether a step was harmful, and the faults of its row.

        ``accepted`` is the last accepted row, ``risen`` tells whether FPR, and whether FNR, rose by more than the
        tolerance; ``test_set`` holds its numbers of HC and PD.
        """
        return False, all_empty(row, self.columns, f"Phase {phase}")

    def check_decision(self, row: Row, phase: str, accepted: Row) -> tuple[bool, list[str]]:
        """Whether an image had to be flagged, or eliminated at its revisit, without a step; and the row's faults."""
        return False, all_empty(row, self.columns, "no step was made")

    def summary(self, rows: list[Row]) -> list[str]:
        """What a consistent log holds of it, in words."""
        return []


def differs(row: Row, column: str, should: object, why: str) -> list[str]:
    """The fault of a cell that is not what it should be, if it is not."""
    if same(row.get(column), should):
        return []
    return [f"{column} is {shown(row.get(column))}, should be {shown(should)} ({why})"]


def all_empty(row: Row, columns: Collection[str], why: str) -> list[str]:
    """The faults of cells that should be empty."""
    return [fault for column in columns for fault in differs(row, column, None, why)]


def same(value: object, other: object) -> bool:
    """Whether two cells agree: numbers up to rounding."""
    if isinstance(value, float) and isinstance(other, float):
        return value == other or abs(value - other) <= ROUNDING or (math.isnan(value) and math.isnan(other))
    return value == other


def shown(value: object) -> str:
    """A cell in words."""
    if isinstance(value, list):
        value = ";".join(value)
    if value is None or value == "":
        return "empty"
    return f"'{value}'" if isinstance(value, str) else f"{value:.10g}"
