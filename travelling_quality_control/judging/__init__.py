"""The verdict on a run of quality control, from its log and its record alone. The truth is not asked for.

checks    what can be wrong with a run, a function each, its thresholds beside it

It knows of extensions what the columns of a log and the options of a record say, and nothing else. The audit asks
whether a log is what the method must have written; the verdict asks whether what it tells can be relied upon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import pandas as pd

from travelling.runs.controlled_run import ControlledRun
from travelling.runs.run import Run
from travelling_quality_control.judging.checks import CHECKS, DO_NOT_USE, LOOK_CLOSER, REMARK, Account, Reason

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


def judge(rows: pd.DataFrame, record: dict, images: pd.DataFrame, violations: str = "") -> Verdict:
    """The verdict on a run.

    ``rows`` is the whole log, ``record`` that of the run (``run.json``). ``images`` is the training set, indexed by
    Subject, with Study and, where they are known, Group_bin and Sex; ``violations`` says in words which an audit found.
    """
    refused = Reason(DO_NOT_USE, f"the audit refuses the log ({violations})", "find out what has changed it")
    reasons = [refused] if violations else []
    account = _tried(Account, rows, record, images)
    if isinstance(account, Reason):
        reasons.append(account)
    else:
        reasons += filter(None, (_tried(check, account) for check in CHECKS))
    return Verdict(tuple(sorted(reasons, key=lambda reason: -reason.level)))


def _tried(function: Callable, *given: Any) -> Any:
    """A check for the user's information stops no run; but a run of which it fails is not trustworthy."""
    try:
        return function(*given)
    except Exception as error:
        failed = f"the check {function.__name__} failed ({type(error).__name__}: {error})"
        return Reason(LOOK_CLOSER, failed, "look into the log")


def judge_at_end(run: Run, controlled: ControlledRun, images: pd.DataFrame) -> dict:
    """Judge a run that has come to its end, in its plain log and on the terminal; returns what its record says of it.

    ``images`` has the columns Subject and Study and, where they are known, Group_bin and Sex.
    """
    changed = controlled.changed()
    rows = pd.read_csv(run.files[0], dtype=str, keep_default_na=False)
    verdict = judge(rows, run.record | {"finished": True, "changed": changed}, images.set_index("Subject"))
    lines = verdict.lines()
    for line in lines:
        run.log.log(WARNING if verdict.level else INFO, "%s", line)
    return {"changed": changed, "verdict": verdict.word, "verdict_reasons": lines[1:]}
