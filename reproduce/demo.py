"""The whole study on the demo cohort: what `make demo` runs.

Makes the cohort, trains the travelling model, adds harmful images in four experiments (whole centers or single
images, inverted or noise), goes on with and without quality control, and prints who was found and what it did to
the diagnoses. Every step is one of the repository's scripts, run by its own command line; steps that do not need
each other run at once. A step whose result is there is not run again. Tables, figures and report are made from the
records of the runs alone.

Example:
    python reproduce/demo.py --output-folder demo
"""

import gc
import hashlib
import multiprocessing
import os
import runpy
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from travelling import command
from travelling.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "cohort": ROOT / "reproduce" / "make_demo_cohort.py",
    "train": ROOT / "standard_travelling_model" / "enc_PD_train_distributed.py",
    "harm": ROOT / "generate_harmful_samples" / "generate_data.py",
    "dirty": ROOT / "dirty_baselines" / "enc_PD_train_dirt_baseline.py",
    "control": ROOT / "travelling_quality_control" / "enc_PD_quality_control.py",
    "infer": ROOT / "inference" / "inference_pd_distributed.py",
}
EXPERIMENTS = [(experiment, kind) for experiment in ("whole_centers", "single") for kind in ("inverted", "noise")]
BATCH_SIZE = 5
REVISIT = 1  # cycles; the paper's example is 2, which takes the demo one cycle more


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count, factor = command.number(int, 1), command.number(float, 0.01)
    parser.add_argument("--output-folder", type=Path, default=Path("demo"), metavar="FOLDER", help="for everything")
    parser.add_argument("--shrink", type=count, default=4, metavar="N", help="divides the paper's numbers of images")
    parser.add_argument("--spacing", type=factor, default=4.0, metavar="MM", help="voxel size")
    parser.add_argument(
        "--width", type=factor, default=0.125, metavar="FACTOR", help="filters, relative to the paper's"
    )
    parser.add_argument(
        "--pretraining-rate",
        type=command.number(float, 0),
        default=1e-3,
        metavar="RATE",
        help="learning rate of cycle 0 in pre-training: a narrow network needs more than the paper's 1e-4",
    )
    parser.add_argument("--pretrained-cycles", type=count, default=10, metavar="N", help="cycles of pre-training")
    parser.add_argument(
        "--further-cycles", type=count, default=2, metavar="N", help="cycles after those, for all models"
    )
    parser.add_argument("--centers", type=count, default=5, metavar="N", help="centers with harmful images")
    parser.add_argument("--images", type=count, default=5, metavar="K", help="images of each whole harmful center")
    parser.add_argument("--error", type=command.number(float, 0, 1), default=0.02, metavar="RATE", help="tolerance")
    parser.add_argument("--seed", type=command.number(int, 0), default=42, help="of the cohort and of the harm")
    parser.add_argument(
        "--jobs", type=count, default=min(4, os.cpu_count()), metavar="N", help="steps that run at the same time"
    )
    return parser.parse_args()


def main():
    """Run what is missing, then print the tables and draw the picture."""
    arguments = parse_arguments()
    start = time.monotonic()
    folder = arguments.output_folder
    run_study(plan(arguments), folder, arguments.jobs)

    # Only now, so that --help answers at once.
    from study_figures import make_figures, overview, render, write_figures
    from study_records import read_study
    from study_report import make_report, write_report
    from study_tables import make_tables, summary_of_detection, summary_of_performance, write_tables

    study = read_study(folder)
    tables, figures = make_tables(study), make_figures(study)
    write_tables(tables, folder / "tables")
    write_figures(figures, folder / "figures")
    (folder / "demo.png").write_bytes(render(overview(study)))
    report = folder / "report.html"
    write_report(make_report(study, tables, figures), report)
    last_cycle = arguments.pretrained_cycles + arguments.further_cycles - 1
    performance, detection = summary_of_performance(tables["performance"]), summary_of_detection(tables["detection"])
    print(f"\nDiagnoses of the test set after cycle {last_cycle}\n\n{performance.to_string(index=False)}")
    print(f"\nImages found (numbers by cycle in brackets)\n\n{detection.to_string(index=False)}")
    print(f"\nTables, figures and everything behind them: {folder} ({(time.monotonic() - start) / 60:.1f} minutes)")
    print(f"Read it all: {report}")


def plan(arguments):
    """The steps of the study, every one after those it needs: (name, command line, needed names, results)."""
    folder, seed = arguments.output_folder, arguments.seed
    cohort, pretrained = folder / "cohort", folder / "pretrained"
    training_csv, test_csv = cohort / "training_set.csv", cohort / "test_set.csv"
    last_cycle = arguments.pretrained_cycles - 1
    encoder = pretrained / f"encoder_distributed_BS{BATCH_SIZE}_{last_cycle:02d}.keras"
    classifier = pretrained / f"classifier_PD_distributed_BS{BATCH_SIZE}_{last_cycle:02d}.keras"
    cycles = arguments.pretrained_cycles + arguments.further_cycles
    going_on = ["-en", encoder, "-pd", classifier, "-cycles", cycles]
    steps = []

    def add(name, script, *options, needs=(), results=()):
        steps.append((name, [str(word) for word in (SCRIPTS[script], *options, "--overwrite")], needs, results))

    def add_inference(name):
        models = folder / name
        options = ["-fn", test_csv, "-en", models, "-pd", models, "-o", models / "inference"]
        add(f"{name}/inference", "infer", *options, needs=[name], results=[models / "inference_metrics.csv"])

    add(
        "cohort", "cohort", "--output-folder", cohort, "--shrink", arguments.shrink, "--spacing", arguments.spacing,
        "--seed", seed, results=[training_csv, test_csv],
    )  # fmt: skip
    add(
        "pretrained", "train", "-fn_train", training_csv, "-cycles", arguments.pretrained_cycles,
        "-batch_size", BATCH_SIZE, "--width", arguments.width, "--learning-rate", arguments.pretraining_rate,
        "--output-folder", pretrained,
        needs=["cohort"], results=[encoder, classifier],
    )  # fmt: skip
    for experiment, kind in EXPERIMENTS:
        target = folder / f"{experiment}_{kind}" / "harmful"
        add(
            f"{experiment}_{kind}/harmful", "harm", "-fn_train", training_csv,
            "--experiment", experiment, "--kind", kind, "--centers", arguments.centers, "--images", arguments.images,
            "--seed", seed, "--output-folder", target,
            needs=["cohort"], results=[target / "training_set.csv", target / "truth.csv"],
        )  # fmt: skip
    for experiment, kind in EXPERIMENTS:
        name = f"{experiment}_{kind}"
        target = folder / name / "quality_control"
        add(
            f"{name}/quality_control", "control", "-fn_train", folder / name / "harmful" / "training_set.csv",
            "-fn_test", test_csv, *going_on, "-revisit", REVISIT, "-error", arguments.error,
            "-fn_save", target / "log", "--batch-size", BATCH_SIZE, "--output-folder", target,
            needs=["pretrained", f"{name}/harmful"], results=[target / "log.csv", target / "log_subjects.csv"],
        )  # fmt: skip
    # The clean model goes on as the others do, so that all have travelled the same number of cycles.
    for name, csv in [
        ("clean", training_csv),
        *((f"{e}_{k}/dirty_baseline", folder / f"{e}_{k}" / "harmful" / "training_set.csv") for e, k in EXPERIMENTS),
    ]:
        add(
            name, "dirty", "-fn_train", csv, *going_on, "-batch_size", BATCH_SIZE, "--output-folder", folder / name,
            needs=["pretrained", str(csv.parent.relative_to(folder))],
        )  # fmt: skip
    for name in [
        "clean",
        *(f"{e}_{k}/{model}" for e, k in EXPERIMENTS for model in ("dirty_baseline", "quality_control")),
    ]:
        add_inference(name)
    return steps


def run_study(steps, folder, jobs):
    """Run every step whose result is missing or was made by another command, each after those it needs.

    What all others need comes first, with all cores; then ``jobs`` steps run at once, with their share of the cores.
    """
    from travelling.run import progress_bar

    keys = {}
    for name, line, needs, _ in steps:
        keys[name] = hashlib.sha256(repr([line, [keys[need] for need in needs]]).encode()).hexdigest()
    first = [step for step in steps if step[0] in ("cohort", "pretrained")]
    with progress_bar(total=len(steps), unit="step") as bar:
        for group, workers in ((first, 1), ([step for step in steps if step not in first], jobs)):
            if workers > 1:  # they must not compete for the cores
                os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, os.cpu_count() // workers))
                os.environ["TF_NUM_INTEROP_THREADS"] = "1"
            with workers_for_scripts(workers) as scripts, ThreadPoolExecutor(workers) as pool:
                futures = {}
                for name, line, needs, results in group:
                    awaited = [futures[need] for need in needs if need in futures]
                    futures[name] = pool.submit(
                        run_step, name, line, keys[name], awaited, results, folder, bar, scripts
                    )
                try:
                    for future in futures.values():
                        future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise


def workers_for_scripts(number):
    """Processes that run scripts, one after another: TensorFlow takes longer to import than some steps take."""
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def run_step(name, line, key, awaited, results, folder, bar, scripts):
    """Run one step unless it is done; its output goes to ``<folder>/steps/<name>.txt``."""
    for future in awaited:  # earlier in the queue, so it is running or done: this cannot wait for ever
        future.result()
    output = folder / "steps" / f"{name.replace('/', '_')}.txt"
    done = output.with_suffix(".done")
    if not (done.is_file() and done.read_text() == key and all(result.is_file() for result in results)):
        bar.write(f"{name} ...", file=sys.stderr)
        done.unlink(missing_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            status = scripts.submit(run_script, line, output).result()
        except BrokenProcessPool:
            status = "its process died"
        if status:
            last_line = output.read_text().strip().splitlines()[-1]
            raise InputError(f"{output}: step '{name}' failed ({status}): {last_line}")
        done.write_text(key)
        bar.write(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    bar.update()


def run_script(line, output):
    """Run a script of this repository by its command line, in this process; returns its exit status."""
    with open(output, "w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        print(shlex.join(line), flush=True)
        sys.argv = line
        try:
            runpy.run_path(line[0], run_name="__main__")
        except SystemExit as end:
            return end.code
        finally:
            gc.collect()  # the model of this step


if __name__ == "__main__":
    command.run(main)
