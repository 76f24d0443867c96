"""The options of prepare_images.py."""

import importlib.util
import os
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from travelling.option import changed, option
from travelling.runs import command
from travelling.runs.options import Overwrite

PLACEHOLDERS = {"subject", "session", "name", "folder"}
BIDS = "in a BIDS folder (columns are looked for by common names unless told)"
MASKS = "brain masks (else --brain-extraction)"
TEMPLATE, DEEPBET = EXTRACTIONS = ("template", "deepbet")  # what cuts out a brain that has no mask of its own


def bids_app(words: str, level: str, group: str | None = None) -> Any:
    """An option told by its place: the call of a BIDS-App (bids-apps.neuroimaging.io), whose analysis has one level."""
    metavar = f"bids_dir output_dir {level}"
    return option(f"{words}, as BIDS-Apps have it", str, None, flag="bids_app", metavar=metavar, many="*", group=group)


def folders_of(call: list[str], level: str) -> tuple[Path, Path]:
    """bids_dir and output_dir of such a call. Raises ValueError where it is another."""
    if len(call) != 3 or call[2] != level:
        raise ValueError(f"{' '.join(call)}: not bids_dir, output_dir and the word {level}")
    return Path(call[0]), Path(call[1])


@dataclass(kw_only=True)
class Preparation(Overwrite):
    """What the preparation is told."""

    bids: Any = option("BIDS folder with participants.tsv; or", Path, None, metavar="FOLDER", group="scans")
    bids_app: list | None = bids_app("the same as --bids and --output-folder", "participant", group="scans")
    csv: Any = option("table of raw scans", Path, None, metavar="CSV", group="scans")
    participant_label: list | None = option(
        "these participants only, with or without sub-", str, None, metavar="LABEL", many="+", group=BIDS
    )
    label_column: str | None = option(
        "column of participants.tsv that tells the diagnosis", str, None, metavar="NAME", group=BIDS
    )
    pd: list | None = option(
        "what it says of patients (default: PD, Parkinson, ...)", str, None, metavar="VALUE", many="+", group=BIDS
    )
    hc: list | None = option(
        "... of controls (default: HC, control, healthy, ...)", str, None, metavar="VALUE", many="+", group=BIDS
    )
    center_column: str | None = option("column that tells the center", str, None, metavar="NAME", group=BIDS)
    center: str | None = option("the center of all, where no column tells it", str, None, metavar="NAME", group=BIDS)
    sex_column: str | None = option("column with M, F, male or female", str, None, metavar="NAME", group=BIDS)
    age_column: str | None = option("column with years", str, None, metavar="NAME", group=BIDS)
    t1w: str = option("names of scans; there must be one a session", str, "*_T1w.nii*", metavar="PATTERN", group=BIDS)
    mask_pattern: str | None = option(
        "file of each scan's mask, NIfTI or .mgz, brain above 0; {subject}, {session}, {name} (of the scan's file) and "
        "{folder} (of the scan) are filled in; relative to the BIDS folder or the CSV",
        str, None, metavar="PATTERN", group=MASKS,
    )  # fmt: skip
    brain_extraction: str = option(
        "what cuts out the brain where a scan has no mask of its own: the template's mask, or deepbet, a network "
        "(pip install -r requirements-deepbet.txt)", str, TEMPLATE, choices=EXTRACTIONS, group=MASKS,
    )  # fmt: skip
    stripped: bool = option(
        "scans are skull-stripped already: what differs from the background is brain", None, False, group=MASKS
    )
    ratings: Path | None = option(
        "what you said of the scans on overview.html or a report, kept from then on: what is to be left out, or to be "
        "redone and has no mask of its own yet, is not in prepared.csv", Path, None, metavar="TSV", group="looked at",
    )  # fmt: skip
    output_folder: Path = option("for all results", Path, Path("prepared"), metavar="FOLDER", group="output")
    spacing: float = option(
        "size of a voxel; 1 mm: 160 x 192 x 160 voxels", command.number(float, 0.5, 4.8), 1.0,
        metavar="MM", group="output",
    )  # fmt: skip
    workers: int = option("processes", command.number(int, 1), min(os.cpu_count() or 1, 8), metavar="N", group="output")
    overwrite: bool = changed(Overwrite, "overwrite", words="replace the tables of an earlier run", group="output")

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.option.Options.check`."""
        if self.bids_app:
            self.bids, self.output_folder = folders_of(self.bids_app, "participant")
        self.bids_app = None  # said otherwise now
        if self.participant_label and not self.bids:
            raise ValueError(f"{spell('participant_label')}: of a BIDS folder only")
        if (self.bids is None) == (self.csv is None):
            raise ValueError(f"one of {spell('bids')} and {spell('csv')} is needed, and not both")
        if self.brain_extraction == DEEPBET and importlib.util.find_spec(DEEPBET) is None:
            raise ValueError(f"{spell('brain_extraction')} deepbet: pip install -r requirements-deepbet.txt first")
        if self.mask_pattern is None:
            return
        if self.stripped:
            raise ValueError(f"{spell('stripped')}: scans that are stripped need no {spell('mask_pattern')}")
        try:
            names = {name for _, name, *_ in string.Formatter().parse(self.mask_pattern) if name is not None}
        except ValueError as error:
            raise ValueError(f"{spell('mask_pattern')}: {error}") from None
        if wrong := names - PLACEHOLDERS:
            raise ValueError(f"{spell('mask_pattern')}: {{{min(wrong)}}} is none of {', '.join(sorted(PLACEHOLDERS))}")
