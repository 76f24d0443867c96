"""A run of quality control, from its pre-trained model to its last checkpoint, wherever its trainer trains."""

from travelling.cohort import refuse_one_class
from travelling.errors import InputError
from travelling.files import write_csv
from travelling.model_files import cycles_to_run
from travelling.protocol import PROTOCOLS
from travelling.quality_control import QualityControl
from travelling.rules import RULES
from travelling.run import Run
from travelling.screen import Screen, limit_rank
from travelling.verification_log import LogFile, log_columns


def refuse_unfit_test_set(test_set, settings):
    """Raise InputError where verification or the screen has too little to go by."""
    refuse_one_class(test_set, settings.fn_test)
    if settings.screen:
        limit_rank(len(test_set), settings.false_alarms)


class ControlledRun:
    """The files of a run, and its moves: :meth:`begin`, then :meth:`travel`, then ``run.finish()``.

    ``settings`` has the script's options by their names; ``inputs`` are the names of those that are files to be read,
    ``images`` maps subjects to the files of the images that are.
    Raises what :class:`travelling.run.Run` raises. ``cycles`` are all of the run; ``resumed_at`` (after
    :meth:`begin`) is what the last checkpoint holds, None at the beginning; ``control`` (from
    :meth:`travel`'s first step on) decides.
    """

    def __init__(self, settings, inputs, images):
        self._settings = settings
        self._protocol = PROTOCOLS[settings.protocol]
        self._rule = RULES[settings.rule]()
        self.log_csv, self.subjects_csv, text_log = (
            settings.fn_save.with_name(settings.fn_save.name + ending) for ending in (".csv", "_subjects.csv", ".log")
        )
        self.cycles = cycles_to_run(settings.en, settings.pd, settings.first_cycle, settings.cycles)
        self.run = Run(
            settings.output_folder,
            text_log.absolute(),
            settings,
            {name: getattr(settings, name) for name in inputs},
            files=[self.log_csv, self.subjects_csv],
            images=images,
        )
        self.resumed_at = None
        self.control = None
        self._trainer = None
        self._baseline = None
        self._log = None

    def begin(self, trainer, device, notices, images):
        """Begin or go on; returns the plain log. Raises InputError where the pre-trained model is saturated.

        ``images`` as in :meth:`travelling.run.Run.begin`.
        """
        self._trainer = trainer
        if not self.run.resumes:
            self._baseline = trainer.evaluate()
            notices = [*notices, *self._saturation_notices()]
        self._log = self.run.begin(device, notices, images)
        self.resumed_at = self.run.go_on(trainer)
        return self._log

    def _saturation_notices(self):
        settings = self._settings
        saturation = self._rule.saturation(self._baseline, settings.batch_size * settings.error, self._protocol)
        if not saturation:
            return []
        notice = f"{settings.en}: saturated, verification cannot see harm ({'; '.join(saturation)})"
        if not settings.allow_saturated:
            raise InputError(f"{notice}; use a better pre-trained model or --allow-saturated")
        return [notice]

    def travel(self, model, saved_rate, centers, cycles=None):
        """Quality control over all cycles, or some of them; yields what :meth:`QualityControl.travel` does.

        ``model`` is the trainer's, ``saved_rate`` the learning rate that it was saved with; ``centers`` maps each
        center to its subjects.
        """
        settings, resumed_at = self._settings, self.resumed_at
        cycles = self.cycles if cycles is None else cycles
        screen = Screen(self._trainer, settings.false_alarms) if settings.screen else None
        log = LogFile(self.log_csv, log_columns(self._rule, screen), resumed_at["log_length"] if resumed_at else 0)
        control = QualityControl(
            self._trainer, centers, self._protocol, settings.error, settings.revisit, log, self._rule, screen
        )
        self.control = control
        if resumed_at:
            control.import_state(resumed_at["control"])
        else:
            control.start(self._baseline or self._trainer.evaluate())
            self._log.info("pre-trained model: FPR %.3f, FNR %.3f", *control.reference)

        locked_up = list(resumed_at["locked_up"]) if resumed_at else []

        def checkpoint(here):
            state = {"control": control.export_state(), "log_length": log.length, "subjects": centers}
            self.run.checkpoint(here | state | {"locked_up": locked_up}, self._trainer)

        def after_cycle(cycle):
            self.run.save(model, cycle, settings.batch_size, self._trainer.known(control.training(control.center_of)))
            write_csv(control.subject_table(), self.subjects_csv)
            self._log.info("cycle %d: %s", cycle, control.summary())
            if control.locked_up(cycle):
                locked_up.append(control.locked_up(cycle))
                self._log.warning("%s", locked_up[-1])

        yield from control.travel(
            centers,
            cycles,
            seed=settings.seed,
            batch_size=settings.batch_size,
            learning_rate=lambda cycle: self._protocol.learning_rate(
                settings.learning_rate, cycle, self.cycles[0], saved_rate
            ),
            after_cycle=after_cycle,
            resumed_at=resumed_at,
            checkpoint=checkpoint,
        )
        log.close()
        if self.cycles[-1] in cycles:
            for notice in locked_up:  # once more, where it is not overlooked
                self._log.warning("%s", notice)
