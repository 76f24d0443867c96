"""Four centers of the demo cohort in NVIDIA FLARE's simulator, one of which holds only inverted images.

Each center is a process of its own; nothing but what FLARE sends goes from one to another. Prints which images the
centers found among their own, the memory that a center takes, and what a step costs beside the script, which runs the
same in one process. Cohort and pre-trained model are those of `make demo`, or made here.

Example:
    python travelling_quality_control/federated/demo.py --output-folder federated_demo
    python travelling_quality_control/federated/demo.py --full-size    # what the paper's network costs, hardly trained
"""

import argparse
import math
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from travelling.runs import command

ROOT = Path(__file__).resolve().parents[2]
CYCLES = 10  # of pre-training by make demo
OWN_CYCLES = 7  # of pre-training where that is missing
BATCH_SIZE = 5
CARD = 24e9  # bytes, for the number of centers that fit
PAPER = {"centers": 83, "batches": 318}  # of one cycle
LINE = 100e6  # bit/s


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    parser.add_argument("--output-folder", type=Path, default=Path("federated_demo"), metavar="FOLDER", help="results")
    parser.add_argument(
        "--demo", type=Path, default=Path("demo"), metavar="FOLDER", help="of make demo, if it is there"
    )
    parser.add_argument(
        "--full-size", action="store_true", help="the paper's network, after one cycle at three centers: for its costs"
    )
    return parser.parse_args()


def main() -> None:
    """Make what is missing, run, and print what was found."""
    arguments = parse_arguments()
    import pandas as pd

    folder = arguments.output_folder
    start = time.monotonic()
    cohort, pretrained, cycles = arguments.demo / "cohort", arguments.demo / "pretrained", CYCLES
    if not model(pretrained, cycles)[1].exists():
        cohort, pretrained, cycles = folder / "cohort", folder / "pretrained", OWN_CYCLES
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
    if arguments.full_size:
        pretrained, cycles = folder / "full_size", 1
        train(folder / "good_centers.csv", pretrained, cycles, width=1, learning_rate=0.0001)
    encoder, classifier = model(pretrained, cycles)
    harmful = folder / "harmful" / "training_set.csv"
    options = (
        "-fn_test", cohort / "test_set.csv", "-en", encoder,
        "-pd", classifier, "-cycles", cycles + 2, "-revisit", 1, "-error", 0.02, "--overwrite",
        *["--allow-saturated"] * arguments.full_size,
    )  # fmt: skip
    (folder / "qc_run" / "visits.csv").unlink(missing_ok=True)  # it grows from run to run
    with Memory(str(folder.resolve())) as memory:
        script(  # both cycles in one job, because every job starts all centers anew
            "travelling_quality_control/federated/simulate.py", *options, "-fn_train", harmful,
            "-fn_save", folder / "qc", "--cycles-per-job", 2, "--poll", 0.1,
        )  # fmt: skip
    centers = sorted(path.name for path in (folder / "qc_flare" / "centers").iterdir())
    private = [folder / "qc_flare" / "centers" / center / "private" for center in centers]
    told = [subject for one in private for subject in pd.read_csv(one / "pseudonyms.csv", dtype=str)["Subject"]]
    same_order = folder / "as_told.csv"  # a center does not tell its subjects in the order of its CSV
    training_set = pd.read_csv(harmful, dtype=str, keep_default_na=False)
    training_set["Path"] = [str((harmful.parent / path).resolve()) for path in training_set["Path"]]
    order = [*training_set["Study"].unique(), *told]
    training_set.sort_values(["Study", "Subject"], key=lambda column: column.map(order.index)).to_csv(
        same_order, index=False
    )
    script(
        "travelling_quality_control/enc_PD_quality_control.py", *options, "-fn_train", same_order,
        "-fn_save", folder / "one_process",
    )  # fmt: skip
    for center in centers:
        found = folder / "qc_flare" / "centers" / center / "private" / "flagged_subjects.csv"
        table = pd.read_csv(found) if found.exists() else pd.DataFrame({"Eliminated": []})
        print(f"{center}: {len(table)} images flagged, {int(table['Eliminated'].sum())} eliminated")
    _tell_costs(folder)
    if memory.peaks:
        most = max(memory.peaks.values())
        print(
            f"memory: {most / 1e6:.0f} MB for a center; {CARD / 1e9:.0f} GB hold {math.floor(CARD / most)} such centers"
        )
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; {folder}")


def _tell_costs(folder):
    """Print what a step took between the centers, and in one process, and what it would take the paper's cohort."""
    import pandas as pd

    federated, script = (pd.read_csv(folder / name) for name in ("qc.csv", "one_process.csv"))
    ids = ["Subject", "Subjects"]  # pseudonyms in one of them
    same = "the same" if federated.drop(columns=ids).equals(script.drop(columns=ids)) else "NOT the same"
    print(f"log: {len(federated)} rows, {same} as those of the script in one process")

    visits = pd.read_csv(folder / "qc_run" / "visits.csv")
    steps = visits[visits["Question"] == "train"].copy()
    for center, asked in steps.groupby("Center"):
        own = pd.read_csv(folder / "qc_flare" / "centers" / center / "private" / "visits.csv")
        steps.loc[asked.index, "Training"] = own["Training_seconds"].to_numpy()[-len(asked) :]
    steps["Beyond"] = steps["Seconds"] - steps["Training"]
    follows = visits["Question"].shift() == "train"  # the first step of a job waits until its center is ready
    whole = visits["Time"].diff()[steps.index][follows[steps.index]]
    last = script["Cycle"] == script["Cycle"].max()
    ends = [time_of(line) for line in (folder / "one_process.log").read_text().splitlines() if "  cycle " in line]
    print(
        f"a step with its verification: {whole.mean():.2f} s between centers, "
        f"{(ends[-1] - ends[-2]) / last.sum():.2f} s in one process (means)"
    )
    for name, chosen in (("sent", steps["Bytes_sent"] > 0), ("there already", steps["Bytes_sent"] == 0)):
        print(
            f"network {name}: {chosen.sum()} steps, {steps['Training'][chosen].median():.2f} s of training, "
            f"{steps['Beyond'][chosen].median():.2f} s beyond it (medians)"
        )
    network, gradients = steps["Bytes_sent"].max(), steps["Bytes_received"].max()
    cycle = PAPER["batches"] * (network + gradients)
    minutes = cycle * 8 / LINE / 60
    print(f"network {network / 1e6:.1f} MB, gradients {gradients / 1e6:.1f} MB")
    print(
        f"a cycle of {PAPER['centers']} centers and {PAPER['batches']} batches: {cycle / 1e9:.1f} GB, "
        f"{minutes:.1f} minutes at {LINE / 1e6:.0f} Mbit/s"
    )


def time_of(line: str) -> float:
    """When a line of the plain log was written, in seconds."""
    return datetime.strptime(" ".join(line.split()[:2]), "%Y-%m-%d %H:%M:%S,%f").timestamp()


def model(folder: Path, cycles: int) -> list[Path]:
    """The files of the pre-trained model."""
    from travelling.network.model_files import model_files

    return model_files(folder, BATCH_SIZE, cycles - 1)


def make(cohort: Path, pretrained: Path) -> None:
    """Make a cohort and train on it, as ``make demo`` does, but smaller and shorter."""
    script("reproduce/make_demo_cohort.py", "--output-folder", cohort, "--shrink", 8, "--overwrite")
    train(cohort / "training_set.csv", pretrained, OWN_CYCLES, width=0.125, learning_rate=0.001)


def train(training_set: Path, folder: Path, cycles: int, width: float, learning_rate: float) -> None:
    """Train a model without quality control."""
    script(
        "standard_travelling_model/enc_PD_train_distributed.py", "-fn_train", training_set, "-cycles", cycles,
        "-batch_size", BATCH_SIZE, "--width", width, "--learning-rate", learning_rate, "--output-folder", folder,
        "--overwrite",
    )  # fmt: skip


def script(name: str, *options: Any) -> None:
    """Run one of the repository's scripts; exits with its status where it fails."""
    done = subprocess.run([sys.executable, ROOT / name, *map(str, options)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


class Memory:
    """Watches the simulated centers: ``peaks`` is the most memory (bytes) that each process took, by its number.

    Only where there is /proc, as on Linux. ``word`` is in the command lines of the processes.
    """

    def __init__(self, word: str):
        self.peaks: dict[str, int] = {}
        self._word = word
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
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
