"""Tables, figures and report of a study, from its raw records and nothing else.

Reads a folder as reproduce/reproduce.py makes it, or one with such a layout in each of seed_1, seed_2, ..., and writes

    tables/      as CSV (all numbers, one case a row), Markdown and LaTeX (for readers)
    figures/     as PNG and PDF, one style, safe for the colour-blind
    report.html  summary in plain words, tables that can be sorted, figures, what happened at every center and to every
                 eliminated subject, the records of the runs, and a paragraph for a paper's methods; needs no network

What is not there is n/a, and notes say why. They hold ids, and images only with --with-images.

Example:
    python reproduce/evaluate.py demo
"""

from pathlib import Path

from travelling import command

PARTS = ("tables", "figures", "report")


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="folder of a study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for what is made (default: STUDY_FOLDER)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="make these only (default: all)")
    parser.add_argument(
        "--with-images",
        action="store_true",
        help="also show slices of the images that were eliminated or flagged by mistake (may be patients' brains)",
    )
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
    return parser.parse_args()


def main():
    """Read the study, and make what is asked for."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from study_figures import make_figures, write_figures
    from study_records import read_study
    from study_report import make_report, write_report
    from study_tables import make_tables, write_tables

    study = read_study(arguments.study)
    parts, folder = set(arguments.only), arguments.out or arguments.study
    if parts & {"tables", "report"}:
        tables = make_tables(study, arguments.cycle, arguments.age_edges, arguments.resamples, arguments.seed)
    if parts & {"figures", "report"}:
        figures = make_figures(study, arguments.with_images)
    if "tables" in parts:
        write_tables(tables, folder / "tables")
        print(f"{len(tables)} tables as CSV, Markdown and LaTeX: {folder / 'tables'}")
    if "figures" in parts:
        write_figures(figures, folder / "figures")
        print(f"{len(figures)} figures as PNG and PDF: {folder / 'figures'}")
    if "report" in parts:
        folder.mkdir(parents=True, exist_ok=True)
        write_report(make_report(study, tables, figures, arguments.resamples), folder / "report.html")
        print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    command.run(main)
