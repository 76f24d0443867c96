"""What every command line shares: its error line, its exit status and its kinds of values.

Imports nothing that is slow, so that ``--help`` answers at once.
"""

import argparse
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from travelling import stopping
from travelling.console import Output
from travelling.errors import AlreadyDone, InputError, Stopped


def run(main: Callable[[], None]) -> NoReturn:
    """Call ``main()`` and exit with a status that says how it went; an error is one line on stderr.

    0: done. 1: the machine failed (disk full, no permission). 2: the input is wrong. 130, 143: interrupted.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr, may_fail=True)
    try:
        if sys.warnoptions:  # PYTHONWARNINGS=error, of another project, would end the run at any remark of a library
            warnings.resetwarnings()
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)  # as Python does
        with stopping.process_of_a_run():
            if os.name == "nt":
                raise InputError("Windows is not supported; its Subsystem for Linux (WSL) is: wsl --install")
            main()
            sys.stdout.flush()
    except AlreadyDone as message:
        print(message, file=sys.stderr)
    except Stopped as stop:
        _fail(128 + stop.signal, "interrupted; the same command goes on from here")
    except InputError as error:
        _fail(2, f"error: {error}")
    except OSError as error:
        _fail(1, f"error: {error.filename or 'input/output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail(128 + signal.SIGINT, "interrupted")
    except Exception as error:
        if not _is_lack_of_memory(error):
            raise
        _fail(1, "error: not enough memory; smaller batches or --precision bfloat16 take less")
    finally:
        sys.stdout, sys.stderr = streams
    sys.exit(0)


def _is_lack_of_memory(error):
    """Of the machine, or of the GPU as TensorFlow or JAX report it (told by name: neither is imported here)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "ResourceExhaustedError"
        or "RESOURCE_EXHAUSTED" in str(error)
    )


def _fail(status: int, message: str) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(status)


class Parser(argparse.ArgumentParser):
    """An argument parser that shows defaults, and one line instead of its usage where an option is wrong."""

    def __init__(self, description: str | None, prog: str | None = None):
        description = (description or "").strip()  # none under PYTHONOPTIMIZE=2
        super().__init__(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        _fail(2, f"error: {message} (--help lists the options)")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, False):  # nothing to show: a required option, a flag, or said in words
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


def number(kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: an int or a float within [low, high]."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            word = "a whole number" if kind is int else "a number"
            bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
            raise argparse.ArgumentTypeError(f"'{text}' is not {word} {bounds}")
        return value

    return parse


def result_name(text: str) -> Path:
    """An argparse type: a path whose last part begins the names of the results."""
    if not Path(text).name or text.endswith(("/", "..")):
        raise argparse.ArgumentTypeError(f"'{text}' is not a file name")
    return Path(text)
