"""Train the travelling model without quality control, from scratch.

In every cycle, one model (encoder and classifier) visits all centers in a random order and trains on the
images of each. The last cycle is the clean baseline; an early one (cycle 9 or 10) is the pre-trained model
from which the dirty baseline and quality control go on.

Example:
    python enc_PD_train_distributed.py -fn_train ./training_set.csv -cycles 30 -epochs 1 -batch_size 5
"""

from travelling import command

PUBLISHED_SEED = 40


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    command.add_training_options(parser)
    command.add_method_options(parser, PUBLISHED_SEED).add_argument(
        "--width",
        type=command.number(float, 0.01, 8),
        default=1.0,
        metavar="FACTOR",
        help="filters of every convolution, relative to the published network",
    )
    command.add_device_options(parser)
    command.add_image_options(parser)
    command.add_output_options(parser, default="standard_travelling_model_run")
    return parser.parse_args()


def main():
    """Run the experiment."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from travelling.cohort import copies, read_cohort, subjects_by_center
    from travelling.run import Run
    from travelling.trainer import LocalTrainer, travel_and_save
    from travelling.volumes import Volumes

    training_set = read_cohort(arguments.fn_train)
    centers = subjects_by_center(training_set)
    inputs = {"fn_train": arguments.fn_train}
    run = Run(arguments.output_folder, "training.log", arguments, inputs, images=training_set["Path"])
    volumes = Volumes(arguments.cache_gb, run.cache_folder, arguments.reorient)
    volumes.add(training_set)
    notices = volumes.decode() + copies(volumes.images, training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling import backend
    from travelling.model import TravellingModel

    device = backend.start(arguments.seed, arguments.deterministic, arguments.precision)
    model = TravellingModel.build(volumes.shape, arguments.width, arguments.learning_rate)
    log = run.begin(device, notices, volumes.images)
    log.info("training set: %d images, %d centers", len(training_set), len(centers))
    trainer = LocalTrainer(model, volumes, training_set)
    resumed_at = run.go_on(trainer)
    travel_and_save(run, trainer, model, centers, range(arguments.cycles), arguments, resumed_at)
    log.info("done: models of %d cycles in %s", arguments.cycles, run.folder)
    run.finish()


if __name__ == "__main__":
    command.run(main)
