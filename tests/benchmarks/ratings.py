"""Whether experts exclude what the screen flags: its distance and limits on a table of image metrics with ratings.

Takes MRIQC's metrics of ABIDE (1,101 T1 scans of 17 sites, rated by up to three experts), which is not part of this
repository: mriqc_learn/datasets/abide.tsv of https://github.com/nipreps/mriqc-learn (Esteban et al., PLoS ONE 2017, doi
10.1371/journal.pone.0184661). Again and again some sites are known: good images of theirs are the test set, and all
other images are looked at, those of other sites, too. Three usual means of finding outliers are held to the same rate.

Example:
    python tests/benchmarks/ratings.py abide.tsv
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

from travelling.runs import command

FIRST_METRIC = "cjv"  # columns before it are of the subject


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("table", type=Path, metavar="TSV", help="subject_id, site, rater_1 to _3, metrics")
    parser.add_argument("--sites", type=count, nargs="+", default=[5, 12], metavar="N", help="that are known")
    parser.add_argument("--test-images", type=count, default=100, metavar="N", help="in the test set")
    parser.add_argument("--draws", type=count, default=20, metavar="N", help="of sites and test set")
    parser.add_argument("--false-alarms", type=command.number(float, 1e-6, 0.5), default=0.05, metavar="RATE")
    parser.add_argument("--seed", type=command.number(int, 0), default=42)
    return parser.parse_args()


def main() -> None:
    """Print the shares of good and excluded images that each means flags, by whether their site is known."""
    arguments = parse_arguments()
    import numpy as np
    import pandas as pd

    table = pd.read_csv(arguments.table, sep="\t", na_values="n/a")
    rating = table[["rater_1", "rater_2", "rater_3"]].mean(axis=1)
    table = table[rating.abs() >= 0.5].reset_index(drop=True)  # those on whose quality most experts agree
    excluded = (rating[rating.abs() >= 0.5] < 0).to_numpy()
    metrics = table.loc[:, FIRST_METRIC:].to_numpy(float)
    sites = table["site"].to_numpy()
    rows = []
    for known in arguments.sites:
        for draw in range(arguments.draws):
            random = np.random.default_rng([arguments.seed, known, draw])
            told = np.isin(sites, random.permutation(np.unique(sites))[:known])
            test = random.permutation(np.flatnonzero(told & ~excluded))[: arguments.test_images]
            others = np.setdiff1d(np.arange(len(table)), test)
            flagged = screened(metrics, sites, test, others, arguments.false_alarms)
            flagged |= by_peers(metrics, excluded, told, test, others, arguments.false_alarms)
            for name, found in flagged.items():
                what = np.where(excluded[others], "excluded", "good")
                site = np.where(told[others], "site known", "site new")
                rows.append(pd.DataFrame({"by": name, "sites": known, "site": site, "image": what, "%": 100.0 * found}))
    shares = pd.concat(rows).groupby(["sites", "by", "site", "image"], sort=False)["%"].mean()
    print(shares.unstack(["site", "image"]).round(1).to_string())


def screened(metrics, sites, test, others, false_alarms):
    """Which images (others,) the screen flags, by its distance over these metrics in place of its own."""
    import numpy as np
    import pandas as pd

    from travelling.beyond.screen import is_strange, scores
    from travelling.beyond.screen.eyes import Eyes
    from travelling.beyond.screen.looks import LOOKS

    scores.LOOKS = {"metrics": LOOKS["metrics"]}  # the only one that a table has
    test_set = pd.DataFrame({"Subject": test, "Scanner": sites[test]})
    eyes = Eyes(SimpleNamespace(test_set=test_set, scanners=dict(enumerate(sites))))  # type: ignore[arg-type]
    eyes.look = lambda subjects=None, weights=None: {"metrics": metrics[test if subjects is None else subjects]}  # type: ignore
    screen = scores.Scores(eyes, false_alarms)
    screen.calibrate()
    return {"screen": np.array([is_strange(cells) for cells in screen.cells(list(others))[0]])}


def by_peers(metrics, excluded, told, test, others, false_alarms):
    """Which images (others,) others flag: above the quantile of their scores of the test set, left out by fold."""
    import numpy as np
    from sklearn.ensemble import IsolationForest, RandomForestClassifier
    from sklearn.neighbors import LocalOutlierFactor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import RobustScaler

    found = {}
    for name, model in {
        "nearest neighbours": LocalOutlierFactor(novelty=True),
        "isolation forest": IsolationForest(random_state=0),
    }.items():
        fit = scorer(make_pipeline(RobustScaler(), model))
        limit = np.quantile(left_out(fit, metrics[test]), 1 - false_alarms, method="higher")
        found[name] = fit(metrics[test])(metrics[others]) > limit
    # It learns from ratings, and so has to be told of those at the sites that are new here.
    forest = RandomForestClassifier(300, class_weight="balanced", random_state=0, n_jobs=1)
    forest.fit(metrics[~told], excluded[~told])
    own = forest.predict_proba(metrics[test])[:, 1]
    rated = forest.predict_proba(metrics[others])[:, 1] > np.quantile(own, 1 - false_alarms, method="higher")
    found["forest of ratings at the other sites"] = np.where(told[others], rated, np.nan)
    return found


def scorer(model):
    """A function of usual images that gives a function of others: how unlike them each is, by a scikit-learn model."""
    from sklearn.base import clone

    def fit(usual):
        fitted = clone(model).fit(usual)
        return lambda others: -fitted.score_samples(others)

    return fit


def left_out(fit, usual):
    """How unlike the others each of some usual images (images, numbers) is, by those of other folds: (images,)."""
    import numpy as np
    from sklearn.model_selection import KFold

    scores = np.empty(len(usual))
    for some, left in KFold(5, shuffle=True, random_state=0).split(usual):
        scores[left] = fit(usual[some])(usual[left])
    return scores


if __name__ == "__main__":
    command.run(main)
