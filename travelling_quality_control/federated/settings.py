"""The configuration files of server and centers: JSON, in the folder ``local`` of a FLARE site, written by its people.

A job carries none of it: no path ever leaves the site that it belongs to.
"""

import argparse
import json
import re
from pathlib import Path

from travelling import command
from travelling.errors import InputError

CENTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # FLARE makes folders and addresses of them
_REQUIRED = object()


def center_file(center):
    """The name of a center's configuration file."""
    return f"travelling_{center}.json"


SERVER_FILE = "travelling_server.json"


def _number(kind, low, high=float("inf")):
    parse = command.number(kind, low, high)
    return lambda value, folder: parse(json.dumps(value))


def _path(value, folder):
    if not isinstance(value, str) or not value:
        raise ValueError(f"{json.dumps(value)} is not a path")
    return (folder / value).absolute()


def _choice(*words):
    def parse(value, folder):
        if value not in words:
            raise ValueError(f"{json.dumps(value)} is not one of {', '.join(map(str, words))}")
        return value

    return parse


def _centers(value, folder):
    if not isinstance(value, list) or not all(isinstance(name, str) and CENTER_NAME.fullmatch(name) for name in value):
        raise ValueError("a list of names of letters, digits, '-' and '_' is needed, as FLARE knows the centers")
    if len(value) < 2:
        raise ValueError(f"the model cannot travel: two centers at least are needed, not {len(value)}")
    if len(set(value)) < len(value):
        raise ValueError("a center is named twice")
    return value


def _shape(value, folder):
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError("three numbers of voxels are needed: x, y, z")
    return tuple(reversed(value))


_IMAGES = {
    "cache_gb": (_number(float, 0), None),
    "cache_dir": (_path, None),
    "reorient": (_choice(False, True), False),
}
_TRAINING = _IMAGES | {
    "centers": (_centers, _REQUIRED),
    "cycles": (_number(int, 1), 30),
    "batch_size": (_number(int, 1), 5),
    "learning_rate": (_number(float, 0), 1e-4),
    "protocol": (_choice("corrected", "published"), "corrected"),
    "keep_every": (_number(int, 1), 1),
    "overwrite": (_choice(False, True), False),
}
# The same names, meanings and defaults as the options of the two scripts.
_METHODS = {
    "quality_control": _TRAINING
    | {
        "fn_test": (_path, _REQUIRED),
        "en": (_path, _REQUIRED),
        "pd": (_path, _REQUIRED),
        "fn_save": (_path, _REQUIRED),
        "output_folder": (_path, None),
        "revisit": (_number(int, 1), 2),
        "error": (_number(float, 0, 1), 0.02),
        "seed": (_number(int, 0, 2**31), 42),
        "first_cycle": (_number(int, 0), None),
        "allow_saturated": (_choice(False, True), False),
        "rule": (_choice("published", "evidence"), "published"),
        "screen": (_choice(False, True), False),
        "false_alarms": (_number(float, 1e-6, 0.5), None),
        "eval_batch_size": (_number(int, 1), None),
    },
    "standard": _TRAINING
    | {
        "shape": (_shape, _REQUIRED),
        "output_folder": (_path, _REQUIRED),
        "width": (_number(float, 0.01, 8), 1.0),
        "epochs": (_number(int, 1), 1),
        "seed": (_number(int, 0, 2**31), 40),
    },
}
INPUT_FILES = {"quality_control": ("fn_test", "en", "pd"), "standard": ()}  # of each method, on the server
_CENTER = _IMAGES | {"training_set": (_path, _REQUIRED), "private_folder": (_path, _REQUIRED)}


def read_server_settings(path):
    """A server's configuration: a Namespace like a script's arguments, with ``method`` and ``centers``.

    Relative paths are relative to the file. Raises InputError for anything that is missing, unknown or wrong.
    """
    content = _read(path)
    method = content.pop("method", "quality_control")
    if method not in _METHODS:
        raise InputError(f"{path}: method is {json.dumps(method)}, should be one of {', '.join(_METHODS)}")
    settings = _checked(path, content, _METHODS[method])
    settings.method = method
    if method == "quality_control":
        if settings.false_alarms is not None and not settings.screen:
            raise InputError(f"{path}: false_alarms is an option of screen")
        if settings.screen and settings.false_alarms is None:
            settings.false_alarms = command.FALSE_ALARMS
    if settings.output_folder is None:
        settings.output_folder = settings.fn_save.with_name(f"{settings.fn_save.name}_run")
    return settings


def read_center_settings(path):
    """A center's configuration: ``training_set``, ``private_folder`` and those of images.

    Raises InputError for anything that is missing, unknown or wrong.
    """
    return _checked(path, _read(path), _CENTER)


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


def _checked(path, content, known):
    unknown = content.keys() - known.keys()
    if unknown:
        raise InputError(f"{path}: {sorted(unknown)[0]} is not known; known are {', '.join(known)}")
    settings = argparse.Namespace()
    for name, (parse, default) in known.items():
        value = content.get(name)
        if value is None and default is _REQUIRED:
            raise InputError(f"{path}: {name} is missing")
        try:
            setattr(settings, name, default if value is None else parse(value, Path(path).parent))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise InputError(f"{path}: {name}: {error}") from None
    return settings
