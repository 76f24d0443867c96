"""Steps of a study: scripts that run by their own command lines, each after those whose results it reads.

Steps that do not need each other may run at once. A step that is done is not run again, an interrupted one goes on,
and whatever its script refuses is refused here. Everything is relative to the study's folder, so that it may move.
"""

import contextlib
import errno
import gc
import hashlib
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from travelling.errors import InputError, Stopped
from travelling.stopping import STOP_SIGNALS

DIED = "its process died"


@dataclass(frozen=True)
class Step:
    """One run of a script: ``line`` is the script and the options that decide its results.

    ``options`` are those that do not (where it keeps what). ``reads`` and ``results`` are files, relative to the
    study's folder; together with the line, the content of those that it reads tells whether the step is done.
    ``overwrites``: replacing its earlier results costs little. ``keeps_record``: the script itself refuses to
    replace the results of other options. ``alone``: so much waits for it that it gets all cores. ``work`` is what takes
    time, {unit: number} (see timing).
    """

    name: str
    line: tuple
    reads: tuple = ()
    results: tuple = ()
    options: tuple = ()
    overwrites: bool = False
    keeps_record: bool = True
    alone: bool = False
    work: dict = field(default_factory=dict, compare=False, hash=False)

    def command(self, overwrite: bool = False) -> list:
        """The whole command line, a list of words."""
        return [*map(str, (*self.line, *self.options)), *(["--overwrite"] if overwrite or self.overwrites else [])]

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
    found = []
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


def times_before_the_end(steps: list, seconds: dict) -> dict:
    """How long each step and the longest chain of steps behind it take, by name: what to begin with."""
    times = {}
    for number, step in reversed(list(enumerate(steps))):
        behind = [times[other.name] for other in steps[number + 1 :] if other.needs([step])]
        times[step.name] = seconds[step.name] + max(behind, default=0)
    return times


def run_steps(steps: list, folder: Path, jobs: int, seconds: dict, overwrite: bool = False) -> None:
    """Run all steps that are not done, ``jobs`` of them at once; ``seconds`` estimates each, by its name.

    ``folder`` is absolute. Raises InputError or OSError where a script ends with status 2 or another one; the scripts
    beside it then finish what they are at.
    """
    from travelling.console import progress_bar

    left = missing(steps, folder)
    total = max(1, round(sum(seconds[step.name] for step in left)))
    looks = "{percentage:3.0f}%|{bar}| {elapsed} of about " + duration_text(total)
    with progress_bar(total=total, bar_format=looks) as bar:
        progress = _Progress(bar, seconds)
        _run_group([step for step in left if jobs == 1 or step.alone], folder, 1, progress, overwrite)
        if jobs > 1:  # they must not compete for the cores
            os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, os.cpu_count() // jobs))
            os.environ["TF_NUM_INTEROP_THREADS"] = "1"
            _run_group([step for step in left if not step.alone], folder, jobs, progress, overwrite)


def _run_group(steps, folder, jobs, progress, overwrite):
    """Run steps, each as soon as there is a worker and nothing that it needs is left."""
    times = times_before_the_end(steps, progress.seconds)
    waiting = sorted(steps, key=lambda step: -times[step.name]) if jobs > 1 else list(steps)  # else the paper's order
    running = {}
    with _workers(min(jobs, len(steps))) as idle:
        while waiting or running:
            left = [*waiting, *(step for _, step in running.values())]
            for step in [step for step in waiting if not step.needs(left)][: len(idle)]:
                waiting.remove(step)
                if step.is_done(folder):  # what it needs ran again, but to the same result
                    progress.end(step)
                    continue
                progress.begin(step)
                step.note(folder).unlink(missing_ok=True)
                step.output(folder).parent.mkdir(parents=True, exist_ok=True)
                worker = idle.pop()
                worker.begin(_run_script, step.command(overwrite), folder, step.output(folder))
                running[worker.connection] = worker, step
            for connection in wait(running, timeout=1) if running else ():
                worker, step = running.pop(connection)
                _finish(step, worker.result(), folder)
                idle.append(worker)
                progress.end(step)
            progress.show()


def _finish(step, status, folder):
    """Note that a step is done, or stop the others and raise what its exit status means."""
    if status == 0:
        step.note(folder).write_text(step.fingerprint(folder), encoding="utf-8")
        return
    _stop_workers()
    output = step.output(folder)
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    last = lines[-1].removeprefix("error: ")
    if status == 2:
        raise InputError(f"{output}: step '{step.name}': {last}")
    raise OSError(errno.EIO, f"step '{step.name}' failed ({status}): {last}", str(output))


class _Progress:
    """The bar of the whole study, in estimated seconds: steps that are done, and those that run by their time."""

    def __init__(self, bar, seconds):
        self.seconds = seconds
        self._bar, self._done, self._begun = bar, 0, {}

    def begin(self, step):
        self._begun[step.name] = time.monotonic()
        self._bar.write(f"{step.name} ...", file=sys.stderr)

    def end(self, step):
        self._done += self.seconds[step.name]
        if step.name in self._begun:
            self._bar.write(f"{step.name}: {time.monotonic() - self._begun.pop(step.name):.0f} s", file=sys.stderr)

    def show(self):
        now = time.monotonic()
        # An estimate may be too low: nothing that runs counts as done.
        running = sum(min(now - begun, 0.95 * self.seconds[name]) for name, begun in self._begun.items())
        self._bar.update(min(round(self._done + running), self._bar.total) - self._bar.n)


def duration_text(seconds: float) -> str:
    """A duration that is an estimate: "40 s", "9 minutes", "14 hours", "3 days"."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, seconds):.0f} s"


class _Worker:
    """A process that calls functions, one after another: TensorFlow takes longer to import than some steps take.

    Other than with a pool of concurrent.futures, the end of one process does not end the others at once.
    """

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, other_end = context.Pipe()
        self._process = context.Process(target=_work, args=(other_end,))
        # A process that is being started would know no better than to die of a signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        other_end.close()

    def begin(self, function, *arguments):
        self.connection.send((function, arguments))

    def result(self):
        """Wait for what the function returns; DIED where the process did."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return DIED

    def end(self):
        """Wait for what the process is at, then end it."""
        self.connection.close()
        self._process.join()


@contextlib.contextmanager
def _workers(number):
    workers = []
    try:
        workers += [_Worker() for _ in range(number)]
        yield list(workers)
    finally:
        for worker in workers:
            worker.end()


def run_apart(function: Callable, *arguments) -> object:
    """Call a function in a process of its own, so that this one never holds a GPU; returns what it returns."""
    with _workers(1) as (worker,):
        worker.begin(function, *arguments)
        result = worker.result()
    if isinstance(result, InputError):
        raise result
    if result == DIED:
        raise OSError(errno.EIO, f"the process of {function.__name__}() died")
    return result


def stop_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM stop the scripts that run, and raise Stopped here."""

    def stop(number, _frame):
        _stop_workers()
        raise Stopped(number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _stop_workers():
    """Ask the scripts that run to finish what they are at and stop; asked again, they stop at once."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def _work(connection):
    """What a worker does: it is not reached by Ctrl-C, and stops when it is told to or nobody is left to."""
    os.setpgid(0, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):  # nobody is there, or wants anything more
        while True:
            function, arguments = connection.recv()
            try:
                result = function(*arguments)
            except InputError as error:
                result = error
            connection.send(result)


def _follow_parent():
    multiprocessing.parent_process().join()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)


def _run_script(line, folder, output):
    """Run a script of this repository in a study's folder, in this process; returns its exit status."""
    status = 1
    os.chdir(folder)
    with open(output, "w", encoding="utf-8", buffering=1) as file:
        for number in (1, 2):  # also for what TensorFlow's libraries print
            os.dup2(file.fileno(), number)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            print(f"cd {shlex.quote(str(folder))}\n{shlex.join([sys.executable, *line])}")
            sys.argv = line
            try:
                runpy.run_path(line[0], run_name="__main__")
            except SystemExit as end:
                status = end.code
            except Exception:
                traceback.print_exc()
    gc.collect()  # the model of this step
    return status
