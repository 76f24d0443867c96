"""Judge the images of a cohort with one command: which ones would make the model worse?

Trains the standard travelling model on the cohort, a narrow one, goes on from it with quality control in the
recommended setting and with the screen of labels (--rule evidence --screen --label-screen --verify-every 16), and
writes the report of that run: which images were eliminated, flagged and came back, and why, with slices of them, and
what was not examined. Where the test set is too small for the screen's rate of false alarms, it takes the smallest that
does, and says so. It prints its plan first. What is done is not run again: the same command goes on after an
interruption.

Of one table (--cohort) half of the persons become the test set, in equal shares of class and center. Images that
prepare_images.py found least like the template, or says to look at, are not drawn for it: they are judged. Its column
Rating goes before that: images to keep may be drawn, images to leave out or redo are in neither half. The same command
with --other-half judges the test half, and then exclude.tsv is the list of both.

Examples:
    python reproduce/judge.py --cohort prepared/prepared.csv --output-folder judged
    python reproduce/judge.py prepared judged group
    python reproduce/judge.py --train training_set.csv --test test_set.csv --output-folder judged
    python reproduce/judge.py --train training_set.csv --test test_set.csv --output-folder judged --dry-run
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluation.layout import CLEAN, JUDGING, SETTINGS, control_folder
from plan import DEMO, PAPER, Study

from prepare_images.options import bids_app, folders_of
from reproduce import carry_out
from travelling.beyond.groups import GroupOptions
from travelling.beyond.screen import FALSE_ALARMS
from travelling.errors import InputError
from travelling.option import changed, from_command_line, option
from travelling.runs import command
from travelling.runs.options import Device, Orientation, Training
from travelling.words import some

if TYPE_CHECKING:  # slow to import
    import pandas as pd

SEED = 42  # of the halves
EVIDENCE = "evidence"  # the setting where the screen cannot be used
MOST_FALSE_ALARMS = 0.1  # the screen is off where it would need a higher rate, unless the user gives one
OTHER_HALF = "other_half"  # the folder of that half
MEASURES = ("Similarity", "Mutual_information")  # of prepare_images.py: how well an image fits the template


@dataclass(kw_only=True)
class Judgement(Device, Orientation):
    """What the command is told: options of a study, without what is about known harm."""

    cohort: Path | None = option(
        "all images, of which half are judged by the other half; or", Path, None, metavar="CSV"
    )
    bids_app: list | None = bids_app(
        "the same as --cohort and --output-folder, bids_dir being what prepare_images.py wrote", "group"
    )
    train: Path | None = option("the images to judge (docs/data.md), and", Path, None, metavar="CSV")
    test: Path | None = option("test set: images that you trust", Path, None, metavar="CSV")
    holdout: Path | None = changed(
        Study, "holdout", group=None, words="hold-out set, which decides nothing: a second test of the last model"
    )
    other_half: bool = option(
        f"of --cohort, judge what is the test set otherwise, in a folder {OTHER_HALF} of the output folder", None, False
    )
    output_folder: Path = changed(Training, "output_folder", Path("judged"), group=None, words="for everything")
    cycles: int | None = changed(Study, "cycles", PAPER["cycles"], words="cycles in all", group=None)
    pretrained_cycles: int = changed(Study, "pretrained_cycles", words="of these without quality control", group=None)
    width: float = changed(
        Study, "width", DEMO["width"], words="filters, relative to the paper's (1.0: the published network)", group=None
    )
    pretraining_rate: float = changed(
        Study, "pretraining_rate", DEMO["pretraining_rate"], group=None,
        words=f"learning rate in cycle 0 ({PAPER['pretraining_rate']:g}: the paper's, for its width)",
    )  # fmt: skip
    verify_every: int = changed(GroupOptions, "verify_every", SETTINGS[JUDGING]["verify_every"], group=None)
    false_alarms: float | None = changed(
        Study, "false_alarms", group=None,
        words=f"share of good images that the screen may flag (default: {FALSE_ALARMS}, or the smallest "
        "that the test set can tell)",
    )  # fmt: skip
    without_images: bool = option("show no slices of flagged images in the report", None, False)
    ratings: Path | None = option(
        "ratings of images, as the pages export them: they are kept, and compared with the decisions", Path, None,
        metavar="TSV",
    )  # fmt: skip
    allow_saturated: bool = changed(Study, "allow_saturated", group=None)
    dry_run: bool = changed(Study, "dry_run", group=None)
    overwrite: bool = changed(Study, "overwrite", group=None)

    def check(self, spell: Callable[[str], str]) -> None:
        """As :meth:`travelling.option.Options.check`."""
        if self.bids_app:
            prepared, self.output_folder = folders_of(self.bids_app, "group")
            self.cohort = prepared / "prepared.csv"
        if self.cohort and (self.train or self.test):
            raise ValueError(f"{spell('cohort')}: takes the place of {spell('train')} and {spell('test')}")
        if not self.cohort and not (self.train and self.test):
            raise ValueError(f"{spell('cohort')} is needed, or both {spell('train')} and {spell('test')}")
        if self.other_half and not self.cohort:
            raise ValueError(f"{spell('other_half')}: with {spell('cohort')} only")
        if self.other_half:
            self.output_folder /= OTHER_HALF
        if self.cohort:
            self.train, self.test = (self.output_folder / f"{name}_set.csv" for name in ("training", "test"))
        self.study(EVIDENCE).check(spell)

    def study(self, setting: str) -> Study:
        """The study of which this is a part."""
        own = ("cohort", "bids_app", "other_half", "without_images", "ratings")
        told = {name: value for name, value in asdict(self).items() if name not in own}
        return Study(**told, experiments=(CLEAN,), settings=(setting,), without_dirty=True)


def main() -> None:
    """Print the plan, run what is missing, and write the report."""
    judgement = from_command_line(Judgement, __doc__)
    if judgement.cohort:
        write_halves(judgement)
    if judgement.ratings:  # what is wrong with them is said before anything trains
        from travelling.images.ratings import read_ratings
        from travelling_quality_control.judging.logged_run import read_images

        assert judgement.train  # check() has filled it in
        read_ratings(judgement.ratings, read_images(judgement.train).index)
    setting, why_not = setting_for(judgement)
    study = judgement.study(setting)
    study.check(str)
    run_folder = f"{CLEAN}/{control_folder(*study.settings)}"
    tests = (f"{run_folder}/inference", f"{run_folder}/holdout") if study.holdout else ()
    if not carry_out(study, ("pretrained", run_folder, *tests)):  # without the models that a study compares with
        return
    # Only now, so that --help answers at once.
    from travelling_quality_control.auditing.run_record import read_run_record
    from travelling_quality_control.reporting.one_run import in_one_line, write_report

    folder = study.output_folder / run_folder
    further = [compare_with_holdout(study.output_folder)] if study.holdout else []
    run, files = write_report(
        read_run_record(folder / "run.json"), folder / "log.csv", study.train, study.test, folder / "log_subjects.csv",
        study.output_folder / "report.html", not judgement.without_images, judgement.ratings, why_not, further,
    )  # fmt: skip
    print("\n".join(["", in_one_line(run), *map(str, files)]))
    if not judgement.without_images:
        print(
            "report.html shows slices of flagged images: keep it as you keep those (--without-images leaves them out)"
        )
    if run.violations:
        sys.exit(1)
    if judgement.cohort:
        write_exclude_list(judgement.output_folder.parent if judgement.other_half else judgement.output_folder)
    for caption, view in further:
        print(f"\n{caption}\n\n{view.to_string(index=False)}")


def write_exclude_list(folder: Path) -> None:
    """Once both halves of a cohort are judged, write exclude.tsv: whom either of them eliminated."""
    import pandas as pd

    from travelling.files import write_tsv
    from travelling_quality_control.reporting.one_run import COLUMNS

    halves = [folder, folder / OTHER_HALF]
    lists = [half / "log_decisions.tsv" for half in halves]
    if not all(path.is_file() for path in lists):
        return
    tables = (
        pd.concat(pd.read_csv(half / f"{name}_set.csv", dtype=str) for name in ("training", "test")) for half in halves
    )
    one, another = (table.sort_values("Subject", ignore_index=True) for table in tables)
    if not one.equals(another):
        print(f"notice: {halves[0]} and {halves[1]} are halves of different tables: no common list", file=sys.stderr)
        return
    first, other = (pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False) for path in lists)
    both = first.merge(other, "outer", ["participant_id", "center"], suffixes=("", f"_{OTHER_HALF}")).fillna("n/a")
    decided = both[["decision", f"decision_{OTHER_HALF}"]]
    out = both[(decided == "eliminated").any(axis=1)]
    columns: dict[str, dict] = {name: COLUMNS[name] for name in ("participant_id", "center", "decision", "reason")}
    for name in ("decision", "reason"):
        words = f"{COLUMNS[name]['Description']}, with --other-half; n/a: in the test set of that run"
        columns[f"{name}_{OTHER_HALF}"] = {**COLUMNS[name], "Description": words}
    path, _ = write_tsv(out, folder / "exclude.tsv", columns)
    print(f"{some(len(out), 'image')} eliminated in either half: {path}")


def compare_with_holdout(folder: Path) -> "tuple[str, pd.DataFrame]":
    """Write the table that compares the test set with the hold-out set. Returns its caption, and that of the AUROC."""
    from evaluation.diagnoses import Diagnoses
    from evaluation.records import read_study
    from evaluation.render import write_tables
    from evaluation.tables import make_tables
    from evaluation.tables.holdout import summary_of_holdout

    study = read_study(folder)
    tables = {"holdout": make_tables(study, Diagnoses(study))["holdout"]}
    write_tables(tables, folder / "tables")
    return f"{tables['holdout'].title}: AUROC", summary_of_holdout(tables)


def write_halves(judgement: Judgement) -> None:
    """Write the training and the test set that become of one table; both stay if they are there.

    Raises InputError where another table or half is there, unless ``overwrite``.
    """
    from travelling.files import refuse_read_only, write_whole
    from travelling.images.cohort import read_cohort, read_measure
    from travelling.images.ratings import KEEP, OUT

    assert judgement.cohort
    assert judgement.train  # check() has filled them in
    assert judgement.test
    cohort = read_cohort(judgement.cohort)
    measures = {name: read_measure(judgement.cohort, cohort, name) for name in MEASURES if name in cohort}
    rating = cohort.get("Rating", cohort["Subject"].map(lambda _: ""))  # what a person said of them
    doubts = cohort.assign(**measures).reindex(columns=["Status", *measures]).mask(rating == KEEP)
    cohort, left_out = cohort[~rating.isin(OUT)], rating.isin(OUT).sum()
    tested = test_half(cohort.assign(**doubts), judgement.other_half)
    refuse_read_only(judgement.output_folder)
    for path, half in ((judgement.train, cohort[~tested]), (judgement.test, cohort[tested])):
        if half.empty:
            raise InputError(f"{judgement.cohort}: too few images to keep half of them for the test set")
        text = half.to_csv(index=False, lineterminator="\n").encode()
        if path.is_file() and path.read_bytes() != text and not judgement.overwrite:
            raise InputError(
                f"{path}: is not what becomes of {judgement.cohort} (--overwrite, or another --output-folder)"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    rest = f", {left_out} left out by their Rating" if left_out else ""
    print(f"{(~tested).sum()} images to judge, {tested.sum()} to test on{rest}: {judgement.train}, {judgement.test}")


def test_half(cohort: "pd.DataFrame", other: bool) -> "pd.Series":
    """Which images (bool, by subject) are the test set: those of every second person by class and center.

    Who has an image to look at (``Status``), or among the tenth least like the template by one of ``MEASURES``, is not
    drawn in either half. These are numbers, NaN where nobody has measured.
    """
    from prepare_images.registration import LOOK
    from travelling.images.cohort import persons

    person_of = persons(cohort)
    strange = set(person_of[cohort["Status"] == LOOK]) if "Status" in cohort else set()
    for measure in set(MEASURES) & set(cohort):
        strange |= set(person_of[cohort[measure].dropna().nsmallest(math.ceil(len(cohort) / 10)).index])
    order = cohort.assign(Person=person_of)[~person_of.isin(strange)].drop_duplicates("Person")
    order = order.sample(frac=1, random_state=SEED).sort_values(["Group_bin", "Study"], kind="stable")
    return person_of.isin(order["Person"].iloc[int(other) :: 2])


def setting_for(judgement: Judgement) -> tuple[str, dict[str, str]]:
    """The setting, at the smallest rate of false alarms from the default on that the test set can tell.

    Says so where that is another rate, or none, and the screen is off; then also why, by option.
    """
    from travelling.beyond.screen.scores import least_rate, limit_rank
    from travelling.images.cohort import read_cohort

    if judgement.false_alarms:  # then the user wants the screen
        return JUDGING, {}
    assert judgement.test  # check() has filled it in
    tested = len(read_cohort(judgement.test))
    try:
        limit_rank(tested, MOST_FALSE_ALARMS)
        limit_rank(tested, FALSE_ALARMS)
    except InputError as error:
        if least_rate(tested) > MOST_FALSE_ALARMS:
            print(f"notice: the screen is off ({error})", file=sys.stderr)
            small = f"a test set of {some(tested, 'subject')} is too small for the screen"
            return EVIDENCE, {"screen": small, "label_screen": f"they are examined with the images, and {small}"}
        judgement.false_alarms = least_rate(tested)
        print(f"notice: --false-alarms {judgement.false_alarms:g} is taken ({error})", file=sys.stderr)
    return JUDGING, {}


if __name__ == "__main__":
    command.run(main)
