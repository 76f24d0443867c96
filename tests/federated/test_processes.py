"""What becomes of a job when processes end: the server's part by itself, and real processes over mutual TLS."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import psutil
import pytest

pytest.importorskip("nvflare")

from deployment import CONNECTED, ROOT, Deployment, wait_until
from federation import (
    CYCLES,
    FIRST_CYCLE,
    SIZES,
    in_one_process,
    made_once,
    options,
    plant_salt,
    read_log,
    read_names,
    server_settings,
    study,
)
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.fuel.common.exit_codes import ProcessExitCode
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.private.admin_defs import Message
from nvflare.private.defs import ERROR_MSG_PREFIX, CellMessageHeaderKeys, JobFailureMsgKey, new_cell_message
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.private.fed.server.message_send import ClientReply

from travelling.method.order import travelling_order
from travelling_quality_control.federated.job_keeper import OUTCOME_WAIT, JobKeeper

FAILURES = [
    ProcessExitCode.EXCEPTION,  # killed
    ProcessExitCode.UNSAFE_COMPONENT,
    ProcessExitCode.CONFIG_ERROR,
    ProcessExitCode.INFRASTRUCTURE_ERROR,  # killed before it had begun
    JobReturnCode.ABORTED,
    JobReturnCode.EXECUTION_ERROR,
]


@pytest.fixture
def server():
    """FLARE's server with two centers and one job, kept by a JobKeeper."""
    server = mock.MagicMock()
    server.client_manager.clients = {"t1": SimpleNamespace(name="c1"), "t2": SimpleNamespace(name="c2")}
    server.client_manager.is_from_authorized_client = server.client_manager.clients.__contains__
    server.engine.run_processes = {"job": {}}
    server._job_reported_clients = {}
    server.process_job_failure = partial(FederatedServer.process_job_failure, server)  # the real one
    context = FLContext()
    context.put(FLContextKey.SITE_OBJ, server, private=True, sticky=False)
    keeper = JobKeeper()
    keeper.handle_event(EventType.SYSTEM_BOOTSTRAP, context)
    assert not server.cell.register_request_cb.called
    keeper.handle_event(EventType.SYSTEM_START, context)
    return server


def report(server, code, token="t1", job="job"):
    """The answer to a center that reports how its process of a job has ended."""
    request = new_cell_message(
        {CellMessageHeaderKeys.TOKEN: token, MessageHeaderKey.ORIGIN: "c1"},
        {JobFailureMsgKey.JOB_ID: job, JobFailureMsgKey.CODE: code, JobFailureMsgKey.REASON: "?"},
    )
    return server.cell.register_request_cb.call_args.kwargs["cb"](request).get_header(MessageHeaderKey.RETURN_CODE)


@pytest.mark.parametrize("code", FAILURES)
def test_the_end_of_a_centers_process_is_not_that_of_the_job(code, server):
    assert report(server, code) == ReturnCode.OK
    runner = server.engine.job_runner
    assert not runner.fail_run.called
    assert not runner.stop_run.called
    runner.resolve_client_outcome.assert_called_once_with("job", "c1")
    assert server.engine.notify_dead_job.call_args.args[:2] == ("job", "c1")
    assert server._job_reported_clients == {"job": {"t1"}}
    assert runner.client_outcome_wait_timeout == OUTCOME_WAIT


def test_a_process_that_ends_as_it_should_is_no_death(server):
    report(server, JobReturnCode.SUCCESS)
    server.engine.job_runner.resolve_client_outcome.assert_called_once_with("job", "c1")
    report(server, ProcessExitCode.EXCEPTION, job="over")
    assert not server.engine.notify_dead_job.called


def test_a_stranger_reports_nobody_dead(server):
    assert report(server, ProcessExitCode.EXCEPTION, token="stranger") == ReturnCode.UNAUTHENTICATED
    assert not server.engine.notify_dead_job.called
    assert not server.engine.job_runner.resolve_client_outcome.called


def test_a_center_that_cannot_start_its_process_is_as_if_it_were_silent(server):
    bodies = {"c1": f"{ERROR_MSG_PREFIX}: no memory", "c2": "Start the client app..."}
    replies = [ClientReply(f"t{name[1]}", name, None, Message("reply_start", body)) for name, body in bodies.items()]
    start = server.engine.start_client_job
    start.args[0].return_value = replies
    with pytest.raises(RuntimeError):
        check_client_replies(replies, list(bodies), "start job")
    check_client_replies(start(SimpleNamespace(job_id="job"), {}, None), list(bodies), "start job")
    assert [reply.client_name for reply in replies if reply.reply] == ["c2"]
    assert server.engine.notify_dead_job.call_args.args[:2] == ("job", "c1")
    assert server._job_reported_clients == {"job": {"t1"}}


def test_a_process_that_is_killed_costs_its_center_a_row_and_a_second_job_is_refused(study, tmp_path):
    """A cycle of a provisioned federation: one center's process dies at its start, another's over its second batch."""
    folder, centers = tmp_path / "server", ["c1", "c2", "bad", "c0"]
    order = ["c1", "c0", "bad", "c2"]  # in which the cycle visits them
    settings = json.loads(server_settings(study, folder, centers=centers, cycles=FIRST_CYCLE + 1))
    with Deployment(tmp_path / "federation", centers) as federation, ThreadPoolExecutor(1) as pool:
        federation.provision()
        federation.prepare(study.training_set, settings)
        federation.start_all()
        # Nobody waits for the dead until --task-timeout: the command itself is ended long before.
        jobs = pool.submit(federation.run_jobs, "--poll", 0.1, "--task-timeout", 3600, check=False)
        wait_until(lambda: workers(federation, "c2"))[0].kill()
        wait_until(lambda: rows(folder, "c1"))
        (worker,) = workers(federation, "c1")
        worker.suspend()
        before = wait_until(lambda: settled(folder))
        second = federation.run_jobs(check=False)
        assert len(rows(folder, "c1")) == 1, "the worker was suspended too late"
        assert times(folder) == before
        worker.kill()
        done = jobs.result()
    assert second.returncode == 2
    (line,) = second.stdout.splitlines()
    assert line.startswith("error: ")
    assert "another process submits the jobs of this run already" in line
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Submitted job") == 1
    log = pd.read_csv(folder / "qc.csv", dtype=str, keep_default_na=False)
    assert list(dict.fromkeys(log["Study"])) == ["n/a", *order]
    assert list(log[log["Study"] == "c1"]["Phase"]) == ["batch", "unreachable"]
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["unreachable"]
    assert not set(log[log["Study"].isin(["c0", "bad"])]["Phase"]) & {"unreachable", "invalid"}
    audit = federation.command(
        sys.executable, ROOT / "travelling_quality_control" / "audit.py", folder / "qc.csv", check=False
    )
    assert audit.stdout.startswith("consistent: 1 cycle "), audit.stdout
    assert "2 visits failed" in audit.stdout


def times(folder):
    """When each file of a run was changed last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def settled(folder):
    """The times of a run's files once the server has written all of its last row, None while it writes."""
    before = times(folder)
    time.sleep(3)
    return before if times(folder) == before else None


def rows(folder, center):
    """The rows of a log that are of a center."""
    log = folder / "qc.csv"
    return [line for line in log.read_text().splitlines() if f",{center}," in line] if log.exists() else []


def workers(federation, center):
    """The processes of a center in which its jobs run."""
    kit = str(federation.kits / center)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {kit, "nvflare.private.fed.app.client.worker_process"} <= set(process.info["cmdline"] or [])
    ]


@pytest.mark.slow
def test_a_server_and_a_center_that_lose_their_power(study, in_one_process, tmp_path):
    """The same command goes on where the server was; the center is unreachable, and back in the next cycle."""
    centers, log = [*SIZES, "bad"], tmp_path / "server" / "qc.csv"
    settings = json.loads(server_settings(study, log.parent))
    _, (_, order, _) = travelling_order(dict.fromkeys(centers, ()), 42, [FIRST_CYCLE, FIRST_CYCLE + 1])
    lost = [center for center in order if center != "bad"][-1]  # which has images to train on
    private = [plant_salt(tmp_path / "federation" / "hospitals" / center / "private") for center in centers]
    with Deployment(tmp_path / "federation", centers) as federation, ThreadPoolExecutor(1) as pool:
        federation.provision()
        federation.prepare(study.training_set, settings)
        federation.start_all()
        jobs = ("--poll", 0.1, "--task-timeout", 60)
        first = pool.submit(federation.run_jobs, *jobs, check=False)
        wait_until(lambda: log.exists() and log.read_text().count("\n") > 3)
        federation.kill("localhost")
        assert first.result().returncode == 2
        assert len(first.result().stdout.split("error: ")[1].splitlines()) == 1
        federation.start("localhost")
        second = pool.submit(federation.run_jobs, *jobs)
        wait_until(lambda: f"\n{FIRST_CYCLE + 1},batch," in log.read_text())
        federation.kill(lost)
        wait_until(lambda: "unreachable" in log.read_text())
        federation.start(lost)  # too late for this cycle's job
        federation.wait_for(CONNECTED, lost)
        second.result()
    found, script = read_log(log, read_names(private)), read_log(in_one_process / "qc.csv")
    until = ["0", str(FIRST_CYCLE)]
    pd.testing.assert_frame_equal(found[found["Cycle"].isin(until)], script[script["Cycle"].isin(until)])
    in_second, in_third = (
        list(found[(found["Study"] == lost) & (found["Cycle"] == str(cycle))]["Phase"])
        for cycle in (FIRST_CYCLE + 1, FIRST_CYCLE + 2)
    )
    assert in_second == ["unreachable"]
    assert "batch" in in_third
    assert found["Cycle"].iloc[-1] == str(CYCLES - 1)
