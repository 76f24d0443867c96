"""Prepare a FLARE site for the travelling model: which classes jobs may use there, and where its data are.

Example:
    python travelling_quality_control/federated/prepare_site.py server ./kits/server.example.org
    python travelling_quality_control/federated/prepare_site.py center ./kits/hospital-1 --training-set /data/training_set.csv --private-folder /data/travelling

Writes local/resources.json (FLARE's, from its default) and, at a center, local/travelling_<name>.json. Run it before the
site is started for the first time. What a center's private folder holds must not leave it: the salt, its
pseudonyms, its log, and the list of its flagged images.
"""  # noqa: E501

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from travelling import command
from travelling.errors import InputError
from travelling.files import write_whole
from travelling.options import CenterSite, Images, add_to_parser, to_json


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = command.Parser(__doc__)
    make_parser: Any = partial(command.Parser, __doc__)  # called as the class would be
    parsers = parser.add_subparsers(dest="role", required=True, parser_class=make_parser)
    server = parsers.add_parser("server", help="home, which holds the test set")
    center = parsers.add_parser("center", help="a hospital, which holds training images")
    for part in (server, center):
        part.add_argument("kit", type=Path, metavar="KIT", help="the site's FLARE folder, named as the site is")
    server.add_argument(
        "--storage", type=Path, metavar="FOLDER", help="for FLARE's own records of jobs (default: storage in KIT)"
    )
    add_to_parser(center, CenterSite)
    return parser.parse_args()


def main() -> None:
    """Prepare the site."""
    arguments = parse_arguments()
    local = arguments.kit / "local"
    if not local.is_dir():
        raise InputError(f"{arguments.kit}: not a FLARE folder (it has no folder local)")
    if arguments.role == "server":
        allow(local, server_storage=(arguments.storage or arguments.kit / "storage").absolute())
    else:
        from travelling.cohort import read_cohort

        read_cohort(arguments.training_set)  # an error now is better than one in a job
        allow(local)
        configure_center(
            local,
            arguments.kit.name,
            arguments.training_set,
            arguments.private_folder,
            to_json(Images, arguments),
        )


def allow(local: Path, server_storage: Path | None = None) -> None:
    """Let jobs use the two classes of this package, and keep a site's logs at the site.

    ``local`` is a site's folder of that name; ``server_storage`` a folder for a server's records of jobs, which FLARE
    would otherwise keep under /tmp.
    """
    from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST

    from travelling_quality_control.federated.job import CONTROLLER, EXECUTOR

    path = local / "resources.json"
    source = path if path.is_file() else local / "resources.json.default"
    resources: dict = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {"format_version": 2}
    allowed = resources.get("class_allow_list", list(DEFAULT_CLASS_ALLOW_LIST))
    resources["class_allow_list"] = sorted({*allowed, CONTROLLER, EXECUTOR})
    if server_storage is None:
        # FLARE would send a center's error log to the server, and the text of an error may hold a path.
        resources["allow_log_streaming"] = False
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
    write_whole(path, json.dumps(resources, indent=2).encode())


def configure_center(local: Path, center: str, training_set: Path, private_folder: Path, images: dict) -> None:
    """Write a center's configuration file; ``images`` is what it says of :class:`travelling.options.Images`."""
    from travelling_quality_control.federated.settings import center_file

    content = {"training_set": str(training_set.absolute()), "private_folder": str(private_folder.absolute())}
    write_whole(local / center_file(center), json.dumps(content | images, indent=2).encode())


if __name__ == "__main__":
    command.run(main)
