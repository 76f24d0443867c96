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
import csv
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
from travelling.words import some
from travelling_quality_control.federated.options import Jobs
from travelling_quality_control.federated.settings import Server

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session
    from nvflare.recipe.spec import Recipe


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    add_to_parser(parser, Jobs)
    parser.add_argument("--server", type=Path, required=True, metavar="KIT", help="the server's FLARE folder")
    parser.add_argument("--admin", type=Path, required=True, metavar="KIT", help="the FLARE folder of who submits jobs")
    parser.add_argument("--user", help="the name in that folder's certificate (default: the name of the folder)")
    parser.add_argument(
        "--wait",
        type=command.number(float, 0),
        default=60,
        metavar="SECONDS",
        help="for two centers at least to be there, before a job is given up",
    )
    return parser.parse_args()


def travelling_recipe(task_timeout: int, cycles: int, poll: float, name: str = "travelling") -> Recipe:
    """A FLARE recipe for the next ``cycles`` cycles of a run; all else is the sites' own configuration."""
    from nvflare.job_config.api import FedJob
    from nvflare.recipe.spec import Recipe

    from travelling_quality_control.federated.center import CenterExecutor
    from travelling_quality_control.federated.server import TravellingController

    # A center whose process has ended is given up at once; one alone may finish the cycle that two have begun.
    job = FedJob(name=name, min_clients=1, fail_fast=True)
    job.set_app_packages(["travelling", "travelling_quality_control"])  # installed at the sites: no code travels
    job.to_server(TravellingController(task_timeout, cycles))
    job.to_server({"server": {"task_request_interval": poll}, "dead_client_check_lead_time": 0})
    job.to_clients(CenterExecutor())
    return Recipe(job)


def refuse_complete(settings: Server, overwrite: str) -> None:
    """Raise AlreadyDone where the run is complete, and InputError where its folder has another complete run.

    ``overwrite`` is what the user is told to say to have that replaced.
    """
    from travelling.runs.record import Record, describe, differences
    from travelling_quality_control.federated.settings import INPUT_FILES

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


class Progress:
    """How far a run has come, as its folder tells: ``finished``, and ``place``, which changes with every visit."""

    def __init__(self, settings: Server):
        from travelling.runs.checkpoint import Checkpoints
        from travelling.runs.record import Record
        from travelling_quality_control.federated.server import ERROR_FILE

        folder, found, self.finished = settings.output_folder, None, False
        record: dict = {}
        with contextlib.suppress(InputError):  # what is damaged is the job's to refuse, or to overwrite
            record = Record(folder / "run.json", {}).read() or {}
            self.finished = bool(record.get("finished"))
            found = None if self.finished else Checkpoints(folder / "checkpoints").load()
        resumed_at = found[0] if found else {}
        self.place = tuple(record.get(name) for name in ("started", "finished"))
        self.place += tuple(resumed_at.get(name) for name in ("cycle", "centers_left", "log_length"))
        error = folder / ERROR_FILE
        self.error = None
        if error.is_file():
            self.error = error.read_text(encoding="utf-8").strip() or f"{folder}: cannot be written (a full disk?)"


def run_jobs(settings: Server, run_one: Callable[[], str]) -> None:
    """Call ``run_one()`` for job after job until the run is finished; a job that gets nowhere is an InputError.

    It returns what is known of the job's end besides. The first is called in any case: it begins anew where a complete
    run is to be overwritten.
    """
    before, now = Progress(settings), None
    while not (now and now.finished):
        end = run_one()
        now = Progress(settings)
        if now.error or now.place == before.place:
            raise InputError(now.error or f"a job has ended, and the run is where it was before it ({end})")
        before = now


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
    """What FLARE calls every two seconds of a job: prints which centers are there, and each new step of the run."""
    from travelling_quality_control.federated.server import VISITS_FILE

    if settings.method == "quality_control":
        path, describe = Path(f"{vars(settings)['fn_save']}.csv"), describe_verification
    else:
        path, describe = settings.output_folder / VISITS_FILE, describe_visit
    printed = len(_rows(path))
    there: list[str] = []

    def show(session, *_):
        nonlocal printed, there
        now = sorted({client.name for client in session.get_system_info().client_info} & set(settings.centers))
        if now != there:
            print(f"{len(now)} of {len(settings.centers)} centers are there: {', '.join(now)}", flush=True)
            there = now
        rows = _rows(path)
        for row in rows[printed:]:
            print(describe(row), flush=True)
        printed = len(rows)
        return True

    return show


def describe_verification(row: dict) -> str:
    """A row of the log of quality control, in words."""
    from travelling.method.verification_log import SEPARATOR

    images = some(len(row["Subjects"].split(SEPARATOR)), "image")
    text = f"cycle {row['Cycle']}, {row['Study']}: {row['Phase']}, {images}"
    text = "pre-trained model" if row["Phase"] == "baseline" else text
    if row["PFP"]:  # a visit that failed has none
        text += f", FPR {float(row['PFP']):.3f}, FNR {float(row['PFN']):.3f}" + ", undone" * (row["Ignored"] == "1")
    return text


def describe_visit(row: dict) -> str:
    """A question to a center, in words."""
    return f"{row['Center']}: {row['Question']}, {float(row['Seconds']):.1f} s, {row['Outcome']}"


def _rows(path):
    """The whole lines of a CSV that is being written."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def main() -> None:
    """Submit job after job."""
    arguments = parse_arguments()
    from travelling_quality_control.federated.settings import SERVER_FILE, read_server_settings

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

    def run_one():
        try:
            session = new_secure_session(user, str(arguments.admin.absolute()), timeout=30)
        except Exception as error:  # FLARE raises many kinds; the answer is the same
            raise InputError(f"{arguments.admin}: no session with the FLARE server ({error})") from None
        try:
            refuse_lonely(session, settings.centers, arguments.wait)
            recipe = travelling_recipe(arguments.task_timeout, arguments.cycles_per_job, arguments.poll)
            job = recipe.execute(environment).get_job_id()
            session.monitor_job(job, cb=show_progress(settings))
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


def refuse_lonely(session: Session, centers: list[str], wait: float) -> None:
    """Wait for two of the centers to be connected; raises InputError where they do not come."""
    end = time.monotonic() + wait
    while True:
        there = {client.name for client in session.get_system_info().client_info} & set(centers)
        if len(there) >= 2:
            return
        if time.monotonic() > end:
            raise InputError(
                f"the model cannot travel: of {len(centers)} centers, {', '.join(sorted(there)) or 'none'} "
                "is connected to the FLARE server, two at least are needed"
            )
        time.sleep(1)


if __name__ == "__main__":
    command.run(main)
