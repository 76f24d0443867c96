"""The record of a run (``run.json``): what was run, on what, with what, and when."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from travelling import __version__
from travelling.errors import InputError
from travelling.files import write_whole
from travelling.option import Options

PACKAGES = ("tensorflow", "jax", "keras", "numpy", "pandas", "scikit-learn", "SimpleITK", "nibabel", "h5py")
# These change where results go or how fast they come, not what they are.
INDIFFERENT = {"output_folder", "overwrite", "cache_gb", "cache_dir", "workers"}


def describe(arguments: Options, inputs: Mapping[str, Path], folder: Path | str) -> dict:
    """What decides a run's results: its options by name, its input files by content, and where its other files are.

    ``inputs`` maps the names of options to the files that they name; ``folder`` is that of the record. ``paths`` has
    all other options that name files or folders, absolute and without links: spelling makes no difference.
    """
    options = {name: _plain(value) for name, value in sorted(arguments.values().items())}
    hashes = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for name, path in inputs.items()}
    paths = {name: _real_paths(value) for name, value in arguments.values().items()}
    return {
        "script": Path(sys.argv[0]).name,
        "options": options,
        "inputs_sha256": hashes,
        "folder": os.path.realpath(folder),
        "paths": {name: found for name, found in paths.items() if found and name not in {*inputs, *INDIFFERENT}},
    }


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _real_paths(value):
    values = value if isinstance(value, (list, tuple)) else [value]
    return [os.path.realpath(path) for path in values if isinstance(path, Path)]


def differences(earlier: dict, now: dict) -> list[str]:
    """In words, what decides the results and is not the same in two descriptions."""
    found = []
    if earlier.get("script") != now["script"]:
        found.append(f"script is {earlier.get('script')} there and {now['script']} here")
    before = earlier.get("options", {})
    for name in now["options"] | before:  # an extension that is not used has no options
        there, here = before.get(name), now["options"].get(name)
        indifferent = name in INDIFFERENT or name in now["inputs_sha256"] or _same_paths(name, earlier, now)
        if not indifferent and there != here:
            found.append(f"{name} is {there} there and {here} here")
    for name, digest in now["inputs_sha256"].items():
        if earlier.get("inputs_sha256", {}).get(name) != digest:
            found.append(f"the content of {name} ({now['options'].get(name, name)}) is another")
    return found


def _same_paths(name, earlier, now):
    """Whether an option names the same files, or files that have moved together with the run's folder."""
    there, here = (about.get("paths", {}).get(name) for about in (earlier, now))
    if there is None or here is None or there == here:
        return there is not None and there == here
    return _beside(there, earlier["folder"]) == _beside(here, now["folder"])


def _beside(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


class Record:
    """``run.json``: read at the start, then kept up to date."""

    def __init__(self, path: Path | str, description: dict):
        self.path = Path(path)
        self.description = description
        self.content: dict = {}

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
        from travelling.images.cache import checksum, identity
        from travelling.images.nifti import read_upright

        for subject, image in (self.read() or {}).get("images", {}).items():
            path = files.get(subject)
            if path and identity(path) != image["file"] and checksum(read_upright(path)) != image["sha256"]:
                return path
        return None

    def start(self, device: str, images: dict[str, dict], notices: Sequence[str] = ()) -> list[str]:
        """Write the record of a run that begins; returns the notices of this session, and of what its record lacks."""
        self.content = {
            **self.description,
            "seed": self.description["options"].get("seed"),
            "protocol": self.description["options"].get("protocol"),
            "started": _now(),
            "sessions": [],
            "finished": None,
            "images": images,
        }
        return self._add_session(device, notices)

    def resume(self, device: str, images: dict[str, dict], notices: Sequence[str] = ()) -> list[str]:
        """Add to the record that the run goes on; returns the notices, as :meth:`start`, and of another machine.

        Raises InputError, and adds nothing, where an image of those that the run reads now is not the one that it
        began with.
        """
        self.content = {"images": images, **(self.read() or {})}
        for subject, image in self.content["images"].items():
            if subject in images and images[subject]["sha256"] != image["sha256"]:
                raise InputError(
                    f"{image['path']}: the image of {subject} has changed since the run began; bring back the old one, "
                    "or --overwrite starts anew"
                )
        return self._add_session(device, notices)

    def finish(self, more: Mapping[str, object]) -> None:
        """Add to the record that the run is complete, and what else is known then."""
        self.content |= {"finished": _now(), **more}
        self._write()

    def _add_session(self, device, notices):
        commit, is_dirty, why_unknown = git_state()
        sessions = self.content["sessions"]
        session = {
            "started": _now(),
            "folder": os.getcwd(),  # to which paths among the options are relative
            "command_line": shlex.join(sys.argv),
            "device": device,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": dict(_versions()),
            "git_commit": commit,
            "git_tree_was_dirty": is_dirty,
            "git_commit_unknown": why_unknown,
        }
        unknown = [f"the git commit of the code is not known ({why_unknown})"] if why_unknown else []
        others = _differences_of_machines(sessions[-1], session) if sessions else []
        session["notices"] = [*notices, *unknown, *others]
        sessions.append(session)
        self._write()
        return session["notices"]

    def _write(self):
        write_whole(self.path, json.dumps(self.content, indent=2).encode() + b"\n")


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
        with contextlib.suppress(Exception):  # not installed, or in a way that tells no version: that stops no run
            yield name, importlib.metadata.version(name)


def git_state() -> tuple[str | None, bool | None, str | None]:
    """(commit of this code, whether files differ from it, None); (None, None, why) where git cannot tell.

    Nor can it where another repository surrounds the code, as one does that holds the environment it is installed in.
    """
    folder = Path(__file__).resolve().parent
    # Within a git hook, for example, these would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    questions = (("ls-files", "--error-unmatch", Path(__file__).name), ("rev-parse", "HEAD"), ("status", "--porcelain"))
    try:
        _, commit, status = (
            subprocess.run(
                ["git", "-C", folder, *words], capture_output=True, check=True, timeout=20, env=environment
            ).stdout
            for words in questions
        )
    except subprocess.CalledProcessError as error:
        return None, None, (error.stderr.decode(errors="replace").strip().splitlines() or ["git fails"])[0]
    except (OSError, subprocess.SubprocessError) as error:
        return None, None, str(error)
    return commit.decode().strip(), bool(status.strip()), None
