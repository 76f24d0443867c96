"""The whole study with one command: the five scripts, by their own command lines, in the paper's order.

Trains the pre-trained model (cycles 0 to 9) and goes on from it on the clean images; then, for every experiment (whole
centers or single images) and kind of harm (inverted, noise), adds harmful images and goes on with and without quality
control, in one setting or several; tests the model of every cycle; and ends with tables, figures and a report. It
prints its plan with an estimate of the time first. What is done is not run again: the same command goes on after an
interruption.

Examples:
    python reproduce/reproduce.py --train training_set.csv --test test_set.csv --out study
    python reproduce/reproduce.py --demo
    python reproduce/reproduce.py --demo --dry-run > study.sh
    python reproduce/reproduce.py --demo --settings published evidence_screen --kinds inverted blur
"""

import contextlib
import os
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from study_layout import (
    CLEAN,
    DIRTY,
    EXPERIMENTS,
    HARM,
    KINDS,
    PAPER_EXPERIMENTS,
    PAPER_KINDS,
    PUBLISHED,
    SETTINGS,
    condition_name,
    conditions_of,
    control_folder,
)
from study_steps import (
    Step,
    duration_text,
    missing,
    refuse_other_results,
    run_apart,
    run_steps,
    stop_on_signals,
)
from study_time import control_work, estimate, inference_work, measure, training_work

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
# What the demo does otherwise: a narrow network learns faster, and a revisit after one cycle ends it sooner.
PAPER = {"cycles": 30, "width": 1.0, "pretraining_rate": 1e-4, "revisit": 2, "jobs": 1}
DEMO = {
    "cycles": 12, "width": 0.125, "pretraining_rate": 1e-3, "revisit": 1, "jobs": min(4, os.cpu_count()),
    "out": Path("demo"), "shrink": 4, "spacing": 4.0,
}  # fmt: skip
PUBLISHED_SEEDS = {"train": 40, "harm": 42, "dirty": 42, "control": 42}
# A cycle's generator has the seed plus its cycle, so seeds that are close would share the orders of many cycles.
BETWEEN_SEEDS = 1000


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    count, rate = command.number(int, 1), command.number(float, 0)

    def add(group, name, description, kind=count, metavar="N", **options):
        if name in DEMO:
            values = f"{PAPER[name]}; --demo: {DEMO[name]}" if name in PAPER else f"{DEMO[name]}; with --demo only"
            description = f"{description} (default: {values})"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=description, **options)

    study = parser.add_argument_group("study")
    study.add_argument("--train", type=Path, metavar="CSV", help="training set (docs/data.md)")
    study.add_argument("--test", type=Path, metavar="CSV", help="test set")
    study.add_argument("--demo", action="store_true", help="make a synthetic cohort and use that")
    study.add_argument("--out", type=Path, metavar="FOLDER", help="for everything (default with --demo: demo)")
    add(study, "seeds", "how often the study is repeated on the same cohort, with other seeds", default=1)
    study.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=PAPER_EXPERIMENTS,
        help="of these; clean: quality control of the images as they are, every one of which counts as good",
    )  # fmt: skip
    study.add_argument("--kinds", nargs="+", choices=KINDS, default=PAPER_KINDS, help="of harm")
    study.add_argument(
        "--settings",
        nargs="+",
        choices=tuple(SETTINGS),
        default=(PUBLISHED,),
        help="settings of quality control to compare",
    )
    study.add_argument("--without-dirty", action="store_true", help="leave out the dirty baselines, which saves time")
    add(study, "jobs", "steps that run at the same time; each needs memory of its own, on a GPU too")
    study.add_argument("--dry-run", action="store_true", help="print the plan as a shell script, and run nothing")
    study.add_argument("--overwrite", action="store_true", help="replace results that were made with other options")

    training = parser.add_argument_group("training")
    add(training, "cycles", "cycles in all")
    add(training, "pretrained_cycles", "cycles of the pre-trained model", default=10)
    add(training, "width", "filters, relative to the paper's", command.number(float, 0.01, 8), "FACTOR")
    add(training, "pretraining_rate", "learning rate in cycle 0, of the pre-trained model", rate, "RATE")
    add(training, "learning_rate", "the same, of those that go on from it", rate, "RATE", default=1e-4)
    add(training, "batch_size", "images per training step", default=5)
    training.add_argument(
        "--protocol", choices=["corrected", "published"], default="corrected", help="docs/protocols.md"
    )

    harm = parser.add_argument_group("harm and quality control")
    add(harm, "centers", "centers with harmful images", default=5)
    add(harm, "images", "harmful images of each whole center", default=5)
    add(
        harm, "maximum", "largest intensity that an image may have", command.number(float, 1e-6), "INTENSITY",
        default=255.0,
    )  # fmt: skip
    add(harm, "error", "tolerated rise of FPR or FNR per image", command.number(float, 0, 1), "RATE", default=0.02)
    add(
        harm, "false_alarms", "share of good images that the screen may suspect (default: the script's)",
        command.number(float, 1e-6, 0.5), "RATE",
    )  # fmt: skip
    add(harm, "revisit", "cycles that a flagged image waits", metavar="CYCLES")
    harm.add_argument("--allow-saturated", action="store_true", help="go on where verification cannot see harm")

    command.add_evaluation_options(parser)
    command.add_device_options(parser)
    command.add_image_options(parser)
    add(parser, "keep_every", "keep the models of every N-th cycle (and of the last) only", default=1)
    demo = parser.add_argument_group("demo cohort")
    add(demo, "shrink", "divides the paper's numbers of images")
    add(demo, "spacing", "voxel size", command.number(float, 0.01), "MM")
    return complete(parser, parser.parse_args())


def complete(parser, arguments):
    """Check how options go together, and fill in the defaults of the paper or of the demo."""
    named = [name for name in ("train", "test") if getattr(arguments, name)]
    if arguments.demo and named:
        parser.error(f"--{named[0]}: --demo makes its own cohort")
    if not arguments.demo:
        for name in ("train", "test", "out"):
            if not getattr(arguments, name):
                parser.error(f"--{name}: is needed (or --demo)")
        for name in ("shrink", "spacing"):
            if getattr(arguments, name):
                parser.error(f"--{name}: with --demo only")
    for name, value in (DEMO if arguments.demo else PAPER).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.cycles <= arguments.pretrained_cycles:
        parser.error(f"--cycles: is the total, and must be above --pretrained-cycles ({arguments.pretrained_cycles})")
    for name in ("experiments", "kinds", "settings"):
        setattr(arguments, name, tuple(dict.fromkeys(getattr(arguments, name))))  # each once
    for name in ("train", "test", "out", "cache_dir"):  # the scripts run in the study's folder
        if getattr(arguments, name):
            setattr(arguments, name, getattr(arguments, name).resolve())
    return arguments


def main():
    """Print the plan, run what is missing, and evaluate it."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from travelling.files import refuse_read_only

    start = time.monotonic()
    folder = arguments.out
    refuse_other_layout(folder, arguments.seeds)
    refuse_read_only(folder)
    cohort = demo_cohort(arguments) if arguments.demo else read_cohort(arguments)
    refuse_unfit_cohort(cohort, arguments)
    steps = plan(arguments, cohort)
    if not arguments.overwrite:
        refuse_other_results(steps, folder)
    refuse_changed_images(folder, cohort.files)
    stop_on_signals()
    left = missing(steps, folder)
    if left and not arguments.demo:
        refuse_unfit_images([step for step in left if step.line[0] == SCRIPTS["harm"]], arguments)
    seconds = dict.fromkeys([step.name for step in steps], 0.0)
    device = "nothing"
    if left:
        print("measuring how long a training step and an evaluation take ...", file=sys.stderr)
        costs = run_apart(
            measure, cohort.shape, arguments.batch_size, arguments.width, arguments.precision,
            arguments.deterministic, cohort.image, arguments.spacing,
        )  # fmt: skip
        seconds |= estimate(left, costs)
        device = costs["device"]
    print(describe(steps, left, seconds, folder, device, arguments), flush=True)
    if arguments.dry_run:
        return
    run_steps(steps, folder, arguments.jobs, seconds, arguments.overwrite)
    evaluate(folder, arguments)
    print(f"\nTables, figures and everything behind them: {folder} ({(time.monotonic() - start) / 60:.1f} minutes)")
    print(f"Read it all: {folder / 'report.html'}")


@dataclass(frozen=True)
class Cohort:
    """What must be known of a cohort before the study: CSVs, images of each training center, test set, shape."""

    training_csv: Path
    test_csv: Path
    centers: list
    tested: int
    shape: tuple
    image: Path | None  # one of them, if there are any
    files: dict  # of all images, by subject


def read_cohort(arguments):
    """The user's cohort; raises InputError for what the scripts would refuse, some of them after days."""
    from travelling import cohort
    from travelling.volumes import Volumes

    training_set, test_set = cohort.read_cohort(arguments.train), cohort.read_cohort(arguments.test)
    cohort.refuse_overlap(training_set, test_set, arguments.train, arguments.test)
    cohort.refuse_one_class(test_set, arguments.test)
    volumes = Volumes(0, arguments.out, arguments.reorient)
    volumes.add(training_set)
    volumes.add(test_set)
    sizes = list(map(len, cohort.subjects_by_center(training_set).values()))
    image = Path(training_set["Path"].iloc[0])
    files = {**training_set["Path"], **test_set["Path"]}
    return Cohort(arguments.train, arguments.test, sizes, len(test_set), volumes.shape, image, files)


def demo_cohort(arguments):
    """The demo cohort, which may not be made yet."""
    import pandas as pd
    from make_demo_cohort import CENTERS_FILE, check_spacing, image_size, plan_cohort

    check_spacing(arguments.spacing)
    training, test = plan_cohort(pd.read_csv(CENTERS_FILE), arguments.shrink)
    place = Path("cohort")
    sizes = list(Counter(row["Study"] for row in training).values())
    shape = tuple(reversed(image_size(arguments.spacing)))  # x, y, z -> z, y, x
    return Cohort(place / "training_set.csv", place / "test_set.csv", sizes, len(test), shape, None, {})


def refuse_unfit_cohort(cohort, arguments):
    """Raise InputError where there is too little for the harmful images, or for the screen."""
    from travelling.harm import refuse_too_few
    from travelling.screen import limit_rank

    for experiment in arguments.experiments:
        refuse_too_few(experiment, arguments.centers, arguments.images, cohort.centers)
    if any("--screen" in SETTINGS[setting] for setting in arguments.settings):
        limit_rank(cohort.tested, arguments.false_alarms or command.FALSE_ALARMS)
    elif arguments.false_alarms is not None:
        raise InputError("--false-alarms: is an option of the screen; --settings has no setting with one")


def refuse_unfit_images(steps, arguments):
    """Raise InputError for an image that one of ``steps`` would refuse, which may be after days: all are read."""
    from travelling import cohort, harm
    from travelling.volumes import for_each_image, read_with_content

    training_set, test_set = cohort.read_cohort(arguments.train), cohort.read_cohort(arguments.test)
    trained = {path: subject for subject, path in training_set["Path"].items()}
    subjects = trained | {path: subject for subject, path in test_set["Path"].items()}
    kinds = [kind for step in steps for kind in harm.PUBLISHED if kind in step.line]
    contents = {}

    def read(path):
        voxels, contents[subjects[path]] = read_with_content(path)
        if kinds and path in trained:  # every one may be drawn
            harm.refuse_unfit(path, voxels, kinds[0], arguments.maximum)

    for_each_image(read, list(subjects), "checking images")
    cohort.copies(contents, training_set, test_set)


def refuse_changed_images(folder, files):
    """Raise InputError where the image of a subject is not what it was when a step of this study read it."""
    from travelling.record import Record

    image = None
    for path in sorted(folder.rglob("*run.json")):
        with contextlib.suppress(InputError, OSError):  # of a record or an image that is damaged: its script says so
            image = Record(path, {}).changed_image(files)
        if image:
            raise InputError(
                f"{image}: has changed since {path.parent} read it; bring back the old one, or choose another --out"
            )


def refuse_other_layout(folder, seeds):
    """Raise InputError where the folder has a study with one seed and several are asked for, or the reverse."""
    there = [path.name for path in sorted(folder.glob("seed_*"))]
    if seeds == 1 and there:
        raise InputError(f"{folder}: has a study of several seeds ({there[0]}, ...); give --seeds or another --out")
    if seeds > 1 and (folder / "pretrained").is_dir():
        raise InputError(f"{folder}: has a study of one seed; choose another --out for --seeds {seeds}")


def plan(arguments, cohort):
    """The steps of the study, each after those that it needs; a script's files are relative to the study's folder."""
    steps = []
    if arguments.demo:
        images = sum(cohort.centers) + cohort.tested
        line = ["--output-folder", cohort.training_csv.parent, *given(arguments, "shrink", "spacing")]
        results = (cohort.training_csv, cohort.test_csv)
        facts = {"overwrites": True, "keeps_record": False, "alone": True, "work": {"make": images}}
        steps.append(Step("cohort", (SCRIPTS["cohort"], *line), results=results, **facts))
    if arguments.seeds == 1:
        return steps + PlanOfSeed(arguments, cohort, Path(), 0).steps()
    for seed in range(arguments.seeds):
        steps += PlanOfSeed(arguments, cohort, Path(f"seed_{seed + 1}"), seed * BETWEEN_SEEDS).steps()
    return steps


class PlanOfSeed:
    """The steps of one seed, in the folder ``place``; ``seed`` is added to the published ones."""

    def __init__(self, arguments, cohort, place, seed):
        from travelling.model_files import model_files

        self.arguments, self.cohort, self.place, self.seed = arguments, cohort, place, seed
        self.pretrained = place / "pretrained"
        self.model = model_files(self.pretrained, arguments.batch_size, arguments.pretrained_cycles - 1)
        self.images = sum(cohort.centers)
        self.batches = sum(-(-size // arguments.batch_size) for size in cohort.centers)
        self.further = arguments.cycles - arguments.pretrained_cycles
        self.device = given(arguments, "precision", "deterministic")
        self.evaluation = given(arguments, "eval_batch_size")
        self.storage = given(arguments, "cache_gb", "cache_dir", "reorient")

    def steps(self):
        """All of them, each after those that it needs."""
        made = [self._pretrain(), *self._go_on_without_control(self.place / CLEAN, self.cohort.training_csv, 0)]
        for experiment, kind in conditions_of(self.arguments.experiments, self.arguments.kinds):
            target = self.place / condition_name(experiment, kind)
            csv, harmful, more_batches = self.cohort.training_csv, 0, 0
            if experiment != CLEAN:
                csv = target / HARM / "training_set.csv"
                harmful, more_batches = self._added(experiment)
                made.append(self._harm(target / HARM, experiment, kind, harmful))
                if not self.arguments.without_dirty:
                    made += self._go_on_without_control(target / DIRTY, csv, harmful)
            for setting in self.arguments.settings:
                made += self._control(target / control_folder(setting), csv, setting, harmful, more_batches)
        return made

    def _added(self, experiment):
        """The images that an experiment adds, and the batches."""
        centers, images = self.arguments.centers, self.arguments.images
        if experiment == "whole_centers":
            return centers * images, centers * -(-images // self.arguments.batch_size)
        return centers, centers

    def _pretrain(self):
        arguments = self.arguments
        return self._train(
            self.pretrained, "train", self.cohort.training_csv,
            "-cycles", arguments.pretrained_cycles, "-batch_size", arguments.batch_size,
            *given(arguments, "width"), "--learning-rate", arguments.pretraining_rate,
            results=[f"/{half.name}" for half in self.model], alone=True,
            work=training_work(self.images, arguments.pretrained_cycles),
        )  # fmt: skip

    def _harm(self, target, experiment, kind, images):
        return self._step(
            target, "harm", "-fn_train", self.cohort.training_csv, "--experiment", experiment, "--kind", kind,
            *given(self.arguments, "centers", "images", "maximum"), "--output-folder", target,
            reads=[self.cohort.training_csv], results=["/training_set.csv", "/truth.csv", "/run.json"],
            work={"harm": images},
        )  # fmt: skip

    def _go_on_without_control(self, target, csv, harmful):
        """By the script of the dirty baseline, clean images too: same start, same seed, same learning rates."""
        work = training_work(self.images + harmful, self.further)
        return self._go_on(target, "dirty", csv, "-batch_size", self.arguments.batch_size, work=work)

    def _control(self, target, csv, setting, harmful, more_batches):
        arguments, options = self.arguments, SETTINGS[setting]
        false_alarms = given(arguments, "false_alarms") if "--screen" in options else []
        return self._go_on(
            target, "control", csv, "-fn_test", self.cohort.test_csv, "-fn_save", target / "log",
            "-revisit", arguments.revisit, "-error", arguments.error, "--batch-size", arguments.batch_size,
            *options, *false_alarms, *self.evaluation, *given(arguments, "allow_saturated"),
            reads=[self.cohort.test_csv], results=["/log.csv", "/log_subjects.csv"],
            work=control_work(self.images + harmful, self.batches + more_batches, self.cohort.tested, self.further),
        )  # fmt: skip

    def _go_on(self, target, script, csv, *line, reads=(), **facts):
        """Going on from the pre-trained model, and inference on the models of every cycle."""
        line = ["-en", self.model[0], "-pd", self.model[1], "-cycles", self.arguments.cycles, *line]
        reads = [*reads, self.pretrained / "run.json"]
        training = self._train(
            target, script, csv, *line, *given(self.arguments, "learning_rate"), reads=reads, **facts
        )
        line = ["-fn", self.cohort.test_csv, "-en", target, "-pd", target, "-o", target / "inference"]
        inference = self._step(
            target / "inference", "infer", *line, *self.evaluation, *self.device,
            reads=[self.cohort.test_csv, target / "run.json"],
            results=["_run.json", "_metrics.csv", "_predictions.csv"], storage=self.storage, overwrites=True,
            work=inference_work(self.cohort.tested, self.further),
        )  # fmt: skip
        return [training, inference]

    def _train(self, target, script, csv, *line, reads=(), results=(), **facts):
        line = ["-fn_train", csv, *line, "--output-folder", target, *given(self.arguments, "protocol"), *self.device]
        storage = [*self.storage, *given(self.arguments, "keep_every")]
        reads, results = [csv, *reads], ["/run.json", *results]
        return self._step(target, script, *line, reads=reads, results=results, storage=storage, **facts)

    def _step(self, target, script, *line, reads, results, storage=(), **facts):
        """A step; ``results`` are what comes after the name of the target."""
        options = ["--seed", PUBLISHED_SEEDS[script] + self.seed] if script in PUBLISHED_SEEDS else []
        results = tuple(Path(f"{target}{result}") for result in results)
        return Step(str(target), (SCRIPTS[script], *line, *options), tuple(reads), results, tuple(storage), **facts)


def given(arguments, *names):
    """Options of this command line as those of a script that calls them the same; what is not set is left out."""
    words = []
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return words


def describe(steps, left, seconds, folder, device, arguments):
    """The plan for readers; with ``--dry-run`` as a shell script that does the same, step by step."""
    total = sum(seconds.values())
    lines = [f"{len(left)} of {len(steps)} steps to run, {arguments.jobs} at a time, in {folder}"]
    lines.append(f"estimated time: {duration_text(total)} on {device}" if left else "all steps are done")
    width = max(len(step.name) for step in steps)
    told = {step: f"about {duration_text(seconds[step.name])}" if step in left else "done" for step in steps}
    if not arguments.dry_run:
        return "\n".join([*lines, *(f"  {step.name:{width}}  {told[step]}" for step in steps)])
    lines = ["#!/bin/sh", *(f"# {line}" for line in lines), "set -e"]
    lines.append(f"mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))}")
    for step in steps:
        lines.append(f"\n# {step.name}: {told[step]}")
        if step in left:
            lines.append(shlex.join([sys.executable, *step.command(arguments.overwrite)]))
    return "\n".join(lines)


def evaluate(folder, arguments):
    """Make tables, figures and report, and print the tables that matter most."""
    # Only now, so that --help answers at once.
    from evaluate import make
    from study_figures import overview, render
    from study_records import read_study
    from study_tables import summary_of_detection, summary_of_performance

    study = read_study(folder)
    tables, _ = make(study, folder)
    shown = {"whole_centers", *PAPER_KINDS, PUBLISHED}
    if arguments.demo and shown <= {*arguments.experiments, *arguments.kinds, *arguments.settings}:
        (folder / "demo.png").write_bytes(render(overview(study)))  # shows images, and these are nobody's
    performance, detection = summary_of_performance(tables["performance"]), summary_of_detection(tables["detection"])
    print(f"\nDiagnoses of the test set after cycle {arguments.cycles - 1}\n\n{performance.to_string(index=False)}")
    print(f"\nImages found (numbers by cycle in brackets)\n\n{detection.to_string(index=False)}")
    if len(study.settings) > 1:
        for title, view in tables["settings"].views.items():
            print(f"\n{title}\n\n{view.to_string(index=False)}")


if __name__ == "__main__":
    command.run(main)
