"""The verdict on a run of quality control, and its words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from travelling_quality_control.judging.checks import CHECKS, DO_NOT_USE, LOOK_CLOSER, REMARK, Reason

if TYPE_CHECKING:
    from travelling_quality_control.judging.logged_run import LoggedRun

WORDS = {REMARK: "trustworthy", LOOK_CLOSER: "look closer", DO_NOT_USE: "do not use"}


@dataclass(frozen=True)
class Verdict:
    """One of ``WORDS``, by the worst of the reasons; a remark does not lower it."""

    reasons: tuple[Reason, ...]

    @property
    def level(self) -> int:
        """The worst of the reasons."""
        return max((reason.level for reason in self.reasons), default=REMARK)

    @property
    def word(self) -> str:
        """The verdict."""
        return WORDS[self.level]

    def lines(self) -> list[str]:
        """The verdict and its reasons, a line each, the worst first."""
        names = WORDS | {REMARK: "remark"}
        return [f"verdict: {self.word}", *(f"{names[reason.level]}: {reason}" for reason in self.reasons)]


def judge(run: LoggedRun, violations: str = "") -> Verdict:
    """The verdict on a run; ``violations`` says in words which an audit found."""
    refused = Reason(DO_NOT_USE, f"the audit refuses the log ({violations})", "find out what has changed it")
    reasons = [refused] if violations else []
    reasons += filter(None, (tried(check, run) for check in CHECKS))
    return Verdict(tuple(sorted(reasons, key=lambda reason: -reason.level)))


def tried(function: Callable, *given: Any) -> Any:
    """A check for the user's information stops no run; but a run of which it fails is not trustworthy."""
    try:
        return function(*given)
    except Exception as error:
        failed = f"the check {function.__name__} failed ({type(error).__name__}: {error})"
        return Reason(LOOK_CLOSER, failed, "look into the log")
