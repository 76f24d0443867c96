"""Steps of a study: scripts that run by their own command lines, each after those whose results it reads.

Steps that do not need each other may run at once. A step that is done is not run again, an interrupted one goes on,
and whatever its script refuses is refused here. Everything is relative to the study's folder, so that it may move.
"""

import errno
import hashlib
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the package of this checkout, whatever is installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from travelling.errors import InputError, Stopped
from travelling.runs.stopping import STOP_SIGNALS

PAUSE = 0.05  # seconds between two looks at the scripts that run
_running: dict[subprocess.Popen, tuple] = {}  # processes of scripts: their steps, and when they began


@dataclass(frozen=True)
class Step:
    """One run of a script: ``line`` is the script and its options.

    ``reads`` and ``results`` are files, relative to the study's folder; together with the line, the content of those
    that it reads tells whether the step is done.
    ``overwrites``: replacing its earlier results costs little. ``keeps_record``: the script itself refuses to
    replace the results of other options. ``alone``: so much waits for it that it gets all cores.
    """

    name: str
    line: tuple
    reads: tuple = ()
    results: tuple = ()
    overwrites: bool = False
    keeps_record: bool = True
    alone: bool = False

    def command(self, overwrite: bool = False) -> list:
        """The whole command line, a list of words."""
        return [*map(str, self.line), *(["--overwrite"] if overwrite or self.overwrites else [])]

    def output(self, folder: Path) -> Path:
        """The file for what the script prints."""
        return folder / "steps" / f"{self.name.replace('/', '_')}.txt"

    def note(self, folder: Path) -> Path:
        """The file that says that the step is done: it holds the fingerprint."""
        return self.output(folder).with_suffix(".done")

    def fingerprint(self, folder: Path) -> str:
        """A digest of the line and of the content of all that the script reads."""
        script, *words = map(str, self.line)
        contents = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in self.reads]
        return hashlib.sha256(repr([Path(script).name, words, contents]).encode()).hexdigest()

    def is_noted(self, folder: Path) -> bool:
        """Whether the step has run with this line on these inputs."""
        try:
            return self.note(folder).read_text(encoding="utf-8") == self.fingerprint(folder)
        except FileNotFoundError:
            return False

    def is_done(self, folder: Path) -> bool:
        """Whether that, and its results are there."""
        return self.is_noted(folder) and all((folder / result).is_file() for result in self.results)

    def needs(self, others: list) -> bool:
        """Whether it reads the results of one of some other steps."""
        return any(set(map(Path, other.results)) & set(map(Path, self.reads)) for other in others)


def missing(steps: list, folder: Path) -> list:
    """The steps that are not done, or need one that is not."""
    found: list[Step] = []
    for step in steps:
        if step.needs(found) or not step.is_done(folder):
            found.append(step)
    return found


def refuse_other_results(steps: list, folder: Path) -> None:
    """Raise InputError where a step whose script keeps no record would replace the results of other options."""
    for step in steps:
        if not step.keeps_record and step.note(folder).is_file() and not step.is_noted(folder):
            raise InputError(
                f"{folder / step.name}: made by other options (the first lines of {step.output(folder)}); "
                "--overwrite makes it anew"
            )


def run_steps(steps: list, folder: Path, jobs: int, overwrite: bool = False) -> None:
    """Run all steps that are not done, ``jobs`` of them at once, in their order; a bar counts them.

    ``folder`` is absolute. Raises InputError or OSError where a script ends with status 2 or another one; the scripts
    beside it then finish what they are at.
    """
    from travelling.console import progress_bar

    waiting = missing(steps, folder)
    with progress_bar(total=len(steps), initial=len(steps) - len(waiting), unit="step") as bar:
        try:
            while waiting or _running:
                _begin_steps(waiting, folder, jobs, overwrite, bar)
                bar.set_postfix_str(", ".join(step.name for step, _ in _running.values()), refresh=False)
                time.sleep(PAUSE)
                _end_steps(folder, bar)
                bar.update(len(steps) - len(waiting) - len(_running) - bar.n)
        finally:
            for process in [*_running]:
                process.wait()
                del _running[process]


def _begin_steps(waiting, folder, jobs, overwrite, bar):
    """Start steps while fewer than ``jobs`` run, each as soon as nothing that it needs is left."""
    for step in [*waiting]:
        running = [other for other, _ in _running.values()]
        if len(running) == jobs or any(other.alone for other in running) or (step.alone and running):
            return
        if step.needs([*waiting, *running]):
            continue
        waiting.remove(step)
        if not step.is_done(folder):  # as it is where what it needs ran again, but to the same result
            bar.write(f"{step.name} ...", file=sys.stderr)
            step.note(folder).unlink(missing_ok=True)
            process = _start(step.command(overwrite), folder, step.output(folder), 1 if step.alone else jobs)
            _running[process] = step, time.monotonic()


def _end_steps(folder, bar):
    """Note which steps are done; where one failed, stop the others and raise what its exit status means."""
    for process in [process for process in _running if process.poll() is not None]:
        (step, begun), status = _running.pop(process), process.returncode
        if status == 0:
            step.note(folder).write_text(step.fingerprint(folder), encoding="utf-8")
            bar.write(f"{step.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
            continue
        _stop_scripts()
        output = step.output(folder)
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        last = lines[-1].removeprefix("error: ")
        if status == 2:
            raise InputError(f"{output}: step '{step.name}': {last}")
        how = f"its process died of signal {-status}" if status < 0 else str(status)
        raise OSError(errno.EIO, f"step '{step.name}' failed ({how}): {last}", str(output))


def _start(line, folder, output, jobs):
    """Start a script in a study's folder, in a process group of its own: Ctrl-C does not reach it."""
    environment = dict(os.environ)
    if jobs > 1:  # they must not compete for the cores
        each = max(1, (os.cpu_count() or 1) // jobs)
        environment |= {"TF_NUM_INTRAOP_THREADS": str(each), "TF_NUM_INTEROP_THREADS": "1"}
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as file:
        print(f"cd {shlex.quote(str(folder))}\n{shlex.join([sys.executable, *line])}", file=file, flush=True)
        return subprocess.Popen(
            [sys.executable, __file__, *line], cwd=folder, env=environment, process_group=0, stdin=subprocess.PIPE,
            stdout=file, stderr=file,
        )  # fmt: skip


def _end_after(wait):
    """End this process when ``wait()`` returns."""

    def follow():
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM stop the scripts that run, and raise Stopped here."""

    def stop(number, _frame):
        _stop_scripts()
        raise Stopped(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _stop_scripts():
    """Ask the scripts that run to finish what they are at and stop; asked again, they stop at once."""
    for process in _running:
        process.terminate()


def _run_script():
    """In the process of a script: run it, and stop it where nobody is left who waits for it."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    _end_after(lambda: os.read(0, 1))  # until the process is gone that has the other end
    del sys.argv[0]
    sys.path[1] = str(Path(sys.argv[0]).parent)  # instead of this file's; the checkout stays before it
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _run_script()
