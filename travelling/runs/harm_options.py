"""What the script that makes harmful images can be told; it imports nothing that only training needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from travelling.images.harm import KINDS, PUBLISHED
from travelling.option import Options, number, option


@dataclass(kw_only=True)
class HarmfulSamples(Options):
    """Making harmful images, or an experiment of them."""

    i: tuple = option("T1 images (NIfTI); or", Path, None, metavar="IMAGE", many="+", flag="-i", group="source")
    fn_train: Path | None = option(
        "training set to build an experiment from", Path, None, metavar="CSV", flag="-fn_train", group="source"
    )
    kind: str = option(
        "an experiment takes one; 'both' (inverted and noise) is for -i only",
        str,
        "both",
        choices=(*KINDS, "both"),
        group="harm",
    )
    experiment: str = option("with -fn_train", str, "whole_centers", choices=("whole_centers", "single"), group="harm")
    centers: int = option("centers with harmful images", number(int, 1), 5, metavar="N", group="harm")
    images: int = option("harmful images per new center (whole_centers)", number(int, 1), 5, metavar="K", group="harm")
    maximum: float = option(
        "of inverted and noise: intensities are from 0 to this; inverted is maximum - x, noise is clipped to it",
        number(float, 1e-6),
        255.0,
        metavar="INTENSITY",
        group="harm",
    )
    seed: int = option("of the choice and of the noise", number(int, 0), 42, group="harm")
    output_folder: Path = option("for images and CSVs", Path, Path("harmful_samples"), metavar="FOLDER")
    overwrite: bool = option("replace the results of an earlier run", None, False)

    @property
    def kinds(self) -> tuple:
        """The kinds of harm that ``--kind`` names."""
        return PUBLISHED if self.kind == "both" else (self.kind,)

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`Options.check`."""
        if (self.i is None) == (self.fn_train is None):
            raise ValueError(f"one of {spell('i')} and {spell('fn_train')} is needed, and not both")
        if self.fn_train and self.kind == "both":
            raise ValueError(f"{spell('kind')}: an experiment needs one kind: {', '.join(KINDS)}")
        if self.i and self.kind == "swapped_label":
            raise ValueError(
                f"{spell('kind')} swapped_label: an image has no label; it needs an experiment ({spell('fn_train')})"
            )
