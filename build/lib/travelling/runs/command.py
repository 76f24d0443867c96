"""How every script ends: its error line and its exit status.

Imports nothing that is slow, so that ``--help`` answers at once.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from travelling.console import Output
from travelling.errors import AlreadyDone, InputError, Stopped
from travelling.option import Parser as Parser
from travelling.option import number as number
from travelling.runs import stopping


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
