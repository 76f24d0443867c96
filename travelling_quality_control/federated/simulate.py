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
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed; FLARE's processes read PYTHONPATH
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get("PYTHONPATH")])])

from travelling.errors import InputError
from travelling.option import from_command_line
from travelling.option_values import to_json
from travelling.runs import command
from travelling.words import some
from travelling_quality_control.federated.options import Images, QualityControlServer, Simulation

MEMORY_OF_A_CENTER = 9e8  # bytes, at least: its process with TensorFlow, without any image


def main() -> None:
    """Make the centers, and run job after job."""
    settings = from_command_line(Simulation, __doc__)
    import pandas as pd

    from travelling.images.cache import free_memory, memory_for_images
    from travelling.images.cohort import read_cohort
    from travelling.images.test_set import refuse_overlap
    from travelling.runs.controlled_run import refuse_unfit_test_set
    from travelling_quality_control.federated import gate, prepare_site
    from travelling_quality_control.federated.center import FLAGGED_FILE
    from travelling_quality_control.federated.job import refuse_complete, refuse_second, run_jobs, travelling_recipe
    from travelling_quality_control.federated.settings import SERVER_FILE, read_server_settings

    training_set, test_set = read_cohort(settings.fn_train), read_cohort(settings.fn_test)
    refuse_overlap(training_set, test_set, settings.fn_train, settings.fn_test)
    refuse_unfit_test_set(test_set, settings)
    folder = settings.fn_save.with_name(f"{settings.fn_save.name}_flare").absolute()
    local = folder / "simulator" / "travelling" / "local"  # of the simulated sites, which all get a copy
    centers = list(training_set["Study"].unique())
    needed, free = MEMORY_OF_A_CENTER * (1 + len(centers)) / 1e9, free_memory() / 1e9
    if needed > free:
        raise InputError(
            f"{settings.fn_train}: {len(centers)} centers and a server need some {needed:.0f} GB of memory in FLARE's "
            f"simulator, {free:.0f} GB are free; enc_PD_quality_control.py does the same in one process"
        )
    memory = memory_for_images(settings.cache_gb) / 1e9 / (1 + len(centers))  # they share this machine
    local.mkdir(parents=True, exist_ok=True)
    refuse_second(folder)
    images = to_json(Images, settings.values()) | {"cache_gb": memory}
    content = to_json(QualityControlServer, settings.values()) | images | {"centers": centers}
    (local / SERVER_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    server = read_server_settings(local / SERVER_FILE)
    refuse_complete(server, "--overwrite")
    for center in centers:
        cohort = training_set[training_set["Study"] == center]
        private = folder / "centers" / center
        private.mkdir(parents=True, exist_ok=True)
        cohort.to_csv(private / "training_set.csv", index=False)
        prepare_site.configure_center(local, center, private / "training_set.csv", private / "private", images)
    prepare_site.allow(local, gate.CENTER_RIGHTS)  # all of this machine: FLARE's simulator asks nobody's rights

    from nvflare.recipe.sim_env import SimEnv

    def run_one():
        recipe = travelling_recipe(settings.task_timeout, settings.cycles_per_job, settings.poll)
        workspace = folder / "simulator"
        # FLARE's error says where its logs are; the run's own folder says what went wrong.
        with contextlib.suppress(RuntimeError):
            recipe.execute(SimEnv(clients=centers, workspace_root=str(workspace), log_config="ERROR"))
        return f"FLARE's logs in {workspace} say more"

    run_jobs(server, run_one)
    for center in centers:
        found = folder / "centers" / center / "private" / FLAGGED_FILE
        flagged = pd.read_csv(found)["Eliminated"] if found.exists() else pd.Series(dtype=int)
        print(f"{center}: {some(len(flagged), 'image')} flagged, {flagged.sum()} eliminated ({found})")
    print(f"done: {settings.fn_save.absolute()}.csv")


if __name__ == "__main__":
    command.run(main)
