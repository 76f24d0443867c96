"""What a FLARE site lets in: the policy that prepare_site.py writes, and the refusal to work under a laxer one.

FLARE reads it from two files in the site's folder ``local``. Where one is missing, FLARE falls back to its
``.default``, which lets a lead's job bring code, and a lead read files by shell commands.

=====================  ================================================================================================
authorization.json     what a role may do here. Rights that are not named are refused, so are roles that are not named
resources.json         which classes a job may use, whether logs are sent away, and :class:`NoCode`
=====================  ================================================================================================

FLARE grants a role named ``super`` everything, whatever authorization.json says. NoCode asks for no role.
"""

import json
import logging
import sys
from pathlib import Path

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.fl_constant import FLContextKey, WorkspaceConstants
from nvflare.apis.fl_context import FLContext

from travelling.errors import InputError
from travelling.runs import command

CONTROLLER = "travelling_quality_control.federated.server.TravellingController"
EXECUTOR = "travelling_quality_control.federated.center.CenterExecutor"
AUTHORIZATION, RESOURCES = WorkspaceConstants.AUTHORIZATION_CONFIG, WorkspaceConstants.RESOURCES_CONFIG
# FLARE answers delete_workspace with the absolute path of a hospital's kit, and does not ask the hospital.
_NEVER = {"byoc": "none", "shell_commands": "none", "delete_workspace": "none"}
_CENTER = {"submit_job": "any", "check_status": "any", "shutdown": "any"}
_SERVER = _CENTER | {"manage_job": "any", "view": "any", "operate": "any"}
CENTER_RIGHTS = dict.fromkeys(("project_admin", "lead"), _NEVER | _CENTER)
SERVER_RIGHTS = dict.fromkeys(("project_admin", "lead"), _NEVER | _SERVER)
POLICY = {  # in resources.json, of every site
    "class_allow_list": [EXECUTOR, CONTROLLER],
    "class_list_enforcement_mode": "enforce",
    "allow_log_streaming": False,  # FLARE would send a center's error log, and the text of an error may hold a path
    "app_validator": {"path": "travelling_quality_control.federated.gate.NoCode", "args": {}},
}
_MEND = "let prepare_site.py write it anew, and restart the site"


class NoCode(AppValidator):
    """FLARE asks it before a site takes a job, whoever submits it: a job is a configuration, and brings no code."""

    def validate(self, app_folder: str) -> tuple[str, dict]:
        """An error, empty where there is none, and nothing to add to what FLARE knows of the job."""
        if not Path(app_folder, WorkspaceConstants.CUSTOM_FOLDER_NAME).exists():
            return "", {}
        error = "this site takes no job that brings code"
        logging.getLogger("travelling").error("error: %s (%s)", error, Path(app_folder).parent.name)
        return error, {}


def refuse_lax_policy(local: Path, rights: dict) -> None:
    """Raise InputError where a site's folder ``local`` lets more in than prepare_site.py would have it.

    ``rights`` are CENTER_RIGHTS or SERVER_RIGHTS. The simulator's sites have these files, too.
    """
    permissions = _read(local / AUTHORIZATION).get("permissions")
    more = sorted(_granted(permissions) - _granted(rights))
    if more:
        raise InputError(f"{local / AUTHORIZATION}: {more[0][0]} is given the right {more[0][1]}; {_MEND}")
    resources = _read(local / RESOURCES)
    for name, value in POLICY.items():
        found = resources.get(name)
        narrower = isinstance(found, list) and isinstance(value, list) and set(map(str, found)) <= set(value)
        if found != value and not narrower:
            raise InputError(f"{local / RESOURCES}: {name} is not what this product asks for; {_MEND}")


def refuse_insecure(fl_ctx: FLContext) -> None:
    """Raise InputError where FLARE runs without certificates, and so asks for no rights; its simulator may."""
    if not (fl_ctx.get_prop(FLContextKey.SECURE_MODE) or fl_ctx.get_prop(FLContextKey.SIMULATE_MODE)):
        raise InputError("startup/sub_start.sh: FLARE is started without secure_train=true, so it asks for no rights")


def _granted(permissions):
    """(role, right, to whom) of all that is not refused; a role with one answer for all rights is not ours."""
    found = permissions if isinstance(permissions, dict) else {"everybody": "any"}
    return {
        (role, str(right), str(whom))
        for role, rights in found.items()
        for right, whom in (rights if isinstance(rights, dict) else {"any": rights}).items()
        if whom != "none"
    }


def _read(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the site's policy cannot be read ({error}); {_MEND}") from None
    return content if isinstance(content, dict) else {}


def main() -> None:
    """Called by a site's start.sh, in its folder, with ``center`` or ``server``: a lax site is not started."""
    refuse_lax_policy(Path("local").absolute(), {"center": CENTER_RIGHTS, "server": SERVER_RIGHTS}[sys.argv[1]])


if __name__ == "__main__":
    command.run(main)
