"""Addresses: where a request goes, parsed as seldom as possible."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpx

from docferry.errors import RemoteError

_PORTS: Final = {"http": 80, "https": 443}
#: An origin, and a path and query that need no mending: the parts that differ from request to request.
_PLAIN: Final = re.compile(r"(https?://[^/?#@\\\s]+)(/(?!\.|[^?]*/\.)[!$-;=?-Z_a-z~]*)")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is spoken to."""

    scheme: str
    host: str
    port: int
    named: str  # as the `Host` field says it


@dataclass(frozen=True, slots=True)
class Address:
    """An origin, and what is asked of it: path and query as they are sent. A signed query is a secret."""

    origin: Origin
    target: str


def address(url: str) -> Address:
    """RemoteError when it is none, or none that is spoken to."""
    plain = _PLAIN.fullmatch(url)
    if plain is not None:
        return Address(_origin(plain[1]), plain[2])
    parsed = _parsed(url)
    return Address(_origin_of(parsed), parsed.raw_path.decode("ascii"))


@lru_cache(maxsize=512)
def _origin(url: str) -> Origin:
    return _origin_of(_parsed(url))


def _origin_of(parsed: httpx.URL) -> Origin:
    if parsed.scheme not in _PORTS:
        raise RemoteError("the remote's address is neither http nor https; mend base_url", kind="not_ours")
    port = parsed.port or _PORTS[parsed.scheme]
    return Origin(parsed.scheme, parsed.raw_host.decode("ascii"), port, parsed.netloc.decode("ascii"))


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL:
        raise RemoteError("the remote gave an address that is none; ask its operator", kind="not_ours") from None
