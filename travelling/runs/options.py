"""What the scripts can be told, see :mod:`travelling.option`: a class of options for each kind of run.

What one of them alone needs is in ``pretrained_options``, ``control_options`` and ``harm_options`` beside it, and in
``federated/options.py``.
"""

from dataclasses import dataclass
from pathlib import Path

from travelling.method import settings
from travelling.option import METHOD, Options, changed, number, option, published


@dataclass(kw_only=True)
class Orientation(Options):
    """For every script that reads images."""

    reorient: bool = option(
        "turn images whose axes are only permuted or flipped as those of the first one are", None, False
    )


@dataclass(kw_only=True)
class Device(Options):
    """For every script that computes on a GPU where there is one."""

    precision: str = option(
        "of the encoder's arithmetic; weights, their updates and the diagnosis are float32 in any case",
        str,
        "float32",
        choices=("float32", "bfloat16", "float16"),
    )
    deterministic: bool = option(
        "the same results to the last bit in every run on the same GPU; slower (a CPU does it always)", None, False
    )


@dataclass(kw_only=True)
class Overwrite(Options):
    """For every script whose results may be there already."""

    overwrite: bool = option(
        "replace the results of another or of a complete run; an interrupted run goes on", None, False
    )


@dataclass(kw_only=True)
class Training(settings.Travelling, Orientation, Overwrite):
    """For every run that trains, wherever the images are."""

    output_folder: Path = option("for the models of every cycle", Path, metavar="FOLDER")


@dataclass(kw_only=True)
class TrainingSet(Options):
    """For every script that reads the training images itself."""

    fn_train: Path = published("training set", "-fn_train", Path, metavar="CSV")


@dataclass(kw_only=True)
class FromScratch(settings.WithoutControl, Training):
    """The standard travelling model."""

    seed: int = changed(Training, "seed", 40)
    width: float = option(
        "filters of every convolution, relative to the published network",
        number(float, 0.01, 8),
        1.0,
        metavar="FACTOR",
        group=METHOD,
    )


@dataclass(kw_only=True)
class StandardModel(FromScratch, TrainingSet, Device):
    """The standard travelling model, on this machine."""

    output_folder: Path = changed(Training, "output_folder", Path("standard_travelling_model_run"))
