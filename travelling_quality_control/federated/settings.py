"""The configuration files of server and centers: JSON, in the folder ``local`` of a FLARE site, written by its people.

They know the same options as the scripts (:mod:`travelling_quality_control.federated.options`). A job carries none of
it: no path ever leaves the site that it belongs to.
"""

import json
from pathlib import Path

from travelling.errors import InputError
from travelling.network.pretrained import pretrained_files
from travelling.option_values import from_json
from travelling_quality_control.federated.options import CenterSite, QualityControlServer, StandardModelServer

Server = QualityControlServer | StandardModelServer
SERVER_FILE = "travelling_server.json"
ERROR_FILE = "error.txt"  # in the run's folder: why a job ended without having gone on
METHODS: dict[str, type[Server]] = {"quality_control": QualityControlServer, "standard": StandardModelServer}
INPUT_FILES = {"quality_control": ("fn_test", "en", "pd"), "standard": ()}  # of each method, on the server


def center_file(center: str) -> str:
    """The name of a center's configuration file."""
    return f"travelling_{center}.json"


def read_server_settings(path: Path) -> Server:
    """A server's options. Raises InputError for anything that is missing, unknown or wrong."""
    content = _read(path)
    method = content.get("method", "quality_control")
    if method not in METHODS:
        raise InputError(f"{path}: method is {json.dumps(method)}, should be one of {', '.join(METHODS)}")
    settings = from_json(METHODS[method], path, content)
    if isinstance(settings, QualityControlServer):
        settings.en, settings.pd = pretrained_files(settings.en, settings.pd, settings.first_cycle)
    return settings


def read_center_settings(path: Path) -> CenterSite:
    """A center's options. Raises InputError for anything that is missing, unknown or wrong."""
    return from_json(CenterSite, path, _read(path))


def log_file(settings: Server) -> Path:
    """The plain log of a run, which has every step."""
    if isinstance(settings, QualityControlServer):
        return settings.fn_save.with_name(f"{settings.fn_save.name}.log")
    return settings.output_folder.absolute() / "training.log"


def _read(path):
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_refuse_twice)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it configures this site (docs/federation.md)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON file that can be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def _refuse_twice(pairs):
    """A JSON object; Python's reader would take the last of two values of one name, without a word."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice")
    return dict(pairs)
