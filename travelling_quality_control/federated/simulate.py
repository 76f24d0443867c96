"""Run quality control in FLARE's simulator: all centers of a training set on this machine, each in a process of its own.

For trying out what happens between hospitals. A study of many centers is faster, and gives the same log, with
enc_PD_quality_control.py.

Example:
    python travelling_quality_control/federated/simulate.py -fn_train ./training_set.csv -fn_test ./test_set.csv -cycles 30
        -en ./path_encoder -pd ./path_classifier -revisit 2 -error 0.02 -fn_save filename

Writes what the script of quality control does, with pseudonyms for subjects, and, in <fn_save>_flare, the centers'
private folders and FLARE's own files.
"""  # noqa: E501

import contextlib
import json
import os
import sys

from travelling import command

PUBLISHED_SEED = 42


def parse_arguments():
    """The command line."""
    parser = command.Parser(__doc__)
    command.add_quality_control_options(parser, PUBLISHED_SEED)
    command.add_evaluation_options(parser)
    command.add_image_options(parser)
    command.add_output_options(parser, default="<fn_save>_run")
    from travelling_quality_control.federated.job import add_job_options

    add_job_options(parser)
    return command.check_quality_control_options(parser, parser.parse_args())


def main():
    """Make the centers, and run job after job."""
    arguments = parse_arguments()
    from travelling.cache import memory_for_images
    from travelling.cohort import read_cohort, refuse_overlap
    from travelling.controlled_run import refuse_unfit_test_set
    from travelling_quality_control.federated import prepare_site
    from travelling_quality_control.federated.job import refuse_complete, run_jobs, travelling_recipe
    from travelling_quality_control.federated.settings import SERVER_FILE, read_server_settings

    training_set, test_set = read_cohort(arguments.fn_train), read_cohort(arguments.fn_test)
    refuse_overlap(training_set, test_set, arguments.fn_train, arguments.fn_test)
    refuse_unfit_test_set(test_set, arguments)
    folder = arguments.fn_save.with_name(f"{arguments.fn_save.name}_flare").absolute()
    local = folder / "simulator" / "travelling" / "local"  # of the simulated sites, which all get a copy
    local.mkdir(parents=True, exist_ok=True)
    centers = list(training_set["Study"].unique())
    memory = memory_for_images(arguments.cache_gb) / 1e9 / (1 + len(centers))  # they share this machine
    images = prepare_site.image_settings(memory, arguments.cache_dir, arguments.reorient)
    write_server_settings(local / SERVER_FILE, arguments, centers, images)
    settings = read_server_settings(local / SERVER_FILE)
    refuse_complete(settings, "--overwrite")
    for center, cohort in training_set.groupby("Study", sort=False):
        private = folder / "centers" / center
        private.mkdir(parents=True, exist_ok=True)
        cohort.to_csv(private / "training_set.csv", index=False)
        prepare_site.configure_center(local, center, private / "training_set.csv", private / "private", images)
    prepare_site.allow(local)

    from nvflare.recipe.sim_env import SimEnv

    def run_one():
        recipe = travelling_recipe(arguments.task_timeout, arguments.cycles_per_job, arguments.poll)
        # As many threads as clients: with fewer, they take turns, and load their model anew for every visit.
        environment = SimEnv(clients=centers, num_threads=len(centers), workspace_root=str(folder / "simulator"))
        # FLARE's error says where its logs are; the run's own folder says what went wrong.
        with output_to(folder / "flare.log"), contextlib.suppress(RuntimeError):
            recipe.execute(environment)

    run_jobs(settings, run_one)
    print(f"done: {settings.fn_save}.csv; lists of flagged images in {folder / 'centers'}")


def write_server_settings(path, arguments, centers, images):
    """The configuration of the simulated server, from the command line; ``images`` says where decoded ones go."""
    names = (
        "cycles",
        "revisit",
        "error",
        "protocol",
        "learning_rate",
        "seed",
        "batch_size",
        "first_cycle",
        "allow_saturated",
        "rule",
        "screen",
        "false_alarms",
        "eval_batch_size",
        "keep_every",
        "overwrite",
    )
    content = {name: getattr(arguments, name) for name in names}
    paths = ("fn_test", "en", "pd", "fn_save", "output_folder")
    content |= {name: str(getattr(arguments, name).absolute()) for name in paths}
    path.write_text(json.dumps(content | images | {"centers": centers}, indent=2), encoding="utf-8")


@contextlib.contextmanager
def output_to(path):
    """Send what this process and its children print to a file: FLARE prints several lines for every step."""
    sys.stdout.flush()
    sys.stderr.flush()
    streams = [(stream, os.dup(stream)) for stream in (1, 2)]
    with open(path, "ab") as file:
        try:
            for stream, _ in streams:
                os.dup2(file.fileno(), stream)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, kept in streams:
                os.dup2(kept, stream)
                os.close(kept)


if __name__ == "__main__":
    command.run(main)
