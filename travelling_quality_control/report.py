"""Report of one run of quality control: one HTML page that needs no network, and lists for a lab's own use.

Audits the log and tells in plain words which images were eliminated, flagged and re-included, with the rows of the log
that decided; centers, scanners, class, sex and age by their share of flagged images; settings and versions; and a
paragraph for a paper's methods. On the page a person says which images to keep, and exports these ratings as TSV; given
back (--ratings), they are compared with the decisions. Nothing is said about what the images are: that is not known.

Writes <name>_report.html and beside it <name>_decisions.tsv (BIDS style, a row for every image) and <name>_exclude.tsv
(the eliminated ones), each with its description (.json), unless the audit refuses the log: then the page says so on
top, and the exit status is 1.

Example:
    python report.py filename.csv
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.runs import command
from travelling_quality_control.auditing.run_record import add_arguments, run_of


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--output-folder", type=Path, metavar="FOLDER", help="for page and lists (default: that of LOG)"
    )
    images = "also show slices of images that were flagged or eliminated (may be patients' brains)"
    parser.add_argument("--with-images", action="store_true", help=images)
    rated = "a person's ratings of images, as the pages export them; they are kept beside LOG"
    parser.add_argument("--ratings", type=Path, metavar="TSV", help=rated)
    return parser.parse_args()


def main() -> None:
    """Audit, write, and exit with status 1 if the audit refuses the log."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from travelling_quality_control.reporting.one_run import in_one_line, write_report

    log = arguments.log
    page = (arguments.output_folder or log.parent) / f"{log.stem}_report.html"
    shown = {"with_images": arguments.with_images, "ratings": arguments.ratings}
    run, files = write_report(**run_of(arguments), page=page, **shown)
    print("\n".join([in_one_line(run), *map(str, files)]))
    sys.exit(bool(run.violations))


if __name__ == "__main__":
    command.run(main)
