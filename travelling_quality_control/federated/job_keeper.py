"""Keeps a job alive on the server when the process of one center ends; FLARE would end it for all centers.

FLARE 2.9 fails a job as soon as one of its clients reports that its process was killed, or could not start. Here that
center alone is dead for the rest of the job, and nobody waits for its answers.
"""

from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellChannel, CellChannelTopic, CellMessageHeaderKeys, JobFailureMsgKey

OUTCOME_WAIT = 30.0  # seconds at a job's end, for centers that have not reported theirs; FLARE's 900 delay the next job


class JobKeeper(FLComponent):
    """A component of the server, which prepare_site.py enters in its ``resources.json``."""

    def __init__(self) -> None:
        super().__init__()
        self._server: Any = None  # FLARE's FederatedServer

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE. The event comes once, and only in the process that starts the jobs."""
        if event_type != EventType.SYSTEM_START:
            return
        self._server = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
        self._server.engine.job_runner.client_outcome_wait_timeout = OUTCOME_WAIT
        self._server.cell.register_request_cb(
            channel=CellChannel.SERVER_MAIN, topic=CellChannelTopic.REPORT_JOB_FAILURE, cb=self.process_ended
        )

    def process_ended(self, request: Message) -> Message:
        """A center reports how its process of a job has ended: the answer is FLARE's, but no failure is that of all."""
        server, report = self._server, request.payload
        token = request.get_header(CellMessageHeaderKeys.TOKEN)
        client = server.client_manager.clients.get(token)
        if client and isinstance(report, dict) and report.get(JobFailureMsgKey.CODE) != JobReturnCode.SUCCESS:
            report[JobFailureMsgKey.CODE] = JobReturnCode.UNKNOWN  # for which FLARE ends no job
            job = report.get(JobFailureMsgKey.JOB_ID)
            if job in server.engine.run_processes:
                server.engine.notify_dead_job(job, client.name, "its process has ended")
                # Should the job's process not listen yet, it is notified again with each of the client's heartbeats.
                with server._job_reported_clients_lock:
                    server._job_reported_clients.setdefault(job, set()).add(token)
        return server.process_job_failure(request)
