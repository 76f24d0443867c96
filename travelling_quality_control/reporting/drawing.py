"""Figures in one style: what each shows, in words and as a drawing; the rates along a run, and slices of images."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from travelling.words import some, was
from travelling_quality_control.judging.logged_run import LoggedRun

DPI = 110
# Okabe and Ito's palette (Color Universal Design, 2008). Lines also differ in shape.
COLORS = {
    "ink": "black", "page": "white", "faint": "#c8c8c8", "green": "#009E73", "orange": "#D55E00", "blue": "#0072B2",
}  # fmt: skip
LEGEND = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}


@dataclass(frozen=True)
class Picture:
    """A figure: ``draw(figure, colors)`` draws it on an empty matplotlib Figure of ``size`` (inches), in COLORS.

    ``caption`` says what it shows and what it does not, ``alternative`` what it looks like for those who do not see it;
    ``run`` is the run of quality control that it is about (None: the whole study).
    """

    name: str
    title: str
    caption: str
    alternative: str
    size: tuple
    draw: Callable
    run: LoggedRun | None = None


def render(picture: Picture, file_format: str = "png") -> bytes:
    """A picture as a png or pdf file; the same picture gives the same bytes."""
    style: dict = {
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "text.parse_math": False,  # a center may have a dollar in its name
        **{"font.size": 9, "axes.titlesize": 9, "pdf.fonttype": 42},
    }
    with mpl.rc_context():
        mpl.rcdefaults()  # not the user's matplotlibrc
        mpl.rcParams.update(style)
        figure = Figure(figsize=picture.size, dpi=DPI, layout="constrained")
        picture.draw(figure, COLORS)
        figure.draw_without_rendering()  # the layout of a second pass knows how wide the labels of the first were
        content = io.BytesIO()
        no_date = {"CreationDate": None} if file_format == "pdf" else {}
        figure.savefig(content, format=file_format, dpi=DPI, metadata=no_date)
    return content.getvalue()


def rates_along_run(run: LoggedRun) -> Picture:
    """FPR and FNR after every verification; rejected steps and eliminations marked."""
    log = run.log

    def draw(figure, colors):
        axis = figure.subplots()
        number, rejected = np.arange(len(log)), (log["Ignored"] == 1).to_numpy()
        eliminated = number[log["Eliminated"] == 1]
        top = max(1.0, log[["PFP", "PFN"]].to_numpy().max())  # the published protocol's rates can exceed 1
        for column, name, marker, color in (("PFP", "FPR", "x", "blue"), ("PFN", "FNR", "+", "orange")):
            rates, style = log[column], {"color": colors[color], "markersize": 5}
            axis.plot(number[~rejected], rates[~rejected], linewidth=1.2, label=f"{name}, step kept", **style)
            axis.plot(number[rejected], rates[rejected], marker, label=f"{name}, step rejected", **style)
        heights = np.full(len(eliminated), 1.06 * top)
        axis.plot(eliminated, heights, "v", color=colors["ink"], label="eliminated", markersize=5)
        cycles = log["Cycle"][1:].drop_duplicates()
        for place, cycle in zip(cycles.index, cycles, strict=True):
            axis.axvline(place, color=colors["faint"], linewidth=0.8, zorder=0)
            if len(cycles) <= 12 or cycle % 5 == 0:
                axis.text(place + 0.005 * len(log), 1.13 * top, f"cycle {cycle}", va="center")
        axis.set(xlabel="verification", ylabel="rate of misdiagnosis", xlim=(-1, len(log)))
        axis.set_ylim(-0.03 * top, 1.2 * top)
        axis.legend(**LEGEND)

    name = f" ({run.words})" if run.words else ""
    cycles = f"in cycles {log['Cycle'].iloc[1]} to {log['Cycle'].iloc[-1]}" if len(log) > 1 else "(none)"
    caption = (
        f"FPR and FNR on the test set after every verification of quality control{name}, before any undoing. "
        "Crosses: steps that were rejected; triangles: an image eliminated; the lines join the steps that were kept."
    )
    rejected, eliminated = int(log["Ignored"].sum()), int(log["Eliminated"].sum())
    alternative = (
        f"Chart of FPR and FNR along {some(len(log) - 1, 'verification')} {cycles}. "
        f"{some(rejected, 'step')} {was(rejected)} rejected, "
        f"the worst with an FPR of {log['PFP'].max():.3f} or an FNR of {log['PFN'].max():.3f}; "
        f"{some(eliminated, 'image')} {was(eliminated)} eliminated."
    )
    if len(run.screening):
        more = int(run.screening["Eliminated"].sum())
        caption += " What was decided without a training step is not shown."
        alternative += f" {more} more {was(more)} eliminated without a training step."
    title = "Rates of misdiagnosis" + (f": {run.words}" if run.words else "")
    file = "_".join(part for part in ("rates", *run.place) if part)
    return Picture(file, title, caption, alternative, (10, 3.2), draw, run)


def middle_slices(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """The axial and the sagittal middle slice of voxels (z, y, x), and from where to where their intensities go."""
    middle = [size // 2 for size in volume.shape]
    return volume[middle[0]].copy(), volume[:, :, middle[2]].copy(), f"{volume.min():.3g} to {volume.max():.3g}"


def show(pair: Sequence[Axes], slices: tuple[np.ndarray, np.ndarray, str], title: str) -> None:
    """Show what :func:`middle_slices` gives on two axes."""
    *images, intensities = slices
    for axis, image in zip(pair, images, strict=True):
        axis.imshow(image, cmap="gray", origin="lower")
        axis.axis("off")
    pair[0].set_title(f"{title}: {intensities}", loc="left", fontsize=8)
