"""The ladder of kinds and strengths: how much of each kind of harm one look of the screen sees, by its strength.

Takes what tests/benchmarks/screen.py wrote for some cohorts, prints a table as Markdown, and draws the kinds that have
a strength. Several files of one name are cohorts of one sort: the table has a column for each, the figure their mean
and range.

Example:
    python tests/benchmarks/ladder.py template=template.csv brains=brains_1.csv,brains_2.csv --output ladder.png
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from travelling.runs import command

if TYPE_CHECKING:  # slow to import
    import pandas as pd

STYLES = (("blue", "o", "-"), ("orange", "s", "--"), ("green", "D", ":"))
COLUMNS = 5


def sort_of_cohorts(text: str) -> tuple[str, list[Path]]:
    """A NAME=CSV,... of the command line."""
    name, equals, files = text.partition("=")
    if not equals or not files:
        raise argparse.ArgumentTypeError(f"{text}: must be NAME=CSV")
    return name, list(map(Path, files.split(",")))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("cohorts", type=sort_of_cohorts, nargs="+", metavar="NAME=CSV,...", help="of screen.py")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG")
    return parser.parse_args()


def main() -> None:
    """Print the table, and draw the figure."""
    arguments = parse_arguments()
    from travelling.errors import InputError
    from travelling.files import write_whole
    from travelling_quality_control.reporting.drawing import render

    if len(arguments.cohorts) > len(STYLES):
        raise InputError(f"{len(STYLES)} sorts of cohorts at most can be told apart in the figure")
    shares = {name: [shares_of(path) for path in paths] for name, paths in arguments.cohorts}
    tables = [table for some in shares.values() for table in some]
    if not all(table.index.equals(tables[0].index) for table in tables):
        raise InputError("the files are not of the same kinds of harm, in the same order")
    names = [
        f"{name} {number + 1}" if len(some) > 1 else name
        for name, some in shares.items()
        for number in range(len(some))
    ]
    print(f"| kind | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for kind in tables[0].index:
        print(f"| `{kind}` | {' | '.join(in_words(table.loc[kind]) for table in tables)} |")
    write_whole(arguments.output, render(ladder(shares)))


def shares_of(path: Path) -> "pd.DataFrame":
    """Suspects in % of the images by kind of harm (rows, in the file's order) and strength (columns, falling)."""
    import pandas as pd

    rows = pd.read_csv(path).query("group == 'harmful'")
    sums = rows.groupby(["name", "level"], sort=False)[["suspects", "images"]].sum()
    shares = (100 * sums["suspects"] / sums["images"]).unstack()
    return shares.loc[rows["name"].unique(), sorted(shares.columns, reverse=True)]


def in_words(shares: "pd.Series") -> str:
    """A cell of the table: the shares at falling strength."""
    return " / ".join(f"{share:.0f}" for share in shares.dropna())


def ladder(shares: dict):
    """The figure: a small chart for each kind of harm that has a strength."""
    import pandas as pd
    from matplotlib.ticker import NullLocator

    from travelling_quality_control.reporting.drawing import Picture

    first = next(iter(shares.values()))[0]
    kinds = first.index[first.notna().sum(axis=1) > 1]
    rows = -(-(len(kinds) + 1) // COLUMNS)  # one place is left for the legend

    def draw(figure, colors):
        axes = figure.subplots(rows, COLUMNS, sharex=True, sharey=True).ravel()
        for axis, kind in zip(axes, kinds, strict=False):
            axis.set_title(kind)
            for (color, marker, line), (name, tables) in zip(STYLES, shares.items(), strict=False):
                found = pd.concat([table.loc[kind] for table in tables], axis=1)
                style = {"color": colors[color], "marker": marker, "linestyle": line, "markersize": 4}
                axis.plot(found.index, found.mean(axis=1), label=name, **style)
                axis.fill_between(
                    found.index, found.min(axis=1), found.max(axis=1), color=colors[color], alpha=0.2, lw=0
                )
            axis.set(xscale="log", xticks=first.columns, xticklabels=[f"{level:g}" for level in first.columns])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.tick_params(labelbottom=True)
            axis.grid(axis="y", color=colors["faint"], linewidth=0.5)
        for axis in axes[len(kinds) :]:
            axis.axis("off")
        axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
        figure.supxlabel("strength, relative to the kind's default", fontsize=9)
        figure.supylabel("suspects, % of the images", fontsize=9)

    caption = "Images that one look of the screen suspects, by kind and strength of harm; bands: smallest to largest."
    return Picture("ladder", "Harm by its strength", caption, caption, (10, 1.9 * rows), draw)


if __name__ == "__main__":
    command.run(main)
