"""Go on training a pre-trained travelling model with all images, good and harmful, without quality control.

This is what happens where nobody looks: the baseline that quality control is compared with.

Example:
    python enc_PD_train_dirt_baseline.py -fn_train ./training_set.csv -en ./path_pretrained_encoder
        -pd ./path_pretrained_classifier -cycles 30 -epochs 1 -batch_size 5
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.option import from_command_line
from travelling.runs import command
from travelling.runs.pretrained_options import DirtyBaseline


def main() -> None:
    """Run the experiment."""
    settings = from_command_line(DirtyBaseline, __doc__)
    # Only now, so that --help answers at once.
    from travelling.images.cohort import copies, read_cohort, subjects_by_center
    from travelling.images.plain_trainer import PlainTrainer
    from travelling.images.volumes import Volumes
    from travelling.method.protocol import learning_rates
    from travelling.method.travel import travel
    from travelling.network.model_files import SPACE
    from travelling.network.pretrained import cycles_to_run, pretrained_files, read_record
    from travelling.runs.plain_run import PlainRun
    from travelling.runs.run import Run

    settings.en, settings.pd = pretrained = pretrained_files(settings.en, settings.pd, settings.first_cycle)
    training_set = read_cohort(settings.fn_train)
    centers = subjects_by_center(training_set)
    cycles = cycles_to_run(*pretrained, settings.first_cycle, settings.cycles)
    inputs = {"fn_train": settings.fn_train, "en": settings.en, "pd": settings.pd}
    run = Run(settings.output_folder, "training.log", settings, inputs, images=training_set["Path"])
    volumes = Volumes(None, run.cache_folder, settings.reorient, read_record(settings.en).get(SPACE))
    volumes.add(training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling.network import backend
    from travelling.network.saved_model import load_model

    device = backend.start(settings.seed, settings.deterministic, settings.precision)
    model, record, notices = load_model(*pretrained, volumes.shape)
    notices += volumes.decode() + copies(volumes.images, training_set)
    trainer = PlainTrainer(model, volumes, training_set)
    notices += trainer.other_scale(record)
    log = run.begin(device, notices, volumes.images)
    log.info("training set: %d images, %d centers", len(training_set), len(centers))
    resumed_at = run.go_on(trainer)
    rates = learning_rates(settings, cycles[0], record["learning_rate"])
    files = PlainRun(settings, run, model, trainer, centers, cycles, resumed_at)
    travel(trainer, centers, cycles, settings, rates, files, resumed_at)
    log.info("done: models of cycles %d to %d in %s", cycles[0], cycles[-1], run.folder)
    run.finish()


if __name__ == "__main__":
    command.run(main)
