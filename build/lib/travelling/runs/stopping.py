"""How a run ends: what it lets go of, and the signals that ask it to stop after its current step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from travelling.errors import Stopped

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
at_end: list[Callable[[], object]] = []  # functions to call when main() has ended, however it ended
_asked: list[int] = []  # the signals that came since the steps began


@contextlib.contextmanager
def process_of_a_run() -> Iterator[None]:
    """At its end, however it ends, everything is let go of, and signals do what they did before."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        end()
        _asked.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end() -> None:
    """Let go of what the run holds: its folder, its log."""
    while at_end:
        at_end.pop()()


def finish_steps_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM only ask: :func:`stop_if_asked` stops. A second one stops at once.

    Where the run has no process of its own, but a thread of a server, it is the server that they ask.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        signal.signal(number, _ask)


def _ask(number, _frame):
    _asked.append(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stop_if_asked() -> None:
    """To be called after every step: raises Stopped if there was a signal."""
    if _asked:
        raise Stopped(_asked[0])
