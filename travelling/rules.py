"""When a training step is harmful: the published rule, and one that weighs how much evidence the test set gives.

A rule is asked after every training step with the evaluations of the same test subjects before and after it. To add
one, write a class here and name it in ``RULES``: command lines, log and audit follow (docs/extending.md).

Imports nothing slow: command lines list the rules, and ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from travelling.protocol import ROUNDING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from travelling.metrics import Evaluation


class Rule:
    """What every rule has. :meth:`judge` decides; :meth:`audit_step` checks what the log says of that, apart from it.

    The two share no code, so that the audit sees a fault in either.
    """

    name: str  # of --rule
    words: str  # after the name in --help: when a step is harmful
    columns: tuple[str, ...] = ()  # of the log, numbers, after the published ones
    baseline_columns: tuple[str, ...] = ()  # those of them that the pre-trained model's row has, too
    by_tolerance = False  # whether a step is judged by its rates and the tolerance alone
    in_groups = ""  # for a paper, after methods(): how suspect() differs

    def judge(self, before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> tuple[bool, dict]:
        """Whether the step between two :class:`travelling.metrics.Evaluation` is harmful, and the cells of columns.

        ``tolerance`` is a fraction of 1, for the whole step; ``protocol`` a :class:`travelling.protocol.Protocol`.
        """
        raise NotImplementedError

    def suspect(self, before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> tuple[bool, dict]:
        """As :meth:`judge`, of several batches that trained between two evaluations, which nobody is flagged for.

        A false alarm costs a search and nothing else, so a rule may be quicker to suspect than to judge.
        """
        return self.judge(before, after, tolerance, protocol)

    def describe(self, baseline: Evaluation) -> dict:
        """The cells of ``baseline_columns``, of an Evaluation."""
        return {}

    def locked_up(self, accepted: Evaluation, protocol: Protocol) -> str:
        """In words, how this rule can come to undo most batches, and what avoids it."""
        cells = ", ".join(f"{column} {value:.3f}" for column, value in self.describe(accepted).items())
        return (
            f"the last accepted evaluation{cells and f' ({cells})'} was a lucky one: every step is measured against "
            "it, undone, and the next begins from the very same model; a larger test set or a lower learning rate "
            "avoid that"
        )

    def saturation(self, baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
        """In words, why this rule would undo no step after this baseline, whatever it did; else empty."""
        return []

    @classmethod
    def methods(cls, options: dict) -> str:
        """What a harmful step does, for a paper: goes on after "a step that". ``options`` are the run's."""
        return f"made that {cls.words}"

    @classmethod
    def legend(cls) -> str:
        """What readers of a log's ``columns`` must know: one or two sentences."""
        return f"A step was undone where {cls.words}."

    def audit_step(self, row: dict, accepted: dict, risen: list, test_set: tuple) -> tuple[bool, list]:
        """Whether a step was harmful by its cells in the log, and what is wrong with those of ``columns``.

        ``row`` and ``accepted``, the last accepted one, map columns to numbers (None: an empty cell). ``risen`` tells
        whether FPR, and whether FNR, rose by more than the tolerance; ``test_set`` holds its numbers of HC and PD. A
        fault is (columns, words) and told as "COLUMN is VALUE, WORDS".
        """
        raise NotImplementedError

    def audit_baseline(self, row: dict) -> list:
        """What is wrong with ``baseline_columns`` in the first row; as :meth:`audit_step`."""
        return []


class PublishedRule(Rule):
    """FPR or FNR rises by more than the tolerance (Souza et al. 2025)."""

    name = "published"
    words = "FPR or FNR rises by more than the tolerance"
    by_tolerance = True

    def judge(self, before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> tuple[bool, dict]:
        """As :meth:`Rule.judge`."""
        return any(risen(before, after, tolerance, protocol)), {}

    def locked_up(self, accepted: Evaluation, protocol: Protocol) -> str:
        """As :meth:`Rule.locked_up`."""
        fpr, fnr = protocol.rates(accepted)
        return (
            f"the last accepted evaluation (FPR {fpr:.3f}, FNR {fnr:.3f}) was a lucky one: every step is measured "
            "against it, undone, and the next begins from the very same model. With "
            f"{accepted.healthy + accepted.patients} test subjects, one misdiagnosis more can be a rise of "
            f"{1 / min(accepted.healthy, accepted.patients):.3f}; --rule evidence, a larger -error or test set, or a "
            "lower learning rate avoid that"
        )

    def saturation(self, baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
        """In words, the rates of the pre-trained model that are so high that no step could exceed the tolerance."""
        return [
            f"{name} {rate:.3f} + tolerance {tolerance:.3f} >= {most:.3f}"
            for name, rate, most in zip(
                ("FPR", "FNR"), protocol.rates(baseline), protocol.largest_rates(baseline), strict=True
            )
            if not protocol.exceeds(most, rate, tolerance)
        ]

    @classmethod
    def methods(cls, options: dict) -> str:
        """As :meth:`Rule.methods`."""
        return f"raised FPR or FNR by more than {options['error']:g} per image"

    @classmethod
    def legend(cls) -> str:
        """As :meth:`Rule.legend`."""
        return (
            "FPR and FNR: from the reference to the rate after the step, which was undone if one of the two rose by "
            "more than tolerated."
        )

    def audit_step(self, row: dict, accepted: dict, risen: list, test_set: tuple) -> tuple[bool, list]:
        """As :meth:`Rule.audit_step`."""
        return any(risen), []


class EvidenceRule(Rule):
    """The model gets worse by more than chance: its ranking of the test subjects, or its diagnoses.

    A rate looks at one threshold: a step that shifts all probabilities a little to one side, as good ones of one class
    do, raises FPR or FNR although the model tells the classes apart as before. The AUROC does not see that shift, and
    the paired test (DeLong) knows how much a test set of this size can tell. It does not see either when a step calls
    everybody PD and leaves the order as it was: so FPR or FNR must not rise by more than the tolerance and, as the
    paired test of the same subjects (McNemar, exact) knows, more than chance.
    """

    name = "evidence"
    words = "AUROC or rates get worse by more than chance (paired tests)"
    columns = ("AUROC", "P_AUROC", "P_FP", "P_FN")
    baseline_columns = ("AUROC",)
    ALPHA = 0.01
    GROUP_ALPHA = 0.05  # good batches after a harmful one hide most of what it does to the AUROC
    in_groups = f" at p < {GROUP_ALPHA:g}"

    def judge(self, before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> tuple[bool, dict]:
        """As :meth:`Rule.judge`; the cells are the AUROC after the step and the three p-values."""
        return self._judge(self.ALPHA, before, after, tolerance, protocol)

    def suspect(self, before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> tuple[bool, dict]:
        """As :meth:`Rule.suspect`."""
        return self._judge(self.GROUP_ALPHA, before, after, tolerance, protocol)

    def _judge(self, alpha, before, after, tolerance, protocol):
        auroc, p_auroc = auroc_fell(after.labels, before.predictions, after.predictions)
        p_rates = more_misdiagnosed(after.labels, before.predictions, after.predictions)
        shifted = any(
            up and p_value < alpha
            for up, p_value in zip(risen(before, after, tolerance, protocol), p_rates, strict=True)
        )
        cells = dict(zip(self.columns, (auroc, p_auroc, *p_rates), strict=True))
        return p_auroc < alpha or shifted, cells

    def describe(self, baseline: Evaluation) -> dict:
        """As :meth:`Rule.describe`."""
        return {"AUROC": auroc_fell(baseline.labels, baseline.predictions, baseline.predictions)[0]}

    def saturation(self, baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
        """In words, why not even a model that ranks nobody would be told from the pre-trained one; else empty."""
        if 1 / math.comb(len(baseline.labels), sum(baseline.labels)) >= self.ALPHA:
            return [f"{baseline.healthy} HC and {baseline.patients} PD: chance alone ranks them perfectly too often"]
        auroc = self.describe(baseline)["AUROC"]
        _, p_value = auroc_fell(baseline.labels, baseline.predictions, [0.0] * len(baseline.labels))
        return [f"AUROC {auroc:.3f}, from 0.5 by chance with p {p_value:.2g}"] if p_value >= self.ALPHA else []

    @classmethod
    def methods(cls, options: dict) -> str:
        """As :meth:`Rule.methods`."""
        p = f"one-sided p < {cls.ALPHA:g}"
        return (
            f"lowered the AUROC (paired DeLong test, {p}), or {PublishedRule.methods(options)} with more new "
            f"misdiagnoses than chance explains (exact McNemar test, {p}),"
        )

    @classmethod
    def legend(cls) -> str:
        """As :meth:`Rule.legend`."""
        return (
            "AUROC: after the step; P: of its fall (DeLong) and of a rise of FP or FN (McNemar) by chance. A step was "
            f"undone where that of the AUROC was below {cls.ALPHA:g}, or that of FP or FN was and its rate rose by "
            "more than tolerated."
        )

    def audit_step(self, row: dict, accepted: dict, risen: list, test_set: tuple) -> tuple[bool, list]:
        """As :meth:`Rule.audit_step`: whether the p-values are possible, for all that a log tells, and small."""
        limit = 0.05 if row["Phase"] == "group" else 0.01  # not ALPHA: a fault in that is to be seen
        faults, shifted = [], False
        for count, up, most in zip(("FP", "FN"), risen, test_set, strict=True):
            was, now, chance = accepted[count], row[count], row[f"P_{count}"]
            possible = possible_p_values(was, now, most)
            if chance is None or not any(math.isclose(chance, value, abs_tol=1e-9) for value in possible):
                faults.append(((f"P_{count}",), f"but {count} was {was} and is {now}"))
            shifted |= up and chance is not None and chance < limit
        was, now, chance = accepted["AUROC"], row["AUROC"], row["P_AUROC"]
        if now is None or chance is None or not 0 <= now <= 1 or not 0 <= chance <= 1:
            return shifted, [*faults, (("AUROC", "P_AUROC"), "should be from 0 to 1")]
        unknown = chance == 0 and now == 0.5  # predictions that are not numbers, which rank nobody
        if was is not None and (chance < 0.5) != (now < was - 1e-9) and not unknown:
            faults.append((("P_AUROC",), f"but AUROC was {was:.10g} and is {now:.10g}"))
        return chance < limit or shifted, faults

    def audit_baseline(self, row: dict) -> list:
        """As :meth:`Rule.audit_baseline`."""
        known = row["AUROC"] is not None and 0 <= row["AUROC"] <= 1
        return [] if known else [(("AUROC",), "should be from 0 to 1")]


RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (PublishedRule, EvidenceRule)}
DEFAULT_RULE = PublishedRule.name


def rule_help() -> str:
    """The help of ``--rule``."""
    return "when a step is harmful; " + "; ".join(f"{name}: {rule.words}" for name, rule in RULES.items())


def risen(before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> list[bool]:
    """Whether FPR, and whether FNR, rose by more than the tolerance."""
    return [
        protocol.exceeds(rate, reference, tolerance)
        for rate, reference in zip(protocol.rates(after), protocol.rates(before), strict=True)
    ]


def more_misdiagnosed(labels: ArrayLike, before: ArrayLike, after: ArrayLike) -> list[float]:
    """The one-sided p-values of a rise of FP, and of FN; probabilities of PD, all of shape (subjects,).

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), in its exact form: of the subjects whose diagnosis changed, half would get worse by chance.
    """
    import numpy as np
    from scipy.stats import binomtest

    from travelling.metrics import misdiagnosed

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
