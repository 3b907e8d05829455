"""Define `[antivirus]`: the virus scanner for documents of some mappings, before they are sent."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from docferry.settings.section import SECTION
from docferry.settings.templates import fit
from docferry.settings.values import Octets

_UNIX: Final = "unix:"
#: The longest path of a Unix socket in the kernel, bytes.
_LONGEST_SOCKET: Final = 107


class ClamdAddress(NamedTuple):
    """Hold the address of clamd: a Unix socket's `path`, or `host` and `port`."""

    path: str | None
    host: str
    port: int


def clamd_address(written: str) -> ClamdAddress:
    """Parse the value of `clamd`. Raises ValueError with the fix."""
    if written.startswith(_UNIX):
        path = written.removeprefix(_UNIX)
        if not path.startswith("/") or not fit(path) or len(path.encode()) > _LONGEST_SOCKET:
            raise ValueError(f'must name an absolute path of at most {_LONGEST_SOCKET} bytes after "unix:"')
        return ClamdAddress(path, "", 0)
    host, _, port = written.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65_536
    if not host or not is_port or not host.isprintable() or " " in host or "/" in host:
        raise ValueError('is no address; write "unix:/run/clamav/clamd.ctl" or "127.0.0.1:3310"')
    return ClamdAddress(None, host, int(port))


def _clamd(written: str) -> str:
    clamd_address(written.strip())
    return written.strip()


class AntivirusSettings(BaseModel):
    """Hold `[antivirus]`: the address of clamd, for mappings with `antivirus = true`."""

    model_config = SECTION

    clamd: Annotated[str, AfterValidator(_clamd)] | None = Field(
        default=None, description="unix:PATH or HOST:PORT; required when a mapping has antivirus = true"
    )
    max_size: Octets = Field(
        default=25 * 1024 * 1024,
        description="larger documents are held; the smaller of clamd's StreamMaxLength and MaxFileSize",
    )
