"""Find the failing step of a connection: name, address, TLS, proxy or the server's response."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

import anyio

from docferry.clock import SystemClock
from docferry.endpoints import Origin, load_trust, parse_proxy, parse_url
from docferry.errors import RemoteError
from docferry.remotes.http.client import HttpClient
from docferry.remotes.http.connect import AddressInfo, Connector, resolve
from docferry.remotes.http.options import HttpOptions
from docferry.remotes.http.tls import explain_tls, handshake

_DAY_S: Final = 86_400.0
_EXPIRES_SOON_S: Final = 14 * _DAY_S


class Step(NamedTuple):
    """Describe one step of a connection: "url" | "proxy" | "dns" | "connect" | "tls" | "http"."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    transient: bool = True  # a failure may pass without a change of the configuration


async def diagnose(
    name: str, url: str, options: HttpOptions | None = None, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """Return the steps to `url` up to the first failure; network errors are never raised.

    The last step is a GET with `headers`, so that 401 and 403 show whether the key works; without headers any status
    passes. `name` is the remote's name for messages. Each address of the host is tried.
    """
    options = options or HttpOptions()
    try:
        origin = parse_url(url)[1]
        trust = load_trust(options.ca_file, options.cert_file, options.key_file)
        proxy = parse_proxy(options.proxy) if options.proxy is not None else None
    except ValueError as error:
        return [
            Step("url", False, f"the address of {name} or its options cannot be used: it {error}", "correct it", False)
        ]
    steps: list[Step] = []
    if proxy is not None:
        # The proxy looks up the name and connects, so only the connection to the proxy can be checked.
        origin = Origin("http", proxy.host, proxy.port, proxy.host)
    try:
        addresses = await _look_up(origin, options, steps)
        if addresses:
            await _connect(origin, addresses, options, steps)
        if proxy is None and origin.is_tls and steps[-1].ok:
            await _secure(origin, addresses, trust, options, steps)
    except Exception as error:  # noqa: BLE001 - a diagnosis reports every failure
        steps.append(Step("connect", False, f"{type(error).__name__}: {error}", "check the network"))
    if proxy is not None:
        steps = [step._replace(name="proxy", detail=f"the proxy's {step.detail}") for step in steps]
    if steps[-1].ok:
        steps.append(await _request(name, url, options, headers or {}))
    return steps


async def _look_up(origin: Origin, options: HttpOptions, steps: list[Step]) -> list[AddressInfo]:
    try:
        with anyio.fail_after(options.connect_timeout):
            addresses = await resolve(origin.host, origin.port)
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or "the name server did not answer in time"
        steps.append(Step("dns", False, f"name {origin.host} has no address: {why.lower()}", "check the name and DNS"))
        return []
    shown = ", ".join(dict.fromkeys(str(address[4][0]) for address in addresses))
    steps.append(Step("dns", True, f"name {origin.host} has the addresses {shown}"))
    return addresses


async def _connect(origin: Origin, addresses: list[AddressInfo], options: HttpOptions, steps: list[Step]) -> None:
    """Try every address separately, all at once."""
    connectors = [Connector(origin.host, origin.port, options.local_address) for _ in dict.fromkeys(addresses)]

    async def one(connector: Connector, address: AddressInfo) -> None:
        with anyio.move_on_after(options.connect_timeout):
            try:
                (await connector.connect_to([address])).close()
            except OSError:
                return  # the attempt holds the reason

    async with anyio.create_task_group() as group:
        for connector, address in zip(connectors, dict.fromkeys(addresses), strict=True):
            group.start_soon(one, connector, address)
    attempts = [attempt for connector in connectors for attempt in connector.attempts]
    detail = "; ".join(
        f"{each.address} connected in {each.seconds * 1000:.0f} ms"
        if each.seconds is not None
        else f"{each.address} {each.error or f'did not answer within {options.connect_timeout:g} s'}"
        for each in attempts
    )
    ok = any(each.seconds is not None for each in attempts)
    steps.append(Step("connect", ok, detail, "" if ok else "check firewall, port and `local_address`"))


async def _secure(
    origin: Origin, addresses: list[AddressInfo], trust: ssl.SSLContext, options: HttpOptions, steps: list[Step]
) -> None:
    try:
        with anyio.fail_after(options.connect_timeout):
            connected = await Connector(origin.host, origin.port, options.local_address).connect_to(addresses)
            secured = await handshake(connected, trust, origin.host)
    except ssl.SSLError as error:
        steps.append(Step("tls", False, explain_tls(error), "see the detail"))
    except TimeoutError:
        detail = f"the TLS handshake was not complete after {options.connect_timeout:g} s"
        steps.append(Step("tls", False, detail, "is it a TLS port? check firewalls in between"))
    except OSError as error:
        steps.append(Step("tls", False, f"the connection broke: {error.strerror or error}", "is it a TLS port?"))
    else:
        with secured:
            steps.append(_certificate(secured))


def _certificate(secured: ssl.SSLSocket) -> Step:
    found = secured.getpeercert() or {}
    expires = ssl.cert_time_to_seconds(str(found["notAfter"])) if "notAfter" in found else None
    if expires is None:
        return Step("tls", True, f"{secured.version()}")
    until = datetime.fromtimestamp(expires, UTC).date().isoformat()
    soon = expires - time.time() < _EXPIRES_SOON_S
    fix = "its operator must renew the certificate soon" if soon else ""
    return Step("tls", True, f"{secured.version()}, the certificate is valid until {until}", fix)


async def _request(name: str, url: str, options: HttpOptions, headers: Mapping[str, str]) -> Step:
    client = HttpClient(name, SystemClock(), options)
    try:
        response = await client.call("GET", url, headers=headers)
    except RemoteError as error:
        return Step("http", False, str(error), "see the detail")
    finally:
        await client.aclose()
    status = response.status
    fixes = {401: "set a valid API key", 403: "use a key with access", 407: "set user and password in `proxy`"}
    if 300 <= status < 400:
        return Step("http", False, f"{name} redirects ({status})", "correct base_url", transient=False)
    if not headers:
        return Step("http", True, f"{name} answers (without a key with {status})")
    ok = response.ok or status == 404
    return Step("http", ok, f"{name} answers with {status}", fixes.get(status, "" if ok else "see the status"))
