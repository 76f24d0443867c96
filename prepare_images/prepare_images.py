"""From raw T1 scans to images that the network reads: one space, brain only, 8 bits.

Each scan is corrected for its bias field (N4), registered to the MNI152 template (affine), masked and resampled, and
its intensities are scaled to [0, 255]. Scans come from a BIDS folder, or from a CSV with the columns Subject, Study
(the center), Path, Group_bin (1 = PD, 0 = HC), Sex (M, F), Age and, optionally, Mask.

Examples:
    python prepare_images.py --bids ./bids --output-folder prepared
    python prepare_images.py --bids ./bids --label-column diagnosis --pd PD --hc control --center "Hospital A"
        --mask-pattern "derivatives/hd-bet/{subject}/anat/{name}_bet_mask.nii.gz" --output-folder prepared
    python prepare_images.py --csv raw_scans.csv --output-folder prepared

Written to the output folder:
    prepared.csv       the images that could be prepared, as the other scripts read them
    registration.csv   one row per scan: how well it fits the template, or why it could not be prepared
    overview.html      slices of all prepared images to look through, those least like the template first
    images/            the images, as a BIDS derivative

An interrupted run goes on when its command is given again. An image is made once: it stays as long as its scan and
the options are the same, also with --overwrite.
"""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.errors import InputError
from travelling.option import changed, from_command_line, option
from travelling.runs import command, stopping
from travelling.runs.options import Overwrite

if TYPE_CHECKING:  # slow to import
    import numpy as np
    import pandas as pd

PLACEHOLDERS = {"subject", "session", "name", "folder"}


BIDS = "in a BIDS folder (columns are looked for by common names unless told)"
MASKS = "brain masks (else the template's is carried over, which is coarse)"


@dataclass(kw_only=True)
class Preparation(Overwrite):
    """What the preparation is told."""

    bids: Any = option("BIDS folder with participants.tsv; or", Path, None, metavar="FOLDER", group="scans")
    csv: Any = option("table of raw scans", Path, None, metavar="CSV", group="scans")
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
    stripped: bool = option("scans are skull-stripped already: voxels above 0 are brain", None, False, group=MASKS)
    output_folder: Path = option("for all results", Path, Path("prepared"), metavar="FOLDER", group="output")
    spacing: float = option(
        "size of a voxel; 1 mm: 160 x 192 x 160 voxels", command.number(float, 0.5, 4.8), 1.0,
        metavar="MM", group="output",
    )  # fmt: skip
    workers: int = option("processes", command.number(int, 1), min(os.cpu_count() or 1, 8), metavar="N", group="output")
    overwrite: bool = changed(Overwrite, "overwrite", words="replace the tables of an earlier run", group="output")

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.option.Options.check`."""
        if (self.bids is None) == (self.csv is None):
            raise ValueError(f"one of {spell('bids')} and {spell('csv')} is needed, and not both")
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


def main() -> None:
    """Find the scans, prepare them, and write the tables and the page of pictures."""
    arguments = from_command_line(Preparation, __doc__)
    # Only now, so that --help answers at once.
    from prepare_images.bids import WORDS, participants_file
    from prepare_images.registration import FAILED, LOOK
    from prepare_images.scans import describe_scans, find_scans, notices
    from travelling.files import write_csv, write_whole
    from travelling.images.cohort import read_cohort
    from travelling.runs.run import Run

    folder = arguments.output_folder
    prepared_csv, registration_csv, overview = (
        folder / name for name in ("prepared.csv", "registration.csv", "overview.html")
    )
    inputs = {"csv": arguments.csv} if arguments.csv else {"bids": participants_file(arguments.bids)}
    scans = find_scans(arguments)
    results = [prepared_csv, registration_csv, overview]
    run = Run(folder, "preparation.log", arguments, inputs, results, models=False)
    log = run.begin("CPU", notices=notices(scans))
    for line in describe_scans(scans):
        log.info("%s", line)
    describe_derivative(folder / "images", arguments)
    measures = prepare_all(scans, arguments)
    registration = registration_table(scans, measures)
    made = registration["Status"] != FAILED
    prepared = scans[made]
    write_csv(registration, registration_csv)
    about = registration.loc[made, ["Status", "Similarity", "Mutual_information"]]
    cohort = prepared.assign(Path=prepared["Target"], **about).drop(columns=["Mask", "Target", "Reason", *WORDS])
    first = ["Subject", "Study", "Path", "Group_bin", "Sex", "Age"]
    write_csv(cohort[[*first, *cohort.columns.difference(first, sort=False)]], prepared_csv)
    for row in registration[scans["Reason"] == ""].to_dict("records"):
        if said := "; ".join(filter(None, [row["Reason"], row["Notices"]])):
            log.info("%s: %s: %s", row["Status"], row["Subject"], said)
    if prepared.empty:
        raise InputError(f"{registration_csv}: no scan could be prepared; the column Reason tells why")
    read_cohort(prepared_csv)  # as the other scripts will: what they would refuse is told now
    page = overview_page(registration, [folder / name for name in prepared["Target"]], arguments.spacing)
    write_whole(overview, page.encode())
    log.info(
        "done: %d of %d scans prepared, %d of these to look at: %s; to look through: %s",
        len(prepared), len(scans), (registration["Status"] == LOOK).sum(), prepared_csv, overview,
    )  # fmt: skip
    run.finish()


def describe_derivative(folder: Path, arguments: Preparation) -> None:
    """``dataset_description.json``, by which BIDS tools know a derivative."""
    import json

    from travelling import __version__
    from travelling.files import write_whole

    source = (arguments.bids or arguments.csv).absolute()
    description = {
        "Name": "T1-weighted images prepared for the travelling model",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "travelling: prepare_images.py", "Version": __version__}],
        "SourceDatasets": [{"URL": source.as_uri()}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "dataset_description.json", json.dumps(description, indent=2).encode() + b"\n")


def prepare_all(scans: pd.DataFrame, arguments: Preparation) -> list[dict]:
    """Prepare every scan, several at a time: a list of their measures (:func:`registration.prepare_file`)."""
    import errno
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    import SimpleITK as sitk

    from prepare_images.registration import FAILED, Job, prepare_file
    from travelling import __version__
    from travelling.console import progress_bar

    versions = {"travelling": __version__, "SimpleITK": sitk.Version_VersionString()}
    measures = [{"Status": FAILED, "Reason": reason} for reason in scans["Reason"]]
    folder = arguments.output_folder.absolute()
    waiting = [
        (number, Job(row["Path"], row["Mask"], str(folder / row["Target"]), arguments.spacing))
        for number, row in enumerate(scans.to_dict("records"))
        if not row["Reason"]
    ][::-1]
    running: dict[Future, int] = {}
    bar = progress_bar(total=len(waiting), desc="preparing scans", unit="scan")
    # "spawn": ITK's threads do not survive a fork.
    pool = ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn"), initializer=begin_worker)
    try:
        while waiting or running:
            while waiting and len(running) < arguments.workers:  # no more: what is submitted has to end after Ctrl-C
                number, job = waiting.pop()
                running[pool.submit(prepare_file, job, versions)] = number
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                measures[running.pop(done)] = done.result()
                bar.update()
            stopping.stop_if_asked()
    except BrokenProcessPool:
        stopping.stop_if_asked()  # a SIGTERM to all processes of a job ends the workers at once
        reason = "a process was killed (not enough memory?); fewer need less, and the same command goes on"
        raise OSError(errno.ENOMEM, reason, "--workers") from None
    finally:
        pool.shutdown()
        bar.close()
    return measures


def begin_worker() -> None:
    """The processes are the parallelism, and Ctrl-C is the main process's: a scan is finished."""
    import signal

    import SimpleITK as sitk

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def registration_table(scans: pd.DataFrame, measures: list[dict]) -> pd.DataFrame:
    """registration.csv: every scan with its measures, or the reason why it could not be prepared."""
    import pandas as pd

    from prepare_images.registration import MEASURES
    from prepare_images.scans import mask_kinds

    table = pd.DataFrame(measures, columns=["Status", "Reason", *MEASURES, "Notices"]).fillna({"Notices": ""})
    about = scans[["Subject", "Study"]].assign(Scan=scans["Path"], Mask=mask_kinds(scans))
    return pd.concat([about, table], axis=1)


def overview_page(registration: pd.DataFrame, images: list[Path], spacing: float) -> str:
    """One page of HTML: three slices of every prepared image, the border of the template's white matter in red.

    ``images`` are the files of the prepared rows of ``registration``, in their order; ``spacing`` is in mm.
    """
    import html

    from scipy.ndimage import binary_erosion

    from prepare_images.registration import FAILED, white_matter
    from travelling.console import progress_bar

    white = white_matter(spacing)  # z, y, x
    border = white & ~binary_erosion(white)
    prepared = registration[registration["Status"] != FAILED].assign(Image=list(map(str, images)))
    rows = prepared.sort_values("Similarity", kind="stable").to_dict("records")
    figures = []
    for row in progress_bar(rows, desc="drawing", unit="image"):
        text = f"{row['Subject']} ({row['Study']}), similarity {row['Similarity']:.2f}"
        text = html.escape(", ".join(filter(None, [text, row["Reason"], row["Notices"]])))
        picture = picture_of(Path(row["Image"]), border)
        figures.append(f'<figure><img src="{picture}" alt=""><figcaption>{text}</figcaption></figure>')
    failed = registration[registration["Status"] == FAILED].to_dict("records")
    reasons = [f"<li>{html.escape(row['Subject'])}: {html.escape(row['Reason'])}</li>" for row in failed]
    return PAGE.format(number=len(rows), failed=len(failed), reasons="\n".join(reasons), figures="\n".join(figures))


def picture_of(image: Path, border: np.ndarray) -> str:
    """Three slices of a prepared image as the address of a JPEG; ``border`` (z, y, x; bool) is drawn in red."""
    import base64
    import io

    import numpy as np
    from matplotlib.image import imsave

    from travelling.images.nifti import read_upright

    voxels = read_upright(image)  # z, y, x
    colors = np.stack([np.where(border, 255, voxels), *[np.where(border, 0, voxels)] * 2], axis=-1)
    z, y, x = (size // 2 for size in voxels.shape)
    slices = [colors[z], colors[:, y], colors[:, :, x]]  # axial, coronal, sagittal
    slices = [np.pad(part, [(0, max(voxels.shape) - len(part)), (0, 0), (0, 0)])[::-1] for part in slices]  # up is up
    step = max(1, max(voxels.shape) // 96)
    file = io.BytesIO()
    strip = np.ascontiguousarray(np.concatenate(slices, axis=1)[::step, ::step])
    imsave(file, strip, format="jpg", pil_kwargs={"quality": 80})
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Prepared images</title>
<style>body {{ font: 14px sans-serif; margin: 1em }} figure {{ display: inline-block; margin: 4px; width: 288px }}
img {{ width: 100%; image-rendering: pixelated }} figcaption {{ overflow-wrap: anywhere }}</style>
<h1>{number} prepared images, {failed} failed</h1>
<p>Least like the template first. The red line is the border of the template's white matter: where the registration is
right, it follows that of the image. The patient's right is at the right.</p>
<ul>
{reasons}
</ul>
{figures}
</html>
"""

if __name__ == "__main__":
    command.run(main)
