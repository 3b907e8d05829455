"""Text or JSON, one `action` key, redaction at the sink: whoever logs whatever, no secret gets past it."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import sys
from contextlib import suppress
from functools import cache
from typing import Any, Final, TextIO
from urllib.parse import quote, quote_plus

from docferry.clock import iso
from docferry.model import escaped

HIDDEN: Final = "[hidden]"
_TALKATIVE: Final = ("httpx", "httpcore", "h11", "aiosqlite", "sqlalchemy", "alembic", "watchfiles", "asyncio")
_FIXED: Final = ("time", "level", "action", "message")
_SHORT: Final = {"warning": "warn", "critical": "error"}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

_QUERY: Final = re.compile(r"(https?://[^\s?\"'<>#]*)\?[^\s\"'<>]*", re.IGNORECASE)
_USER: Final = re.compile(r"(https?://)[^\s/?#\"'@]*@", re.IGNORECASE)
_AUTHORIZATION: Final = re.compile(r"(authorization\\?[\"']?\s*[:=,]\s*b?\\?[\"']?)[^\"'\\\n]+", re.IGNORECASE)
#: prose goes on in small letters after "basic"; credentials have a capital, a digit or a sign in them
_SCHEME: Final = re.compile(r"\b((?i:basic|bearer))(?:\s+|%20|\+)(?=[\w+/=.~%-]*[A-Z0-9=+/])[\w+/=.~%-]{6,}")
_SIGNED: Final = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)[\\\"']*\s*[:=]\s*[\\\"']*)[^&\s\"'\\,}]+", re.IGNORECASE
)


class Log:
    """What a room logs with: `log.info("uploaded", mapping=…, path=…)`. Values may be bytes; they are escaped."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        self._log(logging.DEBUG, action, message, exc, fields)

    def info(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        self._log(logging.INFO, action, message, exc, fields)

    def warning(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        self._log(logging.WARNING, action, message, exc, fields)

    def error(self, action: str, message: str = "", *, exc: BaseException | None = None, **fields: object) -> None:
        self._log(logging.ERROR, action, message, exc, fields)

    def _log(self, level: int, action: str, message: str, exc: BaseException | None, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            extra = {"action": action, "fields": fields}
            trouble = None if exc is None else (type(exc), exc, exc.__traceback__)
            # Made here, as nobody is told which line logged it, and finding that out costs a tenth of it.
            # The message is an argument: a "%" in it is no format.
            record = self._logger.makeRecord(self._logger.name, level, "", 0, "%s", (message,), trouble, extra=extra)
            self._logger.handle(record)


@cache
def get(name: str) -> Log:
    """The log of a room, by its module's name."""
    return Log(name)


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Send everything that is logged, by whomever, to one redacting sink. May be called again."""
    stream = sys.stderr if stream is None else stream
    sink = _Sink(stream)
    sink.setFormatter(_Json() if format == "json" else _Text(journal=_is_journal(stream), colour=_has_colour(stream)))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each, _Sink)]:
        root.removeHandler(old)
    root.addHandler(sink)
    root.setLevel(level.upper())
    for name in _TALKATIVE:  # httpx tells whole URLs at INFO, and a signed URL is a secret
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.raiseExceptions = False


def hide(secret: str) -> None:
    """From now on this secret, and what it looks like on the wire, is never shown."""
    global _known  # one process has one set of secrets, and every log must know them
    if len(secret) >= 4:
        _secrets.update(_guises(secret))
        _known = re.compile("|".join(map(_however_escaped, sorted(_secrets, key=len, reverse=True))))


def redacted(text: str) -> str:
    """The text without secrets, authorization values, users in URLs, and queries of URLs."""
    folded = text.casefold()  # to look whether a pattern can fit costs a fraction of trying it
    if "://" in folded:
        text = _QUERY.sub(rf"\1?{HIDDEN}", text)
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    if _known is not None:
        text = _known.sub(HIDDEN, text)
    if "authorization" in folded:
        text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    if "basic" in folded or "bearer" in folded:
        text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    return _SIGNED.sub(rf"\1{HIDDEN}", text) if "x-amz-" in folded else text


_secrets: set[str] = set()
_known: re.Pattern[str] | None = None


def _guises(secret: str) -> set[str]:
    plain = {secret}
    word, _, rest = secret.partition(" ")
    if rest and word.lower() in ("basic", "bearer"):
        plain.add(rest)
        plain.update(_decoded(rest))
    guises = set(plain)
    for each in plain:
        raw = each.encode("utf-8", "surrogateescape")
        for after in (b"", b":"):  # a key alone, and as the user of a user:password pair
            guises.add(base64.b64encode(raw + after).decode().rstrip("="))
            guises.add(base64.urlsafe_b64encode(raw + after).decode().rstrip("="))
        guises.update((quote(raw, safe=""), quote(raw), quote_plus(raw)))
    return {each for each in guises if len(each) >= 4}


def _however_escaped(secret: str) -> str:
    """A pattern that also meets the secret inside a repr, a JSON string, or one within the other."""
    return "".join(r"\\+" if char == "\\" else rf"\\*{char}" if char in "\"'/" else re.escape(char) for char in secret)


def _decoded(text: str) -> set[str]:
    try:
        return {base64.b64decode(text, validate=True).decode()}
    except (binascii.Error, UnicodeDecodeError):
        return set()


class _Sink(logging.Handler):
    """Writes straight to the descriptor where there is one: a stream that broke keeps no bytes to choke on at exit."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._descriptor = _descriptor(stream)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a log that cannot be written must never stop a document
            self._write(self.format(record) + "\n")

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        if self._stream.closed:  # its number may be another file's by now
            return
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        while left:
            left = left[os.write(self._descriptor, left) :]


class _Text(logging.Formatter):
    """A line for people; the journal has its own clock and wants a priority instead."""

    def __init__(self, *, journal: bool, colour: bool) -> None:
        super().__init__()
        self._journal = journal
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level, action, message, fields = _parts(record)
        shown = f"{_SHORT.get(level, level):<5}"
        if self._colour:
            shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        pairs = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)
        rest = redacted("  ".join(part for part in (action, message, pairs) if part))
        lines = [f"{shown} {rest}", *(f"    {line}" for line in _traceback(record))]
        if self._journal:
            return "\n".join(f"<{_PRIORITIES.get(level, 6)}>{line}" for line in lines)
        return f"{iso(record.created)} " + "\n".join(lines)


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        level, action, message, fields = _parts(record)
        told: dict[str, Any] = {"time": iso(record.created), "level": level, "action": action, "message": message}
        told |= {f"{key}_" if key in _FIXED else key: value for key, value in fields.items()}
        if lines := _traceback(record):
            told["traceback"] = "\n".join(lines)
        return json.dumps({redacted(key): _redacted_value(value) for key, value in told.items()}, ensure_ascii=False)


def _parts(record: logging.LogRecord) -> tuple[str, str, str, dict[str, Any]]:
    """Level, action, message and fields; a record of someone else's gets its logger's name as the action."""
    given = getattr(record, "fields", None)
    fields = {escaped(key): _shown(value) for key, value in given.items()} if isinstance(given, dict) else {}
    action = getattr(record, "action", None) or record.name.partition(".")[0]
    return record.levelname.lower(), escaped(str(action)), escaped(_message(record)), fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # somebody else's format does not fit its arguments
        return str(record.msg)


def _shown(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return escaped(value if isinstance(value, bytes | str) else str(value))


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    plain = text and " " not in text and '"' not in text and "=" not in text
    return text if plain else '"' + text.replace('"', '\\"') + '"'


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
    """systemd tells which file the journal listens on, so that a redirected stderr is not taken for it."""
    descriptor = _descriptor(stream)
    named = os.environ.get("JOURNAL_STREAM", "")
    if descriptor is None or not named:
        return False
    status = os.fstat(descriptor)
    return named == f"{status.st_dev}:{status.st_ino}"


def _has_colour(stream: TextIO) -> bool:
    try:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is none, or it was closed
        return False
