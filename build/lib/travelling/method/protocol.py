"""The two protocols: what the paper describes, and what its published code does.

Everything in which they differ is here and nowhere else:

===========================  ==========================  =============================================
..                           ``corrected`` (default)     ``published``
===========================  ==========================  =============================================
FPR, FNR                     FP / HC, FN / PD            FP / PD, FN / HC (can exceed 1)
last short batch             trained                     dropped
learning rate, resuming      ``rate * exp(-0.1 cycle)``  the saved one in the first resumed cycle, then
at a cycle                                               ``rate * exp(-0.1 k)`` with k = 1, 2, ...
a rate that is the           not harmful                 as floating-point numbers compare
reference + tolerance                                    (0.2 + 0.1 > 0.3, but 0.7 + 0.1 < 0.8)
===========================  ==========================  =============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from travelling.method.metrics import Evaluation
    from travelling.method.settings import Travelling

DECAY = 0.1  # the learning rate is multiplied by exp(-DECAY) after every cycle
ROUNDING = 1e-9  # rates are ratios of counts: a smaller difference is floating-point noise, not a misdiagnosis


@dataclass(frozen=True)
class Protocol:
    """One preset; see the table above."""

    name: str
    rates_by_own_class: bool
    trains_short_batch: bool
    decays_with_cycle: bool
    rounding: float  # what a rate may exceed its limit by without harm

    def rates(self, counts: Evaluation) -> tuple[float, float]:
        """Rates of misdiagnosis (FPR, FNR) of a :class:`travelling.method.metrics.Evaluation`."""
        if self.rates_by_own_class:
            return counts.false_positives / counts.healthy, counts.false_negatives / counts.patients
        return counts.false_positives / counts.patients, counts.false_negatives / counts.healthy

    def largest_rates(self, counts: Evaluation) -> tuple[float, float]:
        """(FPR, FNR) of a model that is always wrong on the same test set: no rate can exceed these."""
        return self.rates(replace(counts, false_positives=counts.healthy, false_negatives=counts.patients))

    def exceeds(self, rate: Any, reference: Any, tolerance: float) -> Any:
        """Whether a rate is above ``reference + tolerance``, all as fractions of 1; of arrays, for each element."""
        return rate > reference + tolerance + self.rounding

    def learning_rate(self, initial: float, cycle: int, first_cycle: int = 0, saved: float | None = None) -> float:
        """Adam's learning rate in a cycle.

        ``initial`` is that of cycle 0; ``first_cycle`` is the first cycle of this run and ``saved`` the rate
        in the model it started from (None where it started from scratch).
        """
        if self.decays_with_cycle or saved is None:
            return initial * math.exp(-DECAY * cycle)
        if cycle == first_cycle:
            return saved
        return initial * math.exp(-DECAY * (cycle - first_cycle))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "corrected", rates_by_own_class=True, trains_short_batch=True, decays_with_cycle=True, rounding=ROUNDING
        ),
        Protocol(
            "published", rates_by_own_class=False, trains_short_batch=False, decays_with_cycle=False, rounding=0.0
        ),
    )
}


def learning_rates(settings: Travelling, first_cycle: int = 0, saved: float | None = None) -> Callable[[int], float]:
    """:meth:`Protocol.learning_rate` of a run, as a function of the cycle.

    ``settings`` has the options protocol and learning_rate.
    """
    protocol = PROTOCOLS[settings.protocol]
    return lambda cycle: protocol.learning_rate(settings.learning_rate, cycle, first_cycle, saved)
