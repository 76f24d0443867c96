"""Keep what finished runs of the demo gave (reproduce/demo_runs.csv), and print the ranges of all of them.

    python tests/benchmarks/demo_runs.py add demo --processor "AMD EPYC" --kernels AVX-512 --threads 1
    python tests/benchmarks/demo_runs.py ranges

The first adds a row for every model of a study's folder (of several seeds, too), in place of rows of the same
processor, kernels, threads and seed. How a run was made is told by whoever made it: kernels by
ONEDNN_MAX_CPU_ISA and TF_ENABLE_ONEDNN_OPTS, threads by TF_NUM_INTRAOP_THREADS. The second prints the table of
docs/results.md as Markdown; "same images": in how many seeds with several runs all of them eliminated the same.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

REPRODUCE = Path(__file__).resolve().parents[2] / "reproduce"
sys.path.insert(0, str(REPRODUCE))
from evaluation.demo_runs import CASE, MADE_BY, MEASURED, figures, ranges, read_measured, span  # noqa: E402
from evaluation.records import read_study  # noqa: E402

from travelling.words import some  # noqa: E402


def add(told: argparse.Namespace) -> None:
    """Add the models of a study to the CSV."""
    found = figures(read_study(told.study))
    for place, name in enumerate(MADE_BY):
        found.insert(place, name, getattr(told, name))
    known = [pd.read_csv(told.csv, keep_default_na=False, dtype=str)] if told.csv.exists() else []
    rows = pd.concat([*known, found.astype("string").fillna("")])
    rows = rows.drop_duplicates([*MADE_BY, "seed", *CASE], keep="last")
    rows.to_csv(told.csv, index=False, lineterminator="\n")
    print(f"{len(found)} rows of {told.study}; {told.csv} has {len(rows)}")


def print_ranges(told: argparse.Namespace) -> None:
    """Print the smallest and the largest of every figure, by experiment and setting."""
    measured = read_measured(told.csv)
    cases = measured.groupby(CASE, sort=False)
    known = ranges(measured)
    columns = [*CASE, "runs", *dict.fromkeys(known.columns.get_level_values(0)), "same images"]
    print(_line(name.replace("_", " ") for name in columns), _line("---" for _ in columns), sep="\n")
    for case, rows in cases:
        cells = [span(*known.loc[case, name]) for name in columns[4:-1]]
        digests = rows[rows["eliminated"] != ""].groupby("seed")["eliminated"].agg(["size", "nunique"])
        digests = digests[digests["size"] > 1]
        same = f"{(digests['nunique'] == 1).sum()} of {some(len(digests), 'seed')}" if len(digests) else ""
        print(_line([*(name.replace("_", " ") for name in case), len(rows), *cells, same]))


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=MEASURED, help="where the rows are kept")
    parts = parser.add_subparsers(required=True)
    adding = parts.add_parser("add", help="add the rows of a study's folder")
    adding.add_argument("study", type=Path)
    for name in MADE_BY:
        adding.add_argument(f"--{name}", required=True)
    adding.set_defaults(does=add)
    parts.add_parser("ranges", help="print the ranges").set_defaults(does=print_ranges)
    told = parser.parse_args()
    told.does(told)


if __name__ == "__main__":
    main()
