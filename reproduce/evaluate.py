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

import argparse
from dataclasses import dataclass
from pathlib import Path

from evaluation.layout import PARTS

from travelling import command
from travelling.options import Inference, Options, add_to_parser, changed


@dataclass(kw_only=True)
class Ages(Options):
    """The ages that separate groups, as for inference."""

    age_edges: tuple = changed(Inference, "age_edges", group=None)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    whole = command.number(int, 0)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="folder of a study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for what is made (default: STUDY_FOLDER)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="make these only (default: all)")
    images = "also show slices of the images that were eliminated or flagged by mistake (may be patients' brains)"
    parser.add_argument("--with-images", action="store_true", help=images)
    cycle = "after which the diagnoses are compared (default: the last that any model was tested after)"
    parser.add_argument("--cycle", type=whole, metavar="CYCLE", help=cycle)
    add_to_parser(parser, Ages)
    resamples = "bootstrap resamples of the test set"
    parser.add_argument("--resamples", type=command.number(int, 99), default=9999, metavar="N", help=resamples)
    parser.add_argument("--seed", type=whole, default=0, help="of the bootstrap")
    return parser.parse_args()


def main() -> None:
    """Read the study, and make what is asked for."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from evaluation.records import read_study
    from evaluation.report import evaluate

    folder = arguments.out or arguments.study
    options = {name: getattr(arguments, name) for name in ("cycle", "age_edges", "resamples", "seed")}
    tables, figures = evaluate(read_study(arguments.study), folder, arguments.only, arguments.with_images, **options)
    if "tables" in arguments.only:
        print(f"{len(tables)} tables as CSV, Markdown and LaTeX: {folder / 'tables'}")
    if "figures" in arguments.only:
        print(f"{len(figures)} figures as PNG and PDF: {folder / 'figures'}")
    if "report" in arguments.only:
        print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    command.run(main)
