"""What a log must say of the screen."""

from __future__ import annotations

import math
from typing import ClassVar

from travelling.method.auditor import Auditor, Replayed, Row, Step, Steps, all_empty, differs, shown
from travelling.words import some


class ScreenAuditor(Auditor):
    """Which image is flagged without a step, and which is eliminated: by scores above limits, at its first look."""

    deciding = ("Screen_score", "Screen_limit")
    flagging = ("screen",)
    sure: ClassVar[dict[str, float]] = {"Screen_spectrum": 5.4}  # limit of elimination where it is not 4

    def __init__(self, columns: tuple[str, ...]):
        super().__init__(columns)
        self._looks = columns[2:-2]
        self.may_be_nan = ("Screen_score", *self._looks)  # an image can be so strange
        self._limits: dict[tuple, float] = {}  # cycle, whether the scanner is known -> the limit
        self._seen: dict[str, Row] = {}  # subject -> row of its first look
        self._again = False  # whether labels are looked at, in every cycle
        self._centers: dict[tuple, list[float]] = {}  # cycle, center -> asymmetry of the images looked at together

    def read(self, rows: list[Row], replayed: Replayed, finished: bool) -> None:
        """As :meth:`Auditor.read`."""
        self._again = bool(rows) and "Center_p" in rows[0]
        for place, together in looked_at_together(rows, finished).items():
            looks = [row for row in together if self._again or row["Phase"] == "screen"]
            self._centers[place] = [row.get("Screen_asymmetry") or 0.0 for row in looks]

    def is_decision(self, row: Row) -> bool:
        """As :meth:`Auditor.is_decision`: its looks at images, and revisits without a step."""
        return row["Phase"] == "screen" or (row["Phase"] == "revisit" and row["FP"] == "")

    def before_cycle(self, replayed: Replayed, order: list[str]) -> Steps:
        """As :meth:`Auditor.before_cycle`: a first look at each image, or one more for its label."""
        for center in order:
            yield from self._looks_at(replayed, center)

    def _looks_at(self, replayed, center):
        if replayed.is_untold(center):
            yield Step("unreachable", [])
            return
        present = replayed.present(center)
        due = [subject for subject in replayed.due() if replayed.center_of[subject] == center]
        if not self._again:
            present, due = [subject for subject in present if subject not in self._seen], []
        if not present and due:
            yield Step("screen", due, only_if_failed=True)
        for number, subject in enumerate(present):
            fails = present + due if number == 0 else []  # a center answers for all of them, or for none
            if (yield Step("screen", [subject], if_failed={center: fails})) is None:
                return

    def check_step(
        self, row: Row, phase: str, accepted: Row, risen: list[bool], test_set: tuple[int, int]
    ) -> tuple[bool, list[str]]:
        """As :meth:`Auditor.check_step`: a revisit that trained was not sure; elsewhere nothing is scored."""
        if phase != "revisit":
            return False, all_empty(row, self.columns, f"Phase {phase}")
        sure, faults = self.check_decision(row, phase, accepted)
        if sure:
            faults.append(f"Screen_score {shown(row['Screen_score'])} is sure, but it trained")
        return False, faults

    def check_decision(self, row: Row, phase: str, accepted: Row) -> tuple[bool, list[str]]:
        """As :meth:`Auditor.check_decision`.

        An image is flagged if its first look finds it strange, and eliminated if a look is above its own limit, too.
        """
        faults = self._check_cells(row)
        first = self._seen.setdefault(row["Subjects"][0] if row["Subjects"] else "", row)
        if phase != "revisit":
            return strange(row) and row is first, faults
        if not self._again:
            for name in self.columns:
                faults += differs(row, name, first[name], "as at its first look")
        sure = [name for name in self._looks if row[name] is not None and not row[name] <= self.sure.get(name, 4)]
        return strange(row) and (bool(sure) or mirrored_with_others(row)), faults

    def _check_cells(self, row):
        score, limit = row["Screen_score"], row["Screen_limit"]
        usual = self._limits.setdefault((row["Cycle"], row["Screen_known"]), limit)
        faults = differs(row, "Screen_limit", usual, "the limit of this cycle")
        if row["Screen_known"] not in (0, 1):
            faults.append(f"Screen_known is {shown(row['Screen_known'])}, should be 0 or 1")
        if score is None or limit is None:
            return [*faults, "Screen_score or Screen_limit is empty, should be a number"]
        looks = [row[name] for name in self._looks]
        if None in looks:
            return [*faults, f"{' or '.join(self._looks)} is empty, should be a number"]
        if row["Screen_center"] is None:
            return [*faults, "Screen_center is empty, should be a number"]
        together = self._centers.get((row["Cycle"], row["Study"]))
        if together and (self._again or row["Phase"] == "screen") and row["Screen_center"]:
            mean = sum(together) / max(len(together), 3)
            faults += differs(row, "Screen_center", mean, "0, or the mean of Screen_asymmetry at its center")
        largest = math.nan if any(map(math.isnan, looks)) else max(looks)
        return faults + differs(row, "Screen_score", largest, f"the largest of {', '.join(self._looks)}")

    def summary(self, rows: list[Row]) -> list[str]:
        """As :meth:`Auditor.summary`."""
        looks = sum(row["Phase"] == "screen" for row in rows)
        return [f"{some(looks, 'look')} of the screen"] if looks else []


def looked_at_together(rows: list[Row], finished: bool) -> dict[tuple, list[Row]]:
    """The rows of a log that tell of looks at a center in one cycle, by (cycle, center).

    Not of a center that failed in it, nor of the cycle in which an unfinished run stands: some of these have no row.
    """
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["Phase"] in ("screen", "revisit"):
            found.setdefault((row["Cycle"], row["Study"]), []).append(row)
    failed = {(row["Cycle"], row["Study"]) for row in rows if row["kind"] == "failure"}
    last = None if finished or not rows else rows[-1]["Cycle"]
    return {place: looks for place, looks in found.items() if place not in failed and place[0] != last}


def strange(row: Row) -> bool:
    """Whether a look finds an image strange."""
    score, limit = row["Screen_score"], row["Screen_limit"]
    return score is not None and limit is not None and not score <= limit


def mirrored_with_others(row: Row) -> bool:
    """Whether an image looks mirrored at a center whose images do so on average."""
    own, limit, center = row["Screen_asymmetry"], row["Screen_limit"], row["Screen_center"]
    return None not in (own, limit, center) and own > limit and center > 2.75
