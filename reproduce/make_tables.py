"""The tables of a study, from its raw records and nothing else.

Reads a folder as reproduce/reproduce.py makes it, or one with such a layout in each of seed_1, seed_2, ..., and writes
every table as CSV (all numbers, one case a row), Markdown and LaTeX (for readers): performance, detection, thresholds,
centers, fairness, elimination, cost, settings and false_alarms. What is not there is n/a, and the notes below say why.

Example:
    python reproduce/make_tables.py demo --out demo/tables
"""

from pathlib import Path

from travelling import command


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="folder of a study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the tables (default: STUDY_FOLDER/tables)")
    add_evaluation_options(parser)
    return parser.parse_args()


def add_evaluation_options(parser):
    """The options of all that compares the diagnoses of a study."""
    parser.add_argument(
        "--cycle",
        type=command.number(int, 0),
        metavar="CYCLE",
        help="after which the diagnoses are compared (default: the last that any model was tested after)",
    )
    command.add_age_option(parser)
    parser.add_argument(
        "--resamples",
        type=command.number(int, 99),
        default=9999,
        metavar="N",
        help="bootstrap resamples of the test set",
    )
    parser.add_argument("--seed", type=command.number(int, 0), default=0, help="of the bootstrap")


def main():
    """Make the tables."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from study_records import read_study
    from study_tables import make_tables, write_tables

    study = read_study(arguments.study)
    tables = make_tables(study, arguments.cycle, arguments.age_edges, arguments.resamples, arguments.seed)
    folder = arguments.out or arguments.study / "tables"
    write_tables(tables, folder)
    print(f"{len(tables)} tables as CSV, Markdown and LaTeX: {folder}")


if __name__ == "__main__":
    command.run(main)
