"""What every command line that audits a log is told: audit.py and report.py."""

import argparse
from pathlib import Path

from travelling import command
from travelling.rules import DEFAULT_RULE, RULES, rule_help
from travelling_quality_control.auditing.tables import LARGEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser what an audit must be told: log, CSVs, and the options of the run."""
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
    group.add_argument("--label-screen", action="store_true", help="and their labels")
    group.add_argument(
        "--centers",
        nargs="+",
        metavar="NAME",
        help="of a federation: all that the server's configuration names, in its order (default: those of the training "
        "set, which lacks centers that never told their subjects)",
    )


def subject_table(arguments: argparse.Namespace) -> Path | None:
    """The table of subjects that belongs to the log of a command line; None where there is none."""
    beside = arguments.log.with_name(f"{arguments.log.stem}_subjects.csv")
    return arguments.subjects or (beside if beside.is_file() else None)
