"""Define the options of the HTTP client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from docferry.remotes.http.public_addresses import PublicOnly


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Hold the settings of one client.

    timeout             seconds without progress until a request is given up
    read_timeout        the same while a response is awaited and read; None: `timeout`
    write_timeout       the same while a request is sent; None: `timeout`
    connect_timeout     seconds for a connection, over all addresses of a name and with the TLS handshake
    proxy               `http://`, `https://`, `socks5://` or `socks5h://`, with credentials
    headers             sent with every request; a header of the request itself has precedence
    local_address       source address of the connections
    cert_file, key_file client certificate, as PEM
    public_only         the only hosts with private addresses; None: any host
    """

    timeout: float = 60.0
    connect_timeout: float = 10.0
    read_timeout: float | None = None
    write_timeout: float | None = None
    proxy: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    local_address: str | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    public_only: PublicOnly | None = None

    @property
    def timeouts(self) -> dict[str, float]:
        """Return the limits of a request in the format of httpx's extension `timeout`."""
        return {
            "connect": min(self.connect_timeout, self.timeout),
            "read": self.read_timeout or self.timeout,
            "write": self.write_timeout or self.timeout,
            "pool": self.timeout,
        }
