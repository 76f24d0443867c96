"""Audit the log of a quality-control run: replay it and check every row and every decision.

What must stand in the log is derived anew from the method's description and the two CSVs. No image is needed,
and no line of code that made the decisions is shared.

Example:
    python audit.py filename.csv --train ./training_set.csv --test ./test_set.csv

Prints one line "consistent: ..." (exit status 0), or the first violations, one a line with the row of the file
(row 1 is the header; exit status 1). Input that cannot be audited is one line on stderr (exit status 2).
"""

import csv
import functools
import itertools
import math
import sys
from pathlib import Path

from travelling import command
from travelling.errors import InputError

INTEGERS = ("Cycle", "FP", "FN", "Ignored", "Eliminated")
NUMBERS = ("ACC", "PFP", "PFN")
OPTIONAL_NUMBERS = ("Tolerance", "Reference_PFP", "Reference_PFN")  # empty in the baseline row
COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
TABLE_COLUMNS = (
    "Subject", "Study", "Times_flagged", "First_flagged_cycle", "Revisits", "Eliminated", "Eliminated_cycle",
)  # fmt: skip
EVIDENCE_COLUMNS = ("AUROC", "P_AUROC", "P_FP", "P_FN")  # of --rule evidence
P_LIMIT = 0.01  # what has a smaller p-value is more than chance
SCREEN_COLUMNS = ("Screen_score", "Screen_limit")  # of --screen
FAILURES = ("unreachable", "invalid")  # phases of a step that a center did not make: its row has no rates
ROUNDING = 1e-9  # smaller differences do not count, but for what --protocol published decides
LARGEST = 2**31  # of seed and of cycle: NumPy takes seeds below 2**32


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    needed = {"type": Path, "required": True, "metavar": "CSV"}
    parser.add_argument("log", type=Path, metavar="LOG", help="the log, <fn_save>.csv")
    parser.add_argument("--train", help="training set of the run", **needed)
    parser.add_argument("--test", help="test set of the run", **needed)
    parser.add_argument(
        "--subjects",
        type=Path,
        metavar="CSV",
        help="<fn_save>_subjects.csv, checked as well (default: the file of that name beside LOG, if it is there)",
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="the run was interrupted: the log may end in the middle of a cycle"
    )
    parser.add_argument("--show", type=command.number(int, 1), default=10, metavar="N", help="violations to print")
    group = parser.add_argument_group("options of the run")
    group.add_argument("--protocol", choices=["corrected", "published"], default="corrected", help="docs/protocols.md")
    group.add_argument(
        "--revisit",
        "-revisit",
        type=command.number(int, 1),
        default=2,
        metavar="CYCLES",
        help="cycles that a flagged image waits",
    )
    group.add_argument(
        "--error",
        "-error",
        type=command.number(float, 0, 1),
        default=0.02,
        metavar="RATE",
        help="tolerated rise of FPR or FNR, as a fraction of 1, per image of a training step",
    )
    group.add_argument("--seed", type=command.number(int, 0, LARGEST), default=42, help="of the travelling order")
    group.add_argument(
        "--batch-size", type=command.number(int, 1), default=5, metavar="N", help="images per training step"
    )
    group.add_argument("--rule", choices=["published", "evidence"], default="published", help="when a step is harmful")
    group.add_argument("--screen", action="store_true", help="images were screened before they trained")
    group.add_argument(
        "--centers",
        nargs="+",
        metavar="NAME",
        help="of a federation: all that the server's configuration names, in its order (default: those of the training "
        "set, which lacks centers that never told their subjects)",
    )
    return parser.parse_args()


def main():
    """Audit, print, and exit with status 1 if anything is wrong."""
    arguments = parse_arguments()
    centers, healthy, patients = read_cohorts(arguments.train, arguments.test)
    if arguments.centers:
        centers = all_centers(arguments.centers, centers, arguments.train)
    log = read_log(arguments.log)
    center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
    if len(log.rows) > 1 and not any(subject in center_of for row in log.rows for subject in row["Subjects"]):
        raise InputError(f"{arguments.log}: no subject is in {arguments.train}; it is another training set's log")
    beside = arguments.log.with_name(f"{arguments.log.stem}_subjects.csv")
    table_path = arguments.subjects or (beside if beside.is_file() else None)
    table = read_subject_table(table_path) if table_path else None

    audit = Audit(log, centers, healthy, patients, arguments)
    audit.check()
    if table:
        audit.check_table(table)
    if audit.violations:
        for violation in audit.violations[: arguments.show]:
            print(violation)
        more = len(audit.violations) - arguments.show
        if more > 0:
            print(f"and {more} more violation{'s' if more > 1 else ''} (--show N prints more)")
        sys.exit(1)
    print(f"consistent: {audit.summary()}; {table.path if table else 'no subject table'}")


class Table:
    """A CSV file: its ``path``, its ``header`` and its ``rows``, dicts; ``"row"`` is the number in the file."""

    def __init__(self, path, columns, strip=False):
        self.path = path
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                records = list(csv.reader(file, strict=True))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a CSV file ({error})") from None
        self.header = records[0] if records else []
        missing = [column for column in columns if column not in self.header]
        if missing:
            raise InputError(f"{path}: missing column(s) {', '.join(missing)}; needed are {', '.join(columns)}")
        self.rows = []
        for number, cells in enumerate(records[1:], start=2):
            if len(cells) > len(self.header):
                raise InputError(f"{path}, row {number}: has more cells than the header")
            if any(cells):
                cells = [cell.strip() if strip else cell for cell in cells]
                values = dict(itertools.zip_longest(self.header, cells, fillvalue=""))
                self.rows.append(values | {"row": number})
        if not self.rows:
            raise InputError(f"{path}: has no rows")

    def convert(self, columns, kind, optional=lambda row: False, finite=True):
        """Turn the cells of some columns into numbers, empty ones into None in rows where they are ``optional``."""
        word = "a whole number of at least 0" if kind is int else "a number"
        for row, column in itertools.product(self.rows, columns):
            text = row[column]
            try:
                value = None if text == "" and optional(row) else kind(text)
            except ValueError:
                value, finite = math.nan, True
            if value is not None and (
                (finite and not math.isfinite(value)) or (kind is int and not 0 <= value < LARGEST)
            ):
                raise InputError(f"{self.path}, row {row['row']}: {column} '{text}' is not {word}")
            row[column] = value


def read_cohorts(train, test):
    """The two CSVs: centers with their subjects, in order of first appearance, and the test set's HC and PD.

    Read here and not by travelling.cohort, which wants to see the images.
    """
    training_set = Table(train, ("Subject", "Study"), strip=True)
    test_set = Table(test, ("Subject", "Group_bin"), strip=True)
    test_set.convert(["Group_bin"], float)
    centers, seen = {}, {}
    for table in (training_set, test_set):
        for row in table.rows:
            if not row["Subject"] or row["Subject"] in seen:
                reason = f"'{row['Subject']}' is in {seen[row['Subject']]}, too" if row["Subject"] else "is empty"
                raise InputError(f"{table.path}, row {row['row']}: Subject {reason}")
            seen[row["Subject"]] = f"{table.path}, row {row['row']}"
    for row in training_set.rows:
        centers.setdefault(row["Study"], []).append(row["Subject"])
    groups = [row["Group_bin"] for row in test_set.rows]
    if set(groups) != {0, 1}:
        raise InputError(f"{test}: Group_bin must be 0 (HC) and 1 (PD), and both must be there")
    return centers, groups.count(0), groups.count(1)


def all_centers(names, centers, train):
    """Centers with their subjects in the order of ``names``, which are all; none where they never told them."""
    unknown = [name for name in centers if name not in names]
    if unknown:
        raise InputError(f"--centers: {unknown[0]} of {train} is not one of them")
    return {name: centers.get(name, []) for name in names}


def failed_step(row):
    """Whether a row tells of a step that its center did not make; the first row never does."""
    return row["Phase"] in FAILURES and row["row"] > 2


def screened_only(row):
    """Whether a row tells what the screen said of an image, and no step was made."""
    return "Screen_score" in row and (
        row["Phase"] == "screen" or (row["Phase"] == "revisit" and row["FP"] in ("", None))
    )


def read_log(path):
    """The log, with its numbers as numbers and its subjects as lists."""
    log = Table(path, COLUMNS)
    unmeasured = {row["row"] for row in log.rows if failed_step(row) or screened_only(row)}
    for columns, kind in ((INTEGERS, int), (NUMBERS, float)):
        log.convert(columns, kind, optional=lambda row: row["row"] in unmeasured)
    log.convert(OPTIONAL_NUMBERS, float, optional=lambda row: True)
    further = [column for column in (*EVIDENCE_COLUMNS, "Screen_limit") if column in log.header]
    log.convert(further, float, optional=lambda row: True)
    if "Screen_score" in log.header:  # a model that has come to nothing scores no number
        log.convert(["Screen_score"], float, optional=lambda row: True, finite=False)
    for row in log.rows:
        for column in ("Cycle", "Ignored", "Eliminated"):
            if row[column] is None:
                raise InputError(f"{path}, row {row['row']}: {column} '' is not a whole number of at least 0")
    for row in log.rows:
        row["Subjects"] = row["Subjects"].split(";") if row["Subjects"] else []
    return log


def read_subject_table(path):
    """The table of subjects, with its numbers as numbers."""
    table = Table(path, TABLE_COLUMNS)
    table.convert(("Times_flagged", "Revisits", "Eliminated"), int)
    table.convert(("First_flagged_cycle", "Eliminated_cycle"), int, optional=lambda row: True)
    return table


def travel(centers, seed, first_cycle):
    """For cycle after cycle, without end: the cycle, its centers in visiting order, its random generator."""
    import numpy as np  # only now, so that --help answers at once

    order = np.array(list(centers), dtype=object)
    np.random.RandomState(seed).shuffle(order)
    for cycle in itertools.count(first_cycle):
        generator = np.random.RandomState(seed + cycle)
        generator.shuffle(order)
        yield cycle, list(order), generator


class Replay:
    """Quality control without a model: :meth:`next_step` is what must come next, after what :meth:`happened`.

    ``untold`` holds (cycle, center) where a center had not told its subjects yet.
    """

    def __init__(self, centers, first_cycle, options, untold=frozenset()):
        self.centers = centers
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        self.untold = untold
        self.absent = set()  # centers that failed in this cycle
        self.options = options
        self.flags = {subject: [] for subjects in centers.values() for subject in subjects}  # cycles
        self.revisits = dict.fromkeys(self.flags, 0)
        self.waiting = {}  # subject -> cycle of its flag, in the order of the flags
        self.eliminated = {}  # subject -> cycle
        self._travel = travel(centers, options.seed, first_cycle)
        self.begin_cycle()

    def begin_cycle(self):
        """Go on to the next cycle."""
        self.at_start = self.subject_table()
        self.cycle, self._order, self._generator = next(self._travel)
        self._visit = []  # steps left at the center that is visited: (phase, subjects)
        self._screened = None  # this center, as long as its images are screened
        self._alone = []  # of a harmful batch
        self.absent = set()

    def _go_on(self):
        """Go on to the next steps: of the center that is screened, or at the next one."""
        while not self._visit and (self._screened or self._order):
            if self._screened:
                self._visit = [("batch", batch) for batch in self._cut(self._present(self._screened))]
                self._screened = None
                continue
            center = self._order.pop(0)
            if (self.cycle, center) in self.untold or not self.centers[center]:
                self._visit = [(FAILURES[0], [])]
            elif self.options.screen:
                self._visit = [("screen", [subject]) for subject in self._present(center)]
                self._screened = center
            else:
                self._visit = [("batch", batch) for batch in self._cut(self._present(center))]

    def to_be_screened(self):
        """The subjects about whom the center that is visited is still to be asked: it is asked once."""
        return [subject for _, subjects in self._visit for subject in subjects]

    def _present(self, center):
        """Who trains at a center."""
        return [name for name in self.centers[center] if name not in self.waiting and name not in self.eliminated]

    def _cut(self, present):
        """A center's batches."""
        import numpy as np

        shuffled = np.array(present, dtype=object)
        self._generator.shuffle(shuffled)
        rest = list(shuffled)
        size = self.options.batch_size
        while rest:
            batch, rest = rest[:size], rest[size:]
            if self.options.protocol == "corrected" or len(batch) == min(size, len(present)):
                yield batch

    def rest_of_cycle(self):
        """The next (phase, subjects) of this cycle; None after its last."""
        if self._alone:
            return "subject", self._alone[:1]
        self._go_on()
        if self._visit:
            return self._visit[0]
        due = [
            subject
            for subject, flagged in self.waiting.items()
            if flagged + self.options.revisit <= self.cycle and self.center_of[subject] not in self.absent
        ]
        return ("revisit", due[:1]) if due else None

    def next_step(self):
        """The next (phase, subjects), in a later cycle if this one is over; None if nothing can follow."""
        for _ in range(self.options.revisit):
            if self.rest_of_cycle():
                break
            self.begin_cycle()  # a cycle without a step is one in which every subject waits or is eliminated
        return self.rest_of_cycle()

    def happened(self, cycle, phase, subjects, harmful):
        """A step was made."""
        subjects = [subject for subject in subjects if subject in self.flags]
        if phase == "batch":
            del self._visit[:1]
            self._alone = subjects if harmful else []
        elif phase in ("subject", "screen"):
            del (self._alone if phase == "subject" else self._visit)[:1]
            if harmful:
                for subject in subjects:
                    self.flags[subject].append(cycle)
                    self.waiting[subject] = cycle
        elif phase == "revisit":
            for subject in subjects:
                self.revisits[subject] += 1
                self.waiting.pop(subject, None)
                if harmful:
                    self.eliminated[subject] = cycle

    def failed(self, center):
        """A center did not make its step, and is left alone for the rest of the cycle."""
        self.absent.add(center)
        self._alone, self._visit, self._screened = [], [], None

    def subject_table(self):
        """What the table of subjects must say now: subject -> its cells."""
        return {
            subject: {
                "Study": center,
                "Times_flagged": len(self.flags[subject]),
                "First_flagged_cycle": min(self.flags[subject], default=None),
                "Revisits": self.revisits[subject],
                "Eliminated": int(subject in self.eliminated),
                "Eliminated_cycle": self.eliminated.get(subject),
            }
            for center, subjects in self.centers.items()
            for subject in subjects
        }


class Audit:
    """Compares a log with its replay; ``violations`` are lines of text, in the order of the rows."""

    def __init__(self, log, centers, healthy, patients, options):
        self.log = log
        self.options = options
        self.healthy, self.patients = healthy, patients
        self.center_of = {subject: center for center, subjects in centers.items() for subject in subjects}
        # Where there are no rows after the baseline, no cycle has begun; the replay then only fills the table.
        first_cycle = log.rows[1]["Cycle"] if len(log.rows) > 1 else 0
        untold = {(row["Cycle"], row["Study"]) for row in log.rows if failed_step(row) and not row["Subjects"]}
        self.replay = Replay(centers, first_cycle, options, untold)
        self.lost = False  # after a step out of order: the order is checked again from the next cycle on
        self.unfinished = False
        self.reference = None  # (PFP, PFN) of the last accepted row
        self.auroc = None  # its AUROC, where the log tells it
        self.counts = None  # its (FP, FN)
        self.limits = {}  # cycle -> the screen's limit
        self.violations = []

    def check(self):
        """Check header, rows and end of the log."""
        columns = [*COLUMNS, *(EVIDENCE_COLUMNS if self.options.rule == "evidence" else ())]
        columns += SCREEN_COLUMNS if self.options.screen else ()
        if self.log.header != columns:
            self._violation({"row": 1}, f"columns are {', '.join(self.log.header)}, should be {', '.join(columns)}")
            if not set(columns) <= set(self.log.header):
                return
        first, *rows = self.log.rows
        self._check_counts(first)
        if first["Phase"] == "baseline":
            self._check_baseline(first)
        else:
            self._violation(first, f"Phase is {shown(first['Phase'])}, should be 'baseline'; the row is not replayed")
        self._accept(first)
        for row, following in itertools.zip_longest(rows, rows[1:]):
            if failed_step(row):
                self._check_failure(row)
            elif screened_only(row):
                self._check_screened(row)
            else:
                self._check_counts(row)
                self._check_step(row, following)
        self._check_end()

    def check_table(self, table):
        """Check the table of subjects, which is written whenever a cycle is over."""
        if tuple(table.header) != TABLE_COLUMNS:
            self._violation(
                {"row": 1}, f"columns are {', '.join(table.header)}, should be {', '.join(TABLE_COLUMNS)}", table.path
            )
        given = {}
        for row in table.rows:
            subject = row["Subject"]
            if subject not in self.center_of:
                self._violation(row, f"Subject is {shown(subject)}, which is not in the training set", table.path)
            elif subject in given:
                self._violation(row, f"Subject is {shown(subject)}, as in row {given[subject]['row']}", table.path)
            else:
                given[subject] = row
        implied = [self.replay.at_start if self.unfinished else self.replay.subject_table()]
        if self.options.unfinished:  # the run may have ended just before the table was written again
            implied.append(self.replay.at_start)
        fits = [
            should
            for should in implied
            if all(
                row[column] == should[subject][column] for subject, row in given.items() for column in should[subject]
            )
        ]
        should = (fits or implied)[0]
        for subject, row in given.items():
            differences = [
                f"{column} is {shown(row[column])}, should be {shown(value)}"
                for column, value in should[subject].items()
                if row[column] != value
            ]
            if differences:
                self._violation(row, f"{'; '.join(differences)} (of {subject}, by the log)", table.path)
        for subject in self.center_of:
            if subject not in given:
                self.violations.append(f"{table.path}: Subject {shown(subject)} has no row")

    def summary(self):
        """What a consistent log holds, in words."""
        failures = sum(map(failed_step, self.log.rows))
        rows = self.log.rows[1:]
        cycles = range(rows[0]["Cycle"], rows[-1]["Cycle"] + 1) if rows else range(0)
        screened = sum(row["Phase"] == "screen" for row in rows)
        suspects = sum(row["Ignored"] for row in rows if screened_only(row))
        phases = [row["Phase"] for row in rows if not screened_only(row)]
        by_phase = ", ".join(f"{phases.count(phase)} {phase}" for phase in ("batch", "subject", "revisit"))
        replay = self.replay
        flagged = sum(map(bool, replay.flags.values()))
        revisited = sum(map(bool, replay.revisits.values()))
        count = f"{len(cycles)} cycles ({cycles[0]} to {cycles[-1]})" if cycles else "0 cycles"
        return (
            f"{count}, {len(phases) - failures} verifications ({by_phase}), "
            f"{sum(row['Ignored'] for row in rows) - failures - suspects} steps undone"
            + (f", {screened} looks of the screen" if screened else "")
            + (f", {failures} visits failed" if failures else "")
            + f"; subjects: {flagged} flagged, {revisited} revisited, "
            f"{len(replay.eliminated)} eliminated"
            + (f"; ends in the middle of cycle {replay.cycle}" if self.unfinished and cycles else "")
        )

    def _check_counts(self, row):
        """ACC, PFP and PFN follow from FP and FN."""
        total = self.healthy + self.patients
        below = self._below()
        for column, most, group in (("FP", self.healthy, "HC"), ("FN", self.patients, "PD")):
            if row[column] > most:
                self._violation(row, f"{column} is {row[column]}, but the test set has {most} {group}")
        right = total - row["FP"] - row["FN"]
        self._check(row, "ACC", right / total, f"FP {row['FP']}, FN {row['FN']} of {total}")
        self._check(row, "PFP", row["FP"] / below[0], f"FP {row['FP']} / {below[0]}")
        self._check(row, "PFN", row["FN"] / below[1], f"FN {row['FN']} / {below[1]}")

    def _below(self):
        """What FP and FN are divided by."""
        below = (self.healthy, self.patients)
        return below[::-1] if self.options.protocol == "published" else below

    def _risen(self, row, tolerance):
        """Whether FPR, and whether FNR, rose by more than the tolerance since the last accepted step."""
        rounding = 0.0 if self.options.protocol == "published" else ROUNDING
        return [
            row[column] / number > before / number + tolerance + rounding
            for column, number, before in zip(("FP", "FN"), self._below(), self.counts, strict=True)
        ]

    def _check_baseline(self, row):
        for column in ("Subject", "Study"):
            self._check(row, column, "n/a", "baseline")
        self._check(row, "Subjects", [], "baseline")
        for column in ("Cycle", "Ignored", "Eliminated"):
            self._check(row, column, 0, "baseline")
        for column in (*OPTIONAL_NUMBERS, *EVIDENCE_COLUMNS[1:], *SCREEN_COLUMNS):
            self._check(row, column, None, "baseline")
        if self.options.rule == "evidence" and (row["AUROC"] is None or not 0 <= row["AUROC"] <= 1):
            self._violation(row, f"AUROC is {shown(row['AUROC'])}, should be from 0 to 1")

    def _check_step(self, row, following):
        """Check one verification, and tell the replay what happened."""
        subjects = row["Subjects"]
        cycle, phase = self._check_order(row)
        if phase in ("subject", "revisit", "batch"):
            self._check(row, "Subject", "batch" if phase == "batch" else ";".join(subjects), f"Phase {phase}")
        for subject in subjects:
            if subject not in self.center_of:
                self._violation(row, f"Subjects has {shown(subject)}, which is not in the training set")
        for subject in sorted({subject for subject in subjects if subjects.count(subject) > 1}):
            self._violation(row, f"Subjects has {shown(subject)} {subjects.count(subject)} times, should be once")
        # One line is enough where the center is wrong for every subject.
        studies = {self.center_of[subject]: subject for subject in reversed(subjects) if subject in self.center_of}
        for center, subject in studies.items():
            self._check(row, "Study", center, f"the center of {subject}")

        tolerance = len(subjects) * self.options.error
        self._check(row, "Tolerance", tolerance, f"{len(subjects)} x {self.options.error:g}")
        why = "the last accepted rate"
        self._check(row, "Reference_PFP", self.reference[0], why)
        self._check(row, "Reference_PFN", self.reference[1], why)
        rates = (row["PFP"], row["PFN"])
        risen = self._risen(row, tolerance)
        compared = (
            f"{name} {rate:.6g} {'>' if above else '<='} {before:.6g} + {tolerance:.6g}"
            for name, rate, before, above in zip(("PFP", "PFN"), rates, self.reference, risen, strict=True)
        )
        harmful = any(risen)
        reason = ", ".join(compared)
        if self.options.rule == "evidence":
            proven = self._are_proven(row)
            shifted = any(above and more for above, more in zip(risen, proven, strict=True))
            harmful = self._is_more_than_chance(row) or shifted
            reason += "".join(f", {column} {shown(row[column])}" for column in EVIDENCE_COLUMNS[1:])
        self._check(row, "Ignored", int(harmful), reason)
        if self.options.screen:
            self._check_score(row, phase)
        if row["Ignored"] != harmful:
            # Which of the two was acted upon? The next row's reference tells.
            harmful = row["Ignored"] == 1
            if following:
                harmful = not same((following["Reference_PFP"], following["Reference_PFN"]), rates)
        self._check(
            row,
            "Eliminated",
            int(harmful and phase == "revisit"),
            f"Phase {phase}, {'harmful' if harmful else 'not harmful'}",
        )
        self.replay.happened(cycle, phase, subjects, harmful)
        if not harmful:
            self._accept(row)

    def _accept(self, row):
        """What later steps are compared with."""
        self.reference, self.counts, self.auroc = (row["PFP"], row["PFN"]), (row["FP"], row["FN"]), row.get("AUROC")

    def _are_proven(self, row):
        """Check the p-values of a rise of FP and of FN as far as a log can tell, and compare them with the limit."""
        proven = []
        for name, last, most in zip(("FP", "FN"), self.counts, (self.healthy, self.patients), strict=True):
            chance = row[f"P_{name}"]
            if chance is None or not any(same(chance, value) for value in possible_p_values(last, row[name], most)):
                self._violation(row, f"P_{name} is {shown(chance)}, but {name} was {last} and is {row[name]}")
            proven.append(chance is not None and chance < P_LIMIT)
        return proven

    def _is_more_than_chance(self, row):
        """Check AUROC and p-value of a step as far as a log can tell, and compare the p-value with the limit."""
        auroc, chance = row["AUROC"], row["P_AUROC"]
        if auroc is None or chance is None or not 0 <= auroc <= 1 or not 0 <= chance <= 1:
            self._violation(row, f"AUROC is {shown(auroc)} and P_AUROC {shown(chance)}, should be from 0 to 1")
            return False
        last = self.auroc
        unknown = chance == 0 and auroc == 0.5  # predictions that are not numbers, which rank nobody
        if last is not None and (chance < 0.5) != (auroc < last - ROUNDING) and not unknown:
            self._violation(row, f"P_AUROC is {shown(chance)}, but AUROC was {shown(last)} and is {shown(auroc)}")
        return chance < P_LIMIT

    def _check_score(self, row, phase):
        """A revisit that trained was no suspect; elsewhere nothing is scored."""
        if phase != "revisit":
            for column in SCREEN_COLUMNS:
                self._check(row, column, None, f"Phase {phase}")
        elif self._is_suspect(row):
            self._violation(row, f"Screen_score {shown(row['Screen_score'])} is that of a suspect, but it trained")

    def _is_suspect(self, row):
        """Whether the score is above the limit, which is one for each cycle."""
        score, limit = row["Screen_score"], row["Screen_limit"]
        self._check(row, "Screen_limit", self.limits.setdefault(row["Cycle"], limit), "the limit of this cycle")
        if score is None or limit is None:
            self._violation(row, "Screen_score or Screen_limit is empty, should be a number")
            return False
        return not score <= limit

    def _check_screened(self, row):
        """Check what the screen said: a suspect is put aside, or eliminated at its revisit; no rate was measured."""
        cycle, phase = self._check_order(row)
        self._check(row, "Subject", ";".join(row["Subjects"]), f"Phase {phase}")
        for subject in row["Subjects"]:
            self._check(row, "Study", self.center_of.get(subject), f"the center of {subject}")
        for column in (
            "ACC",
            "FP",
            "FN",
            "PFP",
            "PFN",
            "Tolerance",
            *(EVIDENCE_COLUMNS if self.options.rule != "published" else ()),
        ):
            self._check(row, column, None, "no step was made")
        for column, value in zip(("Reference_PFP", "Reference_PFN"), self.reference, strict=True):
            self._check(row, column, value, "the last accepted rate")
        suspect = self._is_suspect(row)
        if phase == "revisit" and not suspect:
            self._violation(row, "FP, FN: empty, but the image is no suspect and must train")
        why = f"Screen_score {shown(row['Screen_score'])}, Screen_limit {shown(row['Screen_limit'])}"
        self._check(row, "Ignored", int(suspect), why)
        self._check(row, "Eliminated", int(suspect and phase == "revisit"), f"Phase {phase}, {why}")
        self.replay.happened(cycle, phase, row["Subjects"], suspect)

    def _check_failure(self, row):
        """Check a step that a center did not make: it changes nothing, and nothing was measured."""
        self._check_order(row)
        for column, should in (("Subject", "n/a"), ("Ignored", 1), ("Eliminated", 0)):
            self._check(row, column, should, f"Phase {row['Phase']}")
        for column in ("ACC", "FP", "FN", "PFP", "PFN", *EVIDENCE_COLUMNS, *SCREEN_COLUMNS):
            self._check(row, column, None, f"Phase {row['Phase']}")
        for subject in row["Subjects"]:
            self._check(row, "Study", self.center_of.get(subject), f"the center of {subject}")
        self._check(row, "Tolerance", len(row["Subjects"]) * self.options.error, f"{len(row['Subjects'])} subjects")
        self._check(row, "Reference_PFP", self.reference[0], "the last accepted rate")
        self._check(row, "Reference_PFN", self.reference[1], "the last accepted rate")
        self.replay.failed(row["Study"])

    def _check_order(self, row):
        """Compare a row with the step that must come now. Returns the (cycle, phase) it stands for."""
        if self.lost and not self._catch_up(row):
            return row["Cycle"], row["Phase"]
        step = self.replay.next_step()
        if step and step[0] == "screen" and failed_step(row):
            step = "screen", self.replay.to_be_screened()
        cycle = self.replay.cycle
        found = f"{row['Phase']} {';'.join(row['Subjects'])} in cycle {row['Cycle']}"
        if not step:
            self._violation(row, f"Phase, Subjects: {found}, but no step can follow")
            self.lost = True
            return row["Cycle"], row["Phase"]
        phase, subjects = step
        if sorted(row["Subjects"]) == sorted(subjects):  # the right step, whatever else is wrong
            self._check(row, "Cycle", cycle, "the order of the steps")
            if row["Phase"] not in FAILURES:
                self._check(row, "Phase", phase, "the order of the steps")
            self._check(row, "Subjects", subjects, "the order of the steps")
            return cycle, phase
        self._violation(
            row,
            f"Phase, Subjects: {found}, should be {phase} {';'.join(subjects)} in cycle {cycle} "
            f"(the order in the rest of cycle {cycle} is not checked)",
        )
        self.lost = True
        if row["Cycle"] > cycle:  # the cycle ended too early
            return self._check_order(row)
        return row["Cycle"], row["Phase"]

    def _catch_up(self, row):
        """Go on to the cycle of a row if it is a later one that can follow; then the order is checked again."""
        if not 0 < row["Cycle"] - self.replay.cycle <= self.options.revisit:
            return False
        while self.replay.cycle < row["Cycle"]:
            self.replay.begin_cycle()
        self.lost = False
        return True

    def _check_end(self):
        """A log ends with the last step of a cycle."""
        step = None if self.lost else self.replay.rest_of_cycle()
        if not step:
            return
        self.unfinished = True
        if not self.options.unfinished:
            place = (
                f"in the middle of cycle {self.replay.cycle}" if len(self.log.rows) > 1 else "before the first cycle"
            )
            following = f"{step[0]} {';'.join(step[1])}".strip()
            missing = f"; {following} should follow" if len(self.log.rows) > 1 else ""
            self._violation(self.log.rows[-1], f"the log ends {place}{missing} (--unfinished allows that)")

    def _check(self, row, column, should, why):
        if not same(row.get(column), should):
            self._violation(row, f"{column} is {shown(row[column])}, should be {shown(should)} ({why})")

    def _violation(self, row, text, path=None):
        self.violations.append(f"{path or self.log.path}, row {row['row']}: {text}")


@functools.cache
def possible_p_values(before, after, most):
    """The p-values that the exact McNemar test can give where misdiagnoses of a class go from one number to another.

    So many of those ``before`` are diagnosed well now, any number, and the others of the class (``most`` subjects) make
    up for them; it is the chance that of all whose diagnosis changed, as coins that fall, as many or more get worse.
    """
    recovered = range(max(0, before - after), before + 1)
    return [
        _heads(after - before + better, after - before + 2 * better) for better in recovered if after + better <= most
    ]


@functools.cache
def _heads(heads, coins):
    """The probability of so many heads or more."""
    return sum(math.comb(coins, number) for number in range(heads, coins + 1)) / 2**coins


def same(value, other):
    """Whether two cells agree: numbers up to rounding; of tuples, every cell."""
    if isinstance(value, tuple):
        return all(map(same, value, other))
    if isinstance(value, float) and isinstance(other, float):
        return abs(value - other) <= ROUNDING
    return value == other


def shown(value):
    """A cell in words."""
    if isinstance(value, list):
        value = ";".join(value)
    if value is None or value == "":
        return "empty"
    return f"'{value}'" if isinstance(value, str) else f"{value:.10g}"


if __name__ == "__main__":
    command.run(main)
