"""Test logs: formats, redaction, and failing outputs."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from _pytest.logging import LogCaptureHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry import logs
from docferry.model import escaped

CANARY = 'canary/7f3a+9c"2e\\key'
log = logs.get("docferry.test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def sink(format: str = "text", level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, format, stream)
    return stream


def test_a_line_has_time_level_action_and_fields() -> None:
    stream = sink()
    log.info("uploaded", mapping="acme", path=b"in/x.pdf", size=3, once=True, detail=None)
    log.warning("retrying", "in a while", reason="rate limit", empty="")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info  uploaded  mapping=acme path=in/x\.pdf size=3 once=true", first
    )
    assert second.endswith('warn  retrying  in a while  reason="rate limit" empty=""')


def test_json_is_one_object_a_line() -> None:
    stream = sink("json")
    log.error("failed", "no\nway", path=b"\xff\n.pdf", level="mine", size=3, detail=None)
    log.error("crashed", exc=caught("two\nlines"))
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "error", "action": "failed", "message": "no\\nway",
        "path": "\\xff\\n.pdf", "level_": "mine", "size": 3, "detail": None,
    }  # fmt: skip
    assert "RuntimeError: two\nlines" in second["traceback"]


def test_nothing_in_a_value_can_forge_a_line_or_steer_a_terminal() -> None:
    stream = sink()
    odd: dict[str, Any] = {"k\ney": 1}
    log.info("seen", "a\nb", path=b"x\n2026-11-21T00:00:00.000Z error forged\x1b[2J\xe2\x80\xae.pdf", **odd)
    logging.getLogger("other").warning("%s", "c\r\nd\x1b[0m")
    log.error("crashed", exc=caught("e\x1b[2J\n2026-11-21T00:00:00.000Z error forged"))
    text = stream.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    assert not re.search(r"(?m)^2026-11-21T00:00:00", text)


#: A text line: level, action, message (in quotes where it could be taken for fields), fields.
LINE = re.compile(
    r"[^ ]+Z (?P<level>debug|info |warn |error) (?P<action>\w+)"
    r'(?:  (?P<message>"(?:[^"\\]|\\.)*"|(?!")(?:(?!  )[^=])*?))?'
    r'(?:  (?P<pairs>\w+=(?:"(?:[^"\\]|\\.)*"|[^ "=\\]+)(?: \w+=(?:"(?:[^"\\]|\\.)*"|[^ "=\\]+))*))?'
)
PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)')
ODD = st.lists(
    st.sampled_from([*'ab ="\\\n\r\t\x1b\x9b\u202e\u2028\xa0\udcff\x00[]m', "level=error", "  x=", '\\"', 'error"'])
).map("".join)


def unquoted(text: str) -> str:
    """Return the value that a text line shows, with control characters as escapes."""
    return re.sub(r'\\([\\"])', r"\1", text[1:-1]) if text.startswith('"') else text


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(message=ODD, path=ODD, reason=ODD)
def test_a_line_can_be_parsed_whatever_a_name_or_a_remote_says(message: str, path: str, reason: str) -> None:
    stream = sink()
    # pytest records lines raw, and a worker of xdist cannot report a lone surrogate.
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if not isinstance(each, LogCaptureHandler)]
    log.info("seen", message, path=os.fsencode(path), reason=reason)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.removesuffix("\n").isprintable()
    found = LINE.fullmatch(text.removesuffix("\n"))
    assert found is not None, text
    assert (found["level"], found["action"]) == ("info ", "seen")
    fields = dict(PAIR.findall(found["pairs"]))
    assert list(fields) == ["path", "reason"]
    assert unquoted(fields["path"]) == escaped(path)
    assert unquoted(fields["reason"]) == escaped(reason)
    shown = found["message"] or ""
    assert (unquoted(shown) if shown.startswith('"') else shown) == escaped(message)


def test_a_redaction_leaves_quotes_whole() -> None:
    """A query is hidden up to a quote; the backslash before the quote must stay."""
    stream = sink()
    log.warning(
        "refused", 'at https://h/a?b\\" x', detail='https://h/a?b" level=error  forged="x', reason="basic+ABCDEF="
    )
    line = stream.getvalue().removesuffix("\n")
    found = LINE.fullmatch(line)
    assert found is not None, line
    assert [key for key, _ in PAIR.findall(found["pairs"])] == ["detail", "reason"]
    assert "?b" not in line
    assert "ABCDEF" not in line


def test_formats_in_messages_and_arguments_that_do_not_fit_do_no_harm() -> None:
    stream = sink()
    log.info("seen", "100%s %d {x}", path="%n")
    logging.getLogger("other").warning("%d files", "x")
    assert "100%s %d {x}" in stream.getvalue()
    assert "%d files" in stream.getvalue()


def test_the_level_holds_and_talkative_libraries_are_kept_at_warning() -> None:
    stream = sink(level="info")
    log.debug("hidden")
    assert stream.getvalue() == ""
    stream = sink(level="debug")
    for name in ("httpx", "httpcore.http11", "sqlalchemy.engine", "watchfiles.main", "asyncio"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).debug("chatter")
    assert stream.getvalue() == ""
    logging.getLogger("httpx").warning("trouble")
    assert "httpx  trouble" in stream.getvalue()


def test_configuring_again_replaces_the_sink() -> None:
    first, second = sink(), sink()
    log.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)


def caught(message: str) -> Exception:
    with pytest.raises(RuntimeError) as found:
        raise RuntimeError(message)
    return found.value


def guises(secret: str) -> list[str]:
    raw = secret.encode()
    return [
        secret, base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(),
        "Basic " + base64.b64encode(raw).decode(), quote(secret, safe=""), quote(secret),
        repr(secret), json.dumps(secret), f"Bearer {secret}",
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_known_secret_is_never_shown_in_any_guise(format: str) -> None:
    logs.hide(CANARY)
    stream = sink(format)
    for guise in guises(CANARY):
        names: dict[str, Any] = {guise: 1}
        log.info("seen", f"before {guise} after", value=guise, raw=guise.encode(), nested={"k": [guise]}, **names)
        logging.getLogger("other").warning("args %s %r", guise, {"x": guise.encode()})
        log.error("crashed", exc=caught(f"with {guise}"))
    text = stream.getvalue()
    assert text.count("[hidden]") >= 9 * 5
    for guise in guises(CANARY):
        assert guise.removeprefix("Basic ").rstrip("=") not in text
    assert "canary" not in text


def test_a_key_given_as_a_finished_header_is_hidden_bare_and_decoded() -> None:
    logs.hide("Basic " + base64.b64encode(b"inner-canary-key").decode())
    shown = logs.redacted(f"{base64.b64encode(b'inner-canary-key').decode()} and inner-canary-key")
    assert shown == "[hidden] and [hidden]"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic CANARYCANARY",
        "authorization: CANARYCANARY",
        "{'Authorization': 'Bearer CANARYCANARY', 'x': 1}",
        '{"authorization": "Basic CANARYCANARY"}',
        "[(b'Authorization', b'Basic CANARYCANARY=')]",
        "Authorization: AWS4-HMAC-SHA256 Credential=CANARY/x, Signature=CANARY",
        "sent Basic CANARYCANARY== to it",
        "GET https://s3.example.com/b/k?X-Amz-Signature=CANARY&X-Amz-Date=1 failed",
        "'HTTPS://s3.example.com/b/k?CANARY'",
        "http://user:CANARY@proxy:3128/",
        "{'X-Amz-Signature': 'CANARY', 'x': 1}",
        "/b/k?X-Amz-Credential=CANARY%2F2026&X-Amz-Signature=CANARY",
        'x-amz-security-token: CANARY',
    ],
)  # fmt: skip
def test_unknown_secrets_are_known_by_their_place(text: str) -> None:
    shown = logs.redacted(text)
    assert "CANARY" not in shown
    assert "[hidden]" in shown


@pytest.mark.parametrize("text", ["a basic question", "https://example.com/a/b.pdf", "what? nothing", "bearer of news"])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert logs.redacted(text) == text


def test_a_url_keeps_its_path() -> None:
    assert logs.redacted("GET https://h/b/k?X=1 200") == "GET https://h/b/k?[hidden] 200"


def run(code: str, **given: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, timeout=30, check=False, **given)  # type: ignore[call-overload, no-any-return] # passed on


BUSY = """
import sys
from docferry import logs
logs.configure("debug", "text")
for n in range(1000):
    logs.get("x").info("said", "a line that fills the pipe")
print("alive")
"""


def test_a_stderr_that_nobody_reads_any_more_stops_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run(BUSY, stdout=subprocess.PIPE, stderr=writing)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")


def test_a_stderr_on_a_full_disk_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        ended = run(BUSY, stdout=subprocess.PIPE, stderr=full)
    assert (ended.returncode, ended.stdout) == (0, "alive\n")


def test_a_closed_or_missing_stderr_stops_nothing(tmp_path: Path) -> None:
    for loss in ("sys.stderr = None", "sys.stderr.close()"):
        ended = run(BUSY.replace("import sys\n", f"import sys\n{loss}\n"), stdout=subprocess.PIPE)
        assert (ended.returncode, ended.stdout) == (0, "alive\n"), loss
    stream = (tmp_path / "log").open("w")
    logs.configure("debug", "text", stream)
    number = stream.fileno()
    stream.close()
    other = os.open(tmp_path / "database", os.O_RDWR | os.O_CREAT)
    try:
        assert other == number  # the number is another file's now: not a byte may go there
        log.info("said")
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)


def test_the_journal_gets_priorities_and_objects(tmp_path: Path) -> None:
    place = tmp_path / "journal"
    code = 'from docferry import logs; logs.configure("info", "{}"); log = logs.get("x")\n'
    code += 'log.info("a"); log.warning("b"); log.error("c", exc=ValueError("x\\ny"))'
    with place.open("w") as file:
        status = os.fstat(file.fileno())
        named = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        run(code.format("auto"), stderr=file, env=named)
    lines = place.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>"]
    assert [json.loads(line[3:])["action"] for line in lines] == ["a", "b", "c"]
    with place.open("w") as file:
        run(code.format("text"), stderr=file, env=named)
    lines = place.read_text().splitlines()
    assert lines[:3] == ["<6>info  a", "<4>warn  b", "<3>error c"]
    assert all(line.startswith("<3>    ") for line in lines[3:])
    assert len(lines) > 3
    with place.open("w") as file:
        run(code.format("auto"), stderr=file, env=os.environ | {"JOURNAL_STREAM": "1:1"})
    assert json.loads(place.read_text().splitlines()[0])["action"] == "a"
    with place.open("w") as file:
        run(code.format("text"), stderr=file, env=os.environ | {"JOURNAL_STREAM": "1:1"})
    assert re.match(r"\d{4}-.*Z info  a", place.read_text())


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_is_for_terminals_alone(more: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {"TERM": "xterm"}
    try:
        run('from docferry import logs; logs.configure(); logs.get("x").info("a")', stderr=theirs, env=plain | more)
        said = os.read(ours, 1000)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"\x1b[" in said) == coloured
    assert b"\x1b[" not in sink().getvalue().encode()
