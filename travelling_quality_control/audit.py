"""Audit the log of a quality-control run: replay it and check every row and every decision.

What must stand in the log is derived anew from the method's description and the two CSVs
(travelling_quality_control/auditing). No image is needed, and no line of code that made the decisions is shared.

Example:
    python audit.py filename.csv --train ./training_set.csv --test ./test_set.csv

Prints one line "consistent: ..." (exit status 0), or the first violations, one a line with the row of the file
(row 1 is the header; exit status 1). Input that cannot be audited is one line on stderr (exit status 2).
"""

import argparse
import sys
from pathlib import Path

from travelling import command
from travelling.rules import DEFAULT_RULE, RULES, rule_help
from travelling_quality_control.auditing import audit_log
from travelling_quality_control.auditing.tables import LARGEST


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    needed: dict = {"type": Path, "required": True, "metavar": "CSV"}
    parser.add_argument("log", type=Path, metavar="LOG", help="the log, <fn_save>.csv")
    parser.add_argument("--train", help="training set of the run", **needed)
    parser.add_argument("--test", help="test set of the run", **needed)
    parser.add_argument(
        "--subjects",
        type=Path,
        metavar="CSV",
        help="<fn_save>_subjects.csv, checked as well (default: the file of that name beside LOG, if it is there)",
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="the run was interrupted: the log may end in the middle of a cycle"
    )
    parser.add_argument("--show", type=command.number(int, 1), default=10, metavar="N", help="violations to print")
    group = parser.add_argument_group("options of the run")
    group.add_argument("--protocol", choices=["corrected", "published"], default="corrected", help="docs/protocols.md")
    group.add_argument(
        "--revisit",
        "-revisit",
        type=command.number(int, 1),
        default=2,
        metavar="CYCLES",
        help="cycles that a flagged image waits",
    )
    group.add_argument(
        "--error",
        "-error",
        type=command.number(float, 0, 1),
        default=0.02,
        metavar="RATE",
        help="tolerated rise of FPR or FNR, as a fraction of 1, per image of a training step",
    )
    group.add_argument("--seed", type=command.number(int, 0, LARGEST), default=42, help="of the travelling order")
    group.add_argument(
        "--batch-size", type=command.number(int, 1), default=5, metavar="N", help="images per training step"
    )
    group.add_argument("--rule", choices=list(RULES), default=DEFAULT_RULE, help=rule_help())
    group.add_argument(
        "--verify-every",
        type=command.number(int, 1),
        default=1,
        metavar="BATCHES",
        help="batches that were trained before the test set was evaluated",
    )
    group.add_argument("--screen", action="store_true", help="images were screened before they trained")
    group.add_argument(
        "--centers",
        nargs="+",
        metavar="NAME",
        help="of a federation: all that the server's configuration names, in its order (default: those of the training "
        "set, which lacks centers that never told their subjects)",
    )
    return parser.parse_args()


def main() -> None:
    """Audit, print, and exit with status 1 if anything is wrong."""
    arguments = parse_arguments()
    table = arguments.subjects or arguments.log.with_name(f"{arguments.log.stem}_subjects.csv")
    if not arguments.subjects and not table.is_file():
        table = None
    violations, summary = audit_log(
        arguments.log, arguments.train, arguments.test, arguments, table, arguments.centers, arguments.unfinished
    )
    if not violations:
        print(f"consistent: {summary}; {table or 'no subject table'}")
        return
    for violation in violations[: arguments.show]:
        print(violation)
    more = len(violations) - arguments.show
    if more > 0:
        print(f"and {more} more violation{'s' if more > 1 else ''} (--show N prints more)")
    sys.exit(1)


if __name__ == "__main__":
    command.run(main)
