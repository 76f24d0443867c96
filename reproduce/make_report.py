"""A report of a study that people want to read: one HTML file that needs no network, from the raw records alone.

Summary in plain words, tables that can be sorted, figures, what happened at every center and to every eliminated
subject, the records of the runs, and a paragraph for a paper's methods. It holds ids, and images only with
--with-images.

Example:
    python reproduce/make_report.py demo --out demo/report.html
"""

from pathlib import Path

from make_figures import add_image_option
from make_tables import add_evaluation_options

from travelling import command


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="folder of a study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the report (default: STUDY_FOLDER/report.html)")
    add_image_option(parser)
    add_evaluation_options(parser)
    return parser.parse_args()


def main():
    """Write the report."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from study_figures import make_figures
    from study_records import read_study
    from study_report import make_report, write_report
    from study_tables import make_tables

    study = read_study(arguments.study)
    tables = make_tables(study, arguments.cycle, arguments.age_edges, arguments.resamples, arguments.seed)
    path = arguments.out or arguments.study / "report.html"
    write_report(make_report(study, tables, make_figures(study, arguments.with_images), arguments.resamples), path)
    print(f"report: {path}")


if __name__ == "__main__":
    command.run(main)
