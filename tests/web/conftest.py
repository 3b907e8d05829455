"""Provide a client for loopback ports and Unix sockets."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app_env import AppEnv, until


@dataclass
class Reply:
    """Hold a response, completely read."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def ask(address: str, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Reply:
    """Send one request; header names are written with underscores."""
    unix = address.startswith("unix:")
    connection = _Unix(address.removeprefix("unix:")) if unix else http.client.HTTPConnection(address, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def listening(app_env: AppEnv, service: str) -> str:
    """Wait until the daemon serves `service`, and return its address."""

    def found() -> Any:
        path: Path = app_env.state / "status.json"
        try:
            return json.loads(path.read_text()).get("listening", {}).get(service)
        except (OSError, ValueError):
            return None

    address: str = until(found, what=f"{service} listening")
    return address
