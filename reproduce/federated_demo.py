"""Four centers of the demo cohort in NVIDIA FLARE's simulator, one of which holds only inverted images.

Each center is a process of its own; nothing but what FLARE sends goes from one to another. Prints which images the
centers found among their own, and the memory that a center takes. Cohort and pre-trained model are those of
`make demo`, or made here.

Example:
    python reproduce/federated_demo.py --output-folder federated_demo
"""

import math
import subprocess
import sys
import threading
import time
from pathlib import Path

from travelling import command

ROOT = Path(__file__).resolve().parent.parent
CYCLES = 10  # of pre-training
BATCH_SIZE = 5
CARD = 24e9  # bytes, for the number of centers that fit


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("--output-folder", type=Path, default=Path("federated_demo"), metavar="FOLDER", help="results")
    parser.add_argument(
        "--demo", type=Path, default=Path("demo"), metavar="FOLDER", help="of make demo, if it is there"
    )
    return parser.parse_args()


def main():
    """Make what is missing, run, and print what was found."""
    arguments = parse_arguments()
    import pandas as pd

    folder = arguments.output_folder
    start = time.monotonic()
    cohort, pretrained = arguments.demo / "cohort", arguments.demo / "pretrained"
    if not model(pretrained)[1].exists():
        cohort, pretrained = folder / "cohort", folder / "pretrained"
        make(cohort, pretrained)
    training_set = pd.read_csv(cohort / "training_set.csv", dtype=str, keep_default_na=False)
    training_set["Path"] = [str((cohort / path).resolve()) for path in training_set["Path"]]
    largest = training_set["Study"].value_counts().index[:3]
    folder.mkdir(parents=True, exist_ok=True)
    training_set[training_set["Study"].isin(largest)].to_csv(folder / "good_centers.csv", index=False)
    script(
        "generate_harmful_samples/generate_data.py", "-fn_train", folder / "good_centers.csv", "--experiment",
        "whole_centers", "--kind", "inverted", "--centers", 1, "--images", 5, "--output-folder", folder / "harmful",
        "--overwrite",
    )  # fmt: skip
    encoder, classifier = model(pretrained)
    with Memory(str(folder.resolve())) as memory:
        script(
            "travelling_quality_control/federated/simulate.py", "-fn_train", folder / "harmful" / "training_set.csv",
            "-fn_test", cohort / "test_set.csv", "-en", encoder, "-pd", classifier, "-cycles", CYCLES + 2,
            "-revisit", 1, "-error", 0.02, "-fn_save", folder / "qc", "--poll", 0.1, "--overwrite",
        )  # fmt: skip
    centers = sorted(path.name for path in (folder / "qc_flare" / "centers").iterdir())
    for center in centers:
        found = folder / "qc_flare" / "centers" / center / "private" / "flagged_subjects.csv"
        table = pd.read_csv(found) if found.exists() else pd.DataFrame({"Eliminated": []})
        print(f"{center}: {len(table)} images flagged, {int(table['Eliminated'].sum())} eliminated")
    visits = pd.read_csv(folder / "qc_run" / "visits.csv")
    steps = visits[visits["Question"] == "train"]
    print(f"{len(steps)} steps at {len(centers)} centers, {steps['Seconds'].median():.1f} s each (median)")
    if memory.peaks:
        most = max(memory.peaks.values())
        print(
            f"memory: {most / 1e6:.0f} MB for a center; {CARD / 1e9:.0f} GB hold {math.floor(CARD / most)} such centers"
        )
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; {folder}")


def model(folder):
    """The files of the pre-trained model."""
    from travelling.run import model_files

    return model_files(folder, BATCH_SIZE, CYCLES - 1)


def make(cohort, pretrained):
    """Make a cohort and train on it, as ``make demo`` does."""
    script("reproduce/make_demo_cohort.py", "--output-folder", cohort, "--overwrite")
    script(
        "standard_travelling_model/enc_PD_train_distributed.py", "-fn_train", cohort / "training_set.csv",
        "-cycles", CYCLES, "-batch_size", BATCH_SIZE, "--width", 0.125, "--learning-rate", 0.001,
        "--output-folder", pretrained, "--overwrite",
    )  # fmt: skip


def script(name, *options):
    """Run one of the repository's scripts; exits with its status where it fails."""
    done = subprocess.run([sys.executable, ROOT / name, *map(str, options)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


class Memory:
    """Watches the simulated centers: ``peaks`` is the most memory (bytes) that each process took, by its number.

    Only where there is /proc, as on Linux. ``word`` is in the command lines of the processes.
    """

    def __init__(self, word):
        self.peaks = {}
        self._word = word
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *error):
        """Stop."""
        self._over.set()
        self._thread.join()

    def _watch(self):
        while not self._over.wait(1):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    words = (process / "cmdline").read_bytes().decode(errors="replace")
                    if self._word in words and "simulator_worker" in words:
                        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                        self.peaks[process.name] = int(status["VmHWM"].split()[0]) * 1024
                except (OSError, KeyError, ValueError):  # it has just ended
                    continue


if __name__ == "__main__":
    command.run(main)
