"""The command ``travelling``: the scripts under one name, for an installed package.

    travelling control -fn_train training_set.csv ...

is ``python travelling_quality_control/enc_PD_quality_control.py -fn_train training_set.csv ...``: the same file is run.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "train": ("standard_travelling_model/enc_PD_train_distributed.py", "train without quality control"),
    "baseline": ("dirty_baselines/enc_PD_train_dirt_baseline.py", "go on with all images, harmful ones, too"),
    "harm": ("generate_harmful_samples/generate_data.py", "make harmful images"),
    "control": ("travelling_quality_control/enc_PD_quality_control.py", "go on with quality control"),
    "infer": ("inference/inference_pd_distributed.py", "evaluate the models of every cycle"),
    "prepare": ("prepare_images/prepare_images.py", "from raw scans to images that can train"),
    "judge": ("reproduce/judge.py", "find bad images in a cohort of which nobody knows them"),
    "study": ("reproduce/reproduce.py", "the paper's experiments, tables and report"),
    "report": ("travelling_quality_control/report.py", "the report of one run"),
    "audit": ("travelling_quality_control/audit.py", "check every decision of a log"),
}


def main() -> None:
    """Run the script of a subcommand, with the words behind it."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "--version"):
        from travelling import __version__

        print(f"travelling {__version__}")
        if name != "--version":
            print("\nusage: travelling COMMAND ... (COMMAND --help lists its options)\n")
            print("\n".join(f"  {command:10}{about}" for command, (_, about) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: {name} is no command of travelling; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    path = str(ROOT / COMMANDS[name][0])
    sys.argv = [path, *words]
    sys.path.insert(0, str(Path(path).parent))  # as where Python is given the script
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()
