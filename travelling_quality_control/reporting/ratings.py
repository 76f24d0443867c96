"""A person's ratings of images, exported from a page as TSV: kept beside the log, and compared with the decisions."""

import warnings
from pathlib import Path

import pandas as pd

from travelling.files import write_whole
from travelling_quality_control.auditing.tables import read_table, refuse_rows
from travelling_quality_control.reporting.runs import DECISIONS

RATINGS = {"keep": "keep", "leave_out": "leave out"}  # as in the file, and in words
COLUMNS = ("participant_id", "rating")


def read_ratings(path: Path, images: pd.Index) -> pd.Series:
    """Ratings by image, from a TSV with ``COLUMNS``; raises InputError for what is none, or not of these images."""
    table = read_table(path, COLUMNS, separator="\t")
    refuse_rows(path, ~table["rating"].isin(RATINGS), f"rating is not one of {', '.join(RATINGS)}")
    refuse_rows(path, table["participant_id"].duplicated(), "participant_id appears before, too")
    refuse_rows(path, ~table["participant_id"].isin(images), "participant_id is no image of this run")
    return table.set_index("participant_id")["rating"]


def keep_ratings(given: Path | None, log_csv: Path, images: pd.Index) -> pd.Series:
    """All ratings of a run's images: those beside its log, and over them the ones that are given, which are kept there.

    Raises what :func:`read_ratings` raises.
    """
    kept = log_csv.with_name(f"{log_csv.stem}_ratings.tsv")
    ratings = read_ratings(kept, images) if kept.is_file() else pd.Series(dtype=str)
    if given:
        ratings = read_ratings(given, images).combine_first(ratings)
        text = ratings.rename_axis(COLUMNS[0]).rename(COLUMNS[1]).to_csv(sep="\t", lineterminator="\n")
        write_whole(kept, text.encode())
    return ratings


def agreement(ratings: pd.Series, decisions: pd.Series) -> tuple[pd.DataFrame, str]:
    """How ratings and decisions (both by image) agree: a table of numbers, and a sentence.

    Who waits for its revisit is not decided yet, and no part of the sentence. Cohen's kappa (Educational and
    Psychological Measurement 20, 1960) is the agreement beyond chance: 1 in all cases, 0 as by chance.
    """
    from sklearn.metrics import cohen_kappa_score

    decisions = decisions[ratings.index]
    counts = pd.crosstab(ratings, decisions).reindex(index=list(RATINGS), columns=list(DECISIONS), fill_value=0)
    shares = (counts["eliminated"] / counts.sum(axis=1)).map(lambda share: "n/a" if pd.isna(share) else f"{share:.0%}")
    table = counts.rename(columns=DECISIONS).assign(**{"share eliminated": shares})
    table.insert(0, "rated", [RATINGS[name] for name in table.index])
    decided = decisions != "waiting"
    left_out, eliminated = ratings[decided] == "leave_out", decisions[decided] == "eliminated"
    if not len(left_out):
        return table, "No rated image is decided about."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class: there is no kappa then
        kappa = cohen_kappa_score(left_out, eliminated, labels=[False, True])
    return table, (
        f"Rating and decision agree for {(left_out == eliminated).sum()} of {len(left_out)} images "
        f"({(left_out == eliminated).mean():.0%}); Cohen's kappa is "
        f"{'not defined, all being alike' if pd.isna(kappa) else f'{kappa:.2f}'}."
    )
