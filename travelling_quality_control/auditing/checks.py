"""Is every row of a log what it must be? Compares the log with its replay."""

import itertools
import math
from statistics import NormalDist

from travelling.rules import RULES
from travelling_quality_control.auditing.replay import Replay, RunOptions
from travelling_quality_control.auditing.tables import (
    COLUMNS,
    FAILURES,
    LABEL_COLUMNS,
    LIMITS,
    SCREEN_COLUMNS,
    TABLE_COLUMNS,
    Table,
    look_columns,
)

ROUNDING = 1e-9  # smaller differences do not count, but for what --protocol published decides
MEASURED = ("ACC", "FP", "FN", "PFP", "PFN")  # columns


class Audit:
    """Compares a log with its replay; ``violations`` are lines of text, in the order of the rows.

    ``test_set`` holds the test set's numbers of HC and PD.
    """

    def __init__(self, log: Table, subjects_of: dict, test_set: tuple[int, int], options: RunOptions, finished: bool):
        self.log = log
        self.options = options
        self.rule = RULES[options.rule]()
        self.step_columns = [name for name in self.rule.columns if name not in self.rule.baseline_columns]
        self.test_set = test_set
        self.may_be_unfinished = not finished
        # Where there are no rows after the baseline, no cycle has begun; the replay then only fills the table.
        first_cycle = log.rows[1]["Cycle"] if len(log.rows) > 1 else 0
        untold = {(row["Cycle"], row["Study"]) for row in log.rows if row["kind"] == "failure" and not row["Subjects"]}
        self.replay = Replay(subjects_of, first_cycle, options, untold)
        self.lost = False  # after a step out of order: the order is checked again from the next cycle on
        self.unfinished = False
        self.accepted = log.rows[0]  # the last accepted row, with which later steps are compared
        self.look_columns = look_columns(log.header)
        self.label_columns = LABEL_COLUMNS * options.label_screen
        self.screen_columns = [*SCREEN_COLUMNS, *self.look_columns, *self.label_columns]
        self.centers_p = self._pool_labels() if options.label_screen else {}
        self.limits: dict[int, float] = {}  # cycle -> the screen's limit
        self.asked: dict[int, bool] = {}  # cycle -> whether labels were screened in it
        self.first_looks: dict[str, dict] = {}  # subject -> row of its last look before it trains
        self.violations: list[str] = []

    def check(self) -> None:
        """Check header, rows and end of the log."""
        columns = [*COLUMNS, *self.rule.columns, *(self.screen_columns if self.options.screen else ())]
        if self.log.header != columns:
            self._violation({"row": 1}, f"columns are {', '.join(self.log.header)}, should be {', '.join(columns)}")
            if not set(columns) <= set(self.log.header):
                return
        if self.options.screen and not self.look_columns:
            self._violation({"row": 1}, "no column has the score of a look")
            return
        self._check_baseline(self.log.rows[0])
        rows = self.log.rows[1:]
        for row, following in itertools.zip_longest(rows, rows[1:]):
            if row["kind"] == "failure":
                self._check_failure(row)
            elif row["kind"] == "look":
                self._check_look(row)
            else:
                self._check_step(row, following)
        self._check_end()

    # The kinds of rows.

    def _check_baseline(self, row):
        """Check the first row: the pre-trained model."""
        self._check_counts(row)
        if row["Phase"] != "baseline":
            self._violation(row, f"Phase is {shown(row['Phase'])}, should be 'baseline'; the row is not replayed")
            return
        cells = {"Subject": "n/a", "Study": "n/a", "Subjects": [], "Cycle": 0, "Ignored": 0, "Eliminated": 0}
        empty = dict.fromkeys((*LIMITS, *self.step_columns, *self.screen_columns))
        self._check_cells(row, cells | empty, "baseline")
        self._tell(row, self.rule.audit_baseline(row))

    def _check_step(self, row, following):
        """Check a training step that was verified, and tell the replay what happened."""
        self._check_counts(row)
        cycle, phase = self._check_order(row)
        if phase in ("batch", "group", "subject", "revisit"):
            one = phase in ("subject", "revisit")
            self._check(row, "Subject", ";".join(row["Subjects"]) if one else phase, f"Phase {phase}")
        self._check_subjects(row)
        self._check(row, "Tolerance", *self._tolerance(row))
        self._check_reference(row)
        harmful = self._check_decision(row)
        if self.options.screen:
            self._check_score(row, phase)
        if row["Ignored"] != harmful:
            harmful = self._was_undone(row, following)
        why = f"Phase {phase}, {'harmful' if harmful else 'not harmful'}"
        self._check(row, "Eliminated", int(harmful and phase == "revisit"), why)
        self.replay.happened(cycle, phase, row["Subjects"], harmful)
        if not harmful:
            self.accepted = row

    def _check_look(self, row):
        """Check what the screen said: who is put aside, or eliminated at the revisit; no rate was measured."""
        cycle, phase = self._check_order(row)
        self._check(row, "Subject", ";".join(row["Subjects"]), f"Phase {phase}")
        self._check_subjects(row)
        self._check_cells(row, dict.fromkeys((*MEASURED, "Tolerance", *self.rule.columns)), "no step was made")
        self._check_reference(row)
        suspect = self._is_sure(row) if phase == "revisit" else self._is_suspect(row)
        if phase == "revisit" and not suspect:
            self._violation(row, "FP, FN: empty, but its looks are not sure and the image must train")
        elif row["Subjects"]:
            self.first_looks[row["Subjects"][0]] = row
        why = ", ".join(f"{name} {shown(row[name])}" for name in (*SCREEN_COLUMNS, *self.label_columns))
        self._check(row, "Ignored", int(suspect), why)
        self._check(row, "Eliminated", int(suspect and phase == "revisit"), f"Phase {phase}, {why}")
        self.replay.happened(cycle, phase, row["Subjects"], suspect)

    def _check_failure(self, row):
        """Check a step that a center did not make: it changes nothing, and nothing was measured."""
        self._check_order(row)
        why = f"Phase {row['Phase']}"
        empty = dict.fromkeys((*MEASURED, *self.rule.columns, *self.screen_columns))
        self._check_cells(row, {"Subject": "n/a", "Ignored": 1, "Eliminated": 0} | empty, why)
        self._check_subjects(row)
        self._check(row, "Tolerance", *self._tolerance(row))
        self._check_reference(row)
        self.replay.failed(row["Study"])

    # What rows have in common.

    def _check_order(self, row):
        """Compare a row with the step that must come now. Returns the (cycle, phase) it stands for."""
        told = row["Cycle"], row["Phase"]
        if self.lost and not self._catch_up(row):
            return told
        failed = row["Subjects"] if row["kind"] == "failure" else []
        step, cycle = self.replay.next_step(failed), self.replay.cycle
        found = f"{row['Phase']} {';'.join(row['Subjects'])} in cycle {row['Cycle']}"
        if not step:
            self._violation(row, f"Phase, Subjects: {found}, but no step can follow")
            self.lost = True
            return told
        subjects = step.subjects
        if step.if_failed and row["kind"] == "failure":
            subjects = step.if_failed.get(row["Study"], subjects)
        if sorted(row["Subjects"]) == sorted(subjects):  # the right step, whatever else is wrong
            self._check(row, "Cycle", cycle, "the order of the steps")
            if row["Phase"] not in FAILURES:
                self._check(row, "Phase", step.phase, "the order of the steps")
            self._check(row, "Subjects", subjects, "the order of the steps")
            return cycle, step.phase
        self._violation(
            row,
            f"Phase, Subjects: {found}, should be {step.phase} {';'.join(subjects)} in cycle {cycle} "
            f"(the order in the rest of cycle {cycle} is not checked)",
        )
        self.lost = True
        return self._check_order(row) if row["Cycle"] > cycle else told  # it may be that the cycle ended too early

    def _catch_up(self, row):
        """Go on to the cycle of a row if it is a later one that can follow; then the order is checked again."""
        if not 0 < row["Cycle"] - self.replay.cycle <= self.options.revisit:
            return False
        while self.replay.cycle < row["Cycle"]:
            self.replay.begin_cycle()
        self.lost = False
        return True

    def _check_subjects(self, row):
        """The subjects are known, each is there once, and Study is their center."""
        subjects, center_of = row["Subjects"], self.replay.center_of
        for subject in subjects:
            if subject not in center_of:
                self._violation(row, f"Subjects has {shown(subject)}, which is not in the training set")
        for subject in sorted({subject for subject in subjects if subjects.count(subject) > 1}):
            self._violation(row, f"Subjects has {shown(subject)} {subjects.count(subject)} times, should be once")
        # One line is enough where the center is wrong for every subject.
        studies = {center_of[subject]: subject for subject in reversed(subjects) if subject in center_of}
        if row["Phase"] == "group":
            self._check(row, "Study", ";".join(reversed(studies)), "the centers of the group")
            return
        for center, subject in studies.items():
            self._check(row, "Study", center, f"the center of {subject}")

    def _tolerance(self, row):
        """What the rates may rise by in a step, and why."""
        images, error = len(row["Subjects"]), self.options.error
        if row["Phase"] != "group":
            return images * error, f"{images} x {error:g}"
        step = None if self.lost else self.replay.step
        if not step or not step.smallest:  # its batches are not known, which was a violation already
            return row["Tolerance"], "the group"
        return step.smallest * error, f"{step.smallest} x {error:g}, its smallest batch"

    def _check_reference(self, row):
        for rate in ("PFP", "PFN"):
            self._check(row, f"Reference_{rate}", self.accepted[rate], "the last accepted rate")

    def _check_counts(self, row):
        """ACC, PFP and PFN follow from FP and FN."""
        total = sum(self.test_set)
        for column, most, group in zip(("FP", "FN"), self.test_set, ("HC", "PD"), strict=True):
            if row[column] > most:
                self._violation(row, f"{column} is {row[column]}, but the test set has {most} {group}")
        self._check(row, "ACC", (total - row["FP"] - row["FN"]) / total, f"FP {row['FP']}, FN {row['FN']} of {total}")
        for column, below in zip(("FP", "FN"), self._divisors(), strict=True):
            self._check(row, f"P{column}", row[column] / below, f"{column} {row[column]} / {below}")

    def _divisors(self):
        """What FP and FN are divided by."""
        return self.test_set[::-1] if self.options.protocol == "published" else self.test_set

    # Decisions.

    def _check_decision(self, row):
        """Check Ignored and the cells of the rule. Returns whether the step must have been undone."""
        tolerance, _ = self._tolerance(row)
        rounding = 0.0 if self.options.protocol == "published" else ROUNDING
        risen, reasons = [], []
        for count, below in zip(("FP", "FN"), self._divisors(), strict=True):
            rate, before = row[count] / below, self.accepted[count] / below
            risen.append(rate > before + tolerance + rounding)
            sign = ">" if risen[-1] else "<="
            reasons.append(f"P{count} {row[f'P{count}']:.6g} {sign} {self.accepted[f'P{count}']:.6g} + {tolerance:.6g}")
        harmful, faults = self.rule.audit_step(row, self.accepted, risen, self.test_set)
        self._tell(row, faults)
        reasons += [f"{name} {shown(row[name])}" for name in self.step_columns]
        self._check(row, "Ignored", int(harmful), ", ".join(reasons))
        return harmful

    def _was_undone(self, row, following):
        """Where Ignored is not what it should be: which was acted upon? The next row's reference tells."""
        if not following:
            return row["Ignored"] == 1
        return not all(same(following[f"Reference_{rate}"], row[rate]) for rate in ("PFP", "PFN"))

    def _check_score(self, row, phase):
        """A revisit that trained was no suspect; elsewhere nothing is scored."""
        if phase != "revisit":
            self._check_cells(row, dict.fromkeys(self.screen_columns), f"Phase {phase}")
        elif self._is_sure(row):
            self._violation(row, f"Screen_score {shown(row['Screen_score'])} is sure, as the first was, but it trained")

    def _is_suspect(self, row):
        """Whether the score is above the limit, which is one for each cycle."""
        score, limit = row["Screen_score"], row["Screen_limit"]
        self._check(row, "Screen_limit", self.limits.setdefault(row["Cycle"], limit), "the limit of this cycle")
        if score is None or limit is None:
            self._violation(row, "Screen_score or Screen_limit is empty, should be a number")
            return False
        looks = [row[name] for name in self.look_columns]
        if None in looks:
            self._violation(row, f"{' or '.join(self.look_columns)} is empty, should be a number")
        else:
            largest = math.nan if any(map(math.isnan, looks)) else max(looks)
            self._check(row, "Screen_score", largest, f"the largest of {', '.join(self.look_columns)}")
        if self.label_columns:
            self._check_labels(row)
        return strange(row) or doubted(row)

    def _check_labels(self, row):
        """Check the cells of the label screen: of a cycle all look rows have them, or none."""
        if row["Cycle"] not in self.asked:
            asked = self.asked[row["Cycle"]] = row["Label_p"] is not None
            accepted = self.accepted.get("AUROC")
            if row["Phase"] == "screen" and accepted is not None and asked != (accepted >= 0.8):
                self._violation(row, f"Label_p is {shown(row['Label_p'])}, but AUROC was {shown(accepted)}")
        if not self.asked[row["Cycle"]]:
            self._check_cells(row, dict.fromkeys(self.label_columns), "the model knew too little in this cycle")
            return
        if row["Label_p"] is None or not 0 < row["Label_p"] <= 1:
            self._violation(row, f"Label_p is {shown(row['Label_p'])}, should be from 0 to 1")
        self._check(row, "Center_limit", 0.05 / len(self.replay.subjects_of), "0.05 by the number of centers")
        pooled = self.centers_p.get((row["Cycle"], row["Study"]), row["Center_p"])
        self._check(row, "Center_p", pooled, "from Label_p of the center's usual images")

    def _is_sure(self, row):
        """Whether the looks of a flag and of its revisit are enough to eliminate an image without a step.

        Both find it strange, with a mean score above 4; or both doubt the labels of its center.
        """
        suspect = self._is_suspect(row)
        first = self.first_looks.get(row["Subjects"][0] if row["Subjects"] else "")
        scores = [look["Screen_score"] for look in (first or row, row)]
        if None in scores:
            return suspect
        sure = not sum(scores) / 2 <= 4 and strange(first or row) and strange(row)
        return sure or (doubted(first or row) and doubted(row))

    def _pool_labels(self):
        """(cycle, center) -> p-value of its labels, of all rows that tell of a look; not where the center failed."""
        looks: dict[tuple, list] = {}
        for row in self.log.rows[1:]:
            place = row["Cycle"], row["Study"]
            if row["kind"] == "failure":
                looks[place] = [math.nan]
            elif row.get("Label_p") is not None and 0 < row["Label_p"] <= 1 and not strange(row):
                looks.setdefault(place, []).append(row["Label_p"])
        last = self.log.rows[-1]["Cycle"] if self.may_be_unfinished else None
        normal = NormalDist()
        pooled: dict[tuple, float | None] = {}
        for (cycle, center), values in looks.items():
            if cycle == last or any(map(math.isnan, values)):
                continue
            total = sum(normal.inv_cdf(1 - min(max(value, 1e-9), 0.999)) for value in values)
            variance = len(values) + 0.04 * len(values) ** 2
            pooled[cycle, center] = 1 - normal.cdf(total / math.sqrt(variance)) if len(values) >= 3 else None
        return pooled

    # The end of the log, the table of subjects, the summary.

    def _check_end(self):
        """A log ends with the last step of a cycle."""
        self.replay.pass_over([])
        step = None if self.lost else self.replay.step
        if not step:
            return
        self.unfinished = True
        if self.may_be_unfinished:
            return
        if len(self.log.rows) > 1:
            following = f"{step.phase} {';'.join(step.subjects)}".strip()
            where = f"in the middle of cycle {self.replay.cycle}; {following} should follow"
        else:
            where = "before the first cycle"
        self._violation(self.log.rows[-1], f"the log ends {where}, but by its run.json the run is finished")

    def check_table(self, table: Table) -> None:
        """Check the table of subjects, which is written whenever a cycle is over."""
        if tuple(table.header) != TABLE_COLUMNS:
            text = f"columns are {', '.join(table.header)}, should be {', '.join(TABLE_COLUMNS)}"
            self._violation({"row": 1}, text, table.path)
        given: dict[str, dict] = {}
        for row in table.rows:
            subject = row["Subject"]
            if subject not in self.replay.center_of:
                self._violation(row, f"Subject is {shown(subject)}, which is not in the training set", table.path)
            elif subject in given:
                self._violation(row, f"Subject is {shown(subject)}, as in row {given[subject]['row']}", table.path)
            else:
                given[subject] = row
        implied = [self.replay.table_before if self.unfinished else self.replay.subject_table()]
        if self.may_be_unfinished:  # the run may have ended just before the table was written again
            implied.append(self.replay.table_before)
        # The one that fits, or else the first.
        should = next(
            (cells for cells in implied if all(given[name].items() >= cells[name].items() for name in given)),
            implied[0],
        )
        for subject, row in given.items():
            differences = [
                f"{column} is {shown(row[column])}, should be {shown(value)}"
                for column, value in should[subject].items()
                if row[column] != value
            ]
            if differences:
                self._violation(row, f"{'; '.join(differences)} (of {subject}, by the log)", table.path)
        for subject in self.replay.center_of:
            if subject not in given:
                self.violations.append(f"{table.path}: Subject {shown(subject)} has no row")

    def summary(self) -> str:
        """What a consistent log holds, in words."""
        rows = self.log.rows[1:]
        steps = [row for row in rows if row["kind"] == "step"]
        looks = sum(row["Phase"] == "screen" for row in rows)
        failures = sum(row["kind"] == "failure" for row in rows)
        phases = [row["Phase"] for row in steps]
        kinds = ("batch", "subject", "revisit", *(["group"] if self.options.verify_every > 1 else []))
        by_phase = ", ".join(f"{phases.count(phase)} {phase}" for phase in kinds)
        first, last = (rows[0]["Cycle"], rows[-1]["Cycle"]) if rows else (0, -1)
        return (
            f"{last + 1 - first} cycles"
            + (f" ({first} to {last})" if rows else "")
            + f", {len(steps)} verifications ({by_phase}), {sum(row['Ignored'] for row in steps)} steps undone"
            + (f", {looks} looks of the screen" if looks else "")
            + (f", {failures} visits failed" if failures else "")
            + f"; subjects: {sum(map(bool, self.replay.flags.values()))} flagged, "
            f"{sum(map(bool, self.replay.revisits.values()))} revisited, {len(self.replay.eliminated)} eliminated"
            + (f"; ends in the middle of cycle {self.replay.cycle}" if self.unfinished and rows else "")
        )

    # How violations are told.

    def _check(self, row, column, should, why):
        if not same(row.get(column), should):
            self._violation(row, f"{column} is {shown(row[column])}, should be {shown(should)} ({why})")

    def _check_cells(self, row, cells, why):
        for column, should in cells.items():
            self._check(row, column, should, why)

    def _tell(self, row, faults):
        """Tell what a rule found (:meth:`travelling.rules.Rule.audit_step`)."""
        for columns, words in faults:
            first, *others = columns
            values = [f"{first} is {shown(row[first])}", *(f"{column} {shown(row[column])}" for column in others)]
            self._violation(row, f"{' and '.join(values)}, {words}")

    def _violation(self, row, text, path=None):
        self.violations.append(f"{path or self.log.path}, row {row['row']}: {text}")


def strange(row: dict) -> bool:
    """Whether a look finds an image strange."""
    score, limit = row["Screen_score"], row["Screen_limit"]
    return score is not None and limit is not None and not score <= limit


def doubted(row: dict) -> bool:
    """Whether a look doubts the labels of an image's center."""
    return row.get("Center_p") is not None and row["Center_limit"] is not None and row["Center_p"] < row["Center_limit"]


def same(value: object, other: object) -> bool:
    """Whether two cells agree: numbers up to rounding."""
    if isinstance(value, float) and isinstance(other, float):
        return value == other or abs(value - other) <= ROUNDING or (math.isnan(value) and math.isnan(other))
    return value == other


def shown(value: object) -> str:
    """A cell in words."""
    if isinstance(value, list):
        value = ";".join(value)
    if value is None or value == "":
        return "empty"
    return f"'{value}'" if isinstance(value, str) else f"{value:.10g}"
