"""What ends a run early and is meant to be seen by the user."""

import contextlib


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line, names the file (and the row or the option), and is printed without a
    traceback by :func:`travelling.command.run`, which then exits with status 2.
    """


class AlreadyDone(Exception):
    """The same command has run to its end before: its message is printed, and the exit status is 0."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM (``signal``) asked the run to stop, and its current step is finished."""

    def __init__(self, signal):
        super().__init__(signal)
        self.signal = signal


@contextlib.contextmanager
def name_file(path):
    """Make an OSError tell the file: where writing fails, for example on a full disk, it does not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
