"""What the scripts can be told that take saved models: the dirty baseline, inference and, in part, quality control."""

from dataclasses import dataclass
from pathlib import Path

from travelling.method import settings
from travelling.option import METHOD, Options, changed, number, option, published, result_name
from travelling.runs.options import Device, Orientation, Overwrite, Training, TrainingSet

_FILE_OR_FOLDER = "a file (.keras or .h5) or a folder with one for each cycle"


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
class DirtyBaseline(settings.WithoutControl, Training, Pretrained, TrainingSet, Device):
    """The dirty baseline."""

    output_folder: Path = changed(Training, "output_folder", Path("dirty_baseline_run"))


@dataclass(kw_only=True)
class Inference(Orientation, Overwrite):
    """Evaluating the models of every cycle."""

    fn: Path = published("test set", "-fn", Path, metavar="CSV")
    en: Path = published(f"encoder, {_FILE_OR_FOLDER}", "-en", Path, metavar="PATH")
    pd: Path = published("classifier, likewise", "-pd", Path, metavar="PATH")
    o: Path = published("results, without '_metrics.csv'", "-o", result_name, metavar="NAME")
    only_cycles: list | None = option(
        "first and last cycle to evaluate (default: all found)", number(int, 0), None, metavar="CYCLE", many=2,
        group="evaluation",
    )  # fmt: skip
