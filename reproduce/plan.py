"""What a study is told, and the steps that it takes: the command line of reproduce.py, and the plan."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evaluation import layout
from evaluation.layout import (
    CLEAN,
    DIRTY,
    HARM,
    PUBLISHED,
    RECOMMENDED,
    SETTINGS,
    condition_name,
    conditions_of,
    control_folder,
)
from steps import Step

from travelling.beyond.groups import GroupOptions
from travelling.beyond.screen import ScreenOptions
from travelling.option import changed, option
from travelling.option_values import to_command_line
from travelling.runs import command
from travelling.runs.control_options import LocalQualityControl
from travelling.runs.harm_options import HarmfulSamples
from travelling.runs.options import Device, Orientation, StandardModel
from travelling.runs.pretrained_options import DirtyBaseline, Inference

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    "cohort": ROOT / "reproduce" / "make_demo_cohort.py",
    "train": ROOT / "standard_travelling_model" / "enc_PD_train_distributed.py",
    "harm": ROOT / "generate_harmful_samples" / "generate_data.py",
    "dirty": ROOT / "dirty_baselines" / "enc_PD_train_dirt_baseline.py",
    "control": ROOT / "travelling_quality_control" / "enc_PD_quality_control.py",
    "infer": ROOT / "inference" / "inference_pd_distributed.py",
}
OPTIONS = {
    "train": StandardModel, "harm": HarmfulSamples, "dirty": DirtyBaseline, "control": LocalQualityControl,
    "infer": Inference,
}  # fmt: skip
COUNT = command.number(int, 1)
CONTROL = "harm and quality control"
# What the demo does otherwise: a narrow network learns faster, and a revisit after one cycle ends it sooner.
PAPER = {
    "cycles": 30, "width": 1.0, "pretraining_rate": 1e-4, "revisit": 2, "jobs": 1, "settings": (PUBLISHED,),
}  # fmt: skip
DEMO = {
    "cycles": 12, "width": 0.125, "pretraining_rate": 1e-3, "revisit": 1, "jobs": min(4, os.cpu_count() or 1),
    "settings": (PUBLISHED, RECOMMENDED), "output_folder": Path("demo"), "shrink": 4, "spacing": 4.0,
}  # fmt: skip
# Its experiments: the published kinds of harm, and one that the published rule does not see.
DEMO_CONDITIONS = (("whole_centers", "inverted"), ("whole_centers", "noise_in_range"), ("single", "noise"))
# Options that change no figure of the demo.
INDIFFERENT = ("output_folder", "without_dirty", "jobs", "dry_run", "overwrite", "deterministic", "reorient")
PUBLISHED_SEEDS = {"train": 40, "harm": 42, "dirty": 42, "control": 42}
# A cycle's generator has the seed plus its cycle, so seeds that are close would share the orders of many cycles.
BETWEEN_SEEDS = 1000


def _default(name):
    """What the words of an option say of its default, where the demo has another."""
    return f"(default: {PAPER[name]}; --demo: {DEMO[name]})" if name in PAPER else f"(default: {DEMO[name]})"


@dataclass(kw_only=True)
class Study(Device, Orientation):
    """What a study is told; options of the scripts go to them as they are. The types are those after :meth:`check`."""

    train: Path = option("training set (docs/data.md)", Path, None, metavar="CSV", group="study")
    test: Path = option("test set", Path, None, metavar="CSV", group="study")
    holdout: Path | None = option(
        "hold-out set, which decides nothing: a second test (--demo makes one)",
        Path,
        None,
        metavar="CSV",
        group="study",
    )
    demo: bool = option("make a synthetic cohort and use that", None, False, group="study")
    output_folder: Path = option(
        "for everything (default with --demo: demo)", Path, None, metavar="FOLDER", group="study"
    )
    seeds: int = option(
        "how often the study is repeated on the same cohort, with other seeds", COUNT, 1, metavar="N", group="study"
    )
    experiments: tuple = option(
        "what is done; clean: quality control of the images as they are, which all count as good (default: the paper's "
        "two; --demo: without --kinds, those of docs/demo.md)",
        str, None, metavar="NAME", choices=layout.EXPERIMENTS, many="+", group="study",
    )  # fmt: skip
    kinds: tuple = option(
        "kinds of harm (default: the paper's two; --demo: without --experiments, those of docs/demo.md)",
        str,
        None,
        metavar="KIND",
        choices=layout.KINDS,
        many="+",
        group="study",
    )
    settings: tuple = option(
        f"settings of quality control to compare (default: {PUBLISHED}; --demo: {PUBLISHED} {RECOMMENDED})",
        str, None, metavar="SETTING", choices=tuple(SETTINGS), many="+", group="study",
    )  # fmt: skip
    without_dirty: bool = option("leave out the dirty baselines, which saves time", None, False, group="study")
    jobs: int = option(
        f"steps that run at the same time; each needs memory of its own, on a GPU too {_default('jobs')}",
        COUNT, None, metavar="N", group="study",
    )  # fmt: skip
    dry_run: bool = option("print the plan as a shell script, and run nothing", None, False, group="study")
    overwrite: bool = option("replace results that were made with other options", None, False, group="study")

    cycles: int = option(f"cycles in all {_default('cycles')}", COUNT, None, metavar="N", group="training")
    pretrained_cycles: int = option("cycles of the pre-trained model", COUNT, 10, metavar="N", group="training")
    width: float = changed(
        StandardModel, "width", None, group="training", words=f"filters, relative to the paper's {_default('width')}"
    )
    pretraining_rate: float = changed(
        StandardModel, "learning_rate", None, group="training",
        words=f"learning rate in cycle 0, of the pre-trained model {_default('pretraining_rate')}",
    )  # fmt: skip
    learning_rate: float = changed(
        DirtyBaseline, "learning_rate", group="training", words="the same, of those that go on from it"
    )
    batch_size: int = changed(LocalQualityControl, "batch_size", group="training")
    protocol: str = changed(LocalQualityControl, "protocol", group="training")

    centers: int = changed(HarmfulSamples, "centers", group=CONTROL)
    images: int = changed(HarmfulSamples, "images", group=CONTROL)
    maximum: float = changed(HarmfulSamples, "maximum", group=CONTROL, words="largest intensity that an image may have")
    error: float = changed(LocalQualityControl, "error", flag=None, group=CONTROL)
    false_alarms: float | None = changed(ScreenOptions, "false_alarms", group=CONTROL)
    verify_every: int | None = changed(
        GroupOptions, "verify_every", None, group=CONTROL,
        words=f"batches that are trained before the test set is evaluated (default: 1; in the setting {RECOMMENDED} "
        f"{SETTINGS[RECOMMENDED]['verify_every']})",
    )  # fmt: skip
    revisit: int = changed(
        LocalQualityControl, "revisit", None, flag=None, group=CONTROL,
        words=f"cycles that a flagged image waits {_default('revisit')}",
    )  # fmt: skip
    allow_saturated: bool = changed(
        LocalQualityControl, "allow_saturated", group=CONTROL,
        words="go on where the pre-trained model errs so much that verification cannot see harm (--demo: always)",
    )  # fmt: skip
    shrink: int = option(
        f"divides the paper's numbers of images {_default('shrink')}", COUNT, None, metavar="N", group="demo cohort"
    )
    spacing: float = option(
        f"voxel size {_default('spacing')}", command.number(float, 0.01), None, metavar="MM", group="demo cohort"
    )
    conditions: tuple = field(init=False, default=())  # what is done: (experiment, kind), from check() on

    def check(self, spell: Callable[[str], str]) -> None:
        """Check how options go together, and fill in the defaults of the paper or of the demo."""
        for name in () if self.demo else ("train", "test", "output_folder"):
            if not getattr(self, name):
                raise ValueError(f"{spell(name)}: is needed (or --demo)")
        for name in ("train", "test", "holdout") if self.demo else ("shrink", "spacing"):
            if getattr(self, name):
                raise ValueError(f"{spell(name)}: {'--demo makes its own cohort' if self.demo else 'with --demo only'}")
        for name, value in (DEMO if self.demo else PAPER).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.cycles <= self.pretrained_cycles:
            raise ValueError(
                f"{spell('cycles')}: is the total, and must be above --pretrained-cycles ({self.pretrained_cycles})"
            )
        chosen = conditions_of(self.experiments or layout.PAPER_EXPERIMENTS, self.kinds or layout.PAPER_KINDS)
        whole_demo = self.demo and not self.experiments and not self.kinds
        self.conditions = DEMO_CONDITIONS if whole_demo else tuple(dict.fromkeys(chosen))
        self.settings = tuple(dict.fromkeys(self.settings))  # each once
        self.allow_saturated |= self.demo  # on some processors the demo's pre-trained model is
        for name in ("train", "test", "holdout", "output_folder"):  # the scripts run in the study's folder
            if getattr(self, name):
                setattr(self, name, getattr(self, name).resolve())

    def is_whole_demo(self) -> bool:
        """Whether this is the demo as it was measured: with its defaults, as far as they decide a result."""
        plain = Study(demo=True)
        plain.check(str)
        told, usual = ({**vars(one), **dict.fromkeys(INDIFFERENT)} for one in (self, plain))
        return told == usual


@dataclass(frozen=True)
class Cohort:
    """What must be known of a cohort before the study: CSVs, images of each training center and of the test set."""

    training_csv: Path
    test_csv: Path
    holdout_csv: Path | None
    centers: list
    tested: int
    files: dict  # of all images, by subject


def plan(arguments: Study, cohort: Cohort) -> list:
    """The steps of the study, each after those that it needs; a script's files are relative to the study's folder."""
    steps = []
    if arguments.demo:
        size = to_command_line(Study, shrink=arguments.shrink, spacing=arguments.spacing)
        line = (SCRIPTS["cohort"], "--output-folder", str(cohort.training_csv.parent), *size)
        results = cohort.training_csv, cohort.test_csv, cohort.holdout_csv
        steps.append(Step("cohort", line, results=results, overwrites=True, keeps_record=False, alone=True))
    for seed in range(arguments.seeds):
        place = Path() if arguments.seeds == 1 else Path(f"seed_{seed + 1}")
        steps += _plan_of_seed(arguments, cohort, place, seed * BETWEEN_SEEDS)
    return steps


def _plan_of_seed(arguments, cohort, place, seed):
    """The steps of one seed, in the folder ``place``; ``seed`` is added to the published ones."""
    from travelling.network.model_files import model_files

    def given(*names):
        return {name: getattr(arguments, name) for name in names}

    size, pretrained, steps = arguments.batch_size, place / "pretrained", []
    encoder, classifier = model_files(pretrained, size, arguments.pretrained_cycles - 1)

    def add(target, script, values, results, model=None, **facts):
        """A step; ``values`` are options that decide its results, which are what comes after the target's name.

        ``model`` is the folder of the run whose models it takes.
        """
        reads = [values[name] for name in ("fn_train", "fn", "fn_test") if name in values]
        reads += [model / "run.json"] if model else []
        if script in PUBLISHED_SEEDS:
            values = values | {"seed": PUBLISHED_SEEDS[script] + seed}
        if script != "harm":
            values = values | given("reorient")
        line = (SCRIPTS[script], *to_command_line(OPTIONS[script], **values))
        results = tuple(Path(f"{target}{result}") for result in results)
        steps.append(Step(str(target), line, tuple(reads), results, **facts))

    def train(target, script, values, results=(), **facts):
        values = values | {"output_folder": target, **given("protocol", "precision", "deterministic")}
        add(target, script, values, ["/run.json", *results], **facts)

    def go_on(target, script, csv, values, results=(), **facts):
        """Going on from the pre-trained model, and inference on the models of every cycle.

        On the hold-out set, of the last one, if it is no dirty one: it shows how much the test set flatters.
        """
        values = {"fn_train": csv, "en": encoder, "pd": classifier, "cycles": arguments.cycles, **values}
        train(target, script, values | given("learning_rate"), results, model=pretrained, **facts)
        infer(target, "inference", cohort.test_csv)
        if cohort.holdout_csv and target.name != DIRTY:
            infer(target, "holdout", cohort.holdout_csv, only_cycles=[arguments.cycles - 1] * 2)

    def infer(target, name, csv, **more):
        values = {"fn": csv, "en": target, "pd": target, "o": target / name, **more}
        results = ["_run.json", "_metrics.csv", "_predictions.csv"]
        add(target / name, "infer", values, results, model=target, overwrites=True)

    def go_on_without_control(target, csv):
        """By the script of the dirty baseline, clean images too: same start, same seed, same learning rates."""
        go_on(target, "dirty", csv, {"batch_size": size})

    def control(target, csv, setting):
        options = SETTINGS[setting]
        values = {"fn_test": cohort.test_csv, "fn_save": target / "log", **given("revisit", "error", "batch_size")}
        values |= options | (given("false_alarms") if options.get("screen") else {})
        values |= given("verify_every") if arguments.verify_every else {}
        values |= given("allow_saturated")
        go_on(target, "control", csv, values, ["/log.csv", "/log_subjects.csv"])

    values = {"fn_train": cohort.training_csv, "cycles": arguments.pretrained_cycles, "batch_size": size}
    values |= given("width") | {"learning_rate": arguments.pretraining_rate}
    models = [f"/{half.name}" for half in (encoder, classifier)]
    for experiment, kind in arguments.conditions:  # first: what they would refuse is known before anything trains
        if experiment != CLEAN:
            target = place / condition_name(experiment, kind) / HARM
            harm = {"fn_train": cohort.training_csv, "experiment": experiment, "kind": kind, "output_folder": target}
            harm |= given("centers", "images", "maximum")
            add(target, "harm", harm, ["/training_set.csv", "/truth.csv", "/run.json"])
    train(pretrained, "train", values, models, alone=True)
    go_on_without_control(place / CLEAN, cohort.training_csv)
    for experiment, kind in arguments.conditions:
        target, csv = place / condition_name(experiment, kind), cohort.training_csv
        if experiment != CLEAN:
            csv = target / HARM / "training_set.csv"
            if not arguments.without_dirty:
                go_on_without_control(target / DIRTY, csv)
        for setting in arguments.settings:
            control(target / control_folder(setting), csv, setting)
    return steps
