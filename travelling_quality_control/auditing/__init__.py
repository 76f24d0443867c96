"""The audit of a log of quality control: from the method's description and two CSVs it derives what must stand there.

No image is needed, and no line of code that made the decisions is shared: of an extension it asks only for what checks
its part of a log (:mod:`travelling.method.auditor`), which is written apart from how it decides.

    tables          reads CSV files
    replay          which step must come next
    checks          whether a row is what it must be
    run_record      what the record of a run tells
"""

from pathlib import Path
from typing import NamedTuple

from travelling_quality_control.auditing.checks import Audit
from travelling_quality_control.auditing.run_record import settings_of
from travelling_quality_control.auditing.tables import read_cohorts, read_log, read_subject_table


class Outcome(NamedTuple):
    """What an audit found."""

    violations: list[str]  # "FILE, row N: ...", in the order of the rows; row 1 is the header
    summary: str  # what the log holds, in words


def audit_log(
    log_csv: Path, train_csv: Path, test_csv: Path, record: dict, subjects_csv: Path | None = None
) -> Outcome:
    """Check every row of a log, and the table of subjects if ``subjects_csv`` is given.

    The check ends at a row that does not belong there or was decided otherwise than it must be: all others rest on it.
    ``record`` is that of the run (``run.json``). By default the centers are those of the training set; a federation's
    record names all of them, in the order of the server's configuration. The log of a run that is not finished may end
    in the middle of a cycle. Raises :class:`travelling.errors.InputError` for files that cannot be audited.
    """
    settings = settings_of(record)
    subjects_of, test_set = read_cohorts(train_csv, test_csv, record["options"].get("centers"))
    auditors = [extension.auditor() for extension in settings.extensions]
    log = read_log(log_csv, auditors, train_csv, subjects_of)
    table = read_subject_table(subjects_csv) if subjects_csv else None
    audit = Audit(log, table, subjects_of, test_set, settings, auditors, bool(record["finished"]))
    return Outcome(audit.violations, f"{audit.summary()}; {subjects_csv.name if subjects_csv else 'no subject table'}")
