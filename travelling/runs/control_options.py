"""What a run of quality control can be told."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from travelling.method import settings
from travelling.option import METHOD, changed, option, published, result_name
from travelling.runs.extensible import Extensible
from travelling.runs.options import Device, Training, TrainingSet
from travelling.runs.pretrained_options import Pretrained


@dataclass(kw_only=True)
class QualityControl(settings.Control, Training, Pretrained, Extensible):
    """Quality control, wherever the training images are."""

    fn_test: Path = published("test set, which only the server holds", "-fn_test", Path, metavar="CSV")
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
