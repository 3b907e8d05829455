"""Test the status page over HTTP: access, actions, content."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from app_env import COMPANY, AppEnv, Daemon, reserved_port, until
from docferry.simulator import Fault
from web.conftest import Reply, ask, listening

FORM = "application/x-www-form-urlencoded"


def with_page(app_env: AppEnv, listen: str = "127.0.0.1:0", **more: str) -> None:
    lines = [f'listen = "{listen}"', *(f"{key} = {text}" for key, text in more.items())]
    app_env.sections.append("[web]\n" + "\n".join(lines))


def on_socket(app_env: AppEnv, **more: str) -> str:
    path = app_env.root / "web.sock"
    with_page(app_env, f"unix:{path}", **more)
    return f"unix:{path}"


def post(address: str, path: str, cookie: str = "", **form: str) -> Reply:
    headers = {"content_type": FORM, "sec_fetch_site": "same-origin", **({"cookie": cookie} if cookie else {})}
    return ask(address, path, "POST", urlencode(form), **headers)


def log_in(app_env: AppEnv) -> str:
    """Open a session through `docferry ui`, and return its cookie."""
    link = app_env.run("ui").stdout.strip()
    host, _, path = link.removeprefix("http://").partition("/")
    reply = ask(host, f"/{path}")
    assert reply.status == 200
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    return cookie.partition(";")[0]


def held(app_env: AppEnv) -> list[dict[str, Any]]:
    return app_env.rows("--state", "held")


def test_a_socket_has_its_mode_and_needs_no_login(app_env: AppEnv) -> None:
    app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")
        assert stat.S_IMODE(Path(address.removeprefix("unix:")).stat().st_mode) == 0o660
        assert ask(address, "/").status == 200
        told = app_env.run("ui").stdout
        assert told.startswith(f"ssh -N -L 8025:{address.removeprefix('unix:')} ")


def test_a_port_lets_nobody_in_without_a_link(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_page(app_env)
    with app_env.daemon():
        address = listening(app_env, "web")
        for path in ("/", "/documents", "/documents/1", "/activity", "/status.json"):
            assert ask(address, path).status == 401, path
            assert "bank" not in ask(address, path).text, path
        for what in ("retry", "gate", "emptied"):
            assert post(address, f"/actions/{what}").status == 401, what
        assert ask(address, "/", cookie="docferry_1=x").status == 401
        cookie = log_in(app_env)
        assert ask(address, "/", cookie=cookie).status == 200
        assert json.loads(ask(address, "/status.json", cookie=cookie).text)["uploads"][0]["mapping"] == "bank"
        assert post(address, "/logout", cookie).status == 303
        assert ask(address, "/", cookie=cookie).status == 401


def test_a_link_is_good_once_and_for_a_minute(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_page(app_env)
    with app_env.daemon():
        address = listening(app_env, "web")
        path = app_env.run("ui").stdout.strip().partition(address)[2]
        token = path.partition("token=")[2]
        # Nothing in the state folder shows a token, and nobody else can make one.
        (made,) = app_env.state.glob("login-*")
        assert token not in made.name + made.read_text()
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert ask(address, path, "HEAD").status == 401
        assert ask(address, path).status == 200
        assert ask(address, path).status == 401
        path = app_env.run("ui").stdout.strip().partition(address)[2]
        (made,) = app_env.state.glob("login-*")
        os.utime(made, (made.stat().st_mtime - 61,) * 2)
        assert ask(address, path).status == 401
        for token in ("", "x" * 43, "../../etc/passwd", "%00"):
            assert ask(address, f"/login?token={token}").status == 401
        assert not list(app_env.state.glob("login-*"))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "localhost.evil.example", "10.0.0.1", "[::2]"])
def test_another_host_is_misdirected(host: str, app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_page(app_env, hosts='["docs.example.com"]')
    with app_env.daemon():
        address = listening(app_env, "web")
        assert ask(address, "/login", host=host).status == 421
        assert ask(address, "/static/page.css", host=host).status == 421
        for good in ("localhost", "LOCALHOST:1", address, "docs.example.com"):
            assert ask(address, "/login", host=good).status == 401, good


def test_only_our_own_pages_may_change_something(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "no.exe").write_bytes(b"MZ")
    address = on_socket(app_env)
    with app_env.daemon():
        until(lambda: held(app_env), what="the held document")
        body = urlencode({"id": held(app_env)[0]["id"]})
        for headers in (
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"sec_fetch_site": "none"},
            {"sec_fetch_site": "cross-site", "origin": "http://localhost"},
            {"origin": "http://localhost:9"},
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {},
        ):
            reply = ask(address, "/actions/retry", "POST", body, content_type=FORM, **headers)
            assert reply.status == 403, headers
        good = ask(address, "/actions/retry", "POST", body, content_type=FORM, origin="http://localhost")
        assert good.status == 303
        wrong = ask(address, "/actions/retry", "POST", body, content_type="text/plain", sec_fetch_site="same-origin")
        assert wrong.status == 415
        assert ask(address, "/actions/retry", sec_fetch_site="same-origin").status == 405


def test_without_actions_nothing_changes(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "no.exe").write_bytes(b"MZ")
    address = on_socket(app_env, actions="false")
    with app_env.daemon():
        until(lambda: held(app_env), what="the held document")
        number = held(app_env)[0]["id"]
        for what in ("retry", "gate", "emptied"):
            assert post(address, f"/actions/{what}", id=str(number)).status == 403
        for path in ("/", f"/documents/{number}", "/documents?state=held"):
            assert 'method="post"' not in ask(address, path).text, path


def test_every_answer_has_the_headers_that_protect_it(app_env: AppEnv) -> None:
    app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")
        for path in ("/", "/documents", "/activity", "/status.json", "/static/page.js", "/nothing", "/documents/9"):
            headers = ask(address, path).headers
            assert headers["content-security-policy"].startswith("default-src 'none'; "), path
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
        assert not re.search(r"https?://|style=|onclick", ask(address, "/").text)


@pytest.mark.parametrize("path", ["/static/../page.py", "/static/%2e%2e/page.py", "/documents/99999999999999999999"])
def test_no_other_file_is_served(path: str, app_env: AppEnv) -> None:
    app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")
        assert ask(address, path).status == 404


def test_bad_queries_and_forms_are_refused_and_end_nothing(app_env: AppEnv) -> None:
    app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon() as daemon:
        listening(app_env, "web")
        for query in (
            "below=x",
            "below=-1",
            "below=" + "9" * 18,
            "state=nonsense",
            "q=%25_%5C",
            "q=%ff",
            "q=" + "a" * 5000,
        ):
            assert ask(address, f"/documents?{query}").status == 200, query
        for form in ({"id": "x"}, {"id": "-1"}, {"id": "9" * 30}):
            assert post(address, "/actions/retry", **form).status == 400, form
        assert post(address, "/actions/emptied", mapping="nobody").status == 404
        assert post(address, "/actions/nonsense").status == 404
        assert post(address, "/actions/retry", q="x" * 20_000).status == 413
        for back in ("//evil.example", "https://evil.example", "/\\evil.example", "javascript:1"):
            assert post(address, "/actions/gate", key="x", back=back).headers["location"].startswith("/?"), back
        assert daemon.running.poll() is None


def test_an_unchanged_fragment_is_not_sent_again(app_env: AppEnv) -> None:
    app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")
        first = ask(address, "/documents", x_fragment="1")
        assert first.status == 200
        assert "<html" not in first.text
        second = ask(address, "/documents", x_fragment="1", if_none_match=first.headers["etag"])
        assert (second.status, second.body) == (304, b"")


def test_status_json_is_that_of_the_command(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
    address = on_socket(app_env)
    with app_env.daemon():
        until(lambda: app_env.rows("--state", "sent"), what="the document")
        page = json.loads(ask(address, "/status.json").text)
        command = json.loads(app_env.run("status", "--json").stdout)
    assert page.keys() == command.keys()
    for key in ("documents", "held", "gates", "downloads"):
        assert page[key] == command[key], key


def test_an_emptied_folder_is_accepted(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    (folder / "no.exe").write_bytes(b"MZ")
    address = on_socket(app_env)
    with app_env.daemon():
        until(lambda: held(app_env), what="the held document")
    (folder / "no.exe").unlink()  # nobody watches: a scan must find it so
    with app_env.daemon():
        until(lambda: "suddenly empty" in ask(address, "/").text, what="the empty folder")
        reply = post(address, "/actions/emptied", mapping="bank", back="/")
        assert reply.headers["location"] == "/?done=emptied&n=1"
        assert "1 document marked as absent" in ask(address, "/?done=emptied&n=1").text
        until(lambda: not held(app_env), what="it being gone")
        until(lambda: "suddenly empty" not in ask(address, "/").text, what="all being well")


def test_a_gate_is_opened(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")
        app_env.simulator.options.codat_key = "another"
        (folder / "a.pdf").write_bytes(b"%PDF-1.4 a %%EOF")
        text = until(lambda: (page := ask(address, "/").text) and "Open the gate" in page and page, what="the gate")
        key = re.search(r'name="key" value="([^"]+)"', text)
        assert key is not None
        reply = post(address, "/actions/gate", key=key[1], back="/")
        assert reply.headers["location"] == "/?done=gate&n=0"
        assert "The gate is open" in ask(address, "/?done=gate&n=0").text


def test_documents_are_found_by_name_and_digest_and_paged(app_env: AppEnv) -> None:
    folder = app_env.upload("bank")
    for number in range(150):
        (folder / f"{number:03}.pdf").write_bytes(b"%%PDF-1.4 %d %%%%EOF" % number)
    (folder / "March 100%_x.pdf").write_bytes(b"%PDF-1.4 march %%EOF")
    address = on_socket(app_env)
    with app_env.daemon():
        until(lambda: len(app_env.rows("--state", "sent")) == 151, what="all documents")
        first = ask(address, "/documents").text
        assert first.count('class="file"') == 100
        following = re.search(r'rel="next" href="([^"]+)"', first)
        assert following is not None
        second = ask(address, "/documents" + following[1]).text
        assert second.count('class="file"') == 51
        names = re.findall(r'class="file" href="[^"]+">([^<]+)<', first + second)
        assert len(set(names)) == 151
        for search, count in (("march", 1), ("0%_", 1), ("%", 1), ("05.", 2), ("nothing", 0)):
            found = ask(address, "/documents?" + urlencode({"q": search})).text
            assert found.count('class="file"') == count, search
        row = next(row for row in app_env.rows() if row["path"].endswith("042.pdf"))
        found = ask(address, f"/documents?q={row['sha256'][:12]}").text
        assert re.findall(r'class="file" href="[^"]+">([^<]+)<', found) == ["042.pdf"]
        document = ask(address, f"/documents/{row['id']}").text
        assert row["sha256"] in document
        assert COMPANY in document
        assert "1 attempt" in document
        assert "the remote&#39;s answer" in document


def test_uploads_in_flight_show_how_far_they_are(app_env: AppEnv) -> None:
    scans = app_env.upload("scans", "wootiv")
    app_env.simulator.set_faults([Fault("slow_read", "s3.put", params={"rate": 300_000})])
    app_env.settings["stop_grace"] = '"500ms"'
    (scans / "large.png").write_bytes(b"x" * 9_000_000)
    address = on_socket(app_env)
    with app_env.daemon():
        listening(app_env, "web")

        def percent() -> int | None:
            found = re.search(r'class="percent">(\d+) %<', ask(address, "/").text)
            return int(found[1]) if found else None

        first = until(percent, what="progress")
        later = until(lambda: (now := percent()) and now > first and now, what="more of it")
        assert 0 < first < later <= 100
        text = ask(address, "/").text
        assert "large.png" in text
        assert json.loads(ask(address, "/status.json").text)["remotes"][0]["in_flight"] == 1
        app_env.simulator.set_faults([])


def test_a_page_served_under_localhost_can_be_reached_by_its_link(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_page(app_env, "localhost:0")
    with app_env.daemon():
        listening(app_env, "web")
        assert log_in(app_env)


def test_an_open_connection_delays_no_stop(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with_page(app_env)
    with app_env.daemon() as daemon:
        host, _, port = listening(app_env, "web").rpartition(":")
        with socket.create_connection((host, int(port))) as idle, socket.create_connection((host, int(port))) as kept:
            kept.sendall(f"GET /login HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert kept.recv(100).startswith(b"HTTP/1.1 401")
            began = time.monotonic()
            assert daemon.end() == 0
            assert time.monotonic() - began < 25  # less than `stop_grace`; on an idle machine a fraction of a second
            assert idle.recv(1) == b""


@contextmanager
def running_page(app_env: AppEnv, listen: str) -> Iterator[tuple[Daemon, str]]:
    """Run a daemon with a status page; yields it and the page's address."""
    with_page(app_env, listen)
    with app_env.daemon() as daemon:
        yield daemon, listening(app_env, "web")


def test_a_session_outlives_a_reload(app_env: AppEnv) -> None:
    app_env.upload("bank")
    with reserved_port() as port, running_page(app_env, f"127.0.0.1:{port}") as (daemon, address):
        cookie = log_in(app_env)
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: daemon.text().count("listening") == 2, what="the page after the reload")

        def status() -> int | None:
            try:
                return ask(address, "/", cookie=cookie).status
            except OSError:
                return None  # it is just beginning to listen

        assert until(status, what="an answer") == 200


def test_a_release_names_the_session(app_env: AppEnv) -> None:
    """Only the document's own button, or the filter for the reason, releases documents that wait for approval."""
    folder = app_env.upload("payroll", hold_for_approval="true")
    for name in ("a.pdf", "b.pdf"):
        (folder / name).write_bytes(name.encode())
    with_page(app_env)
    with app_env.daemon():
        address = listening(app_env, "web")
        cookie = log_in(app_env)
        until(lambda: len(held(app_env)) == 2, what="both being held")
        for form in ({}, {"mapping": "payroll"}, {"state": "held"}, {"q": "a.pdf"}):
            assert post(address, "/actions/retry", cookie, **form).status == 303
        assert len(held(app_env)) == 2, "it was released without being asked for"
        number = next(row["id"] for row in held(app_env) if row["path"].endswith("a.pdf"))
        assert post(address, "/actions/retry", cookie, id=str(number)).status == 303
        until(lambda: [each.name for each in app_env.simulator.stored] == ["a.pdf"], what="a.pdf being sent")
        assert post(address, "/actions/retry", cookie, reason="approval").status == 303
        until(lambda: len(app_env.rows("--state", "sent")) == 2, what="the receipts of both")
        shown = app_env.run("receipts", "show", str(number)).stdout
    assert "page session " in shown
    assert cookie.partition("=")[2] not in shown
