"""The verification log: what its rows are made of."""

from collections.abc import Callable

from travelling.method.metrics import Evaluation
from travelling.method.protocol import Protocol

LOG_COLUMNS = (
    "Cycle", "Subject", "Study", "ACC", "FP", "FN", "PFP", "PFN", "Ignored",  # as published
    "Phase", "Subjects", "Tolerance", "Reference_PFP", "Reference_PFN", "Eliminated",
)  # fmt: skip
SEPARATOR = ";"  # joins ids of subjects


class VerificationLog:
    """Makes the rows of the log, one per verification, and hands them to ``write``, a dict of ``columns`` each.

    ``center_of`` maps subjects to their centers. ``reference`` is everywhere (FPR, FNR) of the last accepted
    evaluation; ``cells`` are those of extensions.
    """

    def __init__(self, write: Callable[[dict], None], columns: tuple, center_of: dict, protocol: Protocol):
        self._write = write
        self._columns = columns
        self._center_of = center_of
        self._protocol = protocol

    def baseline(self, evaluation: Evaluation, cells: dict) -> None:
        """The pre-trained model: the first reference."""
        self._row(
            {"Cycle": 0, "Subject": "n/a", "Study": "n/a", "Phase": "baseline", "Subjects": "", "Ignored": 0},
            self._measured(evaluation) | cells,
        )

    def step(
        self,
        cycle: int,
        phase: str,
        subjects: list,
        evaluation: Evaluation,
        tolerance: float,
        harmful: bool,
        cells: dict,
        reference: tuple,
    ) -> None:
        """A training step that was verified."""
        self._row(
            self._about(cycle, phase, subjects, harmful) | {"Tolerance": tolerance},
            self._measured(evaluation) | cells,
            reference,
        )

    def decided(self, cycle: int, phase: str, subject: str, cells: dict, harmful: bool, reference: tuple) -> None:
        """What was decided about one subject without a step, so no rate was measured."""
        self._row(self._about(cycle, phase, [subject], harmful) | {"Subject": subject}, cells, reference)

    def failed(self, cycle: int, phase: str, center: str, subjects: list, tolerance: float, reference: tuple) -> None:
        """A step that a center did not make."""
        cells = {
            "Cycle": cycle,
            "Subject": "n/a",
            "Study": center,
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
        }
        self._row(cells | {"Ignored": 1, "Tolerance": tolerance}, {}, reference)

    def _about(self, cycle, phase, subjects, harmful):
        return {
            "Cycle": cycle,
            "Subject": subjects[0] if phase in ("subject", "revisit") else phase,
            "Study": SEPARATOR.join(dict.fromkeys(self._center_of[subject] for subject in subjects)),
            "Phase": phase,
            "Subjects": SEPARATOR.join(subjects),
            "Ignored": int(harmful),
            "Eliminated": int(harmful and phase == "revisit"),
        }

    def _measured(self, evaluation):
        fpr, fnr = self._protocol.rates(evaluation)
        return {
            "ACC": evaluation.accuracy,
            "FP": evaluation.false_positives,
            "FN": evaluation.false_negatives,
            "PFP": fpr,
            "PFN": fnr,
        }

    def _row(self, about, measured, reference=(None, None)):
        references = dict(zip(("Reference_PFP", "Reference_PFN"), reference, strict=True))
        self._write(dict.fromkeys(self._columns) | {"Eliminated": 0} | references | about | measured)
