"""What each script can be told: a class of options for each kind of run, see :mod:`travelling.option`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from travelling.method import settings
from travelling.option import (
    METHOD,
    Options,
    changed,
    number,
    option,
    published,
    result_name,
)
from travelling.runs.extensible import Extensible

AGE_EDGES = (60.0, 70.0)  # years
_FILE_OR_FOLDER = "a file (.keras or .h5) or a folder with one for each cycle"
CENTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # FLARE makes folders and addresses of them


@dataclass(kw_only=True)
class Orientation(Options):
    """For every script that reads images."""

    reorient: bool = option(
        "turn images whose axes are only permuted or flipped as those of the first one are", None, False
    )


@dataclass(kw_only=True)
class Images(Orientation):
    """For the sites of a federation, which may share a machine."""

    cache_gb: float | None = option(
        "memory for decoded images (default: half of what is free)", number(float, 0), None, metavar="GB"
    )
    cache_dir: Path | None = option(
        "for the decoded images beyond that; it stays and may be shared by runs (default: run_image_cache in the "
        "folder of the results, removed at the end)",
        Path,
        None,
        metavar="FOLDER",
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
class Pretrained(Options):
    """For every run that goes on from a pre-trained model."""

    en: Path = published(f"encoder to go on from, {_FILE_OR_FOLDER}", "-en", Path, metavar="PATH")
    pd: Path = published("its classifier, likewise", "-pd", Path, metavar="PATH")
    first_cycle: int | None = option(
        "first cycle of this run (default: the one after the pre-trained model's, which is the last one of a folder)",
        number(int, 0),
        None,
        metavar="CYCLE",
        group=METHOD,
    )


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


@dataclass(kw_only=True)
class DirtyBaseline(settings.WithoutControl, Training, Pretrained, TrainingSet, Device):
    """The dirty baseline."""

    output_folder: Path = changed(Training, "output_folder", Path("dirty_baseline_run"))


@dataclass(kw_only=True)
class QualityControl(settings.Control, Training, Pretrained, Extensible):
    """Quality control, wherever the training images are."""

    fn_test: Path = published("test set, which only home holds", "-fn_test", Path, metavar="CSV")
    fn_save: Path = published("results, without '.csv'", "-fn_save", result_name, metavar="NAME")
    allow_saturated: bool = option(
        "go on where the pre-trained model errs so much that verification cannot see harm", None, False, group=METHOD
    )
    output_folder: Path = changed(  # never None after check()
        Training, "output_folder", None, words="for the models of every cycle (default: <fn_save>_run)"
    )

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`Options.check`."""
        if self.output_folder is None:
            self.output_folder = self.fn_save.with_name(f"{self.fn_save.name}_run")


@dataclass(kw_only=True)
class LocalQualityControl(QualityControl, TrainingSet, Device):
    """Quality control, on this machine."""


@dataclass(kw_only=True)
class Inference(Orientation, Overwrite):
    """Evaluating the models of every cycle."""

    fn: Path = published("test set", "-fn", Path, metavar="CSV")
    en: Path = published(f"encoder, {_FILE_OR_FOLDER}", "-en", Path, metavar="PATH")
    pd: Path = published("classifier, likewise", "-pd", Path, metavar="PATH")
    o: Path = published("results, without '_metrics.csv'", "-o", result_name, metavar="NAME")
    first_cycle: int | None = option(
        "first cycle to evaluate (default: first found)", number(int, 0), None, metavar="CYCLE", group="evaluation"
    )
    last_cycle: int | None = option(
        "last cycle to evaluate (default: last found)", number(int, 0), None, metavar="CYCLE", group="evaluation"
    )


def _center_names(value, folder):
    if not isinstance(value, list) or not all(isinstance(name, str) and CENTER_NAME.fullmatch(name) for name in value):
        raise ValueError("a list of names of letters, digits, '-' and '_' is needed, as FLARE knows the centers")
    if len(value) < 2:
        raise ValueError(f"the model cannot travel: two centers at least are needed, not {len(value)}")
    if len(set(value)) < len(value):
        raise ValueError("a center is named twice")
    return value


def _shape(value, folder):
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError("three numbers of voxels are needed: x, y, z")
    return tuple(reversed(value))


@dataclass(kw_only=True)
class Centers(Options):
    """For a server: who is visited."""

    centers: list = option("names of the centers, as FLARE knows them", from_json=_center_names)


@dataclass(kw_only=True)
class QualityControlServer(QualityControl, Centers, Images):
    """Quality control, with the training images at the centers."""

    method: str = option("what the server does", str, "quality_control", choices=("quality_control",))


@dataclass(kw_only=True)
class StandardModelServer(FromScratch, Centers, Images):
    """The standard travelling model, with the images at the centers."""

    method: str = option("what the server does", str, "standard", choices=("standard",))

    shape: tuple = option("voxels of every image: x, y, z", from_json=_shape)


@dataclass(kw_only=True)
class CenterSite(Images):
    """A center of a federation."""

    training_set: Path = option("its subjects", Path, metavar="CSV")
    private_folder: Path = option("for what must not leave the center", Path, metavar="FOLDER")
    cache_dir: Path | None = changed(
        Images,
        "cache_dir",
        words="for the decoded images beyond that (default: image_cache in the private folder; it stays there)",
    )


@dataclass(kw_only=True)
class Jobs(Options):
    """How FLARE runs the jobs."""

    task_timeout: int = option(
        "a center that has not answered by then is left alone until the next cycle",
        number(int, 1),
        600,
        metavar="SECONDS",
    )
    cycles_per_job: int = option("a center that restarts is back in the next job", number(int, 1), 1, metavar="N")
    poll: float = option("how often centers ask whether there is work", number(float, 0.01, 60), 0.5, metavar="SECONDS")


@dataclass(kw_only=True)
class Simulation(QualityControl, TrainingSet, Jobs, Images):
    """Quality control in FLARE's simulator."""
