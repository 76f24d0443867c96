"""What a site lets in: the files that prepare_site.py writes, and a federation whose lead attacks a hospital."""

import contextlib
import json
import logging
import os
import shutil
import socket
import ssl
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pandas as pd
import pytest

pytest.importorskip("nvflare")

from deployment import ADMIN, CONNECTED, Deployment, find_processes, wait_until
from federation import CYCLES, FIRST_CYCLE, made_once, server_settings, study
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.sec.authz import AuthzContext, Person
from nvflare.private.fed.app.fl_app_validator import FLAppValidator
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from travelling.errors import InputError
from travelling_quality_control.federated import gate
from travelling_quality_control.federated.center import CenterExecutor
from travelling_quality_control.federated.server import ERROR_FILE, TravellingController

CENTERS = ["c0", "c1"]
SHELL = (
    "pwd",
    "ls",
    "ls -R",
    "cat local/travelling_c0.json",
    "head log.txt",
    "tail log.txt",
    "grep travelling log.txt",
)


@pytest.fixture(scope="module")
def federation(study, tmp_path_factory):
    """A provisioned federation of two hospitals, prepared and not started; it is stopped at the end."""
    folder = tmp_path_factory.mktemp("gate")
    with Deployment(folder / "federation", CENTERS) as made:
        made.provision()
        made.results = folder / "results"
        settings = json.loads(server_settings(study, made.results, centers=CENTERS, cycles=FIRST_CYCLE + 1))
        made.prepare(study.training_set, settings)
        yield made


def may(local, role, right):
    """Whether FLARE lets a person of a role do something at a site."""
    authorizer = FLAuthorizer("hospital", json.loads((local / "authorization.json").read_text()))
    return authorizer.authorize(AuthzContext(right, Person("me", "hospital", role), Person("me", "hospital", role)))[0]


def test_nobody_has_a_right_that_is_not_needed(federation):
    needed = {"c0": {"submit_job", "check_status", "shutdown"}, "localhost": {"submit_job"}}
    kinds = ("manage_job", "view", "operate")
    needed["localhost"] |= {name for name, kind in COMMAND_CATEGORIES.items() if kind in kinds} - {"delete_workspace"}
    for site, rights in needed.items():
        local = federation.kits / site / "local"
        known = {*COMMAND_CATEGORIES, "byoc", "submit_job", "clone_job", "server-predeployed-flwr", "report_version"}
        for role in ("project_admin", "lead"):
            assert {right for right in known if may(local, role, right)} == rights
        for role in ("org_admin", "member", "anything"):
            assert not any(may(local, role, right) for right in known)


def test_what_is_written_is_the_sites_own(federation):
    kit = federation.kits / "c0"
    private = federation.folder / "hospitals" / "c0" / "private"
    modes = {path: path.stat().st_mode & 0o777 for path in (kit, private, *(kit / "local").glob("*.json"))}
    assert len(modes) == 5
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_prepare_site_says_what_comes_next(federation):
    for site, log in (("c0", "private/center.log"), ("localhost", "log.txt")):
        said = federation.said[site]
        kit = federation.kits / site
        for path in (kit / "start.sh", kit / "stop.sh", kit / "local" / "authorization.json"):
            assert str(path) in said
            assert path.exists()
        assert log in said


@pytest.fixture
def local(federation, tmp_path):
    """A copy of a hospital's folder ``local``."""
    return shutil.copytree(federation.kits / "c0" / "local", tmp_path / "local")


def change(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | values))


def grant(local, role, right):
    permissions = json.loads((local / "authorization.json").read_text())["permissions"]
    change(local / "authorization.json", permissions=permissions | {role: right})


LAX = {
    "no authorization.json": lambda local: (local / "authorization.json").unlink(),
    "authorization.json is FLARE's": lambda local: (local / "authorization.json.default").replace(
        local / "authorization.json"
    ),
    "one right more": lambda local: grant(local, "lead", {"byoc": "o:site"}),
    "everything": lambda local: grant(local, "project_admin", "any"),
    "a role more": lambda local: grant(local, "member", {"view": "any"}),
    "no permissions": lambda local: change(local / "authorization.json", permissions=None),
    "not JSON": lambda local: (local / "authorization.json").write_text("{"),
    "no resources.json": lambda local: (local / "resources.json").unlink(),
    "resources.json is FLARE's": lambda local: (local / "resources.json.default").replace(local / "resources.json"),
    "any class": lambda local: change(local / "resources.json", class_allow_list=["*"]),
    "a class more": lambda local: change(
        local / "resources.json", class_allow_list=[gate.EXECUTOR, "subprocess.Popen"]
    ),
    "warns only": lambda local: change(local / "resources.json", class_list_enforcement_mode="warn"),
    "logs are sent": lambda local: change(local / "resources.json", allow_log_streaming=True),
    "no own look": lambda local: change(local / "resources.json", app_validator=None),
}


@pytest.mark.parametrize("change_it", LAX.values(), ids=LAX)
def test_a_laxer_policy_is_refused(local, change_it):
    gate.refuse_lax_policy(local, gate.CENTER_RIGHTS)
    change_it(local)
    with pytest.raises(InputError, match=r"(authorization|resources)\.json: .*prepare_site"):
        gate.refuse_lax_policy(local, gate.CENTER_RIGHTS)


def test_a_lax_site_is_not_started(federation, local, tmp_path):
    shutil.copy(federation.kits / "c0" / "start.sh", tmp_path)
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "start.sh").write_text("#!/bin/bash\necho started\n")
    (tmp_path / "startup" / "start.sh").chmod(0o700)
    started = federation.command("bash", tmp_path / "start.sh", check=False)
    assert (started.returncode, (tmp_path / "start.out").read_text()) == (0, "started\n")
    grant(local, "lead", {"byoc": "any"})
    refused = federation.command("bash", tmp_path / "start.sh", check=False)
    assert refused.returncode == 1
    assert "authorization.json: lead is given the right byoc" in refused.stdout
    assert len(refused.stdout.splitlines()) == 1
    assert (tmp_path / "start.out").read_text() == "started\n"


def test_a_narrower_policy_is_not(local):
    grant(local, "lead", {"submit_job": "none"})
    change(local / "resources.json", class_allow_list=[gate.EXECUTOR])
    gate.refuse_lax_policy(local, gate.CENTER_RIGHTS)


def context(local, **props):
    """What FLARE hands to an executor at c0."""
    made = mock.Mock()
    made.get_engine().get_workspace().get_site_config_dir.return_value = str(local)
    made.get_identity_name.return_value = "c0"
    made.get_prop.side_effect = props.get
    return made


@pytest.mark.parametrize(
    ("lax", "props", "message"),
    [
        (True, {FLContextKey.SECURE_MODE: True}, "authorization.json: project_admin is given the right any"),
        (False, {FLContextKey.SECURE_MODE: False}, "without secure_train=true"),
    ],
)
def test_a_center_does_not_work_behind_an_open_gate(federation, local, lax, props, message, tmp_path):
    change(local / "travelling_c0.json", private_folder=str(tmp_path / "private"))
    if lax:
        grant(local, "project_admin", "any")
    logging.getLogger("travelling.center.c0").handlers.clear()
    question = FLModelUtils.to_shareable(FLModel(params={}, meta={}))
    answer = CenterExecutor().execute("subjects", question, context(local, **props), Signal())
    assert FLModelUtils.from_shareable(answer).meta["error"] == "input"
    (line,) = (tmp_path / "private" / "center.log").read_text().splitlines()
    assert message in line


def test_nor_does_the_server(federation, tmp_path):
    local = shutil.copytree(federation.kits / "localhost" / "local", tmp_path / "local")
    change(local / "travelling_server.json", fn_save=str(tmp_path / "qc"))
    (local / "authorization.json").unlink()
    controller = TravellingController()
    controller.engine = SimpleNamespace(get_workspace=lambda: SimpleNamespace(get_site_config_dir=lambda: str(local)))
    controller.panic = mock.Mock()
    controller.run()
    assert "authorization.json" in (tmp_path / "qc_run" / ERROR_FILE).read_text()
    controller.panic.assert_called_once()


def make_job(folder, executor, code=None):
    """A job of a lead who means ill: the server runs what it should, the hospitals run ``executor``."""
    client = {"format_version": 2, "components": [], "executors": [{"tasks": ["*"], "executor": {"path": executor}}]}
    server = {"format_version": 2, "components": [], "workflows": [{"id": "it", "path": gate.CONTROLLER, "args": {}}]}
    for app, name, content in (("server", "config_fed_server", server), ("hospital", "config_fed_client", client)):
        (folder / app / "config").mkdir(parents=True)
        (folder / app / "config" / f"{name}.json").write_text(json.dumps(content))
    if code:
        (folder / "hospital" / "custom").mkdir()
        (folder / "hospital" / "custom" / "evil.py").write_text(code)
    meta = {"name": folder.name, "min_clients": 1, "deploy_map": {"server": ["server"], "hospital": CENTERS}}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize(
    "path", ["subprocess.Popen", "nvflare.app_common.np.np_trainer.NPTrainer", f"{gate.EXECUTOR}s"]
)
def test_no_class_of_others_is_used(federation, path):
    for site in ("c0", "localhost"):
        workspace = Workspace(str(federation.kits / site), site)
        asked = ComponentPathAuthorizer()
        asked.authorize_component_config({"path": gate.EXECUTOR}, workspace=workspace)
        with pytest.raises(UnsafeComponentError, match="is not in allow_list"):
            asked.authorize_component_config({"path": path}, workspace=workspace)


def test_no_role_brings_code(federation, tmp_path, monkeypatch):
    """FLARE grants the role super whatever it asks for; the site's own look asks for no role."""
    from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes

    site = tmp_path / "c0"
    for name in ("startup", "local"):
        (site / name).mkdir(parents=True)
    job = make_job(tmp_path / "evil", "evil.Evil", "pass")
    data = zip_directory_to_bytes(str(job / "hospital"), "")
    meta = {"submitter_name": "me", "submitter_org": "server", "submitter_role": "super"}
    monkeypatch.setattr(AppAuthzService, "app_validator", FLAppValidator("client", [gate.NoCode()]))
    error = AppDeployer().deploy(Workspace(str(site), "c0"), "job-1", meta, "evil", data, mock.Mock())
    assert error == "this site takes no job that brings code"
    assert not (site / "job-1").exists()


@pytest.fixture(scope="module")
def running(federation):
    """The federation, at work: ``session`` is the lead's, ``ask(command)`` what it answers, ``answers`` all of that.

    c1 is started as the docs say, after a power cut: its numbers of processes are those of another one.
    """
    c1 = federation.kits / "c1"
    for name in ("daemon_pid.fl", "pid.fl"):
        (c1 / name).write_text(str(os.getpid()))
    (c1 / "shutdown.fl").touch()
    assert "There seems to be one instance" in federation.command("bash", c1 / "startup" / "sub_start.sh").stdout
    with contextlib.ExitStack() as stack:
        stack.callback(stop_as_documented, federation, c1)
        federation.command("bash", c1 / "start.sh")
        for site in ("localhost", "c0"):
            federation.start(site)
        federation.wait_for(CONNECTED, "c0")
        wait_until(lambda: CONNECTED in (c1 / "start.out").read_text())
        session = stack.enter_context(
            contextlib.closing(new_secure_session(ADMIN, str(federation.kits / ADMIN), timeout=60))
        )
        answers = []

        def ask(command):
            answers.append(json.dumps(session.do_command(command), default=str))
            return answers[-1]

        yield SimpleNamespace(session=session, ask=ask, answers=answers)


def stop_as_documented(federation, kit):
    stopped = federation.command("bash", kit / "stop.sh", check=False)
    assert (stopped.returncode, find_processes(kit)) == (0, []), stopped.stdout


def knock(port, root, startup):
    """Shake hands with the server as a client with the certificate in a startup folder (None: without one)."""
    context = ssl.create_default_context(cafile=str(root / "rootCA.pem"))
    if startup:
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    with (
        socket.create_connection(("localhost", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return bool(secure.recv(100))


def test_no_stranger_is_let_in(federation, running, tmp_path):
    strangers = Deployment(tmp_path / "strangers", CENTERS[:1], federation.port)
    strangers.provision()
    own, other = (made.kits / "c0" / "startup" for made in (federation, strangers))
    assert knock(federation.port, own, own)
    for startup in (None, other):
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert not knock(federation.port, own, startup)


EVIL = """
open({trace!r}, "w").close()
from nvflare.apis.executor import Executor
from nvflare.apis.shareable import Shareable

class Evil(Executor):
    def execute(self, *_):
        return Shareable({{"stolen": open("local/travelling_c0.json").read()}})
"""


def test_custom_code_is_refused_by_the_hospital(federation, running, tmp_path):
    trace = tmp_path / "trace"
    identity = running.session.submit_job(str(make_job(tmp_path / "evil", "evil.Evil", EVIL.format(trace=str(trace)))))
    _, meta = running.session.monitor_job_and_return_job_meta(identity, timeout=300, poll_interval=0.5)
    running.answers.append(json.dumps(meta, default=str))
    assert meta["status"].startswith("FINISHED:")
    assert meta["status"] != "FINISHED:COMPLETED"
    assert not trace.exists()
    for center in CENTERS:
        log = (federation.kits / center / "log.txt").read_text()
        assert f"error: this site takes no job that brings code ({identity})" in log


@pytest.mark.parametrize("command", SHELL)
def test_shell_commands_are_refused(running, command):
    name, *words = command.split()
    for site in ("c0", "server"):
        assert f"not authorized for '{name}'" in running.ask(" ".join([name, site, *words]))


def test_quality_control_still_runs_there(federation, running, study):
    done = federation.run_jobs("--poll", 0.1, "--task-timeout", 60)
    log = pd.read_csv(federation.results / "qc.csv")
    assert set(log[log["Phase"] == "batch"]["Study"]) == set(CENTERS)
    assert done.stdout.count(", FPR ") == len(log) - 1  # the first row is the pre-trained model's
    assert f"cycle {FIRST_CYCLE}, c0: batch, 5 images, FPR " in done.stdout
    assert "2 of 2 centers are there: c0, c1" in done.stdout
    again = federation.command("bash", federation.kits / "c1" / "start.sh", check=False)
    assert (again.returncode, "is running already" in again.stdout) == (1, True)


def test_no_answer_holds_a_path_or_an_id(federation, running, study):
    """All that the lead can ask a hospital, and all files at the server: FLARE's records, logs, and the run's own."""
    jobs = [job["job_id"] for job in running.session.list_jobs()]
    for command in (
        "check_status client", "report_env c0", "report_resources client", "report_version client", "sys_info client",
        "show_scopes client", "configure_site_log client DEBUG", "list_jobs",
        *[f"{command} {job} {target}".strip() for job in jobs for command, target in (
            ("get_job_meta", ""), ("show_stats", "client"), ("show_errors", "client"), ("get_job_log", ""),
            ("configure_job_log", "client DEBUG"), ("abort", "client"), ("delete_workspace", ""), ("delete_job", ""),
        )],
    ):  # fmt: skip
        running.ask(command)
    received = "".join(running.answers).encode()
    for folder in (federation.kits / "localhost", federation.kits / ADMIN, federation.results):
        received += b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"c0" in received
    secrets = [str(federation.folder / "hospitals"), str(federation.kits / "c0"), str(federation.kits / "c1"), "smith"]
    for text in [*secrets, *study.table["Path"]]:
        assert text.encode() not in received, text
