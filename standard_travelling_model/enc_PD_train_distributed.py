"""Train the travelling model without quality control, from scratch.

In every cycle, one model (encoder and classifier) visits all centers in a random order and trains on the
images of each. The last cycle is the clean baseline; an early one (cycle 9 or 10) is the pre-trained model
from which the dirty baseline and quality control go on.

Example:
    python enc_PD_train_distributed.py -fn_train ./training_set.csv -cycles 30 -epochs 1 -batch_size 5
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.option import from_command_line
from travelling.runs import command
from travelling.runs.options import StandardModel


def main() -> None:
    """Run the experiment."""
    settings = from_command_line(StandardModel, __doc__)
    # Only now, so that --help answers at once.
    from travelling.images.cohort import copies, read_cohort, subjects_by_center
    from travelling.images.plain_trainer import PlainTrainer
    from travelling.images.volumes import Volumes
    from travelling.method.protocol import learning_rates
    from travelling.method.travel import travel
    from travelling.runs.plain_run import PlainRun
    from travelling.runs.run import Run

    training_set = read_cohort(settings.fn_train)
    centers = subjects_by_center(training_set)
    inputs = {"fn_train": settings.fn_train}
    run = Run(settings.output_folder, "training.log", settings, inputs, images=training_set["Path"])
    volumes = Volumes(None, run.cache_folder, settings.reorient)
    volumes.add(training_set)
    notices = volumes.decode() + copies(volumes.images, training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling.network import backend
    from travelling.network.model import TravellingModel

    device = backend.start(settings.seed, settings.deterministic, settings.precision)
    model = TravellingModel.build(volumes.shape, settings.width, settings.learning_rate)
    log = run.begin(device, notices, volumes.images)
    log.info("training set: %d images, %d centers", len(training_set), len(centers))
    trainer = PlainTrainer(model, volumes, training_set)
    resumed_at = run.go_on(trainer)
    cycles = range(settings.cycles)
    files = PlainRun(settings, run, model, trainer, centers, cycles, resumed_at)
    travel(trainer, centers, cycles, settings, learning_rates(settings), files, resumed_at)
    log.info("done: models of %d cycles in %s", settings.cycles, run.folder)
    run.finish()


if __name__ == "__main__":
    command.run(main)
