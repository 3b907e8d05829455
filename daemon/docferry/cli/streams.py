"""Write to standard output and standard error. A failed write never ends a command.

Imports little, so that `docferry --version` starts fast.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO


class OutputLost:
    """Report a failed write: the reader of a pipe left, or the stream is closed or full."""

    def __init__(self) -> None:
        self.reader_left = False
        self.unwritten = False

    def note(self, error: Exception | None, stream: IO[str] | None) -> None:
        """Record an error of a stream, and redirect the stream to /dev/null, so that the exit reports none."""
        if isinstance(error, BrokenPipeError):
            self.reader_left = True
        else:
            self.unwritten = True
        if stream is not None:
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


lost = OutputLost()


def write(stream: IO[str] | None, text: str) -> None:
    """Write text at once; escape characters that the stream cannot encode, and record an error in `lost`."""
    if stream is None:
        lost.note(None, None)
        return
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        write(stream, text.encode(encoding, "backslashreplace").decode(encoding))
    except (OSError, ValueError) as error:
        lost.note(error, stream)


def write_bytes(content: bytes) -> None:
    """Write bytes to standard output unchanged; record an error in `lost`."""
    if sys.stdout is None:
        lost.note(None, None)
        return
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as error:
        lost.note(error, sys.stdout)


def flush() -> None:
    """Flush the buffer of standard output."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        lost.note(error, sys.stdout)
