"""What an audit is told of a run: its record (``run.json``) has the options, and names the two CSVs."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from travelling.errors import InputError
from travelling.method.settings import Control
from travelling.option import fields_of
from travelling.option_values import from_json
from travelling.runs.extensible import Extensible

NEEDED = ("protocol", "revisit", "error", "seed", "batch_size")  # of the options: no audit guesses them


@dataclass(kw_only=True)
class Settings(Control, Extensible):
    """The options of a run, as far as its log depends on them."""


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
    path, record = _record_of(log, arguments.record)
    settings_of(record, path)
    table = log.with_name(f"{log.stem}_subjects.csv")
    subjects_csv = table if table.is_file() else None
    train = arguments.train or (subjects_csv if "centers" in record["options"] else None)
    return {
        "record": record,
        "log_csv": log,
        "train_csv": train or _file(record, path, "train"),
        "test_csv": arguments.test or _file(record, path, "test"),
        "subjects_csv": subjects_csv,
    }


def _record_of(log: Path, given: Path | None) -> tuple[Path, dict]:
    if given:
        return given, read_run_record(given)
    for path in (log.with_name(f"{log.stem}_run") / "run.json", log.parent / "run.json"):
        # A folder may hold the log of one run and the record of another.
        if path.is_file() and Path(str((record := read_run_record(path))["options"].get("fn_save"))).name == log.stem:
            return path, record
    raise InputError(f"{log}: found no run.json of its run (--record names it)")


def _file(record: dict, path: Path, what: str) -> Path:
    """The training or the test set of a run, if it is still what the run read."""
    option = f"fn_{what}"
    name, digest = record["options"].get(option), record.get("inputs_sha256", {}).get(option)
    if not name:
        raise InputError(f"{path}: names no {option} (--{what} is needed)")
    # It may be relative to the folder that the run was started in.
    folders = [session["folder"] for session in record["sessions"][:1] if "folder" in session]
    there = [place for folder in (*folders, "") if (place := Path(folder, name)).is_file()]
    for place in there:
        if digest in (None, hashlib.sha256(place.read_bytes()).hexdigest()):
            return place
    if there:
        raise InputError(f"{there[0]}: has changed since the run read it, by {path} (--{what} takes it as it is)")
    raise InputError(f"{name}: no such file, but {path} names it (--{what} tells where it is)")


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


def settings_of(record: dict, path: Path = Path("run.json")) -> Settings:
    """The options that a record tells, the file ``path``; raises InputError for what no run can have."""
    options = record["options"]
    for name in NEEDED:
        if name not in options:
            raise InputError(f"{path}: lacks the option {name}")
    known = {field.name for field in fields_of(Settings.whole())}
    return from_json(Settings, path, {name: value for name, value in options.items() if name in known})
