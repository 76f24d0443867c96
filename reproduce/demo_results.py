"""Tables and picture of the demo, from the records that its runs left: nothing is known in advance."""

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")
from matplotlib import pyplot as plt

from travelling.cohort import read_cohort
from travelling.volumes import open_image, to_array

METRICS = {"AUC_ROC": "AUROC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity"}
FPR_COLOR, FNR_COLOR, UNDONE_COLOR = "#0072B2", "#D55E00", "#000000"  # Okabe and Ito, colour-blind safe


def performance_table(folder, experiments):
    """Metrics of the last cycle: the clean model, then dirty and quality-controlled by experiment."""
    rows = [{"experiment": "", "kind": "", "model": "clean", **last_metrics(folder / "clean")}]
    for experiment, kind in experiments:
        for model in ("dirty_baseline", "quality_control"):
            metrics = last_metrics(folder / f"{experiment}_{kind}" / model)
            rows.append({"experiment": experiment, "kind": kind, "model": model, **metrics})
    return pd.DataFrame(rows)


def last_metrics(folder):
    """Test metrics of the last cycle of a run."""
    last = pd.read_csv(folder / "inference_metrics.csv").iloc[-1]
    return {name: round(last[column], 3) for column, name in METRICS.items()}


def detection_table(folder, experiments):
    """How many harmful and good images were flagged and eliminated, and in which cycles."""
    rows = []
    for experiment, kind in experiments:
        truth = pd.read_csv(folder / f"{experiment}_{kind}" / "harmful" / "truth.csv", dtype=str)
        subjects = pd.read_csv(
            folder / f"{experiment}_{kind}" / "quality_control" / "log_subjects.csv", dtype={"Subject": str}
        )
        is_harmful = subjects["Subject"].isin(truth["Subject"])
        row = {"experiment": experiment, "kind": kind}
        for name, group in (("harmful", subjects[is_harmful]), ("good", subjects[~is_harmful])):
            row[f"{name} images"] = len(group)
            row[f"{name} flagged"] = by_cycle(group["First_flagged_cycle"])
            row[f"{name} eliminated"] = by_cycle(group["Eliminated_cycle"])
        rows.append(row)
    return pd.DataFrame(rows)


def by_cycle(cycles):
    """How many, and how many in which cycle: "5 (10: 4, 11: 1)"."""
    counts = cycles.dropna().astype(int).value_counts().sort_index()
    in_words = ", ".join(f"{cycle}: {number}" for cycle, number in counts.items())
    return f"{counts.sum()} ({in_words})" if len(counts) else "0"


def draw(folder, path):
    """A good image and its harmful versions, and the rates along one run of quality control."""
    figure = plt.figure(figsize=(11, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
    draw_images(top, folder)
    draw_rates(bottom, folder)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_images(figure, folder):
    """Axial and sagittal mid-slices of a good, an inverted and a noisy image of the same subject."""
    truths = {
        kind: pd.read_csv(folder / f"whole_centers_{kind}" / "harmful" / "truth.csv") for kind in ("inverted", "noise")
    }
    source = truths["inverted"]["Source"].iloc[0]
    panels = [("good", read_cohort(folder / "cohort" / "training_set.csv").loc[source, "Path"])]
    for kind, truth in truths.items():
        training_set = read_cohort(folder / f"whole_centers_{kind}" / "harmful" / "training_set.csv")
        panels.append((kind, training_set.loc[truth.set_index("Source").loc[source, "Subject"], "Path"]))
    axes = figure.subplots(1, 2 * len(panels))
    for (name, file), pair in zip(panels, axes.reshape(-1, 2), strict=True):
        volume = to_array(open_image(file))  # z, y, x
        middle = [size // 2 for size in volume.shape]
        for axis, image in zip(pair, (volume[middle[0]], volume[:, :, middle[2]]), strict=True):
            axis.imshow(image, cmap="gray", origin="lower")
            axis.axis("off")
        pair[0].set_title(f"{name}: {volume.min():.3g} to {volume.max():.3g}", loc="left", fontsize=9)


def draw_rates(figure, folder):
    """FPR and FNR after every verification of the run on whole inverted centers."""
    log = pd.read_csv(folder / "whole_centers_inverted" / "quality_control" / "log.csv", keep_default_na=False)
    axis = figure.subplots()
    number = np.arange(len(log))
    undone = (log["Ignored"] == 1).to_numpy()
    for column, name, color in (("PFP", "FPR", FPR_COLOR), ("PFN", "FNR", FNR_COLOR)):
        axis.plot(number[~undone], log[column][~undone], color=color, label=f"{name}, step kept", linewidth=1.2)
        axis.plot(number[undone], log[column][undone], "x", color=color, label=f"{name}, step undone", markersize=4)
    eliminated = (log["Eliminated"].astype(int) == 1).to_numpy()
    axis.plot(
        number[eliminated], np.full(eliminated.sum(), 1.06), "v", color=UNDONE_COLOR, label="eliminated", markersize=5
    )
    for cycle in sorted(set(log["Cycle"]) - {0}):
        first = number[(log["Cycle"] == cycle).to_numpy()][0]
        axis.axvline(first, color="0.8", linewidth=0.8, zorder=0)
        axis.text(first + 1, 1.13, f"cycle {cycle}", fontsize=9, va="center")
    axis.set(xlabel="verification", ylabel="rate of misdiagnosis on the test set", ylim=(-0.03, 1.2))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title("Quality control over centers of which five hold only inverted images", fontsize=10)
