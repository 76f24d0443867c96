"""What server, centers and jobs of a federation can be told, beside the options of the scripts."""

import re
from dataclasses import dataclass
from pathlib import Path

from travelling.option import Options, changed, number, option
from travelling.runs.control_options import QualityControl
from travelling.runs.options import FromScratch, Orientation, TrainingSet

CENTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # FLARE makes folders and addresses of them


@dataclass(kw_only=True)
class Images(Orientation):
    """For the sites of a federation, which may share a machine."""

    cache_gb: float | None = option(
        "memory for decoded images (default: half of what is free)", number(float, 0), None, metavar="GB"
    )
    cache_dir: Path | None = option(
        "on whose disk decoded images beyond that lie, in files without a name (default: that of the results)",
        Path,
        None,
        metavar="FOLDER",
    )


def _center_names(value):
    if not isinstance(value, list) or not all(isinstance(name, str) and CENTER_NAME.fullmatch(name) for name in value):
        raise ValueError("a list of names of letters, digits, '-' and '_' is needed, as FLARE knows the centers")
    if len(value) < 2:
        raise ValueError(f"the model cannot travel: two centers at least are needed, not {len(value)}")
    if len(set(value)) < len(value):
        raise ValueError("a center is named twice")
    return value


def _shape(value):
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
        words="on whose disk decoded images beyond that lie, in files without a name (default: the private folder)",
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
