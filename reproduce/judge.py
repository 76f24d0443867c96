"""Judge the images of a cohort with one command: which ones would make the model worse?

Trains the standard travelling model on the cohort, goes on from it with quality control in the recommended setting
(--rule evidence --screen; without the screen where the test set is too small for its limit), and writes the report of
that run: which images were eliminated, flagged and came back, and why. It prints its plan with an estimate of the time
first. What is done is not run again: the same command goes on after an interruption.

Examples:
    python reproduce/judge.py --train training_set.csv --test test_set.csv --out judged
    python reproduce/judge.py --train training_set.csv --test test_set.csv --out judged --dry-run
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation.layout import CLEAN, control_folder
from plan import PAPER, Study

from reproduce import carry_out
from travelling import command
from travelling.errors import InputError
from travelling.options import (
    FALSE_ALARMS,
    Device,
    Evaluation,
    Images,
    QualityControl,
    Training,
    TrainingSet,
    changed,
    from_command_line,
)


@dataclass(kw_only=True)
class Judgement(Evaluation, Device, Images):
    """What the command is told: options of a study, without what is about known harm."""

    train: Path = changed(TrainingSet, "fn_train", flag=None, group=None, words="the images to judge (docs/data.md)")
    test: Path = changed(QualityControl, "fn_test", flag=None, group=None, words="test set: images that you trust")
    out: Path = changed(Training, "output_folder", group=None, words="for everything")
    cycles: int | None = changed(Study, "cycles", PAPER["cycles"], words="cycles in all", group=None)
    pretrained_cycles: int = changed(Study, "pretrained_cycles", words="of these without quality control", group=None)
    width: float = changed(Study, "width", PAPER["width"], words="filters, relative to the paper's", group=None)
    pretraining_rate: float = changed(
        Study, "pretraining_rate", PAPER["pretraining_rate"], words="learning rate in cycle 0", group=None
    )
    verify_every: int = changed(Study, "verify_every", group=None)
    false_alarms: float | None = changed(Study, "false_alarms", group=None)
    allow_saturated: bool = changed(Study, "allow_saturated", group=None)
    dry_run: bool = changed(Study, "dry_run", group=None)
    overwrite: bool = changed(Study, "overwrite", group=None)

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.options.Options.check`."""
        self.study("evidence").check(spell)

    def study(self, setting: str) -> Study:
        """The study of which this is a part."""
        return Study(**asdict(self), experiments=(CLEAN,), settings=(setting,), without_dirty=True)


def main() -> None:
    """Print the plan, run what is missing, and write the report."""
    judgement = from_command_line(Judgement, __doc__)
    study = judgement.study(setting_for(judgement))
    study.check(str)
    run_folder = f"{CLEAN}/{control_folder(*study.settings)}"
    if not carry_out(study, ("pretrained", run_folder)):  # without the models that a study compares with
        return
    # Only now, so that --help answers at once.
    from travelling_quality_control.reporting.one_run import in_one_line, write_report
    from travelling_quality_control.reporting.runs import read_record

    folder = study.out / run_folder
    run, outcome, files = write_report(
        folder / "log.csv", study.train, study.test, study.out / "report.html", read_record(folder / "run.json"),
        subjects_csv=folder / "log_subjects.csv",
    )  # fmt: skip
    print("\n".join(["", in_one_line(run, outcome), *map(str, files)]))
    sys.exit(bool(outcome.violations))


def setting_for(judgement: Judgement) -> str:
    """The setting that docs/settings.md recommends for a test set of this size; says so if it has no screen."""
    from travelling.cohort import read_cohort
    from travelling.screen import limit_rank

    if judgement.false_alarms:  # then the user wants the screen
        return "evidence_screen"
    tested = len(read_cohort(judgement.test))
    try:
        limit_rank(tested, FALSE_ALARMS)
    except InputError as error:
        print(f"notice: without the screen ({error}); docs/settings.md tells what that means", file=sys.stderr)
        return "evidence"
    return "evidence_screen"


if __name__ == "__main__":
    command.run(main)
