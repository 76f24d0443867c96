"""Report of one run of quality control: one HTML page that needs no network, and lists for a lab's own use.

Audits the log and tells in plain words which images were eliminated, flagged and came back, with the rows of the log
that decided; centers, scanners, class, sex and age by their share of flagged images; settings and versions; and a
paragraph for a paper's methods. Nothing is said about what the images are: that is not known.

Beside the page it writes <name>_decisions.tsv (BIDS style, a row for every image), its description
<name>_decisions.json, and <name>_exclude.txt (ids of eliminated images), unless the audit refuses the log: then the
page says so on top, and the exit status is 1.

Example:
    python report.py filename.csv --train ./training_set.csv --test ./test_set.csv
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling import command
from travelling.errors import InputError
from travelling_quality_control.auditing.command_line import add_arguments, subject_table
from travelling_quality_control.auditing.replay import RunOptions


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command.Parser(__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PLACE",
        help="a folder, or the page (.html); lists lie beside the page (default: <name>_report.html beside LOG)",
    )
    parser.add_argument(
        "--run-folder",
        type=Path,
        metavar="FOLDER",
        help="has the record of the run, run.json, which tells its options (default: <name>_run beside LOG, or LOG's "
        "own folder)",
    )
    images = "also show slices of images that were flagged or eliminated (may be patients' brains)"
    parser.add_argument("--with-images", action="store_true", help=images)
    return parser


def main() -> None:
    """Audit, write, and exit with status 1 if the audit refuses the log."""
    parser = make_parser()
    arguments = parser.parse_args()
    # Only now, so that --help answers at once.
    from travelling_quality_control.reporting.one_run import in_one_line, write_report

    record = find_record(arguments, parser)
    run, outcome, files = write_report(
        arguments.log,
        arguments.train,
        arguments.test,
        page_of(arguments.out, arguments.log),
        record,
        subjects_csv=subject_table(arguments),
        centers=arguments.centers or record["options"].get("centers"),  # which a federation's record has
        unfinished=arguments.unfinished,
        with_images=arguments.with_images,
    )
    print("\n".join([in_one_line(run, outcome), *map(str, files)]))
    sys.exit(bool(outcome.violations))


def page_of(out: Path | None, log: Path) -> Path:
    """The file of the page."""
    if out is None:
        return log.with_name(f"{log.stem}_report.html")
    return out if out.suffix == ".html" else out / "report.html"


def find_record(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> dict:
    """The record of the run; its options are those of the command line where it does not tell them.

    Raises InputError where the two contradict each other.
    """
    from travelling_quality_control.reporting.runs import read_record

    log = arguments.log
    given = {name: getattr(arguments, name) for name in RunOptions.__annotations__}
    places = [arguments.run_folder] if arguments.run_folder else [log.with_name(f"{log.stem}_run"), log.parent]
    for folder in places:
        path = folder / "run.json"
        record = read_record(path)
        options = record["options"]
        if arguments.run_folder and not path.is_file():
            raise InputError(f"{path}: no such file")
        # A folder may hold the log of one run and the record of another.
        if options and (arguments.run_folder or Path(str(options.get("fn_save"))).name == log.stem):
            break
    else:
        record, options = read_record(Path()), {}
    for name, value in given.items():
        if value not in (parser.get_default(name), options.get(name, value)):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} {value}: the run had {options[name]} ({path})")
    return record | {"options": given | options}


if __name__ == "__main__":
    command.run(main)
