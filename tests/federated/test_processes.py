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

from deployment import ROOT, Deployment
from federation import ERROR, FIRST_CYCLE, made_once, server_settings, study
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
    home, centers = tmp_path / "home", ["c1", "c2", "bad", "c0"]
    order = ["c1", "c0", "bad", "c2"]  # in which the cycle visits them
    settings = json.loads(server_settings(study, home, centers=centers, cycles=FIRST_CYCLE + 1))
    with Deployment(tmp_path / "federation", centers) as federation, ThreadPoolExecutor(1) as pool:
        federation.provision()
        federation.prepare(study.training_set, settings)
        for name in ("localhost", *centers):
            federation.start(name)
        for name in centers:
            federation.wait_for("Successfully registered client", name)
        start = time.monotonic()
        jobs = pool.submit(federation.run_jobs, "--poll", 0.1, "--task-timeout", 600, check=False)
        wait_until(lambda: workers(federation, "c2"))[0].kill()
        wait_until(lambda: rows(home, "c1"))
        (worker,) = workers(federation, "c1")
        worker.suspend()
        before = times(home)
        second = federation.run_jobs(check=False)
        assert len(rows(home, "c1")) == 1, "the worker was suspended too late"
        assert times(home) == before
        worker.kill()
        done = jobs.result()
        assert time.monotonic() - start < 300  # nobody waits for the dead until --task-timeout
    assert second.returncode == 2
    (line,) = second.stdout.splitlines()
    assert line.startswith("error: ")
    assert "another process submits the jobs of this run already" in line
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("Submitted job") == 1
    log = pd.read_csv(home / "qc.csv", dtype=str, keep_default_na=False)
    assert list(dict.fromkeys(log["Study"])) == ["n/a", *order]
    assert list(log[log["Study"] == "c1"]["Phase"]) == ["batch", "unreachable"]
    assert list(log[log["Study"] == "c2"]["Phase"]) == ["unreachable"]
    assert not set(log[log["Study"].isin(["c0", "bad"])]["Phase"]) & {"unreachable", "invalid"}
    audit = federation.command(
        sys.executable, ROOT / "travelling_quality_control" / "audit.py", home / "qc.csv", check=False
    )
    assert audit.stdout.startswith("consistent: 1 cycle "), audit.stdout
    assert "2 visits failed" in audit.stdout


def times(folder):
    """When each file of a run was changed last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def rows(home, center):
    """The rows of a log that are of a center."""
    log = home / "qc.csv"
    return [line for line in log.read_text().splitlines() if f",{center}," in line] if log.exists() else []


def wait_until(condition, seconds=300):
    """Wait until a condition holds; returns what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.005)
    return found


def workers(federation, center):
    """The processes of a center in which its jobs run."""
    kit = str(federation.kits / center)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {kit, "nvflare.private.fed.app.client.worker_process"} <= set(process.info["cmdline"] or [])
    ]
