"""What a run of quality control keeps on disk, wherever its trainer trains: log, table, models and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from travelling.errors import InputError
from travelling.files import write_csv
from travelling.images.test_set import refuse_one_class
from travelling.method.metrics import Evaluation, misdiagnosed
from travelling.method.protocol import PROTOCOLS
from travelling.method.quality_control import Progress, QualityControl, log_columns
from travelling.method.rule import saturation
from travelling.method.trainer import Trainer
from travelling.runs.control_options import QualityControl as Settings
from travelling.runs.log_file import LogFile
from travelling.runs.run import Run

if TYPE_CHECKING:
    from travelling.network.model import TravellingModel


def refuse_unfit_test_set(test_set: pd.DataFrame, settings: Settings) -> None:
    """Raise InputError where verification or an extension has too little to go by."""
    refuse_one_class(test_set, settings.fn_test)
    for extension in settings.extensions:
        extension.refuse_test_set(len(test_set))


def open_run(settings: Settings, inputs: tuple, images: dict) -> Run:
    """The folder of a run of quality control; its ``files`` are the log and the table of subjects.

    ``inputs`` are the names of the options that are files to be read, ``images`` maps subjects to the files of the
    images that are. Raises what :class:`travelling.runs.run.Run` raises.
    """
    log, table, text_log = (
        settings.fn_save.with_name(settings.fn_save.name + ending) for ending in (".csv", "_subjects.csv", ".log")
    )
    read = {name: getattr(settings, name) for name in inputs}
    return Run(settings.output_folder, text_log.absolute(), settings, read, files=[log, table], images=images)


def first_evaluation(run: Run, trainer: Trainer, settings: Settings) -> tuple[Evaluation | None, list]:
    """The pre-trained model's evaluation, and notices of it; None where the run goes on.

    Raises InputError where the model is saturated, so that verification could not see harm.
    """
    if run.resumes:
        return None, []
    baseline = trainer.evaluate()
    tolerance = settings.batch_size * settings.error
    rules = [extension.saturation for extension in settings.extensions if extension.replaces_rule] or [saturation]
    reasons = [rule(baseline, tolerance, PROTOCOLS[settings.protocol]) for rule in rules]
    if not all(reasons):  # one that can see harm is enough
        return baseline, []
    notice = f"{settings.en}: saturated, verification cannot see harm ({'; '.join(sum(reasons, []))})"
    if not settings.allow_saturated:
        raise InputError(f"{notice}; use a better pre-trained model or --allow-saturated")
    return baseline, [notice]


class ControlledRun:
    """Keeps on disk what :attr:`control` (:class:`travelling.method.quality_control.QualityControl`) decides.

    ``run`` has begun, and ``resumed_at`` is what its :meth:`travelling.runs.run.Run.go_on` gave; ``model`` is the
    trainer's, ``baseline`` its first evaluation, ``centers`` maps each center to its subjects. ``on_step`` as in
    QualityControl.
    """

    def __init__(
        self,
        settings: Settings,
        run: Run,
        model: TravellingModel,
        trainer: Trainer,
        centers: dict,
        baseline: Evaluation | None,
        resumed_at: dict | None,
        on_step: Callable[[Progress], None] = lambda step: None,
    ):
        self._settings = settings
        self._run = run
        self._model = model
        self._trainer = trainer
        log_csv, self._table_csv = run.files
        self._log: LogFile  # opened below
        self.control = QualityControl(
            settings, trainer, centers, lambda row: self._log(row), on_step, settings.extensions
        )
        length = 0
        if resumed_at:
            with run.taking_over():
                self.control.import_state(resumed_at["control"])
                self._baseline = Evaluation(**resumed_at["baseline"])
                length = resumed_at["log_length"]
        self._log = LogFile(log_csv, log_columns(settings.extensions), length)
        for notice in filter(None, (extension.notice(trainer) for extension in settings.extensions)):
            run.log.info("%s", notice)
        if not resumed_at:
            self._baseline = baseline or trainer.evaluate()
            self.control.start(self._baseline)
            run.log.info("pre-trained model: FPR %.3f, FNR %.3f", *self.control.reference)

    def checkpoint(self, position: dict) -> None:
        """Save where the run stands; ``position`` is that in the travelling order."""
        control = self.control
        state = {"control": control.export_state(), "log_length": self._log.length, "subjects": control.centers}
        self._run.checkpoint(position | state | {"baseline": asdict(self._baseline)}, self._trainer)

    def after_cycle(self, cycle: int) -> None:
        """Save the model and the table of subjects of a cycle."""
        control, log = self.control, self._run.log
        known = self._trainer.known(control.training(control.center_of))
        self._run.save(self._model, cycle, self._settings.batch_size, known)
        write_csv(control.subject_table(), self._table_csv)
        log.info("cycle %d: %s", cycle, control.summary())
        if notice := control.locked_up(cycle):
            log.warning("%s", notice)

    def changed(self) -> dict[str, tuple[int, int]]:
        """Of HC and of PD, how many diagnoses have become wrong since the baseline, and how many right."""
        accepted = self.control.accepted
        labels = np.asarray(accepted.labels)
        if not len(labels):
            return {}
        before, now = (misdiagnosed(labels, one.predictions) for one in (self._baseline, accepted))
        return {
            group: (int((now & ~before)[labels == label].sum()), int((before & ~now)[labels == label].sum()))
            for label, group in enumerate(("HC", "PD"))
        }

    def close(self) -> None:
        """Close the log."""
        self._log.close()
