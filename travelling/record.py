"""The record of a run (``run.json``): what was run, on what, with what, and when."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from travelling import __version__
from travelling.errors import InputError
from travelling.files import write_whole
from travelling.options import Options

PACKAGES = ("tensorflow", "jax", "keras", "numpy", "pandas", "scikit-learn", "SimpleITK", "nibabel", "h5py")
# These change where results go or how fast they come, not what they are.
INDIFFERENT = {"output_folder", "overwrite", "cache_gb", "cache_dir", "workers"}


def describe(arguments: Options, inputs: Mapping[str, Path]) -> dict:
    """What decides a run's results: its options by name, and its input files by content.

    ``inputs`` maps the names of options to the files that they name.
    """
    options = {name: _plain(value) for name, value in sorted(vars(arguments).items())}
    hashes = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in inputs.items()}
    return {"script": Path(sys.argv[0]).name, "options": options, "inputs_sha256": hashes}


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def differences(earlier: dict, now: dict) -> list[str]:
    """In words, what decides the results and is not the same in two descriptions."""
    found = []
    if earlier.get("script") != now["script"]:
        found.append(f"script is {earlier.get('script')} there and {now['script']} here")
    for name, value in now["options"].items():
        there = earlier.get("options", {}).get(name)
        if name not in INDIFFERENT and name not in now["inputs_sha256"] and there != value:
            found.append(f"{name} is {there} there and {value} here")
    for name, digest in now["inputs_sha256"].items():
        if earlier.get("inputs_sha256", {}).get(name) != digest:
            found.append(f"the content of {name} ({now['options'].get(name, name)}) is another")
    return found


class Record:
    """``run.json``: read at the start, then kept up to date."""

    def __init__(self, path: Path | str, description: dict):
        self.path = Path(path)
        self.description = description
        self._content: dict = {}

    def read(self) -> dict | None:
        """The earlier content, or None where there is no such file; raises InputError for anything else."""
        if not self.path.is_file():
            return None
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: not a record of a run ({error}); --overwrite replaces it") from None

    def changed_image(self, files: Mapping[str, str]) -> str | None:
        """The first of some files that holds another image than the one that was read of its subject, or None.

        ``files`` maps subjects to them; only those are read of which the file system knows another thing.
        """
        from travelling.cache import checksum, identity
        from travelling.nifti import read_upright

        for subject, image in (self.read() or {}).get("images", {}).items():
            path = files.get(subject)
            if path and identity(path) != image["file"] and checksum(read_upright(path)) != image["sha256"]:
                return path
        return None

    def start(self, device: str, images: dict[str, dict]) -> None:
        """Write the record of a run that begins."""
        self._content = {
            **self.description,
            "seed": self.description["options"].get("seed"),
            "protocol": self.description["options"].get("protocol"),
            "started": _now(),
            "sessions": [],
            "finished": None,
            "images": images,
        }
        self._add_session(device)

    def resume(self, device: str, images: dict[str, dict]) -> list[str]:
        """Add to the record that the run goes on; returns notices of what was otherwise in the session before.

        Raises InputError, and adds nothing, where an image of those that the run reads now is not the one that it
        began with.
        """
        self._content = {"images": images, **(self.read() or {})}
        for subject, image in self._content["images"].items():
            if subject in images and images[subject]["sha256"] != image["sha256"]:
                raise InputError(
                    f"{image['path']}: the image of {subject} has changed since the run began; bring back the old one, "
                    "or --overwrite starts anew"
                )
        before = (self._content.get("sessions") or [{}])[-1]
        self._add_session(device)
        return _differences_of_machines(before, self._content["sessions"][-1])

    def finish(self) -> None:
        """Add to the record that the run is complete."""
        self._content["finished"] = _now()
        self._write()

    def _add_session(self, device):
        commit, is_dirty = git_state()
        self._content["sessions"].append(
            {
                "started": _now(),
                "folder": os.getcwd(),  # to which paths among the options are relative
                "command_line": shlex.join(sys.argv),
                "device": device,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": dict(_versions()),
                "git_commit": commit,
                "git_tree_was_dirty": is_dirty,
            }
        )
        self._write()

    def _write(self):
        write_whole(self.path, json.dumps(self._content, indent=2).encode() + b"\n")


def _differences_of_machines(before, now):
    """In words, what two sessions did not run on alike: then equal bits cannot be expected."""
    before, now = ({"device": session.get("device"), **session.get("packages", {})} for session in (before, now))
    return [
        f"{name} was {before[name]} in the session before, and is {value}"
        for name, value in now.items()
        if before.get(name, value) != value
    ]


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions():
    yield "travelling", __version__
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def git_state() -> tuple[str | None, bool | None]:
    """(commit of this repository, whether files differ from it); (None, None) where git cannot tell."""
    folder = Path(__file__).resolve().parent.parent
    # Within a git hook, for example, these would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", folder, *words], capture_output=True, text=True, check=True, timeout=20, env=environment
            ).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit.strip(), bool(status.strip())
