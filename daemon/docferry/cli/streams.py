"""Writes to standard output and error; what cannot be written never ends a command.

Imports little, so that `docferry --version` starts fast.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO


class OutputLost:
    """Output that could not be written: the reader of a pipe left, or the stream is closed or full."""

    def __init__(self) -> None:
        self.reader_left = False
        self.unwritten = False

    def note(self, error: Exception | None, stream: IO[str] | None) -> None:
        """Note an error of a stream, and point the stream at /dev/null, so that exiting reports nothing more."""
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
    """Write text at once; characters that the stream cannot encode are escaped, an error is noted in `lost`."""
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
    """Write bytes to standard output as they are; an error is noted in `lost`."""
    if sys.stdout is None:
        lost.note(None, None)
        return
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as error:
        lost.note(error, sys.stdout)


def flush() -> None:
    """Write what Python holds back for standard output."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        lost.note(error, sys.stdout)
