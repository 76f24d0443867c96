"""Go on training a pre-trained travelling model with all images, good and harmful, without quality control.

This is what happens where nobody looks: the baseline that quality control is compared with.

Example:
    python enc_PD_train_dirt_baseline.py -fn_train ./training_set.csv -en ./path_pretrained_encoder
        -pd ./path_pretrained_classifier -cycles 30 -epochs 1 -batch_size 5
"""

from travelling import command

PUBLISHED_SEED = 42


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    command.add_pretrained_options(command.add_training_options(parser))
    command.add_method_options(parser, PUBLISHED_SEED)
    command.add_first_cycle_option(parser)
    command.add_device_options(parser)
    command.add_image_options(parser)
    command.add_output_options(parser, default="dirty_baseline_run")
    return parser.parse_args()


def main():
    """Run the experiment."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from travelling.cohort import copies, read_cohort, subjects_by_center
    from travelling.model_files import SPACE, cycles_to_run, read_record
    from travelling.run import Run
    from travelling.trainer import LocalTrainer, travel_and_save
    from travelling.volumes import Volumes

    pretrained = (arguments.en, arguments.pd)
    training_set = read_cohort(arguments.fn_train)
    centers = subjects_by_center(training_set)
    cycles = cycles_to_run(*pretrained, arguments.first_cycle, arguments.cycles)
    inputs = {"fn_train": arguments.fn_train, "en": arguments.en, "pd": arguments.pd}
    run = Run(arguments.output_folder, "training.log", arguments, inputs, images=training_set["Path"])
    volumes = Volumes(arguments.cache_gb, run.cache_folder, arguments.reorient, read_record(arguments.en).get(SPACE))
    volumes.add(training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling import backend
    from travelling.model import TravellingModel

    device = backend.start(arguments.seed, arguments.deterministic, arguments.precision)
    model, record, notices = TravellingModel.load(*pretrained, volumes.shape)
    notices += volumes.decode() + copies(volumes.images, training_set)
    trainer = LocalTrainer(model, volumes, training_set)
    notices += trainer.strange(record)
    log = run.begin(device, notices, volumes.images)
    log.info("training set: %d images, %d centers", len(training_set), len(centers))
    resumed_at = run.go_on(trainer)
    travel_and_save(run, trainer, model, centers, cycles, arguments, resumed_at, cycles[0], record["learning_rate"])
    log.info("done: models of cycles %d to %d in %s", cycles[0], cycles[-1], run.folder)
    run.finish()


if __name__ == "__main__":
    command.run(main)
