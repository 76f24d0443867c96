"""The figures of a study: what each shows, in words and as a drawing, in one style."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study_layout import CLEAN, CONTROLLED, DIRTY, control_folder
from study_records import in_words
from study_tables import METRIC_NAMES, MODEL_NAMES, detection_by_threshold

from travelling.errors import InputError
from travelling.files import write_whole
from travelling.protocol import ROUNDING

DRAWN_METRICS = ("AUC_ROC", "accuracy", "sensitivity", "specificity")
MOST_IMAGES = 24  # slices in one figure; more cannot be seen
LONGEST_NAME = 30  # characters of a center's name beside a map; the tables have all of them
MOST_COLUMNS = 6  # experiments side by side; more get another figure
DPI = 110

# Okabe and Ito's palette (Color Universal Design, 2008), its lighter half on a dark page. Lines also differ in shape.
_LIGHT = {
    "ink": "#1b1b1b", "page": "#ffffff", "faint": "#c8c8c8",
    CLEAN: "#009E73", DIRTY: "#D55E00", CONTROLLED: "#0072B2", "FPR": "#0072B2", "FNR": "#D55E00",
}  # fmt: skip
_DARK = _LIGHT | {
    "ink": "#e8e8e8", "page": "#16181c", "faint": "#4a4d52",
    CLEAN: "#2fc79b", DIRTY: "#E69F00", CONTROLLED: "#56B4E9", "FPR": "#56B4E9", "FNR": "#E69F00",
}  # fmt: skip
_LINES = {CLEAN: (":", "o"), DIRTY: ("--", "s"), CONTROLLED: ("-", "D")}


@dataclass(frozen=True)
class Picture:
    """A figure: ``draw(figure, colors)`` draws it on an empty matplotlib Figure of ``size`` (inches).

    ``caption`` says what it shows and what it does not, ``alternative`` what it looks like for those who do not see it;
    ``run`` is the run of quality control that it is about (None: the whole study).
    """

    name: str
    title: str
    caption: str
    alternative: str
    size: tuple
    draw: Callable
    run: object = None
    has_images: bool = False


def make_figures(study, with_images=False):
    """All figures of a :class:`study_records.Study`, a list of :class:`Picture`.

    ``with_images`` adds slices of images, which must exist then: InputError names one that does not.
    """
    figures = []
    if any(model.predictions is not None for model in study.models):
        conditions = study.conditions or [("", "")]
        parts = [conditions[begin : begin + MOST_COLUMNS] for begin in range(0, len(conditions), MOST_COLUMNS)]
        figures = [metrics_by_cycle(study, part, number) for number, part in enumerate(parts, 1)]
    for run in study.shown_controls:
        figures += [rates_along_run(run), flags_by_center(run)]
        figures += [flags_by_threshold(run)] if run.by_tolerance and len(run.log) > 1 else []
        if with_images:
            figures += slices_of_images(run)
    return figures


def render(picture, file_format="png", dark=False):
    """The bytes of a picture as a png or pdf file; the same picture gives the same bytes."""
    colors = _DARK if dark else _LIGHT
    style = {
        "figure.facecolor": colors["page"],
        "axes.facecolor": colors["page"],
        "savefig.facecolor": colors["page"],
        "text.parse_math": False,  # a center may have a dollar in its name
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "pdf.fonttype": 42,
        **{f"{part}.color": colors["ink"] for part in ("text", "xtick", "ytick")},
        "axes.labelcolor": colors["ink"],
        "axes.edgecolor": colors["ink"],
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # not the user's matplotlibrc
        mpl.rcParams.update(style)
        figure = Figure(figsize=picture.size, dpi=DPI, layout="constrained")
        picture.draw(figure, colors)
        figure.draw_without_rendering()  # the layout of a second pass knows how wide the labels of the first were
        content = io.BytesIO()
        no_date = {"CreationDate": None} if file_format == "pdf" else {}
        figure.savefig(content, format=file_format, dpi=DPI, metadata=no_date)
    return content.getvalue()


def write_figures(figures, folder):
    """Write every figure as ``<name>.png`` and ``<name>.pdf`` to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in figures:
        for file_format in ("png", "pdf"):
            write_whole(folder / f"{picture.name}.{file_format}", render(picture, file_format))


def _name(what, run):
    return "_".join(part for part in (what, run.experiment, run.kind, run.seed) if part)


def metrics_by_cycle(study, conditions, number=1):
    """Metrics on the test set after every cycle: clean, dirty and quality-controlled, one column per experiment.

    ``conditions`` are the experiments that are drawn, ``number`` that of the figure.
    """
    names = {CLEAN: CLEAN, DIRTY: DIRTY, control_folder(study.main_setting): CONTROLLED}
    labels = {name: MODEL_NAMES[model] for model, name in names.items()}
    drawn = [key for key in study.keys if key[2] in names and (key[:2] in conditions or key[2] == CLEAN)]
    curves = {(*key[:2], names[key[2]]): _curve([model for model in study.models if model.key == key]) for key in drawn}
    several = len(study.seeds) > 1
    caption = (
        "The metrics on the test set after every cycle that was tested, for the clean, dirty and quality-controlled "
        "model." + (" Lines: means over seeds; bands: smallest to largest." if several else "")
    )
    ends = [
        f"{in_words(*key[:2])} {labels[key[2]]}".strip() + f" {table['AUC_ROC']['mean'].iloc[-1]:.3f}"
        for key, table in curves.items()
        if table is not None
    ]
    metrics = ", ".join(METRIC_NAMES[name] for name in DRAWN_METRICS)
    alternative = f"Line charts of {metrics} by cycle. Last AUROC: {'; '.join(ends)}."
    name = "metrics_by_cycle" if number == 1 else f"metrics_by_cycle_{number}"
    return Picture(
        name, "Metrics by cycle", caption, alternative, (2.0 + 2.3 * len(conditions), 6.4),
        partial(_draw_metrics, curves, conditions, labels, several),
    )  # fmt: skip


def _curve(models):
    """Mean, smallest and largest of the metrics over seeds, by cycle: columns (metric, statistic); None without any."""
    tables = [model.metrics for model in models if model.metrics is not None]
    return pd.concat(tables).groupby(level="cycle").agg(["mean", "min", "max"]) if tables else None


def _draw_metrics(curves, conditions, labels, several, figure, colors):
    axes = figure.subplots(len(DRAWN_METRICS), len(conditions), sharex=True, sharey="row", squeeze=False)
    for column, condition in zip(axes.T, conditions, strict=True):
        column[0].set_title(in_words(*condition))
        column[-1].set_xlabel("cycle")
        column[-1].xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=6))
        for key, curve in curves.items():
            if curve is None or (key[2] != CLEAN and key[:2] != condition):
                continue
            line, marker = _LINES[key[2]]
            for axis, metric in zip(column, DRAWN_METRICS, strict=True):
                values = curve[metric]
                axis.plot(
                    values.index,
                    values["mean"],
                    line,
                    marker=marker,
                    markersize=3.5,
                    color=colors[key[2]],
                    label=labels[key[2]],
                )
                if several:
                    axis.fill_between(values.index, values["min"], values["max"], color=colors[key[2]], alpha=0.2, lw=0)
    for row, metric in zip(axes, DRAWN_METRICS, strict=True):
        row[0].set(ylabel=METRIC_NAMES[metric], ylim=(-0.04, 1.04))
        for axis in row:
            axis.grid(axis="y", color=colors["faint"], linewidth=0.5)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)


def rates_along_run(run):
    """FPR and FNR after every verification; undone steps and eliminations marked."""
    undone, eliminated = int(run.log["Ignored"].sum()), int(run.log["Eliminated"].sum())
    cycles = f"in cycles {run.log['Cycle'].iloc[1]} to {run.log['Cycle'].iloc[-1]}" if len(run.log) > 1 else "(none)"
    caption = (
        f"FPR and FNR on the test set after every verification of quality control ({run.name}), before any undoing. "
        "Crosses: steps that were undone; triangles: an image eliminated; the lines join the steps that were kept."
    )
    alternative = (
        f"Chart of FPR and FNR along {len(run.log) - 1} verifications {cycles}. {undone} steps were undone, the worst "
        f"with an FPR of {run.log['PFP'].max():.3f} or an FNR of {run.log['PFN'].max():.3f}; {eliminated} images were "
        "eliminated."
    )
    if len(run.screening):
        more = int(run.screening["Eliminated"].sum())
        caption += " What the screen did, without any training step, is not shown."
        alternative += f" {more} more {'was' if more == 1 else 'were'} eliminated by the screen."
    return Picture(
        _name("rates", run), f"Rates of misdiagnosis: {run.name}", caption, alternative, (10, 3.2),
        partial(draw_rates, run), run,
    )  # fmt: skip


def draw_rates(run, figure, colors):
    """Draw :func:`rates_along_run` on a figure or subfigure."""
    log = run.log
    axis = figure.subplots()
    number = np.arange(len(log))
    undone = (log["Ignored"] == 1).to_numpy()
    top = max(1.0, log[["PFP", "PFN"]].to_numpy().max())  # the published protocol's rates can exceed 1
    for column, name, marker in (("PFP", "FPR", "x"), ("PFN", "FNR", "+")):
        axis.plot(number[~undone], log[column][~undone], color=colors[name], label=f"{name}, step kept", linewidth=1.2)
        axis.plot(
            number[undone], log[column][undone], marker, color=colors[name], label=f"{name}, step undone", markersize=5
        )
    eliminated = (log["Eliminated"] == 1).to_numpy()
    axis.plot(
        number[eliminated],
        np.full(eliminated.sum(), 1.06 * top),
        "v",
        color=colors["ink"],
        label="eliminated",
        markersize=5,
    )
    cycles = log["Cycle"][1:].drop_duplicates()
    for place, cycle in cycles.items():
        axis.axvline(place, color=colors["faint"], linewidth=0.8, zorder=0)
        if len(cycles) <= 12 or cycle % 5 == 0:
            axis.text(place + 0.005 * len(log), 1.13 * top, f"cycle {cycle}", va="center")
    axis.set(xlabel="verification", ylabel="rate of misdiagnosis", ylim=(-0.03 * top, 1.2 * top), xlim=(-1, len(log)))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def flags_by_center(run):
    """Which centers had images flagged and eliminated, in which cycle."""
    flags, revisits = run.flags, run.revisits
    flagged = flags.groupby(["Study", "Cycle"]).size()
    eliminated = revisits[revisits["Eliminated"] == 1].groupby(["Study", "Cycle"]).size()
    harmful = run.images.groupby("Study", sort=False)["Harmful"].agg(["sum", "size"])
    shown = harmful[(harmful["sum"] > 0) | harmful.index.isin(flags["Study"])].sort_values(
        "sum", ascending=False, kind="stable"
    )
    caption = (
        "Images flagged (numbers; shade: their share of the center's images) and eliminated (triangles and numbers) "
        f"by center and cycle ({run.name}). Of {len(harmful)} centers, the {len(harmful) - len(shown)} without any "
        "harmful or flagged image are not shown."
    )
    rows = [
        f"{center}: {', '.join(f'{number} in cycle {cycle}' for cycle, number in flagged[center].items())}"
        for center in shown.index
        if center in flagged.index
    ]
    alternative = f"Map of centers by cycles. Images flagged: {'; '.join(rows) or 'none'}."
    return Picture(
        _name("flags", run), f"Flags by center and cycle: {run.name}", caption, alternative,
        (max(5.0, 3 + 0.45 * len(run.cycles)), 1.2 + 0.3 * max(1, len(shown))),
        partial(_draw_flags, run, shown, flagged, eliminated), run,
    )  # fmt: skip


def _draw_flags(run, shown, flagged, eliminated, figure, colors):
    axis = figure.subplots()
    cycles = run.cycles
    if shown.empty:
        axis.text(0.5, 0.5, "no harmful image, and none was flagged", ha="center", transform=axis.transAxes)
        axis.axis("off")
        return
    counts = np.array([[flagged.get((center, cycle), 0) for cycle in cycles] for center in shown.index])
    shares = counts / shown["size"].to_numpy()[:, None]
    shade = mpl.colors.LinearSegmentedColormap.from_list("shade", [colors["page"], colors[DIRTY]])
    image = axis.pcolormesh(shares, cmap=shade, vmin=0, vmax=1, edgecolors=colors["faint"], linewidth=0.5)
    for (row, column), count in np.ndenumerate(counts):
        gone = eliminated.get((shown.index[row], cycles[column]), 0)
        text = "  ".join(
            ([str(count)] if count else []) + ([f"\N{BLACK DOWN-POINTING TRIANGLE}{gone}"] if gone else [])
        )
        axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8)
    labels = [f"{_short(center)} ({row['sum']} of {row['size']} harmful)" for center, row in shown.iterrows()]
    axis.set_yticks(np.arange(len(shown)) + 0.5, labels)
    axis.set_xticks(np.arange(len(cycles)) + 0.5, cycles)
    axis.invert_yaxis()
    axis.tick_params(length=0)
    axis.set_xlabel("cycle")
    figure.colorbar(image, ax=axis, label="share flagged", shrink=min(1, 3 / len(shown) + 0.3))


def _short(name):
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def flags_by_threshold(run):
    """What another -error would have flagged in the first cycle, as far as the log tells."""
    table = detection_by_threshold(run)
    caption = (
        f"Share of images that other values of -error would have flagged in cycle {run.log['Cycle'][1]} ({run.name}), "
        "from the rises that the log records, per image, with the model and the reference that this run had at each "
        "step. With another value other steps would have been undone, and everything after them would differ: read it "
        "near the run's own value, the dotted line. Below that line, the bands add the images of batches that were "
        "not undone, which nobody tried alone."
        + (" Images that the screen put aside before are no part of it." if len(run.screening) else "")
    )
    own = table[table["threshold"] >= run.error - ROUNDING].iloc[0]
    alternative = (
        f"Step chart of the share of images flagged by threshold. At the run's {run.error:g}: "
        + (f"{own['harmful_flagged']:.0%} of harmful and " if pd.notna(own["harmful_flagged"]) else "")
        + f"{own['good_flagged']:.1%} of good images. "
        + _words_of_range(table)
    )
    return Picture(
        _name("thresholds", run), f"Detection by threshold: {run.name}", caption, alternative, (6.5, 3.2),
        partial(_draw_thresholds, run, table), run,
    )  # fmt: skip


def _words_of_range(table):
    """Up to which threshold all harmful images that can be are flagged, in words."""
    most = table["harmful_flagged"].max()
    if pd.isna(most):
        return "No harmful image was tried."
    if not most > 0:
        return "No threshold would have flagged a harmful image."
    last = table[table["harmful_flagged"] >= most]["threshold"].max()
    following = table[table["threshold"] > last]["threshold"]
    until = following.min() if len(following) else last
    return f"The most harmful images, {most:.0%}, are flagged with thresholds below {until:.3g}."


def _draw_thresholds(run, table, figure, colors):
    axis = figure.subplots()
    at_most = table[["harmful_flagged_at_most", "good_flagged_at_most"]].fillna(0)
    nothing = table[(at_most == 0).all(axis=1)]["threshold"]
    end = 1.2 * max(nothing.min() if len(nothing) else table["threshold"].max(), 1.5 * run.error, 0.01)
    edges = np.append(table["threshold"], max(end, table["threshold"].max() + 1))
    for name, color, line in (("harmful", colors[DIRTY], "-"), ("good", colors[CONTROLLED], "--")):
        axis.stairs(
            table[f"{name}_flagged"],
            edges,
            baseline=None,
            color=color,
            linestyle=line,
            linewidth=1.6,
            label=f"{name} images",
        )
        axis.stairs(
            table[f"{name}_flagged_at_most"],
            edges,
            baseline=table[f"{name}_flagged"],
            fill=True,
            color=color,
            alpha=0.2,
            label=f"{name}, at most",
        )
    axis.axvline(run.error, color=colors["ink"], linestyle=":", linewidth=1, label=f"-error {run.error:g} of this run")
    axis.set(
        xlabel="-error (tolerated rise of FPR or FNR per image)",
        ylabel="share flagged",
        ylim=(-0.03, 1.05),
        xlim=(0, end),
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def slices_of_images(run):
    """Axial and sagittal middle slices of images eliminated, and of good images flagged: up to two pictures."""
    images = run.images
    groups = {
        "eliminated": images[images["Eliminated"]],
        "falsely_flagged": images[~images["Harmful"] & (images["Times_flagged"] > 0)],
    }
    pictures = []
    for name, group in groups.items():
        if group.empty:
            continue
        shown = group[:MOST_IMAGES]
        words = f"{name.replace('_', ' ')} images"
        caption = (
            f"Axial and sagittal middle slices of {len(shown)} of {len(group)} {words} ({run.name}), each from its "
            "smallest to its largest intensity."
        )
        alternative = f"Slices of the {words} of {', '.join(shown.index)}."
        rows = -(-len(shown) // 4)
        pictures.append(
            Picture(
                _name(name, run),
                f"{words.capitalize()}: {run.name}",
                caption,
                alternative,
                (11, 0.2 + 1.6 * rows),
                partial(_draw_slices, shown),
                run,
                has_images=True,
            )
        )
    return pictures


def _draw_slices(images, figure, colors):
    rows = -(-len(images) // 4)
    axes = figure.subplots(rows, 8, squeeze=False).reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    for pair, (subject, path) in zip(axes, images["Path"].items(), strict=False):
        _show_slices(pair, path, subject)


def _show_slices(pair, path, title):
    """Axial and sagittal middle slice of an image on two axes."""
    from travelling.nifti import read_upright

    volume = read_upright(path)  # z, y, x
    middle = [size // 2 for size in volume.shape]
    for axis, image in zip(pair, (volume[middle[0]], volume[:, :, middle[2]]), strict=True):
        axis.imshow(image, cmap="gray", origin="lower")
        axis.axis("off")
    pair[0].set_title(f"{title}: {volume.min():.3g} to {volume.max():.3g}", loc="left", fontsize=8)


def overview(study):
    """The demo's picture: a good image and its two harmful versions, and the rates along the run on inverted centers.

    Raises InputError where the study lacks quality control on whole centers of either kind, or their common source.
    """
    runs = {run.kind: run for run in study.shown_controls if run.experiment == "whole_centers"}
    if not {"inverted", "noise"} <= runs.keys():
        raise InputError(
            f"{study.folder}: no finished quality control on whole centers of inverted and of noise images"
        )
    versions = {
        kind: runs[kind].images.dropna(subset="Source").set_index("Source")["Path"] for kind in ("inverted", "noise")
    }
    common = [source for source in versions["inverted"].index if source in versions["noise"].index]
    if not common:
        raise InputError(f"{study.folder}: its inverted and its noise images have no source in common")
    good = runs["inverted"].images.loc[common[0], "Path"]
    panels = {"good": good, **{kind: paths[common[0]] for kind, paths in versions.items()}}
    return Picture(
        "overview", "Harmful images and what they do", "", "", (11, 5.6),
        partial(_draw_overview, panels, runs["inverted"]), runs["inverted"], has_images=True,
    )  # fmt: skip


def _draw_overview(panels, run, figure, colors):
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.25])
    axes = top.subplots(1, 2 * len(panels))
    for pair, (name, path) in zip(axes.reshape(-1, 2), panels.items(), strict=True):
        _show_slices(pair, path, name)
    draw_rates(run, bottom, colors)
    centers = run.images.groupby("Study")["Harmful"].all().sum()
    bottom.suptitle(
        f"Quality control over {run.images['Study'].nunique()} centers of which {centers} hold only inverted images"
    )
