"""The published rule: a training step is harmful if it raises FPR or FNR by more than the tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from travelling.method.extension import Finding
from travelling.method.protocol import Protocol

if TYPE_CHECKING:
    from travelling.method.metrics import Evaluation

LEGEND = (  # of FPR and FNR in a report
    "FPR and FNR: from the reference to the rate after the step, which was rejected if one of the two rose by more "
    "than tolerated."
)


def finding(row: Any) -> Finding | None:
    """As :meth:`Extension.finding`, of the step of a row; None where no rate rose by more than tolerated."""
    groups = {"PFP": "healthy test subjects", "PFN": "test subjects with PD"}
    rises = {rate: row[rate] - row[f"Reference_{rate}"] for rate in groups}
    told = [
        f"{group} ({row[f'Reference_{rate}']:.0%}, then {row[rate]:.0%})"
        for rate, group in groups.items()
        if rises[rate] > row["Tolerance"]
    ]
    if not told:
        return None
    words = f"training on it made the model misdiagnose more {' and '.join(told)}"
    return Finding(words, f"+{max(rises.values()):.3f}", f"+{row['Tolerance']:.3g}", "training on it alone")


def risen(before: Evaluation, after: Evaluation, tolerance: float, protocol: Protocol) -> list[bool]:
    """Whether FPR, and whether FNR, rose by more than the tolerance, a fraction of 1 for the whole step."""
    return [
        protocol.exceeds(rate, reference, tolerance)
        for rate, reference in zip(protocol.rates(after), protocol.rates(before), strict=True)
    ]


def saturation(baseline: Evaluation, tolerance: float, protocol: Protocol) -> list[str]:
    """In words, the rates of the pre-trained model that are so high that no step could exceed the tolerance."""
    return [
        f"{name} {rate:.3f} + tolerance {tolerance:.3f} >= {most:.3f}"
        for name, rate, most in zip(
            ("FPR", "FNR"), protocol.rates(baseline), protocol.largest_rates(baseline), strict=True
        )
        if not protocol.exceeds(most, rate, tolerance)
    ]


def locks_up(rejected: int, number: int) -> bool:
    """Whether so many of a cycle's batches that were rejected, or images flagged without a step, are a lock-up."""
    return 2 * rejected > number


def cause_of_lock_up(accepted: Evaluation, protocol: Protocol) -> str:
    """In words, how this rule can come to undo most batches, and what avoids it."""
    fpr, fnr = protocol.rates(accepted)
    return (
        f"the last accepted evaluation (FPR {fpr:.3f}, FNR {fnr:.3f}) was a lucky one: every step is measured against "
        f"it, rejected, and the next begins from the very same model. With {accepted.healthy + accepted.patients} test "
        f"subjects, one misdiagnosis more can be a rise of {1 / min(accepted.healthy, accepted.patients):.3f}; a "
        "larger -error or test set, or a lower learning rate avoid that (docs/settings.md)"
    )
