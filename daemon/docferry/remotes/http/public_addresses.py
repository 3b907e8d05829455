"""Refuse addresses of this machine and of private networks for hosts from outside, as in signed URLs.

The addresses are checked between the lookup and the first connection. So a name cannot have one address for the check
and another for the connection.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

import anyio
import httpx
from msgspec import Struct

from docferry.remotes.http.connect import AddressInfo, resolve

_LOOKUP_S: Final = 5.0
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


class PrivateAddressError(httpx.ConnectError):
    """Report that a host has a forbidden address; nothing was connected or sent."""


class PublicOnly(Struct, frozen=True):
    """List the hosts that may have private addresses: patterns, and any host while `trusted_host` has one itself."""

    trusted_host: str
    patterns: tuple[str, ...] = ()

    async def require(self, host: str, addresses: Iterable[AddressInfo]) -> None:
        """Raise PrivateAddressError if a host has a forbidden address."""
        host = host.lower()
        if host == self.trusted_host or any(fnmatchcase(host, pattern) for pattern in self.patterns):
            return
        private = _first_private(addresses)
        if private is not None and not await self._is_trusted_host_private():
            raise PrivateAddressError(
                f"its address {private} is one of this machine or of a private network; "
                "if that is right, name the host in storage_hosts of [wootiv]"
            )

    async def require_for_proxy(self, host: str, port: int) -> None:
        """Check a host that a proxy looks up, by its addresses on this machine, if any."""
        await self.require(host, await _known_addresses(host, port))

    async def _is_trusted_host_private(self) -> bool:
        return _first_private(await _known_addresses(self.trusted_host, 0)) is not None


async def _known_addresses(host: str, port: int) -> list[AddressInfo]:
    """Return the addresses of a host; none if the lookup fails or hangs."""
    with contextlib.suppress(OSError, UnicodeError), anyio.move_on_after(_LOOKUP_S):
        return await resolve(host, port)
    return []


def _first_private(addresses: Iterable[AddressInfo]) -> str | None:
    for family, _, _, _, where in addresses:
        if family not in (socket.AF_INET, socket.AF_INET6) or not is_public(where[0]):
            return str(where[0])
    return None


def is_public(text: str) -> bool:
    """Return whether an address is public, including an IPv4 address embedded in an IPv6 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_global and not address.is_multicast and all(map(_is_public_v4, _embedded(address)))


def _is_public_v4(address: ipaddress.IPv4Address) -> bool:
    return address.is_global and not address.is_multicast


def _embedded(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that translators and tunnels extract from an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.sixtofour] if address.sixtofour else []
    if address in _NAT64 or address in _V4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return found
