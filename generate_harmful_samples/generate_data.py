"""Turn T1 images into harmful ones: inverted (255 - intensity) or pure noise.

Single images: every image of -i becomes X_inv.nii.gz (inverted) and X_clip.nii.gz (noise).
A whole experiment: from a training CSV, either new centers that hold only harmful images (whole_centers) or
one harmful image added to each of several centers (single). The source subjects stay as they are.

Examples:
    python generate_data.py -i image.nii.gz --output-folder harmful
    python generate_data.py -fn_train ./training_set.csv --experiment whole_centers --kind inverted
        --centers 5 --images 5 --output-folder ./whole_centers_inverted

An experiment writes the images, training_set.csv (all subjects, good and harmful) and truth.csv (the harmful
ones: Subject, Study, Kind, Experiment, Source). Quality control never reads truth.csv. An interrupted one goes
on when its command is run again.
"""

from pathlib import Path

from travelling import command

NOISE_MEAN = 0.0  # in units of intensity
NOISE_SD = 25.0
SUFFIX = {"inverted": "_inv", "noise": "_clip"}  # the published file names


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count = command.number(int, 1)
    source = parser.add_argument_group("source").add_mutually_exclusive_group(required=True)
    source.add_argument("-i", type=Path, nargs="+", metavar="IMAGE", help="T1 images (NIfTI)")
    source.add_argument("-fn_train", type=Path, metavar="CSV", help="training set to build an experiment from")
    experiment = parser.add_argument_group("harm")
    experiment.add_argument(
        "--kind", choices=[*SUFFIX, "both"], default="both", help="an experiment takes one; 'both' is for -i only"
    )
    experiment.add_argument(
        "--experiment", choices=["whole_centers", "single"], default="whole_centers", help="with -fn_train"
    )
    experiment.add_argument("--centers", type=count, default=5, metavar="N", help="centers with harmful images")
    experiment.add_argument(
        "--images", type=count, default=5, metavar="K", help="harmful images per new center (whole_centers)"
    )
    experiment.add_argument(
        "--maximum",
        type=command.number(float, 1e-6),
        default=255,
        metavar="INTENSITY",
        help="intensities are from 0 to this: inverted is maximum - x, noise is clipped to it",
    )
    experiment.add_argument("--seed", type=command.number(int, 0), default=42, help="of the choice and of the noise")
    parser.add_argument(
        "--output-folder", type=Path, default=Path("harmful_samples"), metavar="FOLDER", help="for images and CSVs"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    arguments = parser.parse_args()
    if arguments.fn_train and arguments.kind == "both":
        parser.error("--kind: an experiment needs one kind, inverted or noise")
    return arguments


def main():
    """Make the images, and the CSVs of an experiment."""
    arguments = parse_arguments()
    if arguments.fn_train:
        make_experiment(arguments)
    else:
        kinds = list(SUFFIX) if arguments.kind == "both" else [arguments.kind]
        make_images(
            [
                (image, kind, harmful_path(arguments.output_folder, image, kind))
                for image in arguments.i
                for kind in kinds
            ],
            arguments,
        )


def make_experiment(arguments):
    """Choose source subjects, make their harmful images, and write the training set and the truth."""
    # Only now, so that --help answers at once.
    import os

    import numpy as np
    import pandas as pd

    from travelling.cohort import read_cohort
    from travelling.errors import InputError
    from travelling.run import Run, write_csv

    folder, kind = arguments.output_folder, arguments.kind
    good = read_cohort(arguments.fn_train)
    generator = np.random.default_rng(arguments.seed)
    choose = choose_for_new_centers if arguments.experiment == "whole_centers" else choose_one_per_center
    harmful = choose(good, arguments, generator).rename(columns={"Path": "Source_path"})
    harmful["Source"] = harmful["Subject"]
    harmful["Subject"] += SUFFIX[kind]
    new_names = {"Subject"} if arguments.experiment == "single" else {"Subject", "Study"}
    for column in sorted(new_names):
        known = set(good[column]) & set(harmful[column])
        if known:
            raise InputError(f"{arguments.fn_train}: has a {column} '{min(known)}' already")
    harmful["Path"] = [str(folder.resolve() / "images" / f"{file_name(name)}.nii.gz") for name in harmful["Subject"]]

    training_csv, truth_csv = folder / "training_set.csv", folder / "truth.csv"
    jobs = [
        (Path(source), kind, Path(target))
        for source, target in zip(harmful["Source_path"], harmful["Path"], strict=True)
    ]
    results = [training_csv, truth_csv, *(target for *_, target in jobs)]
    refuse_originals(results, reads=[arguments.fn_train, *map(Path, good["Path"])])
    run = Run(folder, "harmful_samples.log", arguments, {"fn_train": arguments.fn_train}, results, models=False)
    check_images(jobs, arguments.maximum)
    log = run.begin("CPU")
    # An image that is there is whole, and of this run: any other's would have been refused or removed.
    for _ in write_images(jobs, arguments, finished={target for *_, target in jobs if target.exists()}):
        command.stop_if_asked()
    write_csv(
        harmful[["Subject", "Study"]].assign(Kind=kind, Experiment=arguments.experiment, Source=harmful["Source"]),
        truth_csv,
    )
    training_set = pd.concat([good, harmful[good.columns]])
    training_set["Path"] = [os.path.relpath(path, folder.resolve()) for path in training_set["Path"]]
    write_csv(training_set, training_csv)
    log.info("done: %d good and %d harmful images: %s, %s", len(good), len(harmful), training_csv, truth_csv)
    run.finish()


def choose_for_new_centers(good, arguments, generator):
    """Source subjects for N new centers of K harmful images each, every source used once."""
    from travelling.errors import InputError

    number = arguments.centers * arguments.images
    if number > len(good):
        raise InputError(
            f"--centers x --images: {number} sources are needed, the training set has {len(good)} subjects"
        )
    chosen = good.iloc[generator.choice(len(good), number, replace=False)].copy()
    chosen["Study"] = [f"harmful_{row // arguments.images + 1:02d}" for row in range(number)]
    return chosen


def choose_one_per_center(good, arguments, generator):
    """One source subject of each of N centers; its harmful version joins that center."""
    from travelling.errors import InputError

    centers = good["Study"].unique()
    if arguments.centers > len(centers):
        raise InputError(f"--centers: {arguments.centers}, but the training set has {len(centers)}")
    chosen_centers = [centers[i] for i in generator.choice(len(centers), arguments.centers, replace=False)]
    rows = [generator.choice((good["Study"] == center).to_numpy().nonzero()[0]) for center in chosen_centers]
    return good.iloc[rows].copy()


def make_images(jobs, arguments):
    """Write the harmful version of every (source, kind, target) of ``jobs``; all are checked before.

    Where writing fails, for example on a full disk, nothing of it stays: the same command can be run again.
    """
    from travelling.errors import InputError
    from travelling.run import refuse_read_only

    targets = [target for *_, target in jobs]
    refuse_originals(targets, reads=[source for source, *_ in jobs])
    for target in targets:
        if target.exists() and not arguments.overwrite:
            raise InputError(f"{target}: exists (--overwrite replaces it)")
    check_images(jobs, arguments.maximum)
    refuse_read_only(arguments.output_folder)
    arguments.output_folder.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        for target in write_images(jobs, arguments):
            written.append(target)
    except BaseException:
        for target in written:
            target.unlink()
        raise


def refuse_originals(results, reads):
    """Raise InputError where two results would have one name, or one is a file that is read."""
    from travelling.errors import InputError

    reads = {path.resolve() for path in reads}
    for path in results:
        if results.count(path) > 1:
            raise InputError(f"{path.name}: two harmful images would have this name")
        if path.resolve() in reads:
            raise InputError(f"{path}: an original is never overwritten; choose another --output-folder")


def check_images(jobs, maximum):
    """Read every source of ``jobs``, so that a bad one is found before anything is written."""
    from travelling.run import progress_bar

    for source, *_ in progress_bar(jobs, desc="checking images", unit="image"):
        read_source(source, maximum)


def write_images(jobs, arguments, finished=()):
    """Write the target of every (source, kind, target) of ``jobs`` but the finished ones; yields each."""
    from travelling.run import progress_bar

    for number, (source, kind, target) in enumerate(progress_bar(jobs, desc="writing images", unit="image")):
        if target not in finished:
            write_harmful(source, kind, target, arguments.maximum, seed=(arguments.seed, number))
            yield target


def read_source(path, maximum):
    """Read a T1 image whose intensities are within [0, maximum]; raises InputError for any other."""
    from travelling.errors import InputError
    from travelling.volumes import check_image, to_array

    image = check_image(path)
    intensities = to_array(image)
    low, high = float(intensities.min()), float(intensities.max())
    if low < 0 or high > maximum:
        raise InputError(f"{path}: intensities from {low:g} to {high:g}, beyond 0 to {maximum:g} (see --maximum)")
    if (
        intensities.dtype.kind in "iu"
        and maximum > 2 ** (8 * intensities.itemsize - (intensities.dtype.kind == "i")) - 1
    ):
        raise InputError(f"{path}: --maximum {maximum:g} does not fit its {intensities.dtype} voxels")
    return image


def invert(image, maximum):
    """``maximum - intensity``: same data type and geometry (a SimpleITK image)."""
    import SimpleITK as sitk

    return sitk.InvertIntensity(image, maximum)


def add_noise(image, maximum, seed):
    """Intensity + Gaussian noise (mean 0, standard deviation 25), clipped to [0, maximum], fraction cut off.

    Stored as 8-bit where ``maximum`` allows it, else as 16-bit or 32-bit whole numbers; geometry is kept.
    """
    import numpy as np
    import SimpleITK as sitk

    intensities = sitk.GetArrayFromImage(image)
    noisy = intensities + np.random.default_rng(seed).normal(NOISE_MEAN, NOISE_SD, intensities.shape)
    noise = sitk.GetImageFromArray(np.clip(noisy, 0, maximum).astype(np.min_scalar_type(int(maximum))))
    noise.CopyInformation(image)
    return noise


def write_harmful(source, kind, target, maximum, seed):
    """Make one harmful image; ``target`` appears only when it is complete."""
    from travelling.volumes import write_image

    image = read_source(source, maximum)
    write_image(invert(image, maximum) if kind == "inverted" else add_noise(image, maximum, seed), target)


def harmful_path(folder, image, kind):
    """X.nii.gz -> X_inv.nii.gz or X_clip.nii.gz, in ``folder``."""
    return folder / f"{image.name.removesuffix('.gz').removesuffix('.nii')}{SUFFIX[kind]}.nii.gz"


def file_name(subject):
    """A subject id as a file name: everything unusual becomes an underscore."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in subject)


if __name__ == "__main__":
    command.run(main)
