"""Run hosts in network namespaces that can be cut from the database, the remote, or both."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Cut = Literal["database", "remote", "both"]


def missing() -> str | None:
    """Return why this machine cannot make namespaces, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is missing; get it with: apt-get install iproute2"
    name = f"df-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "probe", "type", "veth", "peer", "name", "probe2")
    except subprocess.CalledProcessError as error:
        return f"this machine allows no network namespaces: {error.stderr.decode(errors='replace').strip()}"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", name)
    return None


class Network:
    """Manage namespaces that connect to addresses of this machine, each over a link of its own."""

    def __init__(self, hosts: int) -> None:
        number = os.getpid() % 4000
        self._tag = f"df{number}"
        # Of 10.64.0.0/10, so that fleets of several processes do not share addresses.
        self._prefix = f"10.{64 + number // 250}.{number % 250}"
        self.remote = f"{self._prefix}.1"
        self.databases = (f"{self._prefix}.2", f"{self._prefix}.3")
        self.pooler = f"{self._prefix}.4"
        self.hosts = [f"{self._tag}h{index}" for index in range(1, hosts + 1)]

    def create(self) -> None:
        """Add the addresses and the namespaces with their links."""
        for address in self._services():
            _ip("address", "add", f"{address}/32", "dev", "lo")
        for index, name in enumerate(self.hosts):
            here, there = f"{self._prefix}.{17 + 4 * index}", f"{self._prefix}.{18 + 4 * index}"
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("address", "add", f"{here}/30", "dev", name)
            _ip("link", "set", name, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{there}/30", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "via", here)

    def remove(self) -> None:
        """Remove what `create` has added, also after it failed half way."""
        for name in self.hosts:
            for words in (("link", "delete", name), ("netns", "delete", name)):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip(*words)
        for address in self._services():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("address", "delete", f"{address}/32", "dev", "lo")

    @contextmanager
    def cut(self, host: str, what: Cut) -> Iterator[None]:
        """Cut a host off. Open connections stall, as behind a broken switch."""
        if what == "both":
            _ip("link", "set", host, "down")
            yield
            _ip("link", "set", host, "up")
            return
        addresses = [self.remote] if what == "remote" else [*self.databases, self.pooler]
        for address in addresses:
            _ip("-n", host, "route", "add", "blackhole", f"{address}/32")
        yield
        for address in addresses:
            _ip("-n", host, "route", "delete", "blackhole", f"{address}/32")

    def _services(self) -> list[str]:
        return [self.remote, *self.databases, self.pooler]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
