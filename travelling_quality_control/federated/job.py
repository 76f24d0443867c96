"""Run quality control, or the standard travelling model, on a FLARE server: one job per cycle, until the run is done.

To be started on the server's machine, because the run's own checkpoint tells how far it has come, not FLARE. The same
command goes on after whatever has stopped it. A job carries no code, no path and no image: which classes it may use,
and where the data are, is written at the sites (prepare_site.py).

Example:
    python travelling_quality_control/federated/job.py --server ./kits/server.example.org --admin ./kits/me@example.org
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from travelling.errors import AlreadyDone, InputError
from travelling.option import add_to_parser
from travelling.runs import command, stopping
from travelling.runs.record import Record, describe, differences
from travelling_quality_control.federated.options import Jobs
from travelling_quality_control.federated.settings import (
    ERROR_FILE,
    INPUT_FILES,
    SERVER_FILE,
    Server,
    log_file,
    read_server_settings,
)

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session
    from nvflare.recipe.spec import Recipe

CONNECTION_WAIT = 180.0  # seconds; after a crash of the server it takes them two minutes to come back


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    add_to_parser(parser, Jobs)
    parser.add_argument("--server", type=Path, required=True, metavar="KIT", help="the server's FLARE folder")
    parser.add_argument("--admin", type=Path, required=True, metavar="KIT", help="the FLARE folder of who submits jobs")
    parser.add_argument("--user", help="the name in that folder's certificate (default: the name of the folder)")
    return parser.parse_args()


def travelling_recipe(task_timeout: int, cycles: int, poll: float) -> Recipe:
    """A FLARE recipe for the next ``cycles`` cycles of a run; all else is the sites' own configuration."""
    from nvflare.job_config.api import FedJob
    from nvflare.recipe.spec import Recipe

    from travelling_quality_control.federated.center import CenterExecutor
    from travelling_quality_control.federated.server import TravellingController

    # A center whose process has ended is given up at once; one alone may finish the cycle that two have begun.
    job = FedJob(name="travelling", min_clients=1, fail_fast=True)
    job.set_app_packages(["travelling", "travelling_quality_control"])  # installed at the sites: no code travels
    job.to_server(TravellingController(task_timeout, cycles))
    job.to_server({"server": {"task_request_interval": poll}, "dead_client_check_lead_time": 0})
    job.to_clients(CenterExecutor())
    return Recipe(job)


def refuse_complete(settings: Server, overwrite: str) -> None:
    """Raise AlreadyDone where the run is complete, and InputError where its folder has another complete run.

    ``overwrite`` is what the user is told to say to have that replaced.
    """
    path = settings.output_folder / "run.json"
    earlier = None if settings.overwrite else Record(path, {}).read()
    if not earlier or not earlier.get("finished"):
        return
    inputs = {name: getattr(settings, name) for name in INPUT_FILES[settings.method]}
    now = describe(settings, inputs, settings.output_folder)
    changes = differences(earlier, now | {"script": earlier.get("script")})  # that is FLARE's
    if changes:
        raise InputError(f"{path}: is another run's result ({overwrite} replaces it; {changes[0]})")
    raise AlreadyDone(f"done already: {settings.output_folder} ({overwrite} runs it again)")


def place(folder: Path) -> tuple:
    """How far the run of a folder has come: whether it is finished, and what changes with every visit."""
    record: dict = {}
    with contextlib.suppress(InputError):  # a damaged one is the job's to refuse, or to overwrite
        record = Record(folder / "run.json", {}).read() or {}
    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("*"))  # each has another name
    return bool(record.get("finished")), record.get("started"), checkpoints


def run_jobs(settings: Server, run_one: Callable[[], str]) -> None:
    """Call ``run_one()`` for job after job until the run is finished; a job that gets nowhere is an InputError.

    It returns what is known of the job's end besides. The first is called in any case: it begins anew where a complete
    run is to be overwritten.
    """
    folder = settings.output_folder
    before, is_finished = place(folder), False
    while not is_finished:
        end = run_one()
        error = folder / ERROR_FILE
        if error.is_file():
            raise InputError(error.read_text(encoding="utf-8").strip() or f"{folder}: cannot be written (a full disk?)")
        now = place(folder)
        if now == before:
            raise InputError(f"a job has ended, and the run is where it was before it ({end})")
        before, is_finished = now, now[0]


def refuse_second(folder: Path) -> None:
    """Hold a folder until this process ends; raises InputError where another process, which submits jobs, has it."""
    lock = os.open(folder, os.O_RDONLY)
    stopping.at_end.append(lambda: os.close(lock))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: another process submits the jobs of this run already") from None
    except OSError:  # some file systems of networks have no locks
        return


def show_progress(settings: Server) -> Callable[..., bool]:
    """What FLARE calls every two seconds of a job: prints which centers are there, and each new line of the log."""
    path = log_file(settings)
    seen = len(_lines(path))
    before: list[str] = []

    def show(session, *_):
        nonlocal seen, before
        there = connected(session, settings)
        if there != before:
            print(f"{len(there)} of {len(settings.centers)} centers are there: {', '.join(there)}", flush=True)
            before = there
        lines = _lines(path)
        for line in lines[seen if seen <= len(lines) else 0 :]:  # a run that begins anew has a new log
            print(line, flush=True)
        seen = len(lines)
        return True

    return show


def _lines(path):
    """The whole lines of a log that is being written."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def connected(session: Session, settings: Server) -> list[str]:
    """The run's centers that are connected to the FLARE server."""
    return sorted({client.name for client in session.get_system_info().client_info} & set(settings.centers))


def main() -> None:
    """Submit job after job."""
    arguments = parse_arguments()
    for kit in (arguments.server, arguments.admin):
        if not (kit / "startup").is_dir():
            raise InputError(f"{kit}: not a FLARE folder (it has no folder startup)")
    settings = read_server_settings(arguments.server / "local" / SERVER_FILE)
    refuse_second(arguments.server / "local")
    refuse_complete(settings, f"overwrite in {SERVER_FILE}")

    from nvflare.fuel.flare_api.flare_api import new_secure_session
    from nvflare.recipe.prod_env import ProdEnv

    user = arguments.user or arguments.admin.name
    environment = ProdEnv(str(arguments.admin.absolute()), username=user, login_timeout=30)
    show = show_progress(settings)

    def run_one():
        try:
            session = new_secure_session(user, str(arguments.admin.absolute()), timeout=30)
        except Exception as error:  # FLARE raises many kinds; the answer is the same
            raise InputError(f"{arguments.admin}: no session with the FLARE server ({error})") from None
        try:
            refuse_lonely(session, settings)
            recipe = travelling_recipe(arguments.task_timeout, arguments.cycles_per_job, arguments.poll)
            job = recipe.execute(environment).get_job_id()
            session.monitor_job(job, cb=show)
            return f"FLARE calls it {session.get_job_meta(job)['status']}; its logs say more"
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the FLARE server does not answer any more ({error}); the same command goes on") from None
        finally:
            with contextlib.suppress(Exception):  # it may be gone
                session.close()

    run_jobs(settings, run_one)
    print(f"done: {settings.output_folder}")


def refuse_lonely(session: Session, settings: Server) -> None:
    """Wait for two of the centers to be connected; raises InputError where they do not come."""
    end = time.monotonic() + CONNECTION_WAIT
    while len(there := connected(session, settings)) < 2:
        if time.monotonic() > end:
            raise InputError(
                f"the model cannot travel: of {len(settings.centers)} centers, {', '.join(there) or 'none'} "
                "is connected to the FLARE server, two at least are needed"
            )
        time.sleep(1)


if __name__ == "__main__":
    command.run(main)
