"""The one error that a user is meant to see."""


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line, names the file (and the row or the option), and is printed without a
    traceback by :func:`travelling.command.run`, which then exits with status 2.
    """
