"""What a study is told, and the steps that it takes: the command line of reproduce.py, and the plan."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from evaluation import layout
from evaluation.layout import CLEAN, DIRTY, HARM, SETTINGS, condition_name, conditions_of, control_folder
from steps import Step
from timing import control_work, inference_work, training_work

from travelling import command
from travelling.options import Device, Evaluation, Images, add_to_parser

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
    "cycles": 12, "width": 0.125, "pretraining_rate": 1e-3, "revisit": 1, "jobs": min(4, os.cpu_count() or 1),
    "out": Path("demo"), "shrink": 4, "spacing": 4.0,
}  # fmt: skip
PUBLISHED_SEEDS = {"train": 40, "harm": 42, "dirty": 42, "control": 42}
# A cycle's generator has the seed plus its cycle, so seeds that are close would share the orders of many cycles.
BETWEEN_SEEDS = 1000


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line of reproduce.py."""
    parser = command.Parser(description)
    count, rate, share = command.number(int, 1), command.number(float, 0), command.number(float, 1e-6, 0.5)

    def add(group, name, words, kind=count, metavar="N", **options):
        if name in DEMO:
            values = f"{PAPER[name]}; --demo: {DEMO[name]}" if name in PAPER else f"{DEMO[name]}; with --demo only"
            words = f"{words} (default: {values})"
        if "choices" in options:
            kind = metavar = None
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=words, **options)

    def flag(group, name, words):
        group.add_argument(f"--{name}", action="store_true", help=words)

    study = parser.add_argument_group("study")
    add(study, "train", "training set (docs/data.md)", Path, "CSV")
    add(study, "test", "test set", Path, "CSV")
    flag(study, "demo", "make a synthetic cohort and use that")
    study.add_argument("--out", type=Path, metavar="FOLDER", help="for everything (default with --demo: demo)")
    add(study, "seeds", "how often the study is repeated on the same cohort, with other seeds", default=1)
    words = "of these; clean: quality control of the images as they are, every one of which counts as good"
    add(study, "experiments", words, nargs="+", choices=layout.EXPERIMENTS, default=layout.PAPER_EXPERIMENTS)
    add(study, "kinds", "of harm", nargs="+", choices=layout.KINDS, default=layout.PAPER_KINDS)
    words = "settings of quality control to compare"
    add(study, "settings", words, nargs="+", choices=tuple(SETTINGS), default=(layout.PUBLISHED,))
    flag(study, "without-dirty", "leave out the dirty baselines, which saves time")
    add(study, "jobs", "steps that run at the same time; each needs memory of its own, on a GPU too")
    flag(study, "dry-run", "print the plan as a shell script, and run nothing")
    flag(study, "overwrite", "replace results that were made with other options")

    training = parser.add_argument_group("training")
    add(training, "cycles", "cycles in all")
    add(training, "pretrained_cycles", "cycles of the pre-trained model", default=10)
    add(training, "width", "filters, relative to the paper's", command.number(float, 0.01, 8), "FACTOR")
    add(training, "pretraining_rate", "learning rate in cycle 0, of the pre-trained model", rate, "RATE")
    add(training, "learning_rate", "the same, of those that go on from it", rate, "RATE", default=1e-4)
    add(training, "batch_size", "images per training step", default=5)
    add(training, "protocol", "docs/protocols.md", choices=["corrected", "published"], default="corrected")

    harm = parser.add_argument_group("harm and quality control")
    add(harm, "centers", "centers with harmful images", default=5)
    add(harm, "images", "harmful images of each whole center", default=5)
    intensity, words = command.number(float, 1e-6), "largest intensity that an image may have"
    add(harm, "maximum", words, intensity, "INTENSITY", default=255.0)
    add(harm, "error", "tolerated rise of FPR or FNR per image", command.number(float, 0, 1), "RATE", default=0.02)
    words = "share of good images that the screen may suspect (default: the script's)"
    add(harm, "false_alarms", words, share, "RATE")
    add(harm, "revisit", "cycles that a flagged image waits", metavar="CYCLES")
    flag(harm, "allow-saturated", "go on where verification cannot see harm")

    for shared in (Evaluation, Device, Images):
        add_to_parser(parser, shared)
    add(parser, "keep_every", "keep the models of every N-th cycle (and of the last) only", default=1)
    demo = parser.add_argument_group("demo cohort")
    add(demo, "shrink", "divides the paper's numbers of images")
    add(demo, "spacing", "voxel size", command.number(float, 0.01), "MM")
    return _complete(parser, parser.parse_args())


def _complete(parser, arguments):
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


def words_of(options: dict) -> list:
    """Options as words of a command line; what is not set is left out."""
    words = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return words


def plan(arguments: argparse.Namespace, cohort: Cohort) -> list:
    """The steps of the study, each after those that it needs; a script's files are relative to the study's folder."""
    steps = []
    if arguments.demo:
        size = words_of({"shrink": arguments.shrink, "spacing": arguments.spacing})
        line = (SCRIPTS["cohort"], "--output-folder", cohort.training_csv.parent, *size)
        results, work = (cohort.training_csv, cohort.test_csv), {"make": sum(cohort.centers) + cohort.tested}
        steps.append(Step("cohort", line, results=results, overwrites=True, keeps_record=False, alone=True, work=work))
    for seed in range(arguments.seeds):
        place = Path() if arguments.seeds == 1 else Path(f"seed_{seed + 1}")
        steps += _plan_of_seed(arguments, cohort, place, seed * BETWEEN_SEEDS)
    return steps


def _plan_of_seed(arguments, cohort, place, seed):
    """The steps of one seed, in the folder ``place``; ``seed`` is added to the published ones."""
    from travelling.model_files import model_files

    def given(*names):
        return words_of({name: getattr(arguments, name) for name in names})

    size, pretrained, steps = arguments.batch_size, place / "pretrained", []
    encoder, classifier = model_files(pretrained, size, arguments.pretrained_cycles - 1)
    further = arguments.cycles - arguments.pretrained_cycles
    images, batches = sum(cohort.centers), sum(-(-center // size) for center in cohort.centers)
    device, storage = given("precision", "deterministic"), given("cache_gb", "cache_dir", "reorient")

    def add(target, script, *line, reads, results, options=(), **facts):
        """A step; ``results`` are what comes after the name of the target."""
        drawn = ["--seed", PUBLISHED_SEEDS[script] + seed] if script in PUBLISHED_SEEDS else []
        results = tuple(Path(f"{target}{result}") for result in results)
        steps.append(
            Step(str(target), (SCRIPTS[script], *line, *drawn), tuple(reads), results, tuple(options), **facts)
        )

    def train(target, script, csv, *line, reads=(), results=(), **facts):
        line = ["-fn_train", csv, *line, "--output-folder", target, *given("protocol"), *device]
        facts |= {"reads": [csv, *reads], "results": ["/run.json", *results]}
        add(target, script, *line, options=[*storage, *given("keep_every")], **facts)

    def go_on(target, script, csv, *line, reads=(), **facts):
        """Going on from the pre-trained model, and inference on the models of every cycle."""
        line = ["-en", encoder, "-pd", classifier, "-cycles", arguments.cycles, *line, *given("learning_rate")]
        train(target, script, csv, *line, reads=[*reads, pretrained / "run.json"], **facts)
        line = ["-fn", cohort.test_csv, "-en", target, "-pd", target, "-o", target / "inference"]
        add(
            target / "inference", "infer", *line, *given("eval_batch_size"), *device,
            reads=[cohort.test_csv, target / "run.json"], results=["_run.json", "_metrics.csv", "_predictions.csv"],
            options=storage, overwrites=True, work=inference_work(cohort.tested, further),
        )  # fmt: skip

    def go_on_without_control(target, csv, harmful):
        """By the script of the dirty baseline, clean images too: same start, same seed, same learning rates."""
        go_on(target, "dirty", csv, "-batch_size", size, work=training_work(images + harmful, further))

    def control(target, csv, setting, harmful, harmful_batches):
        options = SETTINGS[setting]
        go_on(
            target, "control", csv, "-fn_test", cohort.test_csv, "-fn_save", target / "log",
            "-revisit", arguments.revisit, "-error", arguments.error, "--batch-size", size,
            *words_of(options), *(given("false_alarms") if options.get("screen") else []),
            *given("eval_batch_size", "allow_saturated"),
            reads=[cohort.test_csv], results=["/log.csv", "/log_subjects.csv"],
            work=control_work(images + harmful, batches + harmful_batches, cohort.tested, further),
        )  # fmt: skip

    train(
        pretrained, "train", cohort.training_csv, "-cycles", arguments.pretrained_cycles, "-batch_size", size,
        *given("width"), "--learning-rate", arguments.pretraining_rate,
        results=[f"/{half.name}" for half in (encoder, classifier)], alone=True,
        work=training_work(images, arguments.pretrained_cycles),
    )  # fmt: skip
    go_on_without_control(place / CLEAN, cohort.training_csv, 0)
    for experiment, kind in conditions_of(arguments.experiments, arguments.kinds):
        target, csv, harmful, harmful_batches = place / condition_name(experiment, kind), cohort.training_csv, 0, 0
        if experiment != CLEAN:
            each = arguments.images if experiment == "whole_centers" else 1
            harmful, harmful_batches = arguments.centers * each, arguments.centers * -(-each // size)
            csv = target / HARM / "training_set.csv"
            add(
                target / HARM, "harm", "-fn_train", cohort.training_csv, "--experiment", experiment, "--kind", kind,
                *given("centers", "images", "maximum"), "--output-folder", target / HARM,
                reads=[cohort.training_csv], results=["/training_set.csv", "/truth.csv", "/run.json"],
                work={"harm": harmful},
            )  # fmt: skip
            if not arguments.without_dirty:
                go_on_without_control(target / DIRTY, csv, harmful)
        for setting in arguments.settings:
            control(target / control_folder(setting), csv, setting, harmful, harmful_batches)
    return steps
