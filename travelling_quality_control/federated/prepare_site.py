"""Prepare a FLARE site for the travelling model: what it lets in, and where its data are.

Example:
    python travelling_quality_control/federated/prepare_site.py server ./kits/server.example.org
    python travelling_quality_control/federated/prepare_site.py center ./kits/hospital-1 --training-set /data/training_set.csv --private-folder /data/travelling

Writes the site's policy (local/authorization.json and local/resources.json, which FLARE reads when it starts), start.sh
and stop.sh, and, at a center, local/travelling_<name>.json. What a center's private folder holds must not leave it: the
salt, its pseudonyms, its log, and the list of its flagged images.
"""  # noqa: E501

import argparse
import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from travelling.errors import InputError
from travelling.files import write_whole
from travelling.option import add_to_parser
from travelling.option_values import to_json
from travelling.runs import command
from travelling_quality_control.federated.options import CenterSite, Images

# After a power cut another process may have the number that FLARE noted as its own; it would not start.
START = """#!/usr/bin/env bash
# Start this site in the background, with the Python that prepared it.
cd "$(dirname "$0")" && umask 077 && export PATH=PYTHON:"$PATH"
python3 -m travelling_quality_control.federated.gate ROLE || exit 1
runs() { [ -f "$1" ] && ps -ww -o args= -p "$(cat "$1")" | grep -q "$2"; }
runs daemon_pid.fl startup/sub_start.sh && echo "$PWD: is running already" && exit 1
runs pid.fl nvflare.private.fed || rm -f pid.fl
rm -f daemon_pid.fl shutdown.fl restart.fl
nohup startup/start.sh >> start.out 2>&1
"""
STOP = """#!/usr/bin/env bash
# Stop this site, and what it does for a job, within half a minute.
cd "$(dirname "$0")" && touch shutdown.fl
for _ in {1..60}; do [ -f daemon_pid.fl ] || exit 0; sleep 1; done
echo "$PWD: still runs, or has been killed; its processes: $(cat daemon_pid.fl pid.fl)" && exit 1
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    make_parser: Any = partial(command.Parser, __doc__)  # called as the class would be
    parsers = parser.add_subparsers(dest="role", required=True, parser_class=make_parser)
    server = parsers.add_parser("server", help="the server, which holds the test set")
    center = parsers.add_parser("center", help="a hospital, which holds training images")
    for part in (server, center):
        part.add_argument("kit", type=Path, metavar="KIT", help="the site's FLARE folder, named as the site is")
    add_to_parser(center, CenterSite)
    return parser.parse_args()


def main() -> None:
    """Prepare the site."""
    arguments = parse_arguments()
    kit = arguments.kit.absolute()
    local = kit / "local"
    if not local.is_dir():
        raise InputError(f"{arguments.kit}: not a FLARE folder (it has no folder local)")
    from travelling_quality_control.federated import gate
    from travelling_quality_control.federated.settings import SERVER_FILE, center_file

    os.umask(0o077)  # what is written here names folders of patients
    kit.chmod(0o700)  # it holds the site's key, and FLARE's logs
    logs = [kit / "log.txt"]
    if arguments.role == "server":
        allow(local, gate.SERVER_RIGHTS, kit / "storage")
        configuration = local / SERVER_FILE
    else:
        from travelling.images.cohort import read_cohort

        read_cohort(arguments.training_set)  # an error now is better than one in a job
        private = arguments.private_folder.absolute()
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o700)
        allow(local, gate.CENTER_RIGHTS)
        configure_center(local, kit.name, arguments.training_set, private, to_json(Images, vars(arguments)))
        configuration = local / center_file(kit.name)
        logs.append(private / "center.log")
    python = shlex.quote(str(Path(sys.executable).parent))
    for name, script in (("start.sh", START), ("stop.sh", STOP)):
        write_whole(kit / name, script.replace("ROLE", arguments.role).replace("PYTHON", python).encode())
        (kit / name).chmod(0o700)
    lacking = "" if configuration.exists() else " (write it before the first job: docs/federation.md)"
    print(
        f"{kit.name} is prepared: jobs bring no code, nobody runs shell commands",
        f"  policy         {local / gate.AUTHORIZATION} {local / gate.RESOURCES}",
        f"  configuration  {configuration}{lacking}",
        f"  start, stop    {kit / 'start.sh'} {kit / 'stop.sh'}",
        f"  watch          tail -F {' '.join(map(str, logs))}",
        sep="\n",
    )


def allow(local: Path, rights: dict, server_storage: Path | None = None) -> None:
    """Write a site's policy (:mod:`travelling_quality_control.federated.gate`) to its folder ``local``.

    ``server_storage`` is a folder for a server's records of jobs, which FLARE would otherwise keep under /tmp.
    """
    from travelling_quality_control.federated import gate

    path = local / gate.RESOURCES
    source = path if path.is_file() else local / f"{gate.RESOURCES}.default"
    resources: dict = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {"format_version": 2}
    resources |= gate.POLICY
    if server_storage is None:
        components = resources.get("components", [])
        resources["components"] = [part for part in components if part["id"] != "site_log_streamer"]
    else:
        resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(server_storage / "snapshots")
        for part in resources["components"]:
            if part["id"] == "job_manager":
                part["args"]["uri_root"] = str(server_storage / "jobs")
        from travelling_quality_control.federated.job_keeper import JOB_KEEPER

        resources["components"] = [part for part in resources["components"] if part["id"] != JOB_KEEPER["id"]]
        resources["components"].append(JOB_KEEPER)
    permissions = {"format_version": "1.0", "permissions": rights}
    for name, content in ((gate.RESOURCES, resources), (gate.AUTHORIZATION, permissions)):
        write_whole(local / name, json.dumps(content, indent=2).encode())


def configure_center(local: Path, center: str, training_set: Path, private_folder: Path, images: dict) -> None:
    """Write a center's configuration file; ``images`` is what it says of :class:`Images`."""
    from travelling_quality_control.federated.settings import center_file

    content = {"training_set": str(training_set.absolute()), "private_folder": str(private_folder.absolute())}
    write_whole(local / center_file(center), json.dumps(content | images, indent=2).encode())


if __name__ == "__main__":
    command.run(main)
