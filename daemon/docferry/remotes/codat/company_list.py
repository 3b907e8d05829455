"""Read the list of a company's files as a stream: without paging, it may have hundreds of thousands of rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any, Final

import ijson
from anyio.lowlevel import checkpoint
from msgspec import Struct

from docferry.errors import RemoteError
from docferry.remotes.http import Sink

#: The largest list that is read, bytes.
MAX_LIST_BYTES: Final = 1024**3
#: The largest number of rows that is accepted: each row takes about 400 bytes of memory.
MAX_ROWS: Final = 300_000
#: Bytes passed to the parser at a time, so that other tasks run in between.
_STEP: Final = 64 * 1024
_NAMES: Final = ("fileName", "displayName", "sourceType", "uploaded")


class ListedFile(Struct, frozen=True):
    """Hold one row of a company's list, unchanged."""

    file_name: str | None
    display_name: str | None
    source_type: str | None
    uploaded: str


class ListReader:
    """Parse one list during its download."""

    def __init__(self) -> None:
        self._rows: list[ListedFile] = []
        self._is_array = False
        self._ended = False

    @asynccontextmanager
    async def sink(self) -> AsyncIterator[Sink]:
        """Yield a sink for the body. Raises RemoteError if the body is not a list of objects."""
        self._rows, self._is_array, self._ended = [], False, False
        # Read numbers as floats: an integer above 4,300 digits ends the process in ijson 3.6 (yajl2_c).
        parser = ijson.basic_parse_coro(self._events(), use_float=True)

        async def feed(block: bytes) -> None:
            for start in range(0, len(block), _STEP):
                try:
                    parser.send(block[start : start + _STEP])
                except Exception as error:  # an error in a list concerns only its company
                    raise _unreadable(error, "is not valid JSON") from error
                await checkpoint()

        yield feed
        try:
            parser.close()
        except Exception as error:
            raise _unreadable(error, "ends early") from error

    def rows(self) -> list[ListedFile]:
        """Return the rows of a completely read list."""
        if not self._ended:
            raise _not_a_list("is not a JSON array" if not self._is_array else "ends early")
        return self._rows

    def _events(self) -> Any:
        events = self._parse()
        next(events)
        return events

    def _parse(self) -> Generator[None, tuple[str, Any], None]:
        """Process the parser's events; store only the four texts of each row, at any depth of nesting."""
        event, _ = yield
        if event != "start_array":
            raise _not_a_list("is not a JSON array")
        self._is_array = True
        while True:
            event, _ = yield
            if event == "end_array":
                break
            if event != "start_map":
                raise _not_a_list("has a row that is not an object")
            yield from self._row()
        self._ended = True
        while True:
            yield

    def _row(self) -> Generator[None, tuple[str, Any], None]:
        texts: dict[str, str] = {}
        depth, key = 1, ""
        while depth:
            event, value = yield
            if event == "map_key" and depth == 1:
                key = value
            elif event in ("start_map", "start_array"):
                depth += 1
            elif event in ("end_map", "end_array"):
                depth -= 1
            elif event == "string" and depth == 1 and key in _NAMES:
                texts[key] = value
        if len(self._rows) >= MAX_ROWS:
            raise RemoteError(
                f"Codat's list has more than {MAX_ROWS:,} rows; docferry reads no longer list", kind="not_ours"
            )
        name, display, source, uploaded = (texts.get(each) for each in _NAMES)
        self._rows.append(ListedFile(name, display, source, uploaded or ""))


def _unreadable(error: Exception, why: str) -> RemoteError:
    return error if isinstance(error, RemoteError) else _not_a_list(why)


def _not_a_list(why: str) -> RemoteError:
    return RemoteError(f"Codat's list of files {why}; it is read again", kind="not_ours", status=200)
