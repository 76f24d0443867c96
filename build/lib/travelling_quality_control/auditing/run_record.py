"""What an audit is told of a run: its record (``run.json``) has the options, and names the two CSVs."""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from travelling.errors import InputError
from travelling.runs.extensible import extensions_in
from travelling_quality_control.auditing.replay import RunOptions
from travelling_quality_control.auditing.tables import LARGEST

NAMED = {"protocol": ("corrected", "published")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser what tells which run is audited."""
    parser.add_argument("log", type=Path, metavar="LOG", help="the log, <fn_save>.csv")
    files = {
        "record": ("JSON", "run.json of the run (default: that in <fn_save>_run beside LOG, or that beside LOG)"),
        "train": ("CSV", "the training set (default: the file that run.json names; <fn_save>_subjects.csv beside LOG "
                  "for a run between hospitals)"),
        "test": ("CSV", "the test set (default: the file that run.json names)"),
    }  # fmt: skip
    for name, (metavar, words) in files.items():
        parser.add_argument(f"--{name}", type=Path, metavar=metavar, help=words)


def run_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a command line names: ``record``, ``log_csv``, ``train_csv``, ``test_csv`` and ``subjects_csv``.

    Raises InputError where there is no record, or a CSV is no longer what the run read.
    """
    log = arguments.log
    table: Path | None = log.with_name(f"{log.stem}_subjects.csv")
    if table and not table.is_file():
        table = None
    path, record = _record_of(log, arguments.record)
    train = arguments.train or (table if "centers" in record["options"] else None) or _file(record, path, "train")
    test = arguments.test or _file(record, path, "test")
    return {"record": record, "log_csv": log, "train_csv": train, "test_csv": test, "subjects_csv": table}


def _record_of(log: Path, given: Path | None) -> tuple[Path, dict]:
    places = [given] if given else [folder / "run.json" for folder in (log.with_name(f"{log.stem}_run"), log.parent)]
    for path in places:
        if not path.is_file():
            continue
        record = read_run_record(path)
        # A folder may hold the log of one run and the record of another.
        if given or Path(str(record["options"].get("fn_save"))).name == log.stem:
            refuse_wrong_options(record, path)
            return path, record
    raise InputError(f"{given}: no such file" if given else f"{log}: found no run.json of its run (--record names it)")


def _file(record: dict, path: Path, what: str) -> Path:
    """The training or the test set of a run, if it is still what the run read."""
    option = f"fn_{what}"
    name, digest = record["options"].get(option), record.get("inputs_sha256", {}).get(option)
    if not name:
        raise InputError(f"{path}: names no {option} (--{what} is needed)")
    there = [place for place in _places(record, name) if place.is_file()]
    for place in there:
        if digest in (None, hashlib.sha256(place.read_bytes()).hexdigest()):
            return place
    if there:
        raise InputError(f"{there[0]}: has changed since the run read it, by {path} (--{what} takes it as it is)")
    raise InputError(f"{name}: no such file, but {path} names it (--{what} tells where it is)")


def _places(record: dict, name: str) -> Iterator[Path]:
    """Where a file can be: its name may be relative to the folder that the run was started in."""
    if record["sessions"] and "folder" in record["sessions"][0]:
        yield Path(record["sessions"][0]["folder"], name)
    yield Path(name)


def read_run_record(path: Path) -> dict:
    """The record of a run. Raises InputError for what is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts = [record["options"], record.get("inputs_sha256", {}), *record["sessions"]]
        if not all(isinstance(part, dict) for part in parts) or "finished" not in record:
            raise ValueError
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not a record of a run") from None
    return record


def refuse_wrong_options(record: dict, path: Path) -> None:
    """Raise InputError where a record does not tell all that an audit needs, or tells what no run can have."""
    options = record["options"]
    for name, kind in RunOptions.__annotations__.items():
        if name not in options:
            raise InputError(f"{path}: lacks the option {name}")
        value, least = options[name], 0 if name in ("seed", "error") else 1
        if not isinstance(value, (int, float) if kind is float else kind):
            raise InputError(f"{path}: {name} is {json.dumps(value)}, should be of type {kind.__name__}")
        if kind in (int, float) and not least <= value < LARGEST:
            raise InputError(f"{path}: {name} is {value}, should be at least {least}")
        if name in NAMED and value not in NAMED[name]:
            raise InputError(f"{path}: {name} is {value}, should be one of {', '.join(NAMED[name])}")
    extensions_in(options, path)
