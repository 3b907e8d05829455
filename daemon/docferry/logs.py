"""Log events as text or JSON, each with an `action`. One sink redacts everything, also of other libraries."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any, Final, TextIO

from docferry.clock import iso
from docferry.model import escaped
from docferry.redaction import HIDDEN as HIDDEN
from docferry.redaction import hide as hide
from docferry.redaction import redacted as redacted

_TALKATIVE: Final = ("httpx", "httpcore", "h11", "sqlalchemy", "alembic", "watchfiles", "asyncio")
_FIXED: Final = ("time", "level", "action", "message")
_SHORT: Final = {"warning": "warn", "critical": "error"}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


class Log:
    """Log events of one module: `log.info("sent", mapping=…, path=…)`. Values may be bytes; they are escaped."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        """Log an event at level debug."""
        self._log(logging.DEBUG, action, message, exc, fields)

    def info(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        """Log an event at level info."""
        self._log(logging.INFO, action, message, exc, fields)

    def warning(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        """Log an event at level warning."""
        self._log(logging.WARNING, action, message, exc, fields)

    def error(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        """Log an event at level error."""
        self._log(logging.ERROR, action, message, exc, fields)

    def _log(self, level: int, action: str, message: str, exc: BaseException | None, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"action": action, "fields": fields}
            trouble = None if exc is None else (type(exc), exc, exc.__traceback__)
            # Created here: looking up the calling line would cost a tenth more, and no format shows it. The message is
            # an argument, so that "%" in it is not a format.
            record = self._logger.makeRecord(self._logger.name, level, "", 0, "%s", (message,), trouble, extra=extra)
            self._logger.handle(record)


@cache
def get(name: str) -> Log:
    """Return the logger of a module."""
    return Log(name)


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Send all log records to one redacting sink; may be called again."""
    stream = sys.stderr if stream is None else stream
    sink = _Sink(stream)
    for_person = format == "text" or (format == "auto" and _is_terminal(stream))
    journal = _is_journal(stream)
    sink.setFormatter(_Text(journal=journal, colour=_has_colour(stream)) if for_person else _Json(journal=journal))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Sink)]:
        root.removeHandler(old)
    root.addHandler(sink)
    root.setLevel(level.upper())
    for name in _TALKATIVE:  # httpx logs whole URLs at INFO, and a signed URL is a secret
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.raiseExceptions = False


class _Sink(logging.Handler):
    """Write to the descriptor if there is one: a broken stream would fail again at exit with its buffered bytes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._descriptor = _descriptor(stream)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a failed log write must never stop a document
            self._write(self.format(record) + "\n")

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        if self._stream.closed:  # another file may have this number by now
            return
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            left = left[os.write(self._descriptor, left) :]


class _Text(logging.Formatter):
    """Format a record as `time level action  message  key=value …`; the journal gets a priority instead of a time.

    Values and messages with characters of this grammar are quoted, so that a file name cannot look like a field.
    """

    def __init__(self, *, journal: bool, colour: bool) -> None:
        super().__init__()
        self._journal = journal
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level, action, message, fields = _parts(record)
        shown = f"{_SHORT.get(level, level):<5}"
        if self._colour:
            shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        given = {key: value for key, value in fields.items() if value is not None}
        texts = _all_redacted([_backslashed(each) for each in (action, message, *given, *given.values())])
        keys, values = texts[2 : 2 + len(given)], texts[2 + len(given) :]
        pairs = " ".join(f"{key}={_value(value)}" for key, value in zip(keys, values, strict=True))
        rest = "  ".join(part for part in (texts[0], _prose(texts[1]), pairs) if part)
        lines = [f"{shown} {rest}", *(f"    {line}" for line in _traceback(record))]
        if self._journal:
            return "\n".join(f"<{_PRIORITIES.get(level, 6)}>{line}" for line in lines)
        return f"{iso(record.created)} " + "\n".join(lines)


class _Json(logging.Formatter):
    """Format a record as one JSON object; the journal removes the priority in front of it."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        level, action, message, fields = _parts(record)
        told: dict[str, Any] = {"time": iso(record.created), "level": level}
        told |= {"action": escaped(action), "message": escaped(message)}
        told |= {escaped(f"{key}_" if key in _FIXED else key): _shown(value) for key, value in fields.items()}
        if lines := _traceback(record):
            told["traceback"] = "\n".join(lines)
        line = json.dumps({redacted(key): _redacted_value(value) for key, value in told.items()}, ensure_ascii=False)
        return f"<{_PRIORITIES.get(level, 6)}>{line}" if self._journal else line


def _parts(record: logging.LogRecord) -> tuple[str, str, str, dict[str, Any]]:
    """Return level, action, message and fields; the action of a library's record is its logger's name."""
    given = getattr(record, "fields", None)
    action = getattr(record, "action", None) or record.name.partition(".")[0]
    return record.levelname.lower(), str(action), _message(record), given if isinstance(given, dict) else {}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library passed arguments that do not match its format
        return str(record.msg)


def _shown(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return escaped(value if isinstance(value, bytes | str) else str(value))


def _backslashed(value: object) -> str:
    """Return a value with control characters escaped, and each backslash doubled."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "surrogateescape")
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return escaped(text.replace("\\", "\\\\"))


def _value(text: str) -> str:
    plain = text and " " not in text and '"' not in text and "=" not in text and "\\" not in text
    return text if plain else _quoted(text)


def _prose(text: str) -> str:
    """Return a message, quoted if it has an equals sign or quotes and spaces unlike prose."""
    plain = "=" not in text and "  " not in text and text[:1] not in ('"', " ") and text[-1:] != " "
    return text.replace("\\\\", "\\") if plain else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _all_redacted(texts: list[str]) -> list[str]:
    """Redact texts without line breaks together, because each call costs more than a text."""
    found = redacted("\n".join(texts)).split("\n")
    return found if len(found) == len(texts) else [redacted(text) for text in texts]


def _redacted_value(value: object) -> object:
    return redacted(value) if isinstance(value, str) else value


def _traceback(record: logging.LogRecord) -> list[str]:
    text = ""
    if record.exc_info:
        text = record.exc_text or logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        text += "\n" + record.stack_info
    return [escaped(line) for line in redacted(text).split("\n")] if text else []


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _is_journal(stream: TextIO) -> bool:
    """Return whether a stream leads to the journal, by the file in systemd's environment variable."""
    descriptor = _descriptor(stream)
    named = os.environ.get("JOURNAL_STREAM", "")
    if descriptor is None or not named:
        return False
    status = os.fstat(descriptor)
    return named == f"{status.st_dev}:{status.st_ino}"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # the stream is None or closed
        return False


def _has_colour(stream: TextIO) -> bool:
    return _is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
