"""The rule of evidence: a step is harmful if the model gets worse by more than chance explains."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from travelling.beyond import ExtensionOptions
from travelling.method.auditor import Auditor, Row, differs, shown
from travelling.method.extension import Extension, Finding
from travelling.method.protocol import ROUNDING, Protocol
from travelling.method.rule import finding, risen
from travelling.option import BEYOND, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from travelling.method.metrics import Evaluation
    from travelling.method.quality_control import QualityControl


@dataclass(kw_only=True)
class EvidenceOptions(ExtensionOptions):
    """Which rule judges a step."""

    rule: str = option(
        "when a step is harmful; published: FPR or FNR rises by more than the tolerance; evidence: AUROC or rates get "
        "worse by more than chance (paired tests)",
        str,
        "published",
        choices=("published", "evidence"),
        group=BEYOND,
    )

    def extension(self) -> Evidence | None:
        """As :meth:`ExtensionOptions.extension`."""
        return Evidence(self) if self.rule == "evidence" else None


class Evidence(Extension):
    """The model gets worse by more than chance: its ranking of the test subjects, or its diagnoses.

    A rate looks at one threshold: a step that shifts all probabilities a little to one side, as good ones of one class
    do, raises FPR or FNR although the model tells the classes apart as before. The AUROC does not see that shift, and
    the paired test (DeLong) knows how much a test set of this size can tell. It does not see either when a step calls
    everybody PD and leaves the order as it was: so FPR or FNR must not rise by more than the tolerance and, as the
    paired test of the same subjects (McNemar, exact) knows, more than chance.
    """

    columns = ("AUROC", "P_AUROC", "P_FP", "P_FN")
    replaces_rule = True
    ALPHA = 0.01
    GROUP_ALPHA = 0.05  # good batches after a harmful one hide most of what it does to the AUROC
    judged_together = f" at p < {GROUP_ALPHA:g}"

    def __init__(self, options: EvidenceOptions):
        self.options = options

    def start(self, control: QualityControl) -> dict:
        """As :meth:`Extension.start`: its AUROC."""
        return {"AUROC": auroc_of(control.accepted)}

    def judge(self, control: QualityControl, batches: list, after: Evaluation) -> tuple[bool, dict]:
        """As :meth:`Extension.judge`; the cells are the AUROC after the step and three p-values.

        Several batches together are suspected sooner than one is judged: a false alarm costs a search, nothing else.
        """
        before, alpha = control.accepted, self.ALPHA if len(batches) == 1 else self.GROUP_ALPHA
        auroc, p_auroc = auroc_fell(after.labels, before.predictions, after.predictions)
        p_rates = more_misdiagnosed(after.labels, before.predictions, after.predictions)
        ups = risen(before, after, control.tolerance(batches), control.protocol)
        shifted = any(up and p_value < alpha for up, p_value in zip(ups, p_rates, strict=True))
        cells = dict(zip(self.columns, (auroc, p_auroc, *p_rates), strict=True))
        return p_auroc < alpha or shifted, cells

    def saturation(self, baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
        """In words, why not even a model that ranks nobody would be told from the pre-trained one; else empty."""
        if 1 / math.comb(len(baseline.labels), sum(baseline.labels)) >= self.ALPHA:
            return [f"{baseline.healthy} HC and {baseline.patients} PD: chance alone ranks them perfectly too often"]
        auroc = auroc_of(baseline)
        _, p_value = auroc_fell(baseline.labels, baseline.predictions, [0.0] * len(baseline.labels))
        return [f"AUROC {auroc:.3f}, from 0.5 by chance with p {p_value:.2g}"] if p_value >= self.ALPHA else []

    def cause_of_lock_up(self, accepted: Evaluation, protocol: Protocol) -> str:
        """As :meth:`Extension.cause_of_lock_up`."""
        return (
            f"the last accepted evaluation (AUROC {auroc_of(accepted):.3f}) was a lucky one: every step is "
            "measured against it, rejected, and the next begins from the very same model; a larger test set or a lower "
            "learning rate avoid that"
        )

    def auditor(self) -> Auditor:
        """As :meth:`Extension.auditor`."""
        return EvidenceAuditor(self.columns)

    def judged(self, rise: str) -> str:
        """As :meth:`Extension.judged`."""
        p = f"one-sided p < {self.ALPHA:g}"
        return (
            f"lowered the AUROC (paired DeLong test, {p}), or {rise} with more new misdiagnoses than chance explains "
            f"(exact McNemar test, {p}),"
        )

    def legend(self) -> str:
        """As :meth:`Extension.legend`."""
        return (
            "AUROC: after the step; P: of its fall (DeLong) and of a rise of FP or FN (McNemar) by chance. A step was "
            f"rejected where that of the AUROC was below {self.ALPHA:g}, or that of FP or FN was and its rate rose by "
            "more than tolerated."
        )

    def explain(self, row: Any) -> dict[str, str]:
        """As :meth:`Extension.explain`."""
        return {name: "" if math.isnan(row[name]) else f"{row[name]:.3g}" for name in self.columns}

    def finding(self, row: Any) -> Finding | None:
        """As :meth:`Extension.finding`: the AUROC fell, or rates rose."""
        told = []
        if row["P_AUROC"] < self.ALPHA:
            told.append(f"training on it made the model tell PD from healthy less well (AUROC {row['AUROC']:.2f})")
        rise = finding(row) if min(row["P_FP"], row["P_FN"]) < self.ALPHA else None
        told += [rise.reason] if rise else []
        least = min(row[name] for name in ("P_AUROC", "P_FP", "P_FN"))
        words = "; ".join(told)
        return Finding(words, f"p {least:.2g}", f"p {self.ALPHA:g}", "training on it alone") if told else None


class EvidenceAuditor(Auditor):
    """Whether the p-values are possible, for all that a log tells, and small where a step was rejected."""

    judging = ("P_AUROC", "P_FP", "P_FN")

    def check_baseline(self, row: Row) -> list[str]:
        """As :meth:`Auditor.check_baseline`."""
        known = row["AUROC"] is not None and 0 <= row["AUROC"] <= 1
        faults = [] if known else [f"AUROC is {shown(row['AUROC'])}, should be from 0 to 1"]
        return [fault for name in self.judging for fault in differs(row, name, None, "baseline")] + faults

    def check_step(
        self, row: Row, phase: str, accepted: Row, risen: list[bool], test_set: tuple[int, int]
    ) -> tuple[bool, list[str]]:
        """As :meth:`Auditor.check_step`."""
        one = phase in ("batch", "subject", "revisit")
        limit = 0.01 if one else 0.05  # not ALPHA: a fault in that is to be seen
        faults, shifted = [], False
        for count, up, most in zip(("FP", "FN"), risen, test_set, strict=True):
            was, now, chance = accepted[count], row[count], row[f"P_{count}"]
            possible = possible_p_values(was, now, most)
            if chance is None or not any(math.isclose(chance, value, abs_tol=1e-9) for value in possible):
                faults.append(f"P_{count} is {shown(chance)}, but {count} was {was} and is {now}")
            shifted |= up and chance is not None and chance < limit
        was, now, chance = accepted["AUROC"], row["AUROC"], row["P_AUROC"]
        if now is None or chance is None or not 0 <= now <= 1 or not 0 <= chance <= 1:
            return shifted, [*faults, f"AUROC is {shown(now)} and P_AUROC {shown(chance)}, should be from 0 to 1"]
        unknown = chance == 0 and now == 0.5  # predictions that are not numbers, which rank nobody
        if was is not None and (chance < 0.5) != (now < was - 1e-9) and not unknown:
            faults.append(f"P_AUROC is {shown(chance)}, but AUROC was {was:.10g} and is {now:.10g}")
        return chance < limit or shifted, faults


def more_misdiagnosed(labels: ArrayLike, before: ArrayLike, after: ArrayLike) -> list[float]:
    """The one-sided p-values of a rise of FP, and of FN; probabilities of PD, all of shape (subjects,).

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), in its exact form: of the subjects whose diagnosis changed, half would get worse by chance.
    """
    import numpy as np
    from scipy.stats import binomtest

    from travelling.method.metrics import misdiagnosed

    labels = np.asarray(labels)
    was, now = misdiagnosed(labels, before), misdiagnosed(labels, after)
    p_values = []
    for group in (0, 1):
        worse, better = (int(np.sum(change & (labels == group))) for change in (now & ~was, was & ~now))
        changed = worse + better
        p_values.append(float(binomtest(worse, changed, alternative="greater").pvalue) if changed else 1.0)
    return p_values


def auroc_fell(labels: ArrayLike, before: ArrayLike, after: ArrayLike) -> tuple[float, float]:
    """The AUROC after a step, and the one-sided p-value of its fall; probabilities of PD, all of shape (subjects,).

    Source: DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44 (1988). Predictions that are not numbers rank nobody: AUROC 0.5, p-value 0.
    """
    import numpy as np
    from scipy.stats import norm

    if not np.isfinite(after).all():
        return 0.5, 0.0
    patients, healthy = placements(labels, after)
    patients_before, healthy_before = placements(labels, before)
    fall = float(patients_before.mean() - patients.mean())
    if fall <= ROUNDING:
        return float(patients.mean()), 1.0
    variance = sum(
        np.var(difference, ddof=1) / len(difference) if len(difference) > 1 else 0.0
        for difference in (patients_before - patients, healthy_before - healthy)
    )
    return float(patients.mean()), float(norm.sf(fall / np.sqrt(variance))) if variance > 0 else 0.0


def auroc_of(evaluation: Evaluation) -> float:
    """The AUROC of an evaluation."""
    return auroc_fell(evaluation.labels, evaluation.predictions, evaluation.predictions)[0]


def placements(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """For each patient the share of HC who are ranked lower, for each HC the share of patients ranked higher."""
    import numpy as np

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    patients, healthy = predictions[labels == 1][:, None], predictions[labels == 0][None, :]
    right = (patients > healthy) + 0.5 * (patients == healthy)
    return right.mean(axis=1), right.mean(axis=0)


@functools.cache
def possible_p_values(before: int, after: int, most: int) -> list[float]:
    """The p-values that the exact McNemar test can give where misdiagnoses of a class go from one number to another.

    So many of those ``before`` are diagnosed well now, any number, and the others of the class (``most`` subjects) make
    up for them; it is the chance that of all whose diagnosis changed, as coins that fall, as many or more get worse.
    Only the audit asks.
    """
    recovered = range(max(0, before - after), before + 1)
    return [
        _heads(after - before + better, after - before + 2 * better) for better in recovered if after + better <= most
    ]


@functools.cache
def _heads(heads, coins):
    """The probability of so many heads or more."""
    return sum(math.comb(coins, number) for number in range(heads, coins + 1)) / 2**coins
