"""Keeps a job alive on the server when the process of one center ends, or cannot start.

FLARE 2.9 ends the job of all as soon as one of its clients reports that. Here that center alone is dead for the rest of
the job, and nobody waits for its answers.
"""

from functools import partial
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.private.defs import (
    ERROR_MSG_PREFIX,
    CellChannel,
    CellChannelTopic,
    CellMessageHeaderKeys,
    JobFailureMsgKey,
)

JOB_KEEPER = {"id": "job_keeper", "path": f"{__name__}.JobKeeper", "args": {}}  # as resources.json names it
OUTCOME_WAIT = 30.0  # seconds at a job's end, for centers that have not reported theirs; FLARE's 900 delay the next job


class JobKeeper(FLComponent):
    """A component of the server: prepare_site.py enters it in ``resources.json``."""

    def __init__(self) -> None:
        super().__init__()
        self._server: Any = None  # FLARE's FederatedServer

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Called by FLARE. The event comes once, and only in the process that starts the jobs."""
        if event_type != EventType.SYSTEM_START:
            return
        self._server = fl_ctx.get_prop(FLContextKey.SITE_OBJ)
        engine = self._server.engine
        engine.job_runner.client_outcome_wait_timeout = OUTCOME_WAIT
        engine.start_client_job = partial(self._start, engine.start_client_job)
        self._server.cell.register_request_cb(
            channel=CellChannel.SERVER_MAIN, topic=CellChannelTopic.REPORT_JOB_FAILURE, cb=self._process_ended
        )

    def _start(self, start, job, *arguments):
        """The centers' answers to the question whether they have started a job; one that has not is as if silent."""
        replies = start(job, *arguments)
        for reply in replies:
            if reply.reply and str(reply.reply.body).startswith(ERROR_MSG_PREFIX):
                self.logger.warning("%s cannot start job %s: %s", reply.client_name, job.job_id, reply.reply.body)
                reply.reply = None
                self._give_up(job.job_id, reply.client_token, reply.client_name)
        return replies

    def _process_ended(self, request):
        """A center reports how its process of a job has ended: the answer is FLARE's, but no failure is that of all."""
        report, token = request.payload, request.get_header(CellMessageHeaderKeys.TOKEN)
        client = self._server.client_manager.clients.get(token)
        if client and isinstance(report, dict) and report.get(JobFailureMsgKey.CODE) != JobReturnCode.SUCCESS:
            report[JobFailureMsgKey.CODE] = JobReturnCode.UNKNOWN  # for which FLARE ends no job
            self._give_up(report.get(JobFailureMsgKey.JOB_ID), token, client.name)
        return self._server.process_job_failure(request)

    def _give_up(self, job, token, center):
        """Tell a job's process that a center is dead; again with its heartbeats, as that process may not listen yet."""
        if job in self._server.engine.run_processes:
            self._server.engine.notify_dead_job(job, center, "its process has ended")
            with self._server._job_reported_clients_lock:
                self._server._job_reported_clients.setdefault(job, set()).add(token)
