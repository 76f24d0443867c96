"""The audit of a log of quality control: from the method's description and two CSVs it derives what must stand there.

No image is needed, and no line of code that made the decisions is shared: of :mod:`travelling.rules` it asks only what
the rules say of a log (``audit_step``), which is written apart from how they decide (``judge``).

    tables          reads the CSVs
    replay          which step must come next
    checks          whether a row is what it must be
    command_line    what a command line tells an audit
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from travelling_quality_control.auditing.checks import Audit
from travelling_quality_control.auditing.replay import RunOptions
from travelling_quality_control.auditing.tables import read_cohorts, read_log, read_subject_table


class Outcome(NamedTuple):
    """What an audit found."""

    violations: list[str]  # "FILE, row N: ...", in the order of the rows; row 1 is the header
    summary: str  # what the log holds, in words


def audit_log(
    log_csv: Path,
    train_csv: Path,
    test_csv: Path,
    options: RunOptions,
    subjects_csv: Path | None = None,
    centers: Sequence[str] | None = None,
    unfinished: bool = False,
) -> Outcome:
    """Check every row of a log, and of the table of subjects if ``subjects_csv`` is given.

    ``centers`` names all centers of a federation, in the order of the server's configuration; by default they are those
    of the training set. An ``unfinished`` log may end in the middle of a cycle. Raises
    :class:`travelling.errors.InputError` for files that cannot be audited.
    """
    subjects_of, test_set = read_cohorts(train_csv, test_csv, centers)
    log = read_log(log_csv, options.rule, train_csv, subjects_of)
    table = read_subject_table(subjects_csv) if subjects_csv else None
    audit = Audit(log, subjects_of, test_set, options, unfinished)
    audit.check()
    if table:
        audit.check_table(table)
    return Outcome(audit.violations, audit.summary())
