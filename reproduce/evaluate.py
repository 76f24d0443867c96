"""Tables, figures and report of a study, from its raw records and nothing else.

Reads a folder as reproduce/reproduce.py makes it, or one with such a layout in each of seed_1, seed_2, ..., and writes

    tables/      as CSV (all numbers, one case a row) and LaTeX (for readers)
    figures/     as PNG and PDF, one style, safe for the colour-blind
    report.html  summary in plain words, tables that can be sorted, figures, links to a page of every run with every
                 decision, the records of the runs, and a paragraph for a paper's methods; needs no network

What is not there is n/a, and notes say why. The pages hold no images;
report.py --with-images shows those of a run.

Example:
    python reproduce/evaluate.py demo
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.option import Options, from_command_line, option
from travelling.runs import command


@dataclass(kw_only=True)
class Evaluation(Options):
    """What is evaluated, and how."""

    study: Path = option("folder of a study", Path, metavar="STUDY_FOLDER", flag="study")
    output_folder: Path | None = option("for what is made (default: STUDY_FOLDER)", Path, None, metavar="FOLDER")
    cycle: int | None = option(
        "after which the diagnoses are compared (default: the last that any model was tested after)",
        command.number(int, 0), None, metavar="CYCLE",
    )  # fmt: skip
    resamples: int = option("bootstrap resamples of the test set", command.number(int, 99), 9999, metavar="N")


def main() -> None:
    """Read the study, and evaluate it."""
    told = from_command_line(Evaluation, __doc__)
    # Only now, so that --help answers at once.
    from evaluation.records import read_study
    from evaluation.report import evaluate

    folder = told.output_folder or told.study
    evaluate(read_study(told.study), folder, cycle=told.cycle, resamples=told.resamples)
    print(f"tables, figures and report.html: {folder}")


if __name__ == "__main__":
    command.run(main)
