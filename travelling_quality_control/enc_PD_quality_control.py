"""Go on training a pre-trained travelling model with decentralized quality control.

After every training step the rates of misdiagnosis on the test set are verified. A step that raises them by
more than the tolerance is rejected and its images are tried one by one; one that harms alone is flagged,
revisited some cycles later, and eliminated if it harms again.

Example:
    python enc_PD_quality_control.py -fn_train ./training_set.csv -fn_test ./test_set.csv -cycles 30
        -en ./path_encoder -pd ./path_classifier -revisit 2 -error 0.02 -fn_save filename

Writes <fn_save>.csv (one row per verification), <fn_save>_subjects.csv (one row per training subject),
<fn_save>.log, which ends with a verdict on the run, and the models of every cycle in the output folder.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.errors import VisitFailed
from travelling.option import from_command_line
from travelling.runs import command, stopping
from travelling.runs.control_options import LocalQualityControl

if TYPE_CHECKING:
    from travelling.method.quality_control import Progress, QualityControl
    from travelling.method.trainer import Files


def control_quality(
    control: "QualityControl",
    cycles: Sequence[int],
    learning_rate: Callable[[int], float],
    files: "Files",
    resumed_at: dict | None = None,
) -> None:
    """The method (Souza et al. 2025), wherever the trainer of ``control`` trains.

    ``learning_rate(cycle)`` gives Adam's, and ``resumed_at`` is what the last checkpoint of ``files`` told.
    """
    from travelling.method.order import start_of_cycle, travelling_order

    for cycle, order, generator in travelling_order(control.centers, control.settings.seed, cycles, resumed_at):
        control.trainer.learning_rate = learning_rate(cycle)
        if control.begin_cycle(cycle, order, generator):
            files.checkpoint(control.position())
        visits = control.visits()
        if not control.train_otherwise(visits, verify, files):  # as an extension may
            for batches in visits:
                with suppress(VisitFailed):  # the rest of the center's visit is left out
                    for batch in batches:
                        if verify(control, "batch", [batch]):
                            for subject in batch:
                                if verify(control, "subject", [[subject]]):
                                    control.flag(subject)
                files.checkpoint(control.position())
        for subject in control.due():
            with suppress(VisitFailed):  # made up for in the next cycle
                sure, cells = control.at_revisit(subject)
                if sure or verify(control, "revisit", [[subject]], cells):
                    control.eliminate(subject)
                else:
                    control.release(subject)
            files.checkpoint(control.position())
        control.end_cycle()
        control.trainer.learning_rate = learning_rate(cycle + 1)  # before the model is saved, as published
        files.after_cycle(cycle)
        files.checkpoint(start_of_cycle(cycle + 1, control.centers))


def verify(control: "QualityControl", phase: str, batches: list, cells: dict | None = None) -> bool:
    """Make a training step on each batch, evaluate the test set, and undo the steps if they did harm: whether they did.

    As published, it is one batch. ``cells`` of the log are known before. Raises VisitFailed where a center does not
    make its steps.
    """
    trainer = control.trainer
    kept = trainer.keep()
    for center, visit in groupby(batches, lambda batch: control.center_of[batch[0]]):
        of_center = list(visit)
        try:
            loss = trainer.train_batches(of_center)
        except VisitFailed as failure:
            trainer.restore(kept)
            raise control.failed(failure, center, sum(of_center, [])) from None
    evaluation = trainer.evaluate()
    harmful, why = control.judge(batches, evaluation)
    if harmful:
        trainer.restore(kept)
    control.note(phase, batches, loss, evaluation, harmful, why | (cells or {}))
    if not harmful:
        control.accepted = evaluation
    return harmful


def main() -> None:
    """Run the experiment."""
    settings = from_command_line(LocalQualityControl, __doc__)
    # Only now, so that --help answers at once.
    from travelling.console import progress_bar
    from travelling.images.cohort import copies, read_cohort, subjects_by_center
    from travelling.images.local_trainer import LocalTrainer
    from travelling.images.test_set import refuse_overlap
    from travelling.images.volumes import Volumes
    from travelling.method.protocol import learning_rates
    from travelling.network.model_files import SPACE
    from travelling.network.pretrained import cycles_to_run, pretrained_files, read_record
    from travelling.runs.controlled_run import ControlledRun, first_evaluation, open_run, refuse_unfit_test_set
    from travelling_quality_control.judging import judge_at_end

    training_set, test_set = read_cohort(settings.fn_train), read_cohort(settings.fn_test)
    refuse_overlap(training_set, test_set, settings.fn_train, settings.fn_test)
    refuse_unfit_test_set(test_set, settings)
    centers = subjects_by_center(training_set)
    settings.en, settings.pd = pretrained_files(settings.en, settings.pd, settings.first_cycle)
    cycles = cycles_to_run(settings.en, settings.pd, settings.first_cycle, settings.cycles)
    run = open_run(settings, ("fn_train", "fn_test", "en", "pd"), {**training_set["Path"], **test_set["Path"]})
    space = read_record(settings.en).get(SPACE)
    volumes = Volumes(None, run.cache_folder, settings.reorient, space)
    volumes.add(test_set)  # first: it is needed most often
    volumes.add(training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling.network import backend
    from travelling.network.saved_model import load_model

    device = backend.start(settings.seed, settings.deterministic, settings.precision)
    model, record, notices = load_model(settings.en, settings.pd, volumes.shape)
    trainer = LocalTrainer(model, volumes, training_set, test_set)
    volumes.read(test_set["Subject"])
    baseline, saturation = first_evaluation(run, trainer, settings)  # before all the training images are read
    notices += volumes.decode() + copies(volumes.images, training_set, test_set)
    notices += trainer.other_scale(record)
    log = run.begin(device, notices + saturation, volumes.images)
    log.info("training set: %d images, %d centers; test set: %d images", len(training_set), len(centers), len(test_set))
    resumed_at = run.go_on(trainer)

    with progress_bar(total=len(cycles) * len(training_set), unit="image") as bar:

        def show(step: "Progress") -> None:
            text = f"cycle {step.cycle}, {'revisits' if step.phase == 'revisit' else step.center}"
            if step.rates and step.loss is not None:
                text += (
                    ": loss {:.3f}, FPR {:.3f}, FNR {:.3f}".format(step.loss, *step.rates) + " rejected" * step.harmful
                )
            bar.set_postfix_str(text, refresh=False)
            done = cycles.index(step.cycle) * len(training_set)  # who is out, or was visited in an earlier session
            bar.update(max(0, done - bar.n) + step.done)
            stopping.stop_if_asked()

        controlled = ControlledRun(settings, run, model, trainer, centers, baseline, resumed_at, show)
        rates = learning_rates(settings, cycles[0], record["learning_rate"])
        control_quality(controlled.control, cycles, rates, controlled, resumed_at)
        bar.update(bar.total - bar.n)
    controlled.close()
    log.info("done: %s, %s, models in %s", *run.files, run.folder)
    run.finish(**judge_at_end(run, controlled, training_set))


if __name__ == "__main__":
    command.run(main)
