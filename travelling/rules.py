"""When a training step is harmful: the published rule, and one that weighs how much evidence the test set gives.

A rule is asked after every training step with the evaluations of the same test subjects before and after it.
"""

import math

import numpy as np
from scipy.stats import binomtest, norm

from travelling.metrics import misdiagnosed
from travelling.protocol import ROUNDING


class PublishedRule:
    """FPR or FNR rises by more than the tolerance (Souza et al. 2025)."""

    columns = ()  # of the log, after the published ones

    def judge(self, before, after, tolerance, protocol):
        """Whether the step between two :class:`travelling.metrics.Evaluation` is harmful, and its further cells."""
        return any(risen(before, after, tolerance, protocol)), {}

    def describe(self, baseline):
        """The further cells of the pre-trained model's row."""
        return {}

    def locked_up(self, accepted, protocol):
        """In words, how this rule can come to undo most batches, and what avoids it."""
        fpr, fnr = protocol.rates(accepted)
        return (
            f"the last accepted evaluation (FPR {fpr:.3f}, FNR {fnr:.3f}) was a lucky one: every step is measured "
            "against it, undone, and the next begins from the very same model. With "
            f"{accepted.healthy + accepted.patients} test subjects, one misdiagnosis more can be a rise of "
            f"{1 / min(accepted.healthy, accepted.patients):.3f}; --rule evidence, a larger -error or test set, or a "
            "lower learning rate avoid that"
        )

    def saturation(self, baseline, tolerance, protocol):
        """In words, the rates of the pre-trained model that are so high that no step could exceed the tolerance."""
        return [
            f"{name} {rate:.3f} + tolerance {tolerance:.3f} >= {most:.3f}"
            for name, rate, most in zip(
                ("FPR", "FNR"), protocol.rates(baseline), protocol.largest_rates(baseline), strict=True
            )
            if not protocol.exceeds(most, rate, tolerance)
        ]


class EvidenceRule:
    """The model gets worse by more than chance: its ranking of the test subjects, or its diagnoses.

    A rate looks at one threshold: a step that shifts all probabilities a little to one side, as good ones of one class
    do, raises FPR or FNR although the model tells the classes apart as before. The AUROC does not see that shift, and
    the paired test (DeLong) knows how much a test set of this size can tell. It does not see either when a step calls
    everybody PD and leaves the order as it was: so FPR or FNR must not rise by more than the tolerance and, as the
    paired test of the same subjects (McNemar, exact) knows, more than chance.
    """

    columns = ("AUROC", "P_AUROC", "P_FP", "P_FN")
    ALPHA = 0.01

    def judge(self, before, after, tolerance, protocol):
        """As :meth:`PublishedRule.judge`; the further cells are the AUROC after the step and the three p-values."""
        auroc, p_auroc = auroc_fell(after.labels, before.predictions, after.predictions)
        p_rates = more_misdiagnosed(after.labels, before.predictions, after.predictions)
        shifted = any(
            up and p_value < self.ALPHA
            for up, p_value in zip(risen(before, after, tolerance, protocol), p_rates, strict=True)
        )
        cells = dict(zip(self.columns, (auroc, p_auroc, *p_rates), strict=True))
        return p_auroc < self.ALPHA or shifted, cells

    def describe(self, baseline):
        """As :meth:`PublishedRule.describe`: its AUROC."""
        return {"AUROC": auroc_fell(baseline.labels, baseline.predictions, baseline.predictions)[0]}

    def locked_up(self, accepted, protocol):
        """As :meth:`PublishedRule.locked_up`."""
        return (
            f"the last accepted evaluation (AUROC {self.describe(accepted)['AUROC']:.3f}) was a lucky one: every step "
            "is measured against it, undone, and the next begins from the very same model; a larger test set or a "
            "lower learning rate avoid that"
        )

    def saturation(self, baseline, tolerance, protocol):
        """In words, why not even a model that ranks nobody would be told from the pre-trained one; else empty."""
        if 1 / math.comb(len(baseline.labels), sum(baseline.labels)) >= self.ALPHA:
            return [f"{baseline.healthy} HC and {baseline.patients} PD: chance alone ranks them perfectly too often"]
        auroc = self.describe(baseline)["AUROC"]
        _, p_value = auroc_fell(baseline.labels, baseline.predictions, np.zeros(len(baseline.labels)))
        return [f"AUROC {auroc:.3f}, from 0.5 by chance with p {p_value:.2g}"] if p_value >= self.ALPHA else []


RULES = {"published": PublishedRule, "evidence": EvidenceRule}


def risen(before, after, tolerance, protocol):
    """Whether FPR, and whether FNR, rose by more than the tolerance."""
    return [
        protocol.exceeds(rate, reference, tolerance)
        for rate, reference in zip(protocol.rates(after), protocol.rates(before), strict=True)
    ]


def more_misdiagnosed(labels, before, after):
    """The one-sided p-values of a rise of FP, and of FN; probabilities of PD, all of shape (subjects,).

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947), in its exact form: of the subjects whose diagnosis changed, half would get worse by chance.
    """
    labels = np.asarray(labels)
    was, now = misdiagnosed(labels, before), misdiagnosed(labels, after)
    p_values = []
    for group in (0, 1):
        worse, better = (int(np.sum(change & (labels == group))) for change in (now & ~was, was & ~now))
        changed = worse + better
        p_values.append(float(binomtest(worse, changed, alternative="greater").pvalue) if changed else 1.0)
    return p_values


def auroc_fell(labels, before, after):
    """The AUROC after a step, and the one-sided p-value of its fall; probabilities of PD, all of shape (subjects,).

    Source: DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44 (1988). Predictions that are not numbers rank nobody: AUROC 0.5, p-value 0.
    """
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


def placements(labels, predictions):
    """For each patient the share of HC who are ranked lower, for each HC the share of patients ranked higher."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    patients, healthy = predictions[labels == 1][:, None], predictions[labels == 0][None, :]
    right = (patients > healthy) + 0.5 * (patients == healthy)
    return right.mean(axis=1), right.mean(axis=0)
