"""Is every row of a log what it must be? Compares the log with its replay."""

from collections.abc import Sequence

from travelling.method.auditor import ROUNDING, Auditor, Step, differs, shown
from travelling.words import some
from travelling_quality_control.auditing.replay import Replay
from travelling_quality_control.auditing.run_record import Settings
from travelling_quality_control.auditing.tables import COLUMNS, LIMITS, TABLE_COLUMNS, Table

MEASURED = ("ACC", "FP", "FN", "PFP", "PFN")  # columns
PHASES = ("batch", "subject", "revisit")  # of the published method
ORDER = "the order of the steps"


class Audit:
    """Compares a log with its replay; ``violations`` are lines of text, in the order of the rows.

    ``table`` is that of the subjects, ``test_set`` holds the test set's numbers of HC and PD.
    """

    def __init__(
        self,
        log: Table,
        table: Table | None,
        subjects_of: dict,
        test_set: tuple[int, int],
        settings: Settings,
        auditors: Sequence[Auditor],
        finished: bool,
    ):
        self.log = log
        self.settings = settings
        self.auditors = auditors
        self.rule_replaced = any(extension.replaces_rule for extension in settings.extensions)
        self.further_columns = [column for auditor in auditors for column in auditor.columns]
        self.test_set = test_set
        # What FP and FN are divided by.
        self.divisors = test_set[::-1] if settings.protocol == "published" else test_set
        self.finished = finished
        # Where there are no rows after the baseline, no cycle has begun; the replay then only fills the table.
        first_cycle = log.rows[1]["Cycle"] if len(log.rows) > 1 else 0
        untold = {(row["Cycle"], row["Study"]) for row in log.rows if row["kind"] == "failure" and not row["Subjects"]}
        self.replay = Replay(subjects_of, first_cycle, settings, untold, auditors)
        self.unfinished = False  # whether the log ends in the middle of a cycle
        self.accepted = log.rows[0]  # the last accepted row, with which later steps are compared
        self.violations: list[str] = []
        if self._check_log() and table:
            self._check_table(table)

    def _check_log(self):
        """Check header, rows and end of the log. Returns whether it came to the end."""
        columns = [*COLUMNS, *self.further_columns]
        if self.log.header != columns:
            self._violation({"row": 1}, f"columns are {', '.join(self.log.header)}, should be {', '.join(columns)}")
            if not set(columns) <= set(self.log.header):
                return False
        for auditor in self.auditors:
            auditor.read(self.log.rows[1:], self.replay, self.finished)
        self._check_baseline(self.log.rows[0])
        checks = {"step": self._check_step, "decision": self._check_decision, "failure": self._check_failure}
        for row in self.log.rows[1:]:
            step = self._check_order(row)
            self._check_subjects(row)
            if not step or not checks[row["kind"]](row, step):
                self.violations[-1] += "; what follows is not checked"
                return False
        self._check_end()
        return True

    # The kinds of rows. Those after the first return whether the log can go on as it did.

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

    def _check_step(self, row, step):
        """Check a training step that was verified, and tell the replay what happened."""
        self._check_counts(row)
        phase = step.phase
        alone = phase in ("subject", "revisit")
        self._check(row, "Subject", ";".join(row["Subjects"]) if alone else phase, f"Phase {phase}")
        self._check_limits(row, step)
        harmful = self._is_harmful(row, step)
        why = f"Phase {phase}, {'harmful' if harmful else 'not harmful'}"
        self._check(row, "Eliminated", int(harmful and phase == "revisit"), why)
        self.replay.happened(harmful)
        if not harmful:
            self.accepted = row
        return row["Ignored"] == harmful

    def _check_decision(self, row, step):
        """Check what extensions said: which image is flagged, or eliminated at the revisit; no rate was measured."""
        phase = step.phase
        self._check(row, "Subject", ";".join(row["Subjects"]), f"Phase {phase}")
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
        self.replay.happened(out)
        return row["Ignored"] == out

    def _check_failure(self, row, step):
        """Check a step that a center did not make: it changes nothing, and nothing was measured."""
        empty = dict.fromkeys((*MEASURED, *self.further_columns))
        self._check_cells(row, {"Subject": "n/a", "Ignored": 1, "Eliminated": 0} | empty, f"Phase {row['Phase']}")
        self._check_limits(row, step)
        self.replay.failed(row["Study"])
        return True

    # What rows have in common.

    def _check_order(self, row: dict) -> Step | None:
        """Compare a row with the step that must come now; returns it, or None where the row is about others."""
        failed = row["Subjects"] if row["kind"] == "failure" else []
        step, cycle = self.replay.next_step(failed), self.replay.cycle
        found = f"{row['Phase']} {';'.join(row['Subjects'])} in cycle {row['Cycle']}"
        if not step:
            self._violation(row, f"Phase, Subjects: {found}, but no step can follow")
            return None
        subjects = step.subjects
        if step.if_failed and row["kind"] == "failure":
            subjects = step.if_failed.get(row["Study"], subjects)
        if sorted(row["Subjects"]) != sorted(subjects):
            should = f"{step.phase} {';'.join(subjects)} in cycle {cycle}"
            self._violation(row, f"Phase, Subjects: {found}, should be {should}")
            return None
        phase = row["Phase"] if row["kind"] == "failure" else step.phase
        self._check_cells(row, {"Cycle": cycle, "Phase": phase, "Subjects": subjects}, ORDER)
        return step

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

    def _images(self, row, step):
        """How many images' tolerance a step has, and what it is of."""
        if step.smallest and row["kind"] == "step":
            return step.smallest, ", its smallest batch"
        return len(row["Subjects"]), ""

    def _check_limits(self, row, step):
        (images, of), error = self._images(row, step), self.settings.error
        self._check(row, "Tolerance", images * error, f"{images} x {error:g}{of}")
        self._check_reference(row)

    def _check_reference(self, row):
        for rate in ("PFP", "PFN"):
            self._check(row, f"Reference_{rate}", self.accepted[rate], "the last accepted rate")

    def _check_counts(self, row):
        """ACC, PFP and PFN follow from FP and FN."""
        total = sum(self.test_set)
        self._check(row, "ACC", (total - row["FP"] - row["FN"]) / total, f"FP {row['FP']}, FN {row['FN']} of {total}")
        about = zip(("FP", "FN"), ("HC", "PD"), self.test_set, self.divisors, strict=True)
        for column, group, most, below in about:
            if row[column] > most:
                self._violation(row, f"{column} is {row[column]}, but the test set has {most} {group}")
            self._check(row, f"P{column}", row[column] / below, f"{column} {row[column]} / {below}")

    def _is_harmful(self, row, step):
        """Check Ignored and the cells of extensions. Returns whether the step must have been rejected."""
        tolerance = self._images(row, step)[0] * self.settings.error
        rounding = 0.0 if self.settings.protocol == "published" else ROUNDING
        risen, reasons = [], []
        for count, below in zip(("FP", "FN"), self.divisors, strict=True):
            rate, before = row[count] / below, self.accepted[count] / below
            risen.append(rate > before + tolerance + rounding)
            sign = ">" if risen[-1] else "<="
            reasons.append(f"P{count} {row[f'P{count}']:.6g} {sign} {self.accepted[f'P{count}']:.6g} + {tolerance:.6g}")
        harmful = any(risen) and not self.rule_replaced
        for auditor in self.auditors:
            says_so, faults = auditor.check_step(row, step.phase, self.accepted, risen, self.test_set)
            self._tell(row, faults)
            harmful |= says_so
            reasons += [f"{name} {shown(row[name])}" for name in auditor.judging]
        self._check(row, "Ignored", int(harmful), ", ".join(reasons))
        return harmful

    # The end of the log, the table of subjects, the summary.

    def _check_end(self):
        """A log ends with the last step of a cycle."""
        self.replay.pass_over([])
        step = self.replay.step
        self.unfinished = step is not None
        if not step or not self.finished:
            return
        if len(self.log.rows) > 1:
            following = f"{step.phase} {';'.join(step.subjects)}".strip()
            where = f"in the middle of cycle {self.replay.cycle}; {following} should follow"
        else:
            where = "before the first cycle"
        self._violation(self.log.rows[-1], f"the log ends {where}, but by its run.json the run is finished")

    def _check_table(self, table):
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
        tables = [self.replay.table_before] if self.unfinished else [self.replay.subject_table()]
        if not self.finished:  # the run may have ended just before the table was written again
            tables.append(self.replay.table_before)
        for row, fault in min((self._differences(given, should) for should in tables), key=len):
            self._violation(row, fault, table.path)
        for subject in self.replay.center_of:
            if subject not in given:
                self.violations.append(f"{table.path}: Subject {shown(subject)} has no row")

    def _differences(self, given, should):
        """The rows of the table of subjects that are not what they should be, and what is wrong with them."""
        found = []
        for subject, row in given.items():
            wrong = {column: value for column, value in should[subject].items() if row[column] != value}
            faults = [f"{column} is {shown(row[column])}, should be {shown(value)}" for column, value in wrong.items()]
            found += [(row, f"{'; '.join(faults)} (of {subject}, by the log)")] if faults else []
        return found

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
            + f"{some(sum(row['Ignored'] for row in steps), 'step')} rejected"
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
