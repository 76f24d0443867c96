"""Turn T1 images into harmful ones: inverted (255 - intensity), noisy, or of a kind listed below.

Single images: every image of -i becomes X_inv.nii.gz (inverted) and X_clip.nii.gz (noise), or what --kind says.
A whole experiment: from a training CSV, either new centers that hold only harmful images (whole_centers) or
one harmful image added to each of several centers (single). The source subjects stay as they are.

Examples:
    python generate_data.py -i image.nii.gz --output-folder harmful
    python generate_data.py -fn_train ./training_set.csv --experiment whole_centers --kind inverted
        --centers 5 --images 5 --output-folder ./whole_centers_inverted

An experiment writes the images, training_set.csv (all subjects, good and harmful) and truth.csv (the harmful
ones: Subject, Study, Kind, Experiment, Source). Quality control never reads truth.csv. An interrupted one goes
on when its command is run again.

The kinds, with their strength:
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.errors import InputError
from travelling.images import harm
from travelling.option import from_command_line
from travelling.runs import command, stopping
from travelling.runs.harm_options import HarmfulSamples

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Job = tuple[Path, str, Path]  # source, kind, target


def main() -> None:
    """Make the images, and the CSVs of an experiment."""
    settings = from_command_line(HarmfulSamples, (__doc__ or "") + harm.in_words())
    if settings.fn_train:
        make_experiment(settings.fn_train, settings)
    else:
        make_images(
            [
                (image, kind, harmful_path(settings.output_folder, image, kind))
                for image in settings.i
                for kind in settings.kinds
            ],
            settings,
        )


def make_experiment(training_csv: Path, settings: HarmfulSamples) -> None:
    """Choose source subjects, make their harmful images, and write the training set and the truth."""
    # Only now, so that --help answers at once.
    import os

    import numpy as np
    import pandas as pd

    from travelling.files import write_csv
    from travelling.images.cohort import read_cohort
    from travelling.runs.run import Run

    folder, kind = settings.output_folder, settings.kind
    good = read_cohort(training_csv)
    sizes = good["Study"].value_counts().tolist()
    harm.refuse_too_few(settings.experiment, settings.centers, settings.images, sizes)
    generator = np.random.default_rng(settings.seed)
    choose = choose_for_new_centers if settings.experiment == "whole_centers" else choose_one_per_center
    harmful = choose(good, settings, generator)
    sources, source_paths = harmful["Subject"].copy(), harmful["Path"].copy()
    harmful["Subject"] += harm.suffix(kind)
    if kind == "swapped_label":
        harmful["Group_bin"] = 1 - harmful["Group_bin"]
    new_names = {"Subject"} if settings.experiment == "single" else {"Subject", "Study"}
    for column in sorted(new_names):
        known = set(good[column]) & set(harmful[column])
        if known:
            raise InputError(f"{training_csv}: has a {column} '{min(known)}' already")
    harmful["Path"] = [str(folder.resolve() / "images" / f"{file_name(name)}.nii.gz") for name in harmful["Subject"]]

    result_csv, truth_csv = folder / "training_set.csv", folder / "truth.csv"
    jobs = [(Path(source), kind, Path(target)) for source, target in zip(source_paths, harmful["Path"], strict=True)]
    results = [result_csv, truth_csv, *(target for *_, target in jobs)]
    refuse_originals(results, reads=[training_csv, *map(Path, good["Path"])])
    inputs = {"fn_train": training_csv}
    files = dict(zip(sources, source_paths, strict=True))
    run = Run(folder, "harmful_samples.log", settings, inputs, results, models=False, images=files)
    images = dict(zip(sources, check_images(jobs, settings.maximum), strict=True))
    log = run.begin("CPU", images=images)
    # An image that is there is whole, and of this run: any other's would have been refused or removed.
    for _ in write_images(jobs, settings, finished={target for *_, target in jobs if target.exists()}):
        stopping.stop_if_asked()
    write_csv(
        harmful[["Subject", "Study"]].assign(Kind=kind, Experiment=settings.experiment, Source=sources),
        truth_csv,
    )
    training_set = pd.concat([good, harmful[good.columns]])
    training_set["Path"] = [os.path.relpath(path, folder.resolve()) for path in training_set["Path"]]
    write_csv(training_set, result_csv)
    log.info("done: %d good and %d harmful images: %s, %s", len(good), len(harmful), result_csv, truth_csv)
    run.finish()


def choose_for_new_centers(
    good: pd.DataFrame, settings: HarmfulSamples, generator: np.random.Generator
) -> pd.DataFrame:
    """Source subjects for N new centers of K harmful images each, every source used once."""
    number = settings.centers * settings.images
    chosen = good.iloc[generator.choice(len(good), number, replace=False)].copy()
    chosen["Study"] = [f"harmful_{row // settings.images + 1:02d}" for row in range(number)]
    return chosen


def choose_one_per_center(good: pd.DataFrame, settings: HarmfulSamples, generator: np.random.Generator) -> pd.DataFrame:
    """One source subject of each of N centers; its harmful version joins that center."""
    centers = good["Study"].unique()
    chosen_centers = [centers[i] for i in generator.choice(len(centers), settings.centers, replace=False)]
    rows = [generator.choice((good["Study"] == center).to_numpy().nonzero()[0]) for center in chosen_centers]
    return good.iloc[rows].copy()


def make_images(jobs: list[Job], settings: HarmfulSamples) -> None:
    """Write the harmful version of every job; all are checked before.

    Where writing fails, for example on a full disk, nothing of it stays: the same command can be run again.
    """
    from travelling.files import refuse_read_only

    targets = [target for *_, target in jobs]
    refuse_originals(targets, reads=[source for source, *_ in jobs])
    for target in targets:
        if target.exists() and not settings.overwrite:
            raise InputError(f"{target}: exists (--overwrite replaces it)")
    check_images(jobs, settings.maximum)
    refuse_read_only(settings.output_folder)
    settings.output_folder.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        for target in write_images(jobs, settings):
            written.append(target)
    except BaseException:
        for target in written:
            target.unlink()
        raise


def refuse_originals(results: list[Path], reads: list[Path]) -> None:
    """Raise InputError where two results would have one name, or one is a file that is read."""
    originals = {path.resolve() for path in reads}
    for path in results:
        if results.count(path) > 1:
            raise InputError(f"{path.name}: two harmful images would have this name")
        if path.resolve() in originals:
            raise InputError(f"{path}: an original is never overwritten; choose another --output-folder")


def check_images(jobs: list[Job], maximum: float) -> list[dict]:
    """Read every source of ``jobs``, so that a bad one is found before anything is written.

    Returns what a record says of them, a list.
    """
    from travelling.console import progress_bar
    from travelling.images.cache import checksum, identity
    from travelling.images.nifti import read_upright

    contents = []
    for source, kind, _ in progress_bar(jobs, desc="checking images", unit="image"):
        file, voxels = identity(source), read_upright(source)
        harm.refuse_unfit(source, voxels, kind, maximum)
        contents.append({"path": str(source), "file": file, "sha256": checksum(voxels)})
    return contents


def write_images(jobs: list[Job], settings: HarmfulSamples, finished: Collection[Path] = ()) -> Iterator[Path]:
    """Write the target of every job but the finished ones; yields each."""
    from travelling.console import progress_bar

    for number, (source, kind, target) in enumerate(progress_bar(jobs, desc="writing images", unit="image")):
        if target not in finished:
            write_harmful(source, kind, target, settings, seed=(settings.seed, number))
            yield target


def write_harmful(source: Path, kind: str, target: Path, settings: HarmfulSamples, seed: tuple[int, ...]) -> None:
    """Make one harmful image; ``target`` appears only when it is complete."""
    from travelling.images.itk import read_image, write_image

    image = read_image(source)
    try:
        harmful = harm.make_harmful(image, kind, settings.maximum, seed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    write_image(harmful, target, like=source)


def harmful_path(folder: Path, image: Path, kind: str) -> Path:
    """X.nii.gz -> X_inv.nii.gz, X_clip.nii.gz, X_blur.nii.gz, ... in ``folder``."""
    return folder / f"{image.name.removesuffix('.gz').removesuffix('.nii')}{harm.suffix(kind)}.nii.gz"


def file_name(subject: str) -> str:
    """A subject id as a file name: everything unusual becomes an underscore."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in subject)


if __name__ == "__main__":
    command.run(main)
