"""Test a proxy, a remote, a mail server and receivers that quote every secret back: no secret is stored."""

from __future__ import annotations

import base64
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx

from app_env import AppEnv, until

SECRETS = {
    "proxy": "canary-proxy/P@ss#1",
    "codat": "canary-codat/Key+1==",
    "wootiv": "canary-wootiv.Key-1",
    "ntfy": "canary_ntfy_token_1",
    "mail": "canary-mail/Pass=1",
    "hook": "canary-hook-path-123",
}
COMMANDS = [
    "sync --timeout 2", "check", "status --json", "list --json", "metrics", "config show", "alerts test",
    "receipts export",
]  # fmt: skip


class _Quoting(BaseHTTPRequestHandler):
    """Answers each request with all that it got: the address, every header, and decoded credentials."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = [self.path, *(f"{name}: {value}" for name, value in self.headers.items())]
        for value in self.headers.values():
            _, _, credentials = value.partition("Basic ")
            if credentials:
                told.append(base64.b64decode(credentials).decode())
        body = ("you sent " + " | ".join(told)).encode()
        self.send_response(502, "you sent " + " ".join(told[1:])[:200].replace("\n", " "))
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _QuotingMail(socketserver.StreamRequestHandler):
    """Refuses each login, and quotes it."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail\r\n")
        while line := self.rfile.readline():
            word, _, said = line.strip().partition(b" ")
            if word.upper() == b"EHLO":
                self.wfile.write(b"250-mail\r\n250 AUTH PLAIN LOGIN\r\n")
            elif word.upper() == b"AUTH":
                decoded = base64.b64decode(said.split()[-1]).replace(b"\0", b" ")
                self.wfile.write(b"535 you sent " + said + b" which is " + decoded + b"\r\n")
            else:
                self.wfile.write(b"221 bye\r\n" if word.upper() == b"QUIT" else b"250 ok\r\n")


@contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[int]:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def _private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def _pages(root: Path) -> str:
    """Return everything that the status page and the metrics say."""
    said = ""
    for socket, paths in {
        "web.sock": ("/", "/documents", "/documents/1", "/documents/2", "/activity", "/status.json"),
        "metrics.sock": ("/metrics", "/healthz", "/readyz"),
    }.items():
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(root / socket)), base_url="http://localhost") as client:
            said += "".join(client.get(path).text for path in paths)
    return said


def test_no_secret_that_is_quoted_back_is_kept_anywhere(app_env: AppEnv) -> None:
    """The remotes have plain addresses, so the proxy sees and quotes their keys, too."""
    root = app_env.root
    alerted = root / "alerted"
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    (app_env.upload("scans", "wootiv") / "b.pdf").write_bytes(b"b")
    with (
        _serving(ThreadingHTTPServer(("127.0.0.1", 0), _Quoting)) as http,
        _serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _QuotingMail)) as mail,
    ):
        url, base = f"http://127.0.0.1:{http}", "http://remote.invalid"
        proxy = f"http://user:{SECRETS['proxy']}@127.0.0.1:{http}"
        app_env.settings["log_level"] = '"debug"'
        app_env.sections.append(
            f'[alerts]\nafter = "0s"\n'
            f'[[alerts.to]]\nname = "phone"\nkind = "ntfy"\nurl = "{url}/topic"\n'
            f'token_file = "{_private(root / "token", SECRETS["ntfy"])}"\n'
            f'[[alerts.to]]\nname = "hook"\nkind = "webhook"\nurl = "{url}/{SECRETS["hook"]}"\n'
            f'[[alerts.to]]\nname = "mail"\nkind = "email"\nsmtp = "smtp://user@127.0.0.1:{mail}"\n'
            'from = "a@example.com"\nto = ["b@example.com"]\n'
            f'password_file = "{_private(root / "password", SECRETS["mail"])}"\n'
            '[[alerts.to]]\nname = "program"\nkind = "command"\n'
            f'command = ["/bin/sh", "-c", "(cat; env) >> {alerted}"]\n'
            f'[web]\nlisten = "unix:{root / "web.sock"}"\n[metrics]\nlisten = "unix:{root / "metrics.sock"}"\n'
        )
        config = app_env.write_config()
        simulated = f'base_url = "{app_env.simulator_thread.url}"'
        text = config.read_text().replace(simulated, f'base_url = "{base}"\nproxy = "{proxy}"')
        config.write_text(text)
        config.chmod(0o600)
        app_env.write_config = lambda: config  # type: ignore[method-assign]  # keep the addresses
        keys = {"CODAT_API_KEY": SECRETS["codat"], "WOOTIV_API_KEY": SECRETS["wootiv"]}
        said = "".join(done.stdout + done.stderr for words in COMMANDS if (done := app_env.run(*words.split(), **keys)))
        app_env.simulator.options.codat_key, app_env.simulator.options.wootiv_key = keys.values()
        with app_env.daemon() as daemon:
            until(lambda: "alert_failed" in daemon.text(), 60, "an alert that is refused")
            until(lambda: "you sent" in _pages(root), 60, "what the remotes said on the page")
            until(lambda: alerted.exists() and b"gate" in alerted.read_bytes(), 60, "an alert that a program got")
            said += app_env.run("status", "--json", **keys).stdout + _pages(root)
            daemon.end()
            said += alerted.read_text()
            said += daemon.text()
    assert "you sent" in said, "the rest of what they say is shown"
    assert "[hidden]" in said
    assert "canary" not in said
    kept = {path: path.read_bytes() for path in app_env.state.rglob("*") if path.is_file()}
    for name, secret in SECRETS.items():
        for guise in (secret, base64.b64encode(secret.encode()).decode().rstrip("="), quote(secret, safe="")):
            assert guise not in said, name
            assert not [path for path, content in kept.items() if guise.encode() in content], name
