"""Define `[metrics]` and `[web]`: the addresses of the listeners, always on this machine only."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from docferry.settings.section import SECTION
from docferry.settings.templates import fit
from docferry.settings.values import PlainPath

_EXAMPLE: Final = 'write "127.0.0.1:{port}" or "unix:/run/docferry/{name}.sock"'
_UNIX: Final = "unix:"
#: The longest path of a Unix socket in the kernel, bytes.
_LONGEST_SOCKET: Final = 107
_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]", re.ASCII)


class Address(NamedTuple):
    """Hold the address of a listener: a Unix socket's `path`, or a loopback `host` and `port`."""

    path: str | None
    host: str
    port: int


def address(listen: str) -> Address:
    """Parse a `listen` value. Raises ValueError with the fix. Port 0 lets the kernel choose."""
    if listen.startswith(_UNIX):
        path = listen.removeprefix(_UNIX)
        if not path.startswith("/") or not fit(path) or len(path.encode()) > _LONGEST_SOCKET:
            raise ValueError(f'must name an absolute path of at most {_LONGEST_SOCKET} bytes after "unix:"')
        return Address(path, "", 0)
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]").lower()
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"is no address; {_EXAMPLE.format(port=9417, name='metrics')}")
    if not _is_loopback(host):
        raise ValueError(
            "must be an address of this machine alone, as nothing is encrypted; "
            f"{_EXAMPLE.format(port=port, name='web')}, and put a reverse proxy before it for others"
        )
    return Address(None, host, int(port))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(written: str) -> str:
    address(written.strip())
    return written.strip()


def _host_name(written: str) -> str:
    name = written.strip().lower()
    if not _HOST.fullmatch(name):
        raise ValueError('must hold names without a port, like "docferry.example.com"')
    return name


Listen = Annotated[str, AfterValidator(_listen)]
HostName = Annotated[str, AfterValidator(_host_name)]


class Metrics(BaseModel):
    """Hold `[metrics]`: figures for Prometheus."""

    model_config = SECTION

    listen: Listen | None = Field(
        default=None, description="/metrics /healthz /readyz: a loopback address with a port, or unix:PATH; unset: off"
    )
    textfile: PlainPath | None = Field(
        default=None, description="rewritten every 15 s and after each `sync`, mode 0644; unset: off"
    )


class Web(BaseModel):
    """Hold `[web]`: the status page."""

    model_config = SECTION

    listen: Listen | None = Field(default=None, description="unix:PATH, or a loopback address with a port; unset: off")
    hosts: tuple[HostName, ...] = Field(
        default=(), description="further names it is served under, behind a reverse proxy"
    )
    actions: bool = Field(default=True, description="false: nothing can be changed from the page")
