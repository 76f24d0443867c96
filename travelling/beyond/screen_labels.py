"""The label screen: centers whose labels, all together, contradict what the model has learned elsewhere.

A wrong label shows in no image. But before a center trains, the model tells how probable its labels are, and the test
set how probable right ones may be: the conformal p-value of an image (Vovk et al., "Algorithmic Learning in a Random
World", 2005) is the share of test subjects of its class whose label is no more probable. One small p-value is a hard
case, or a wrong label: what was flagged for it would often be the case that the model must learn. Many at one center
are no chance. They are pooled as normal scores (Stouffer), whose sum is given a larger variance than independent ones
would have, since images of one center resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from travelling.beyond import ExtensionOptions
from travelling.beyond.screen import PHASE, OfLooks, Screen, is_strange
from travelling.method.auditor import Auditor, Replayed, Row, all_empty, differs, shown
from travelling.method.extension import Extension, Finding
from travelling.option import BEYOND, option
from travelling.words import some

if TYPE_CHECKING:
    import numpy as np

    from travelling.beyond.screen.labels import Reference
    from travelling.method.quality_control import QualityControl

ALPHA = 0.05  # that any center is suspected at a look, if all labels are right


@dataclass(kw_only=True)
class LabelOptions(ExtensionOptions):
    """Whether labels are screened."""

    label_screen: bool = option(
        "with --screen: put centers aside, too, whose labels all together contradict the model",
        None,
        False,
        group=BEYOND,
    )

    def extension(self) -> LabelScreen | None:
        """As :meth:`ExtensionOptions.extension`."""
        return LabelScreen(self) if self.label_screen else None


class LabelScreen(OfLooks):
    """Puts the images of centers aside whose labels are doubted, and eliminates those that are doubted twice."""

    columns = ("Label_p", "Center_p", "Center_limit")

    def __init__(self, options: LabelOptions):
        self.options = options
        self._reference: Reference | None = None  # of right labels, where the model knows enough
        self._centers = 1

    def check(self, others: Sequence[Extension], spell: Callable[[str], str]) -> None:
        """As :meth:`Extension.check`."""
        if not any(isinstance(other, Screen) for other in others):
            raise ValueError(f"{spell('label_screen')}: is an option of {spell('screen')}")

    def calibrate(self, control: QualityControl, centers: int) -> None:
        """As :meth:`OfLooks.calibrate`."""
        from travelling.beyond.screen.labels import reference_of  # only now, so that --help answers at once

        self._reference, self._centers = reference_of(control.accepted), centers

    def question(self) -> dict[str, Any]:
        """As :meth:`OfLooks.question`."""
        return {"labels": self._reference}

    def add_cells(self, found: list[dict], looks: dict[str, np.ndarray]) -> None:
        """As :meth:`OfLooks.add_cells`; the cells are empty where the model knows too little."""
        from travelling.beyond.screen.labels import center_p_value

        if not self._reference:
            for cells in found:
                cells |= dict.fromkeys(self.columns)
            return
        p_values = looks["labels"][:, 0].tolist()
        usual = [p for p, cells in zip(p_values, found, strict=True) if not is_strange(cells)]
        about = center_p_value(usual), ALPHA / self._centers
        for p, cells in zip(p_values, found, strict=True):
            cells |= dict(zip(self.columns, (p, *about), strict=True))

    def doubts(self, cells: dict) -> bool:
        """As :meth:`OfLooks.doubts`: whether the center of an image is under suspicion."""
        return cells.get("Center_p") is not None and cells["Center_p"] < cells["Center_limit"]

    def auditor(self) -> Auditor:
        """As :meth:`Extension.auditor`."""
        return LabelAuditor(self.columns)

    def methods(self, extensions: Sequence[Extension]) -> str:
        """As :meth:`Extension.methods`."""
        from travelling.beyond.screen.labels import LEAST_AUROC, LEAST_IMAGES, RESEMBLANCE

        return (
            "Labels were examined by center at the same looks. The p-value of a label was that of its log-odds by the "
            "model beside those of the test subjects of its class (limit of prediction, Student's t); those of a "
            "center, without images "
            "above the limit, were pooled as normal scores (Stouffer's method, with a correlation of "
            f"{RESEMBLANCE:g} within a center). All images of a center with a pooled p-value below {ALPHA:g} divided "
            "by the number of centers were flagged without training, and eliminated if it was so again at their "
            f"revisit. Centers of fewer than {LEAST_IMAGES} images were not examined, and none was by a model with an "
            f"AUROC below {LEAST_AUROC:g}."
        )

    def explain(self, row: Any) -> dict[str, str]:
        """As :meth:`Extension.explain`."""
        names = ("p of its label", "p of its center", "its limit")
        return {
            name: "" if math.isnan(row[column]) else f"{row[column]:.3g}"
            for name, column in zip(names, self.columns, strict=True)
        }

    def finding(self, row: Any) -> Finding | None:
        """As :meth:`Extension.finding`."""
        if not self.doubts(row):
            return None
        words = "the labels of this center, all together, contradict the model"
        return Finding(words, f"p {row['Center_p']:.2g}", f"p {row['Center_limit']:.2g}", "labels of the center")

    def not_examined(self, rows: Any) -> list[str]:
        """As :meth:`Extension.not_examined`."""
        from travelling.beyond.screen.labels import LEAST_AUROC, LEAST_IMAGES

        looks = rows[rows["Phase"] == PHASE]
        asked = looks.groupby("Cycle")["Label_p"].apply(lambda values: values.notna().any())
        told = []
        if not asked.all():
            cycles = ", ".join(map(str, asked.index[~asked]))
            told.append(f"labels in cycle {cycles}: the model knew too little to doubt any (AUROC < {LEAST_AUROC:g})")
        small = looks[looks["Label_p"].notna()].groupby("Study")["Center_p"].apply(lambda values: values.isna().all())
        if small.any():
            told.append(f"labels of {some(int(small.sum()), 'center')} with fewer than {LEAST_IMAGES} usable images")
        return told


class LabelAuditor(Auditor):
    """Whether each center's p-value follows from those of its labels, and which images are flagged for it."""

    def __init__(self, columns: tuple[str, ...]):
        super().__init__(columns)
        self.deciding = columns
        self._asked: dict[int, bool] = {}  # cycle -> whether labels were screened in it
        self._first: dict[str, Row] = {}  # subject -> row of its last look before it trains

    def read(self, rows: list[Row], replayed: Replayed, finished: bool) -> None:
        """As :meth:`Auditor.read`: pool the labels of each center and cycle; not where the center failed."""
        from travelling.beyond.screen.audit import looked_at_together, strange  # which no run needs

        normal = NormalDist()
        self._pooled: dict[tuple, float | None] = {}
        self._limit = 0.05 / len(replayed.subjects_of)
        for place, together in looked_at_together(rows, finished).items():
            values = [row["Label_p"] for row in together if 0 < (row.get("Label_p") or 0) <= 1 and not strange(row)]
            if not values:
                continue
            total = sum(normal.inv_cdf(1 - min(max(value, 1e-9), 0.999)) for value in values)
            variance = len(values) + 0.04 * len(values) ** 2
            p_value = 1 - normal.cdf(total / math.sqrt(variance)) if len(values) >= 3 else None
            self._pooled[place] = p_value

    def check_step(
        self, row: Row, phase: str, accepted: Row, risen: list[bool], test_set: tuple[int, int]
    ) -> tuple[bool, list[str]]:
        """As :meth:`Auditor.check_step`: a revisit that trained was not doubted twice."""
        if phase != "revisit":
            return False, all_empty(row, self.columns, f"Phase {phase}")
        sure, faults = self.check_decision(row, phase, accepted)
        if sure:
            faults.append(f"Center_p {shown(row['Center_p'])} is sure, as the first was, but it trained")
        return False, faults

    def check_decision(self, row: Row, phase: str, accepted: Row) -> tuple[bool, list[str]]:
        """As :meth:`Auditor.check_decision`."""
        faults = self._check_cells(row, phase, accepted)
        if phase != "revisit":
            for subject in row["Subjects"][:1]:
                self._first[subject] = row
            return _doubted(row), faults
        first = self._first.get(row["Subjects"][0] if row["Subjects"] else "", row)
        return _doubted(first) and _doubted(row), faults

    def _check_cells(self, row, phase, accepted):
        """Of a cycle all rows of looks have the cells, or none."""
        faults = []
        if row["Cycle"] not in self._asked:
            asked = self._asked[row["Cycle"]] = row["Label_p"] is not None
            auroc = accepted.get("AUROC")
            if phase == "screen" and auroc is not None and asked != (auroc >= 0.8):
                faults.append(f"Label_p is {shown(row['Label_p'])}, but AUROC was {shown(auroc)}")
        if not self._asked[row["Cycle"]]:
            return faults + all_empty(row, self.columns, "the model knew too little in this cycle")
        if row["Label_p"] is None or not 0 < row["Label_p"] <= 1:
            faults.append(f"Label_p is {shown(row['Label_p'])}, should be from 0 to 1")
        faults += differs(row, "Center_limit", self._limit, "0.05 by the number of centers")
        pooled = self._pooled.get((row["Cycle"], row["Study"]), row["Center_p"])
        return faults + differs(row, "Center_p", pooled, "from Label_p of the center's usual images")


def _doubted(row):
    return row.get("Center_p") is not None and row["Center_limit"] is not None and row["Center_p"] < row["Center_limit"]
