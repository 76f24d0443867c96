"""Is every row of a log what it must be? Compares the log with its replay."""

import itertools
from collections.abc import Sequence

from travelling.method.auditor import ROUNDING, Auditor, differs, same, shown
from travelling.method.extension import Extension
from travelling.words import some
from travelling_quality_control.auditing.replay import Replay, RunOptions
from travelling_quality_control.auditing.tables import COLUMNS, FAILURES, LIMITS, TABLE_COLUMNS, Table

MEASURED = ("ACC", "FP", "FN", "PFP", "PFN")  # columns
PHASES = ("batch", "subject", "revisit")  # of the published method


class Audit:
    """Compares a log with its replay; ``violations`` are lines of text, in the order of the rows.

    ``test_set`` holds the test set's numbers of HC and PD.
    """

    def __init__(
        self,
        log: Table,
        subjects_of: dict,
        test_set: tuple[int, int],
        options: RunOptions,
        extensions: Sequence[Extension],
        auditors: Sequence[Auditor],
        finished: bool,
    ):
        self.log = log
        self.options = options
        self.auditors = auditors
        self.judges = [auditor for auditor, one in zip(auditors, extensions, strict=True) if one.replaces_rule]
        self.further_columns = [column for auditor in auditors for column in auditor.columns]
        self.test_set = test_set
        self.may_be_unfinished = not finished
        # Where there are no rows after the baseline, no cycle has begun; the replay then only fills the table.
        first_cycle = log.rows[1]["Cycle"] if len(log.rows) > 1 else 0
        untold = {(row["Cycle"], row["Study"]) for row in log.rows if row["kind"] == "failure" and not row["Subjects"]}
        self.replay = Replay(subjects_of, first_cycle, options, untold, auditors)
        self.lost = False  # after a step out of order: the order is checked again from the next cycle on
        self.unfinished = False
        self.accepted = log.rows[0]  # the last accepted row, with which later steps are compared
        self.violations: list[str] = []

    def check(self) -> None:
        """Check header, rows and end of the log."""
        columns = [*COLUMNS, *self.further_columns]
        if self.log.header != columns:
            self._violation({"row": 1}, f"columns are {', '.join(self.log.header)}, should be {', '.join(columns)}")
            if not set(columns) <= set(self.log.header):
                return
        for auditor in self.auditors:
            auditor.read(self.log.rows[1:], self.replay, not self.may_be_unfinished)
        self._check_baseline(self.log.rows[0])
        rows = self.log.rows[1:]
        for row, following in itertools.zip_longest(rows, rows[1:]):
            if row["kind"] == "failure":
                self._check_failure(row)
            elif row["kind"] == "decision":
                self._check_decision_without_step(row)
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
        self._check_cells(row, cells | dict.fromkeys(LIMITS), "baseline")
        for auditor in self.auditors:
            self._tell(row, auditor.check_baseline(row))

    def _check_step(self, row, following):
        """Check a training step that was verified, and tell the replay what happened."""
        self._check_counts(row)
        cycle, phase = self._check_order(row)
        one = phase in ("subject", "revisit")
        self._check(row, "Subject", ";".join(row["Subjects"]) if one else phase, f"Phase {phase}")
        self._check_subjects(row)
        self._check(row, "Tolerance", *self._tolerance(row))
        self._check_reference(row)
        harmful = self._check_decision(row, phase)
        if row["Ignored"] != harmful:
            harmful = self._was_undone(row, following)
        why = f"Phase {phase}, {'harmful' if harmful else 'not harmful'}"
        self._check(row, "Eliminated", int(harmful and phase == "revisit"), why)
        self.replay.happened(cycle, phase, row["Subjects"], harmful)
        if not harmful:
            self.accepted = row

    def _check_decision_without_step(self, row):
        """Check what extensions said: who is put aside, or eliminated at the revisit; no rate was measured."""
        cycle, phase = self._check_order(row)
        self._check(row, "Subject", ";".join(row["Subjects"]), f"Phase {phase}")
        self._check_subjects(row)
        self._check_cells(row, dict.fromkeys((*MEASURED, "Tolerance")), "no step was made")
        self._check_reference(row)
        out = False
        for auditor in self.auditors:
            says_so, faults = auditor.check_decision(row, phase, self.accepted)
            self._tell(row, faults)
            out |= says_so
        if phase == "revisit" and not out:
            self._violation(row, "FP, FN: empty, but no extension is sure and the image must train")
        why = ", ".join(f"{name} {shown(row[name])}" for auditor in self.auditors for name in auditor.deciding)
        self._check(row, "Ignored", int(out), why)
        self._check(row, "Eliminated", int(out and phase == "revisit"), f"Phase {phase}, {why}")
        self.replay.happened(cycle, phase, row["Subjects"], out)

    def _check_failure(self, row):
        """Check a step that a center did not make: it changes nothing, and nothing was measured."""
        self._check_order(row)
        why = f"Phase {row['Phase']}"
        empty = dict.fromkeys((*MEASURED, *self.further_columns))
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
        if any(row["Phase"] in auditor.phases for auditor in self.auditors):
            self._check(row, "Study", ";".join(reversed(studies)), f"the centers of the {row['Phase']}")
            return
        for center, subject in studies.items():
            self._check(row, "Study", center, f"the center of {subject}")

    def _tolerance(self, row):
        """What the rates may rise by in a step, and why."""
        images, error = len(row["Subjects"]), self.options.error
        if row["Phase"] in (*PHASES, *FAILURES):
            return images * error, f"{images} x {error:g}"
        step = None if self.lost else self.replay.step
        if not step or not step.smallest:  # its batches are not known, which was a violation already
            return row["Tolerance"], f"the {row['Phase']}"
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

    def _check_decision(self, row, phase):
        """Check Ignored and the cells of extensions. Returns whether the step must have been undone."""
        tolerance, _ = self._tolerance(row)
        rounding = 0.0 if self.options.protocol == "published" else ROUNDING
        risen, reasons = [], []
        for count, below in zip(("FP", "FN"), self._divisors(), strict=True):
            rate, before = row[count] / below, self.accepted[count] / below
            risen.append(rate > before + tolerance + rounding)
            sign = ">" if risen[-1] else "<="
            reasons.append(f"P{count} {row[f'P{count}']:.6g} {sign} {self.accepted[f'P{count}']:.6g} + {tolerance:.6g}")
        harmful = any(risen) and not self.judges
        for auditor in self.auditors:
            says_so, faults = auditor.check_step(row, phase, self.accepted, risen, self.test_set)
            self._tell(row, faults)
            harmful |= says_so
            reasons += [f"{name} {shown(row[name])}" for name in auditor.judging]
        self._check(row, "Ignored", int(harmful), ", ".join(reasons))
        return harmful

    def _was_undone(self, row, following):
        """Where Ignored is not what it should be: which was acted upon? The next row's reference tells."""
        if not following:
            return row["Ignored"] == 1
        return not all(same(following[f"Reference_{rate}"], row[rate]) for rate in ("PFP", "PFN"))

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
        failures = sum(row["kind"] == "failure" for row in rows)
        phases = [row["Phase"] for row in steps]
        kinds = (*PHASES, *(phase for auditor in self.auditors for phase in auditor.phases))
        by_phase = ", ".join(f"{phases.count(phase)} {phase}" for phase in kinds)
        first, last = (rows[0]["Cycle"], rows[-1]["Cycle"]) if rows else (0, -1)
        return (
            some(last + 1 - first, "cycle")
            + (f" ({first} to {last})" if rows else "")
            + f", {some(len(steps), 'verification')} ({by_phase}), "
            + f"{some(sum(row['Ignored'] for row in steps), 'step')} undone"
            + "".join(f", {words}" for auditor in self.auditors for words in auditor.summary(rows))
            + (f", {some(failures, 'visit')} failed" if failures else "")
            + f"; subjects: {sum(map(bool, self.replay.flags.values()))} flagged, "
            f"{sum(map(bool, self.replay.revisits.values()))} revisited, {len(self.replay.eliminated)} eliminated"
            + (f"; ends in the middle of cycle {self.replay.cycle}" if self.unfinished and rows else "")
        )

    # How violations are told.

    def _check(self, row, column, should, why):
        self._tell(row, differs(row, column, should, why))

    def _check_cells(self, row, cells, why):
        for column, should in cells.items():
            self._check(row, column, should, why)

    def _tell(self, row, faults):
        for fault in faults:
            self._violation(row, fault)

    def _violation(self, row, text, path=None):
        self.violations.append(f"{path or self.log.path}, row {row['row']}: {text}")
