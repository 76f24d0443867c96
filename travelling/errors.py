"""What ends a run, or a visit to a center, early."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line, names the file (and the row or the option), and is printed without a
    traceback by :func:`travelling.runs.command.run`, which then exits with status 2.
    """


class AlreadyDone(Exception):
    """The same command has run to its end before: its message is printed, and the exit status is 0."""


class VisitFailed(Exception):
    """A center gave no usable answer to a training step: that step is rejected, and nothing is concluded from it.

    ``phase`` is "unreachable" (no answer, or an error) or "invalid" (an answer that cannot be right).
    """

    def __init__(self, phase: str, reason: str):
        super().__init__(reason)
        self.phase = phase


class Stopped(Exception):
    """Ctrl-C or SIGTERM (``signal``) asked the run to stop, and its current step is finished."""

    def __init__(self, signal: int):
        super().__init__(signal)
        self.signal = signal


def first_line(error: Exception) -> str:
    """What an exception says, in one line: its first of at most 200 letters, or else its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def name_file(path: Path | str) -> Iterator[None]:
    """Make an OSError tell the file: where writing fails, for example on a full disk, it does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
