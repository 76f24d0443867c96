"""From raw T1 scans to images that the network reads: one space, brain only, 8 bits.

Each scan is corrected for its bias field (N4), registered to the MNI152 template (affine), masked and resampled, and
its intensities are scaled to [0, 255]. Scans come from a BIDS folder, or from a CSV with the columns Subject, Study
(the center), Path, Group_bin (1 = PD, 0 = HC), Sex (M, F), Age and, optionally, Mask.

Examples:
    python prepare_images.py --bids ./bids --output-folder prepared
    python prepare_images.py --bids ./bids --label-column diagnosis --pd PD --hc control --center "Hospital A"
        --mask-pattern "derivatives/hd-bet/{subject}/anat/{name}_bet_mask.nii.gz" --output-folder prepared
    python prepare_images.py ./bids prepared participant --participant-label 01 02
    python prepare_images.py --csv raw_scans.csv --output-folder prepared

Written to the output folder:
    prepared.csv       the images that could be prepared, as the other scripts read them
    registration.csv   one row per scan: how well it fits the template, or why it could not be prepared
    overview.html      a page to look through: a picture of each scan (pictures/), those that need it most first
    images/            the images and their brain masks, as a BIDS derivative

What you say of the scans on that page (ratings.tsv) is heeded when the command is given again with --ratings, and is
kept in the output folder from then on.

An interrupted run goes on when its command is given again. An image is made once: it stays as long as its scan and
the options are the same, also with --overwrite.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from prepare_images.options import Preparation
from travelling.errors import InputError
from travelling.option import from_command_line
from travelling.runs import command, stopping

if TYPE_CHECKING:  # slow to import
    import pandas as pd


def main() -> None:
    """Find the scans, prepare them, and write the tables and the page to look at."""
    arguments = from_command_line(Preparation, __doc__)
    # Only now, so that --help answers at once.
    from prepare_images.bids import WORDS, participants_file
    from prepare_images.overview import overview_page, picture_of
    from prepare_images.registration import FAILED, LOOK
    from prepare_images.scans import describe_scans, find_scans, notices, rated
    from travelling.files import write_csv, write_whole
    from travelling.images.cohort import read_cohort
    from travelling.images.ratings import OUT, all_ratings, keep_ratings
    from travelling.runs.run import Run

    folder = arguments.output_folder
    prepared_csv, registration_csv, overview = results = [
        folder / name for name in ("prepared.csv", "registration.csv", "overview.html")
    ]
    inputs = {"csv": arguments.csv} if arguments.csv else {"bids": participants_file(arguments.bids)}
    inputs |= {"ratings": arguments.ratings} if arguments.ratings else {}
    scans = find_scans(arguments)
    told = all_ratings(arguments.ratings, folder / "ratings.tsv", scans["Subject"])
    ratings = rated(scans, told)
    run = Run(folder, "preparation.log", arguments, inputs, results, models=False)
    log = run.begin("CPU", notices=notices(scans))
    if arguments.ratings:
        keep_ratings(told, folder / "ratings.tsv")
    for line in describe_scans(scans):
        log.info("%s", line)
    describe_derivative(folder / "images", arguments)
    registration = registration_table(scans, prepare_all(scans, arguments))
    made = registration["Status"] != FAILED
    stays = made & ~ratings["Rating"].isin(OUT)
    registration = registration.assign(**ratings) if len(told) else registration
    write_csv(registration, registration_csv)
    about = ["Status", "Similarity", "Mutual_information", *(["Rating"] if len(told) else [])]
    cohort = scans[stays].drop(columns=["Path", "Mask", "Reason", *WORDS]).rename(columns={"Target": "Path"})
    cohort = cohort.assign(**registration.loc[stays, about])
    first = ["Subject", "Study", "Path", "Group_bin", "Sex", "Age"]
    write_csv(cohort[[*first, *cohort.columns.difference(first, sort=False)]], prepared_csv)
    for row in registration[scans["Reason"] == ""].to_dict("records"):
        if said := "; ".join(filter(None, [row["Reason"], row["Notices"]])):
            log.info("%s: %s: %s", row["Status"], row["Subject"], said)
    page = overview_page(registration.assign(Picture=scans["Target"].map(picture_of), **ratings), folder)
    write_whole(overview, page.encode())
    if not made.any():
        raise InputError(f"{registration_csv}: no scan could be prepared; the column Reason tells why")
    if cohort.empty:
        raise InputError(f"{folder / 'ratings.tsv'}: leaves no image in {prepared_csv}")
    read_cohort(prepared_csv)  # as the other scripts will: what they would refuse is told now
    log.info(
        "done: %d of %d scans prepared, %d of these to look at, %d left out by ratings: %s; to look through: %s",
        made.sum(), len(scans), (registration["Status"] == LOOK).sum(), (made & ~stays).sum(), prepared_csv, overview,
    )  # fmt: skip
    run.finish()


def describe_derivative(folder: Path, arguments: Preparation) -> None:
    """``dataset_description.json`` and ``README``, by which BIDS tools and people know a derivative."""
    import json

    from prepare_images.one_scan import DESCRIPTION
    from travelling import __version__
    from travelling.files import write_whole

    source = (arguments.bids or arguments.csv).absolute()
    description = {
        "Name": "T1-weighted images prepared for the travelling model",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "travelling: prepare_images.py", "Version": __version__}],
        "SourceDatasets": [{"URL": source.as_uri()}],
        "DatasetLinks": {"raw": source.as_uri()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "dataset_description.json", json.dumps(description, indent=2).encode() + b"\n")
    words = f"{description['Name']}: {DESCRIPTION} Their brain masks lie beside them.\n"
    write_whole(folder / "README", words.encode())


def prepare_all(scans: pd.DataFrame, arguments: Preparation) -> list[dict]:
    """Prepare every scan, several at a time: a list of their measures (:func:`one_scan.prepare_file`)."""
    import errno
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    from prepare_images.one_scan import Job, failed, prepare_file
    from prepare_images.overview import picture_of
    from travelling.console import progress_bar

    measures = [failed(reason) for reason in scans["Reason"]]
    folder, dataset = arguments.output_folder.absolute(), str(arguments.bids.absolute() if arguments.bids else "")
    waiting = [number for number, reason in enumerate(scans["Reason"]) if not reason][::-1]
    running: dict[Future, int] = {}
    bar = progress_bar(total=len(waiting), desc="preparing scans", unit="scan", smoothing=0)
    # "spawn": ITK's threads do not survive a fork.
    pool = ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn"), initializer=begin_worker)
    try:
        while waiting or running:
            while waiting and len(running) < arguments.workers:  # no more: what is submitted has to end after Ctrl-C
                row = scans.iloc[number := waiting.pop()]
                target = row["Target"]
                picture = str(folder / picture_of(target))
                job = Job(row["Path"], row["Mask"], str(folder / target), picture, arguments.spacing, dataset)
                running[pool.submit(prepare_file, job)] = number
            bar.set_postfix_str(f"at {', '.join(scans['Subject'].iloc[list(running.values())])}")
            for done in wait(running, bar.mininterval, FIRST_COMPLETED).done:
                measures[running.pop(done)] = done.result()
                bar.n += 1
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

    table = pd.DataFrame(measures, columns=["Status", "Reason", *MEASURES, "Notices"])
    about = scans[["Subject", "Study"]].assign(Scan=scans["Path"], Mask=mask_kinds(scans))
    return pd.concat([about, table], axis=1)


if __name__ == "__main__":
    command.run(main)
