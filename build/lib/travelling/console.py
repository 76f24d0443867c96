"""The terminal: progress bar, log lines above it, and output that survives the terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar; where stderr is not a terminal, a line every ten seconds."""
    from tqdm import tqdm  # here, because command lines read this module, and --help must answer at once

    return tqdm(items, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 10, **options)


class AboveTheBar(logging.Handler):
    """Log lines on the terminal, above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        from tqdm import tqdm

        tqdm.write(record.getMessage(), file=sys.stderr)


class Output:
    """A stream that shows what its encoding lacks as escapes, and survives its terminal (``may_fail``: any failure).

    What is printed to a terminal that is gone is lost; logs and results are files.
    """

    def __init__(self, stream: TextIO | None, may_fail: bool = False):
        self._stream = open(os.devnull, "w") if stream is None else stream  # it was closed
        self._may_fail = may_fail or self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any stream."""
        encoding = self._stream.encoding or "utf-8"
        self._try(lambda: self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding)))
        return len(text)

    def flush(self) -> None:
        """As of any stream."""
        self._try(self._stream.flush)

    def _try(self, function):
        try:
            function()
        except OSError:
            if not self._may_fail:
                raise
