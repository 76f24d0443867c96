"""The figures of a study: what each shows, in words and as a drawing, in one style."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd

from evaluation.layout import CLEAN, DIRTY, control_folder
from evaluation.records import Study, in_words
from evaluation.render import METRIC_NAMES, MODEL_NAMES
from travelling.errors import InputError
from travelling.files import write_whole
from travelling.images.nifti import read_upright
from travelling_quality_control.reporting.drawing import Picture, middle_slices, rates_along_run, render, show

DRAWN_METRICS = ("AUC_ROC", "accuracy", "sensitivity", "specificity")
MOST_COLUMNS = 6  # experiments side by side; more get another figure

# Color, marker and line of the clean, the dirty and the quality-controlled model.
_LOOKS = ("green", "o", ":"), ("orange", "s", "--"), ("blue", "D", "-")


def make_figures(study: Study) -> list:
    """All figures of a study, a list of :class:`Picture`."""
    figures = []
    if any(model.predictions is not None for model in study.models):
        conditions = study.conditions or [("", "")]
        parts = [conditions[begin : begin + MOST_COLUMNS] for begin in range(0, len(conditions), MOST_COLUMNS)]
        figures = [metrics_by_cycle(study, part, number) for number, part in enumerate(parts, 1)]
    return [*figures, *map(rates_along_run, study.shown_controls)]


def write_figures(figures: list, folder: Path) -> None:
    """Write every figure as ``<name>.png`` and ``<name>.pdf`` to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in figures:
        for file_format in ("png", "pdf"):
            write_whole(folder / f"{picture.name}.{file_format}", render(picture, file_format))


def metrics_by_cycle(study: Study, conditions: list, number: int = 1) -> Picture:
    """Metrics on the test set after every cycle: clean, dirty and quality-controlled, one column per experiment.

    ``conditions`` are the experiments that are drawn, ``number`` that of the figure.
    """
    looks = dict(zip((CLEAN, DIRTY, control_folder(study.main_setting)), _LOOKS, strict=True))
    curves = {}  # mean, smallest and largest of the metrics over seeds, by cycle
    for key in study.keys:
        tables = [model.metrics for model in study.models if model.key == key and model.metrics is not None]
        if tables and key[2] in looks and (key[2] == CLEAN or key[:2] in conditions):
            curves[key] = pd.concat(tables).groupby(level="cycle").agg(["mean", "min", "max"])
    several = len(study.seeds) > 1

    def draw(figure, colors):
        axes = figure.subplots(len(DRAWN_METRICS), len(conditions), sharex=True, sharey="row", squeeze=False)
        for column, condition in zip(axes.T, conditions, strict=True):
            column[0].set_title(in_words(*condition))
            column[-1].set_xlabel("cycle")
            column[-1].xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=6))
            for key in [key for key in curves if key[2] == CLEAN or key[:2] == condition]:
                color, marker, line = looks[key[2]]
                style = {"color": colors[color], "marker": marker, "linestyle": line, "markersize": 3.5}
                for axis, metric in zip(column, DRAWN_METRICS, strict=True):
                    values = curves[key][metric]
                    axis.plot(values.index, values["mean"], label=MODEL_NAMES[key[2]], **style)
                    if several:
                        band = {"color": colors[color], "alpha": 0.2, "lw": 0}
                        axis.fill_between(values.index, values["min"], values["max"], **band)
        for row, metric in zip(axes, DRAWN_METRICS, strict=True):
            row[0].set(ylabel=METRIC_NAMES[metric], ylim=(-0.04, 1.04))
            for axis in row:
                axis.grid(axis="y", color=colors["faint"], linewidth=0.5)
        handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)

    caption = (
        "The metrics on the test set after every cycle that was tested, for the clean, dirty and quality-controlled "
        "model." + (" Lines: means over seeds; bands: smallest to largest." if several else "")
    )
    ends = [
        f"{in_words(*key[:2])} {MODEL_NAMES[key[2]]}".strip() + f" {table['AUC_ROC']['mean'].iloc[-1]:.3f}"
        for key, table in curves.items()
    ]
    metrics = ", ".join(METRIC_NAMES[name] for name in DRAWN_METRICS)
    alternative = f"Line charts of {metrics} by cycle. Last AUROC: {'; '.join(ends)}."
    name = "metrics_by_cycle" if number == 1 else f"metrics_by_cycle_{number}"
    return Picture(name, "Metrics by cycle", caption, alternative, (2.0 + 2.3 * len(conditions), 6.4), draw)


def overview(study: Study) -> Picture:
    """The demo's picture: a good image and its two harmful versions, and the rates along the run on inverted centers.

    Raises InputError where the study lacks quality control on whole centers of either kind, or their common source.
    """
    kinds = ("inverted", "noise_in_range")
    runs = {run.kind: run for run in study.shown_controls if run.experiment == "whole_centers"}
    if not runs.keys() >= {*kinds}:
        wanted = " and of ".join(map(in_words, kinds))
        raise InputError(f"{study.folder}: no finished quality control on whole centers of {wanted} images")
    inverted = runs["inverted"]
    versions = {kind: runs[kind].harmful.set_index("Source")["Path"] for kind in kinds}
    first, second = versions.values()
    common = [source for source in first.index if source in second.index]
    if not common:
        raise InputError(
            f"{study.folder}: its {' and its '.join(map(in_words, kinds))} images have no source in common"
        )
    panels = {"good": inverted.images.loc[common[0], "Path"]}
    panels |= {in_words(kind): paths[common[0]] for kind, paths in versions.items()}

    def draw(figure, colors):
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
        for pair, (name, path) in zip(top.subplots(1, 6).reshape(-1, 2), panels.items(), strict=True):
            show(pair, middle_slices(read_upright(path)), name)
        rates_along_run(inverted).draw(bottom, colors)
        centers = inverted.images.groupby("Study")["Harmful"].all()
        bottom.suptitle(
            f"Quality control over {len(centers)} centers of which {centers.sum()} hold only inverted images"
        )

    title = "Harmful images and what they do"
    return Picture("overview", title, "", "", (11, 5.6), draw, inverted)
