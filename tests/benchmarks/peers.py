"""What a user might take instead of quality control, beside it: on the same harmful images, in one run.

Takes the cohort and a pre-trained model of a study that is finished (reproduce/reproduce.py) and makes whole centers of
every kind of harm. *Filters* look at each image once, before training: an image is left out if it is stranger than the
test images at a false-alarm rate of 1 % (conformal quantile of scores by other folds of the test set; the screen's
limit is made so, too). The model then trains as many cycles without what was left out. *Aggregation* is another
training: in each cycle all centers go on from one model, and their updates (weights and moving statistics) are
combined.

    intensity range    outside [0, 1], or outside the smallest and the largest intensity of the test set
    metrics            the screen's own image quality metrics alone: Mahalanobis distance (covariance by Ledoit and
                       Wolf), nearest neighbours (local outlier factor), isolation forest
    PCA                error of the reconstruction by the components that explain 90 % of the test set's variance
    loss               of the label, by the pre-trained model
    cleanlab           label issues (confident learning) from the pre-trained model's probabilities, by its own limit
    norm clipping      updates are shortened that are longer per step than 99 groups of five test images make them
    trimmed mean       of the updates of all centers, without a tenth of them at either side of every weight

Example:
    pip install cleanlab==2.9.0
    python tests/benchmarks/peers.py demo_ten --pretrained demo_ten/seed_3/pretrained --output-folder peers
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from groups import Bench
from ratings import left_out, scorer
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler

from travelling.beyond.screen.labels import log_odds_of_label
from travelling.beyond.screen.metrics import image_metrics
from travelling.beyond.screen.scores import limit_rank
from travelling.errors import InputError
from travelling.files import write_csv
from travelling.method.performance import performance
from travelling.runs import command

SCRIPT = Path(__file__).resolve().parents[2] / "generate_harmful_samples" / "generate_data.py"
KINDS = ("inverted", "noise_in_range", "blur", "half_lost", "swapped_label")
SETTINGS: dict[str, dict] = {
    "published rule": {"rule": "published"},
    "recommended setting": {"recommended": True},
    "recommended setting, label screen": {"recommended": True, "label_screen": True},
}
FALSE_ALARMS = 0.01
GROUPS, GROUP = 99, 5  # of test images: the fewest groups that tell a limit of 1 %
TRIMMED = 0.1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    parser.add_argument("study", type=Path, metavar="STUDY_FOLDER", help="with a folder cohort")
    parser.add_argument("--pretrained", type=Path, metavar="FOLDER", help="(default: that of the study)")
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="KIND", help="of harm")
    parser.add_argument("--cycles", type=count, default=2, metavar="N")
    parser.add_argument("--revisit", type=count, default=1, metavar="CYCLES")
    parser.add_argument("--learning-rate", type=command.number(float, 0), default=1e-4, metavar="RATE")
    parser.add_argument("--seed", type=command.number(int, 0), default=42, help="of the harm and of groups")
    parser.add_argument("--output-folder", type=Path, required=True, help="for harmful images and peers.csv")
    return parser.parse_args()


def main() -> None:
    """Make the harm, let all look at it, and print the table."""
    arguments = parse_arguments()
    try:
        import cleanlab  # noqa: F401
    except ImportError:
        raise InputError("cleanlab is not installed: pip install cleanlab==2.9.0") from None
    from travelling.network import backend

    backend.start(0)
    rows = []
    for kind in arguments.kinds:
        for row in Work(arguments, kind).compare():
            rows.append({"kind": kind, **row})
            print(*rows[-1].values(), sep="\t", flush=True)
    table = pd.DataFrame(rows).convert_dtypes()
    write_csv(table, arguments.output_folder / "peers.csv")
    counts = [f"{row.found}, {row.lost}, " if pd.notna(row.found) else "" for row in table.itertuples()]
    table["cells"] = counts + table["AUROC"].map("{:.3f}".format)
    wide = table.pivot(index="by", columns="kind", values="cells").reindex(table["by"].unique())[list(arguments.kinds)]
    wide["seconds"] = table.groupby("by")["seconds"].median().map("{:.0f}".format)
    print("\nHarmful images found, good ones lost, AUROC after training; CPU seconds beside plain training, median\n")
    for line in (["", *wide.columns], ["---"] * (1 + wide.shape[1]), *wide.fillna("").reset_index().to_numpy()):
        print(f"| {' | '.join(map(str, line))} |")


class Work:
    """One kind of harm, and all that look at it."""

    aurocs: ClassVar[dict] = {}  # of models, by what they trained on: the same for all kinds where no harm is left

    def __init__(self, arguments, kind):
        cohort, folder = arguments.study / "cohort", arguments.output_folder / kind
        if not (folder / "truth.csv").exists():
            line = [sys.executable, SCRIPT, "-fn_train", cohort / "training_set.csv", "--kind", kind,
                    "--experiment", "whole_centers", "--seed", arguments.seed, "--output-folder", folder]  # fmt: skip
            subprocess.run(list(map(str, line)), check=True)
        pretrained = arguments.pretrained or arguments.study / "pretrained"
        self.bench = Bench(arguments, pretrained, folder / "training_set.csv", cohort / "test_set.csv")
        self.kind, self.trainer, self.harmful = kind, self.bench.trainer, self.bench.harmful
        self.settings = {name: one for name, one in SETTINGS.items() if "label" not in name or kind == "swapped_label"}
        self.random = np.random.default_rng(arguments.seed)
        self.subjects, self.test = [*self.bench.training_set["Subject"]], [*self.bench.test_set["Subject"]]
        self.trainer.labels |= self.bench.test_set["Group_bin"].to_dict()
        self.rates = [arguments.learning_rate * np.exp(-0.1 * cycle) for cycle in self.bench.cycles]

    def compare(self):
        """A row for each peer, for nobody, and for one who knows."""
        _, plain = timed(self.bench.train_plainly, self.bench.centers)
        self.bench.seconds_plain = plain  # or its first run would take them, too
        yield {"by": "nobody", "found": 0, "lost": 0, "AUROC": self.auroc(), "seconds": 0.0}
        for name, setting in self.settings.items():
            run, seconds = timed(self.bench.run, **setting)
            yield {
                "by": name, "found": run["harmful_eliminated"], "lost": run["good_eliminated"],
                "AUROC": float(run["AUROC"]), "seconds": seconds - plain,
                "flagged": run["harmful_flagged"], "good_flagged": run["good_flagged"],
            }  # fmt: skip
        for name, find in self.filters().items():
            self.trainer.restore(self.bench.start)
            is_found, seconds = timed(find)
            yield self.row(name, set(np.array(self.subjects)[is_found]), seconds)
        yield self.row("whoever knows", self.harmful)
        yield from self.aggregated(plain)

    def row(self, name, found, seconds=0.0):
        """What a filter found, and the AUROC of the model trained on the rest."""
        rest = {center: [one for one in some if one not in found] for center, some in self.bench.centers.items()}
        rest = {center: some for center, some in rest.items() if some}
        key = self.kind if self.harmful - found else None, *sum(rest.values(), [])
        if key not in self.aurocs:
            self.bench.train_plainly(rest)
            self.aurocs[key] = self.auroc()
        return {"by": name, **self.counts(found), "AUROC": self.aurocs[key], "seconds": seconds}

    def counts(self, found):
        """Of harmful images found, and of good ones lost."""
        return {"found": len(self.harmful & found), "lost": len(found - self.harmful)}

    def auroc(self):
        """Of the test set, by the model as it is."""
        now = self.trainer.evaluate()
        return performance(now.labels, now.predictions)["AUC_ROC"]

    def filters(self) -> dict[str, Any]:
        """Name -> function that tells which images are left out: (subjects,)."""

        def images(subjects):
            return self.bench.volumes.batch(subjects)[..., 0].reshape(len(subjects), -1)

        def beyond(smallest, largest):
            return [image.min() < smallest or image.max() > largest for image in images(self.subjects)]

        def metrics(subjects):
            return np.array([image_metrics(self.trainer.upright(subject)) for subject in subjects])

        def losses(subjects):
            labels = [self.trainer.labels[subject] for subject in subjects]
            return np.logaddexp(0, -log_odds_of_label(labels, self.trainer.predict_training(subjects)))

        def by_loss():
            return losses(self.subjects) > np.sort(losses(self.test))[rank(len(self.test))]

        def by_cleanlab():
            from cleanlab.filter import find_label_issues

            patients = np.array(self.trainer.predict_training(self.subjects))
            labels = self.bench.training_set["Group_bin"].to_numpy()
            return find_label_issues(labels, np.stack([1 - patients, patients], axis=1), n_jobs=1)

        def by(measure, fit):
            return lambda: stranger(fit, measure(self.test), measure(self.subjects))

        neighbours, forest = LocalOutlierFactor(novelty=True), IsolationForest(random_state=0)
        return {
            "intensity range [0, 1]": lambda: beyond(0, 1),
            "intensity range of the test set": lambda: beyond(images(self.test).min(), images(self.test).max()),
            "metrics, Mahalanobis": by(metrics, mahalanobis),
            "metrics, nearest neighbours": by(metrics, scorer(make_pipeline(RobustScaler(), neighbours))),
            "metrics, isolation forest": by(metrics, scorer(make_pipeline(RobustScaler(), forest))),
            "PCA": by(images, reconstruction_error),
            "loss": by_loss,
            "cleanlab": by_cleanlab,
        }

    def aggregated(self, plain):
        """Rows of three ways to combine updates; norm clipping is the only one that names images."""
        self.trainer.restore(self.bench.start)
        self.trainer.learning_rate = self.rates[0]
        groups = [[*self.random.permutation(self.test)[:GROUP]] for _ in range(GROUPS)]
        usual, seconds_of_limit = timed(self.updates, groups)
        sizes = np.array([*map(len, self.bench.centers.values())])
        longest = np.sort(np.linalg.norm(usual, axis=1))[rank(GROUPS)] * -(-sizes // GROUP)

        def mean(updates):
            return sizes @ updates / sizes.sum()

        def clipped(updates):
            return mean(updates * np.minimum(1, longest / np.linalg.norm(updates, axis=1))[:, None])

        def trimmed(updates):
            return stats.trim_mean(updates, TRIMMED)

        for name, combine in {"mean of updates": mean, "norm clipping": clipped, "trimmed mean": trimmed}.items():
            first, seconds = timed(self.federated, combine)
            row = {"by": name, "found": None, "lost": None, "AUROC": self.auroc(), "seconds": seconds - plain}
            if combine is clipped:
                too_long = np.repeat(np.linalg.norm(first, axis=1) > longest, sizes)
                row |= self.counts(set(np.concatenate([*self.bench.centers.values()])[too_long]))
                row["seconds"] += seconds_of_limit
            yield row

    def federated(self, combine):
        """Train by updates (centers, weights), of which ``combine`` makes one; gives those of the first cycle."""
        self.trainer.restore(self.bench.start)
        rounds = []
        for rate in self.rates:
            self.trainer.learning_rate = rate
            rounds.append(self.updates(self.bench.centers.values()))
            weights = self.bench.model.network.weights
            ends = np.cumsum([np.prod(weight.shape, dtype=int) for weight in weights])[:-1]
            for weight, part in zip(weights, np.split(combine(rounds[-1]), ends), strict=True):
                weight.assign_add(part.reshape(weight.shape))
        return rounds[0]

    def updates(self, centers):
        """What an epoch on each of some lists of subjects makes of the model as it is: differences (lists, weights)."""
        state, found = self.trainer.keep(), []

        def weights():
            return np.concatenate([np.ravel(weight.numpy()) for weight in self.bench.model.network.weights])

        for subjects in centers:
            before, size = weights(), min(GROUP, len(subjects))
            self.trainer.train_batches([subjects[at : at + size] for at in range(0, len(subjects), size)])
            found.append(weights() - before)
            self.trainer.restore(state)
        return np.array(found)


def rank(number):
    """The place, from 0, of the limit among so many sorted scores."""
    return limit_rank(number, FALSE_ALARMS) - 1


def stranger(fit, usual, others):
    """Which of some images (images, numbers) are stranger than the usual ones; what cannot be measured is, too."""
    limit = np.sort(left_out(fit, usual))[rank(len(usual))]
    found = ~np.isfinite(others).all(axis=1)
    found[~found] = fit(usual)(others[~found]) > limit
    return found


def mahalanobis(usual):
    """As :func:`ratings.scorer`: the distance from the usual images."""
    scaler = StandardScaler().fit(usual)
    fitted = LedoitWolf().fit(scaler.transform(usual))
    return lambda others: fitted.mahalanobis(scaler.transform(others))


def reconstruction_error(usual):
    """As :func:`ratings.scorer`: the mean square of what the usual images' principal components leave unexplained."""
    fitted = PCA(0.9, svd_solver="full").fit(usual)
    return lambda others: np.square(others - fitted.inverse_transform(fitted.transform(others))).mean(axis=1)


def timed(function, *given, **options):
    """What a function gives, and the CPU seconds that it took."""
    begun = time.process_time()
    found = function(*given, **options)
    return found, time.process_time() - begun


if __name__ == "__main__":
    command.run(main)
