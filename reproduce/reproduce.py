"""The whole study with one command: the five scripts, by their own command lines, in the paper's order.

Trains the pre-trained model (cycles 0 to 9) and goes on from it on the clean images; then, for every experiment (whole
centers or single images) and kind of harm (inverted, noise), adds harmful images and goes on with and without quality
control, in one setting or several; tests the model of every cycle; and ends with tables, figures and a report. It
prints its plan first. What is done is not run again: the same command goes on after an interruption.

Examples:
    python reproduce/reproduce.py --train training_set.csv --test test_set.csv --output-folder study
    python reproduce/reproduce.py --demo
    python reproduce/reproduce.py --demo --dry-run > study.sh
    python reproduce/reproduce.py --demo --settings published evidence_screen --kinds inverted blur
"""

import contextlib
import itertools
import shlex
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.layout import PUBLISHED, SETTINGS
from plan import DEMO_CONDITIONS, Cohort, Study, plan
from steps import missing, refuse_other_results, run_steps, stop_on_signals

from travelling.beyond.screen import FALSE_ALARMS
from travelling.errors import InputError
from travelling.option import from_command_line
from travelling.runs import command
from travelling.words import some


def main() -> None:
    """Print the plan, run what is missing, and evaluate it."""
    arguments, start = from_command_line(Study, __doc__), time.monotonic()
    if carry_out(arguments):
        evaluate(arguments.output_folder, arguments)
        minutes = (time.monotonic() - start) / 60
        print(f"\nTables, figures and everything behind them: {arguments.output_folder} ({minutes:.1f} minutes)")
        print(f"Read it all: {arguments.output_folder / 'report.html'}")


def carry_out(arguments: Study, names: tuple = ()) -> bool:
    """Print the plan (``names``: of these steps only), and run what is missing; False with ``--dry-run``."""
    # Only now, so that --help answers at once.
    from travelling.files import refuse_read_only

    folder = arguments.output_folder
    refuse_other_layout(folder, arguments.seeds)
    refuse_read_only(folder)
    cohort = demo_cohort(arguments) if arguments.demo else read_cohort(arguments)
    refuse_unfit_cohort(cohort, arguments)
    steps = [step for step in plan(arguments, cohort) if not names or step.name in names]
    if not arguments.overwrite:
        refuse_other_results(steps, folder)
    refuse_changed_images(folder, cohort.files)
    stop_on_signals()
    print(describe(steps, missing(steps, folder), arguments), flush=True)
    if not arguments.dry_run:
        run_steps(steps, folder, arguments.jobs, arguments.overwrite)
    return not arguments.dry_run


def read_cohort(arguments: Study) -> Cohort:
    """The user's cohort; raises InputError for what the scripts would refuse, some of them after days."""
    from travelling.images import cohort
    from travelling.images.test_set import refuse_one_class, refuse_overlap
    from travelling.images.volumes import Volumes

    paths = [path for path in (arguments.train, arguments.test, arguments.holdout) if path]
    sets = [cohort.read_cohort(path) for path in paths]
    for (earlier, path), (later, other) in itertools.combinations(zip(sets, paths, strict=True), 2):
        refuse_overlap(earlier, later, path, other)
    training_set, test_set = sets[:2]
    refuse_one_class(test_set, arguments.test)
    volumes = Volumes(0, arguments.output_folder, arguments.reorient)
    files: dict = {}
    for images in sets:
        volumes.add(images)
        files |= images["Path"]
    sizes = list(map(len, cohort.subjects_by_center(training_set).values()))
    return Cohort(arguments.train, arguments.test, arguments.holdout, sizes, len(test_set), files)


def demo_cohort(arguments: Study) -> Cohort:
    """The demo cohort, which may not be made yet."""
    from demo_subjects import plan_cohort
    from make_demo_cohort import check_spacing

    check_spacing(arguments.spacing)
    training, test, _ = plan_cohort(arguments.shrink)
    place = Path("cohort")
    sizes = list(Counter(row["Study"] for row in training).values())
    training_csv, test_csv, holdout_csv = (place / f"{name}_set.csv" for name in ("training", "test", "holdout"))
    return Cohort(training_csv, test_csv, holdout_csv, sizes, len(test), {})


def refuse_unfit_cohort(cohort: Cohort, arguments: Study) -> None:
    """Raise InputError where there is too little for the harmful images, or for the screen."""
    from travelling.beyond.screen.scores import limit_rank
    from travelling.images.harm import refuse_too_few

    for experiment in dict.fromkeys(experiment for experiment, _ in arguments.conditions):
        refuse_too_few(experiment, arguments.centers, arguments.images, cohort.centers)
    if any(SETTINGS[setting].get("screen") for setting in arguments.settings):
        limit_rank(cohort.tested, arguments.false_alarms or FALSE_ALARMS)
    elif arguments.false_alarms is not None:
        raise InputError("--false-alarms: is an option of the screen; --settings has no setting with one")


def refuse_changed_images(folder: Path, files: dict) -> None:
    """Raise InputError where the image of a subject is not what it was when a step of this study read it."""
    from travelling.runs.record import Record

    image = None
    for path in sorted(folder.rglob("*run.json")):
        with contextlib.suppress(InputError, OSError):  # of a record or an image that is damaged: its script says so
            image = Record(path, {}).changed_image(files)
        if image:
            raise InputError(
                f"{image}: has changed since {path.parent} read it; bring back the old one, or give another "
                "--output-folder"
            )


def refuse_other_layout(folder: Path, seeds: int) -> None:
    """Raise InputError where the folder has a study with one seed and several are asked for, or the reverse."""
    there = [path.name for path in sorted(folder.glob("seed_*"))]
    if seeds == 1 and there:
        raise InputError(
            f"{folder}: has a study of several seeds ({there[0]}, ...); give --seeds or another --output-folder"
        )
    if seeds > 1 and (folder / "pretrained").is_dir():
        raise InputError(f"{folder}: has a study of one seed; choose another --output-folder for --seeds {seeds}")


def describe(steps: list, left: list, arguments: Study) -> str:
    """The plan for readers; with ``--dry-run`` as a shell script that does the same, step by step."""
    folder = arguments.output_folder
    told = f"{len(left)} of {len(steps)} steps to run, {arguments.jobs} at a time, in {folder}"
    if not arguments.dry_run:
        lines = [told, *(f"  {step.name}{'' if step in left else ': done'}" for step in steps)]
        return "\n".join(lines if left else [*lines, "all steps are done"])
    lines = ["#!/bin/sh", f"# {told}", "set -e"]
    lines.append(f"mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))}")
    for step in steps:
        lines.append(f"\n# {step.name}{'' if step in left else ': done'}")
        if step in left:
            lines.append(shlex.join([sys.executable, *step.command(arguments.overwrite)]))
    return "\n".join(lines)


def evaluate(folder: Path, arguments: Study) -> None:
    """Make tables, figures and report, and print the tables that matter most."""
    # Only now, so that --help answers at once.
    from evaluation import demo_runs, report
    from evaluation.figures import overview, render
    from evaluation.records import read_study
    from evaluation.tables.holdout import summary_of_holdout
    from evaluation.tables.performance import summary_of_performance
    from evaluation.tables.settings import settings_in_words, summary_of_settings

    study = read_study(folder)
    tables = report.evaluate(study, folder)
    if arguments.demo and arguments.conditions == DEMO_CONDITIONS and PUBLISHED in arguments.settings:
        (folder / "demo.png").write_bytes(render(overview(study)))  # shows images, and these are nobody's
    views = {f"Diagnoses of the test set after cycle {arguments.cycles - 1}": summary_of_performance(tables)}
    if "holdout" in tables:
        views["AUROC on the set that decides, and on subjects by which nothing was decided"] = summary_of_holdout(
            tables
        )
    views["The settings side by side"] = summary_of_settings(tables)
    for title, view in views.items():
        print(f"\n{title}\n\n{view.to_string(index=False)}")
    print("", *(textwrap.fill(line, 100, subsequent_indent="  ") for line in settings_in_words(tables)), sep="\n")
    if arguments.is_whole_demo() and demo_runs.MEASURED.is_file():
        measured = demo_runs.read_measured(demo_runs.MEASURED)
        runs = some(len(measured[[*demo_runs.MADE_BY, "seed"]].drop_duplicates()), "run")
        print(f"\nThis run; in brackets the smallest and the largest of {runs} that were measured (docs/demo.md)\n")
        print(demo_runs.place(study, measured).to_string(index=False))


if __name__ == "__main__":
    command.run(main)
