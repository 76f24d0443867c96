"""How often the label screen doubts centers with right labels, and centers whose labels are all swapped.

Takes the predictions of models, of two sets of people: of each model, one set is the test set, and centers are drawn
from the other by chance; then the other way round. A study with a hold-out set has both for every model.

Example:
    python tests/benchmarks/labels.py --test demo/clean/inference_predictions.csv \\
        --other demo/clean/holdout_predictions.csv
"""

import argparse
from pathlib import Path

from travelling.runs import command


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    for name in ("--test", "--other"):
        parser.add_argument(name, type=Path, nargs="+", required=True, metavar="CSV", help="<o>_predictions.csv")
    parser.add_argument("--images", type=count, nargs="+", default=[3, 4, 5, 7, 10], metavar="N", help="of a center")
    parser.add_argument("--centers", type=count, default=83, metavar="N", help="by which the limit is divided")
    parser.add_argument("--draws", type=count, default=200, metavar="N", help="of a center of each size and model")
    parser.add_argument("--seed", type=command.number(int, 0), default=42)
    return parser.parse_args()


def main() -> None:
    """Print the shares of centers that are doubted, by the model's AUROC on the set that is the test set."""
    arguments = parse_arguments()
    import numpy as np
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    from travelling.beyond.screen.labels import center_p_value, p_values, reference_of
    from travelling.beyond.screen_labels import ALPHA
    from travelling.method.metrics import evaluate

    random, rows = np.random.default_rng(arguments.seed), []
    for paths in zip(arguments.test, arguments.other, strict=True):
        one, two = (dict(list(pd.read_csv(path).groupby("cycle"))) for path in paths)
        for test, other in [pair for c in one.keys() & two.keys() for pair in ((one[c], two[c]), (two[c], one[c]))]:
            reference = reference_of(evaluate(test["ground_truth"], test["preds_raw"]))
            labels, predictions = other["ground_truth"].to_numpy(), other["preds_raw"].to_numpy()
            auroc = roc_auc_score(test["ground_truth"], test["preds_raw"])
            for images in arguments.images if reference else []:
                for _ in range(arguments.draws):
                    drawn = random.choice(len(labels), images, replace=False)
                    for swapped in (False, True):
                        told = 1 - labels[drawn] if swapped else labels[drawn]
                        p = center_p_value(p_values(reference, told, predictions[drawn]).tolist())
                        rows.append((auroc, images, swapped, 100.0 * (p < ALPHA / arguments.centers)))
    table = pd.DataFrame(rows, columns=["AUROC", "images", "swapped", "doubted, %"])
    table["AUROC"] = pd.cut(table["AUROC"], [0.8, 0.85, 0.9, 0.92, 0.94, 1], include_lowest=True)
    shares = table.groupby(["swapped", "AUROC", "images"], observed=True)["doubted, %"].mean()
    print(shares.unstack("images").round(2).to_string())
    right = table[~table["swapped"]]["doubted, %"]
    print(f"\nright labels: {int(right.sum() / 100):,} of {len(right):,} centers doubted")


if __name__ == "__main__":
    command.run(main)
