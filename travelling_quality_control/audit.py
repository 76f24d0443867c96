"""Audit the log of a quality-control run: replay it and check every row and every decision.

What must stand in the log is derived anew from the method's description, the options in the run's record (run.json)
and the two CSVs that it names (travelling_quality_control/auditing). No image is needed, and no line of code that made
the decisions is shared.

Example:
    python audit.py filename.csv

Prints one line "consistent: ..." (exit status 0), or what is wrong, a line each with the row of the file (row 1 is the
header; exit status 1), as far as the first row that does not belong there or was decided otherwise than it must be: all
others rest on it. Input that cannot be audited is one line on stderr (exit status 2).
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.runs import command
from travelling_quality_control.auditing import audit_log
from travelling_quality_control.auditing.run_record import add_arguments, run_of


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    """Audit, print, and exit with status 1 if anything is wrong."""
    violations, summary = audit_log(**run_of(parse_arguments()))
    if violations:
        print("\n".join(violations))
        sys.exit(1)
    print(f"consistent: {summary}")


if __name__ == "__main__":
    command.run(main)
