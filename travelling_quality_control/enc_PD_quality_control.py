"""Go on training a pre-trained travelling model with decentralized quality control.

After every training step the rates of misdiagnosis on the test set are verified. A step that raises them by
more than the tolerance is undone and its images are tried one by one; one that harms alone is put aside,
revisited some cycles later, and eliminated if it harms again.

Example:
    python enc_PD_quality_control.py -fn_train ./training_set.csv -fn_test ./test_set.csv -cycles 30
        -en ./path_encoder -pd ./path_classifier -revisit 2 -error 0.02 -fn_save filename

Writes <fn_save>.csv (one row per verification), <fn_save>_subjects.csv (one row per training subject),
<fn_save>.log, and the models of every cycle in the output folder.
"""

from travelling import command, stopping

PUBLISHED_SEED = 42


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    command.add_quality_control_options(parser, PUBLISHED_SEED)
    command.add_evaluation_options(parser)
    command.add_device_options(parser)
    command.add_image_options(parser)
    command.add_output_options(parser, default="<fn_save>_run")
    return command.check_quality_control_options(parser, parser.parse_args())


def main():
    """Run the experiment."""
    arguments = parse_arguments()
    # Only now, so that --help answers at once.
    from travelling.cohort import copies, read_cohort, refuse_overlap, subjects_by_center
    from travelling.console import progress_bar
    from travelling.controlled_run import ControlledRun, refuse_unfit_test_set
    from travelling.model_files import SPACE, read_record
    from travelling.trainer import LocalTrainer
    from travelling.volumes import Volumes

    training_set, test_set = read_cohort(arguments.fn_train), read_cohort(arguments.fn_test)
    refuse_overlap(training_set, test_set, arguments.fn_train, arguments.fn_test)
    refuse_unfit_test_set(test_set, arguments)
    centers = subjects_by_center(training_set)
    images = {**training_set["Path"], **test_set["Path"]}
    controlled = ControlledRun(arguments, ("fn_train", "fn_test", "en", "pd"), images)
    run, cycles = controlled.run, controlled.cycles
    space = read_record(arguments.en).get(SPACE)
    volumes = Volumes(arguments.cache_gb, run.cache_folder, arguments.reorient, space)
    volumes.add(test_set)  # first: it is needed most often
    volumes.add(training_set)

    # TensorFlow takes seconds to import: only now that the input is known to be good.
    from travelling import backend
    from travelling.model import TravellingModel

    device = backend.start(arguments.seed, arguments.deterministic, arguments.precision)
    model, record, notices = TravellingModel.load(arguments.en, arguments.pd, volumes.shape)
    notices += volumes.decode() + copies(volumes.images, training_set, test_set)
    trainer = LocalTrainer(model, volumes, training_set, test_set, arguments.eval_batch_size)
    log = controlled.begin(trainer, device, notices + trainer.strange(record), volumes.images)
    log.info("training set: %d images, %d centers; test set: %d images", len(training_set), len(centers), len(test_set))

    with progress_bar(total=len(cycles) * len(training_set), unit="image") as bar:
        for cycle, center, step in controlled.travel(model, record["learning_rate"], centers):
            bar.update(max(0, cycles.index(cycle) * len(training_set) - bar.n))  # out, or of an earlier session
            show(bar, step, cycle, center)
            stopping.stop_if_asked()
        bar.update(bar.total - bar.n)
    log.info("done: %s, %s, models in %s", controlled.log_csv, controlled.subjects_csv, run.folder)
    run.finish()


def show(bar, step, cycle, center):
    """Show a step on the progress bar."""
    text = f"cycle {cycle}, {center}"
    if step.rates:
        fpr, fnr = step.rates
        text += f": loss {step.loss:.3f}, FPR {fpr:.3f}, FNR {fnr:.3f}" + (" undone" if step.harmful else "")
    bar.set_postfix_str(text, refresh=False)
    bar.update(len(step.subjects) if step.phase == "batch" else 0)


if __name__ == "__main__":
    command.run(main)
