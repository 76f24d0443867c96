"""When a training step is harmful: the published rule, and one that weighs how much evidence the test set gives.

A rule is asked after every training step with the evaluations of the same test subjects before and after it.
"""

from scipy.stats import binomtest

ROUNDING = 1e-9  # rates are ratios of counts: a smaller difference is floating-point noise, not a misdiagnosis


class PublishedRule:
    """FPR or FNR rises by more than the tolerance (Souza et al. 2025)."""

    columns = ()  # of the log, after the published ones

    def judge(self, before, after, tolerance, protocol):
        """Whether the step between two :class:`travelling.metrics.Evaluation` is harmful, and its further cells."""
        return rises(before, after, tolerance, protocol), {}


class EvidenceRule:
    """The published rule, and the rise must be more than chance (exact McNemar test, one-sided, in one class).

    A step of which nothing depends moves some subjects over the threshold, as many for the better as for the worse. The
    test counts only those whose diagnosis changed, and so adapts to the size of the test set: where few subjects
    are tested, few misdiagnoses more are no evidence, whatever the rate that they make. Source: McNemar, "Note on
    the sampling error of the difference between correlated proportions or percentages", Psychometrika 12 (1947).
    """

    columns = ("P_FP", "P_FN")
    ALPHA = 0.01

    def judge(self, before, after, tolerance, protocol):
        """As :meth:`PublishedRule.judge`; the further cells are the two p-values."""
        chances = (
            chance(before.false_positives_of, after.false_positives_of),
            chance(before.false_negatives_of, after.false_negatives_of),
        )
        harmful = rises(before, after, tolerance, protocol) and min(chances) < self.ALPHA
        return harmful, dict(zip(self.columns, chances, strict=True))


RULES = {"published": PublishedRule, "evidence": EvidenceRule}


def rises(before, after, tolerance, protocol):
    """Whether a rate of misdiagnosis (FPR, FNR) rises by more than the tolerance."""
    return any(
        rate > reference + tolerance + ROUNDING
        for rate, reference in zip(protocol.rates(after), protocol.rates(before), strict=True)
    )


def chance(before, after):
    """The probability that as many misdiagnoses or more are new, were new and healed ones equally likely.

    ``before`` and ``after`` are the subjects that are misdiagnosed.
    """
    new, healed = len(set(after) - set(before)), len(set(before) - set(after))
    return float(binomtest(new, new + healed, alternative="greater").pvalue) if new else 1.0
