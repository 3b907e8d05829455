"""Validate addresses and certificates at configuration and at use.

The settings call these functions at load, the HTTP client at use, so that both accept the same. Each raises ValueError
with a sentence that continues the name of the key: "is not a URL; write it like …".
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import certifi
from msgspec import Struct

if TYPE_CHECKING:
    import httpx

#: The servers named in Wootiv's SDK (0.0.1); its "production" is an address of this machine.
WOOTIV_SERVERS: Final = {"production": "http://localhost:3001", "environment_1": "https://dev.wootiv.com"}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_PROXY_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
#: RFC 1035 limits a label to 63 bytes and a name to 253. Underscores violate the RFC but are in use.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_LONGEST_NAME: Final = 253
#: A server, a path and a query that contain only characters which httpx leaves unchanged.
_PLAIN_URL: Final = re.compile(r"(https?://[^/?#@]+)(/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]++|%[0-9A-Fa-f]{2})*+)")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS: Final = frozenset(
    {"authorization", "connection", "content-length", "content-type", "expect", "host", "idempotency-key"}
    | {"proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
)


class Origin(Struct, frozen=True):
    """Describe the server of a URL. `host` is ASCII, without the brackets of an IPv6 address."""

    scheme: str
    host: str
    port: int
    authority: str  # in the form of the `Host` field

    @property
    def is_tls(self) -> bool:
        """Return whether requests to this server are encrypted."""
        return self.scheme == "https"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Describe a proxy and its credentials; the password may contain any character."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """Return the address without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def validate_url(text: str) -> str:
    """Return `text` if it is a valid URL for requests; raise ValueError otherwise."""
    parse_url(text)
    return text


def parse_url(text: str) -> tuple[httpx.URL, Origin]:
    """Return an http or https URL and its origin."""
    import httpx  # 20 ms, which a command without a written address and without requests saves

    try:
        url = httpx.URL(text)
        return url, _origin(url.scheme, url.raw_host, url.port)
    except (httpx.InvalidURL, UnicodeError, TypeError) as error:
        # The reason quotes at most the host or the port, never a signed query.
        reason = "" if "?" in str(error) else f" ({str(error)[:100]})"
        raise ValueError(f'is not a URL{reason}; write it like "https://api.example.com"') from None


def split_url(text: str) -> tuple[httpx.URL, Origin, bytes | None]:
    """Return a URL, its origin, and the request target for httpx's extension `target`.

    Signed URLs all differ, and httpx needs 33 µs to parse one. A URL without characters to escape is split: httpx
    parses only the server's address, and the target is the rest. For any other URL the target is None, and the URL is
    complete.
    """
    found = _PLAIN_URL.fullmatch(text) if "/." not in text else None
    if found is None:
        return (*parse_url(text), None)
    return (*_parsed(found[1]), found[2].encode("ascii"))


@lru_cache(maxsize=256)
def _parsed(text: str) -> tuple[httpx.URL, Origin]:
    return parse_url(text)


@lru_cache(maxsize=256)
def _origin(scheme: str, raw_host: bytes, port: int | None) -> Origin:
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("is neither http nor https")
    host = raw_host.decode("ascii")
    _validate_host(host)
    if port is not None and not 0 < port < 65_536:
        raise ValueError(f"has the port {port}; a port is between 1 and 65535")
    bracketed = f"[{host}]" if ":" in host else host
    return Origin(scheme, host, port or _DEFAULT_PORTS[scheme], bracketed if port is None else f"{bracketed}:{port}")


def validate_proxy(text: str) -> str:
    """Return `text` if it is the address of a proxy; raise ValueError otherwise."""
    parse_proxy(text)
    return text


def parse_proxy(text: str) -> Proxy:
    """Return the proxy of `SCHEME://[USER[:PASSWORD]@]HOST[:PORT]`.

    The credentials end at the last `@`, so `#`, `/` and `@` in a password need no escape. `%XX` in a password is
    decoded.
    """
    scheme, separator, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PROXY_PORTS:
        raise ValueError('is not the address of a proxy; write it like "http://proxy.example.com:3128"')
    import httpx  # as above

    credentials, at, address = rest.rpartition("@")
    try:
        url = httpx.URL(f"{scheme}://{address}")
        host, port = url.raw_host.decode("ascii"), url.port
        _validate_host(host)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise ValueError('names a proxy host that does not exist; write it like "http://proxy:3128"') from None
    if (port is not None and not 0 < port < 65_536) or url.raw_path != b"/" or url.fragment:
        raise ValueError("has more than a host and a port from 1 to 65535 behind the credentials")
    user, _, password = credentials.partition(":")
    return Proxy(scheme, host, port or _PROXY_PORTS[scheme], unquote(user) if at else None, unquote(password))


def load_trust(
    ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> ssl.SSLContext:
    """Return a TLS context that trusts `ca_file`, else certifi's authorities, with a client certificate if given."""
    try:
        context = _default_context(ca_file or Path(certifi.where()))
    except ValueError as error:
        raise ValueError(f"ca_file {error}") from None
    # RFC 9525: a name counts only in subjectAltName.
    context.hostname_checks_common_name = False
    if cert_file is not None:
        try:
            # Without a callback, OpenSSL would ask for the key's password on the terminal.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except (OSError, ValueError) as error:
            wrong = _reason(error, "it is not a certificate with its unencrypted private key in PEM")
            raise ValueError(f"cert_file {cert_file} cannot be used: {wrong}") from None
    return context


def validate_ca_file(path: Path) -> Path:
    """Return `path` if it contains CA certificates; raise ValueError otherwise."""
    _default_context(path)
    return path


def validate_local_address(text: str) -> str:
    """Return `text` if it is an IP address; raise ValueError otherwise."""
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ValueError('is not an IP address; write it like "10.0.0.7"') from None


def validate_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return these additional request headers; raise ValueError if one is not allowed."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isprintable():
            raise ValueError(f"has an invalid header name or value: {name!r}")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"sets {name}, which each request sets itself; remove it")
    return headers


def _default_context(ca_file: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{ca_file} cannot be used: {_reason(error, 'it holds no certificate in PEM')}") from None


def _reason(error: Exception, otherwise: str) -> str:
    """Return the system's reason for an unreadable file, or `otherwise` for invalid content."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.strerror:
        return error.strerror.lower()
    return otherwise


def _validate_host(host: str) -> None:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        labels = host.removesuffix(".").split(".")
        if len(host) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
            raise ValueError("has a host name that cannot exist") from None
