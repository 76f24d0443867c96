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
    time, {unit: number} (see study_time).
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

    def command(self, overwrite=False):
        """The whole command line, a list of words."""
        words = [*self.line, *self.options, *(["--overwrite"] if overwrite or self.overwrites else [])]
        return [str(word) for word in words]

    def output(self, folder):
        """The file for what the script prints."""
        return folder / "steps" / f"{self.name.replace('/', '_')}.txt"


def needed(step, others):
    """Those of ``others`` whose results a step reads."""
    return [other for other in others if set(map(Path, other.results)) & set(map(Path, step.reads))]


def is_done(step, folder):
    """Whether a step has run with this line on these inputs, and its results are there."""
    try:
        return _note(step, folder).read_text(encoding="utf-8") == _fingerprint(step, folder) and all(
            (folder / result).is_file() for result in step.results
        )
    except FileNotFoundError:
        return False


def missing(steps, folder):
    """The steps that are not done, or need one that is not."""
    found = []
    for step in steps:
        if needed(step, found) or not is_done(step, folder):
            found.append(step)
    return found


def refuse_other_results(steps, folder):
    """Raise InputError where a step whose script keeps no record would replace the results of other options."""
    for step in steps:
        note = _note(step, folder)
        if not step.keeps_record and note.is_file() and note.read_text(encoding="utf-8") != _fingerprint(step, folder):
            raise InputError(
                f"{folder / step.name}: made by other options (the first lines of {step.output(folder)}); "
                "--overwrite makes it anew"
            )


def _note(step, folder):
    """The file that says that a step is done."""
    return step.output(folder).with_suffix(".done")


def _fingerprint(step, folder):
    script, *words = map(str, step.line)
    contents = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in step.reads]
    return hashlib.sha256(repr([Path(script).name, words, contents]).encode()).hexdigest()


def run_steps(steps, folder, jobs, seconds, overwrite=False):
    """Run all steps that are not done, ``jobs`` of them at once; ``seconds`` estimates each, by its name.

    ``folder`` is absolute. Raises InputError or OSError where a script ends with status 2 or another one; the scripts
    beside it then finish what they are at.
    """
    from travelling.console import progress_bar

    together = [step for step in steps if jobs > 1 and not step.alone]
    first = [step for step in steps if step not in together]
    left = missing(steps, folder)
    total = max(1, round(sum(seconds[step.name] for step in left)))
    looks = "{percentage:3.0f}%|{bar}| {elapsed} of about " + duration_text(total)
    with progress_bar(total=total, bar_format=looks) as bar:
        progress = _Progress(bar, seconds)
        for group, workers in ((first, 1), (together, jobs)):
            if workers > 1:  # they must not compete for the cores
                os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, os.cpu_count() // workers))
                os.environ["TF_NUM_INTEROP_THREADS"] = "1"
            _run_group([step for step in group if step in left], folder, workers, progress, overwrite)


def times_before_the_end(steps, seconds):
    """How long each step and the longest chain of steps behind it take, by name: what to begin with."""
    times = {}
    for step in reversed(steps):
        behind = [times[other.name] for other in steps if other.name in times and needed(other, [step])]
        times[step.name] = seconds[step.name] + max(behind, default=0)
    return times


def _run_group(steps, folder, workers, progress, overwrite):
    """Run steps, each as soon as there is a worker and nothing that it needs is left."""
    waiting, running = list(steps), {}
    before_the_end = times_before_the_end(steps, progress.seconds)
    with _workers(workers) as idle:
        while waiting or running:
            ready = [
                step for step in waiting if not needed(step, [*waiting, *(other for _, other in running.values())])
            ]
            if workers > 1:  # otherwise nothing is gained by another order than the paper's
                ready.sort(key=lambda step: -before_the_end[step.name])
            for step in ready[: len(idle)]:
                waiting.remove(step)
                if is_done(step, folder):  # what it needs ran again, but to the same result
                    progress.end(step)
                    continue
                progress.begin(step)
                _note(step, folder).unlink(missing_ok=True)
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
        _note(step, folder).write_text(_fingerprint(step, folder), encoding="utf-8")
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
        self._bar = bar
        self._done = 0
        self._begun = {}

    def begin(self, step):
        self._begun[step.name] = time.monotonic()
        self._bar.write(f"{step.name} ...", file=sys.stderr)

    def end(self, step):
        self._done += self.seconds[step.name]
        if step.name in self._begun:
            self._bar.write(f"{step.name}: {time.monotonic() - self._begun.pop(step.name):.0f} s", file=sys.stderr)
        self.show()

    def show(self):
        now = time.monotonic()
        # An estimate may be too low: nothing that runs counts as done.
        running = sum(min(now - begun, 0.95 * self.seconds[name]) for name, begun in self._begun.items())
        self._bar.update(min(round(self._done + running), self._bar.total) - self._bar.n)


def duration_text(seconds):
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
        self.connection = None

    def begin(self, function, *arguments):
        """Call a function there, in a process that is started by the first call."""
        if self.connection is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other_end = context.Pipe()
            self._process = context.Process(target=_work, args=(other_end,))
            with _signals_later():  # a process that is being started would know no better than to die of one
                self._process.start()
            other_end.close()
        self.connection.send((function, arguments))

    def result(self):
        """Wait for what the function returns; DIED where the process did."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return DIED

    def end(self):
        """Wait for what the process is at, then end it."""
        if self.connection is not None:
            self.connection.close()
            self._process.join()


@contextlib.contextmanager
def _workers(number):
    workers = [_Worker() for _ in range(number)]
    try:
        yield list(workers)
    finally:
        for worker in workers:
            worker.end()


def run_apart(function, *arguments):
    """Call a function in a process of its own, so that this one never holds a GPU; returns what it returns."""
    with _workers(1) as (worker,):
        worker.begin(function, *arguments)
        result = worker.result()
    if isinstance(result, InputError):
        raise result
    if result == DIED:
        raise OSError(errno.EIO, f"the process of {function.__name__}() died")
    return result


@contextlib.contextmanager
def _signals_later():
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def stop_on_signals():
    """From now on Ctrl-C and SIGTERM stop the scripts that run, and raise Stopped here."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)


def _stop(number, _frame):
    _stop_workers()
    raise Stopped(number)


def _stop_workers():
    """Ask the scripts that run to finish what they are at and stop; asked again, they stop at once."""
    for worker in multiprocessing.active_children():
        worker.terminate()


def _work(connection):
    """What a worker does: it is not reached by Ctrl-C, and stops when it is told to or nobody is left to."""
    os.setpgid(0, 0)
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)
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


def _leave(number, _frame):
    raise SystemExit(128 + number)


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
