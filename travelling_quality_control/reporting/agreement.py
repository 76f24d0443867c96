"""How a person's ratings of images agree with the decisions."""

import warnings

import pandas as pd

from travelling.images.ratings import OUT, RATINGS
from travelling_quality_control.judging.logged_run import DECISIONS


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
    table.insert(0, "rated", table.index)
    decided = decisions != "waiting"
    left_out, eliminated = ratings[decided].isin(OUT), decisions[decided] == "eliminated"
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
