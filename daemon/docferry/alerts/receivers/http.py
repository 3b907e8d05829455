"""Send alerts by HTTP: signed webhooks, Alertmanager's API and ntfy."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import ssl
from collections.abc import Mapping
from email.header import Header
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx

from docferry import __version__, logs
from docferry.alerts.messages import Message, alert_json
from docferry.alerts.receivers.base import ConfiguredReceiver, DeliveryError
from docferry.alerts.tracker import Kind
from docferry.clock import iso
from docferry.endpoints import parse_proxy
from docferry.settings.keys import Key

#: The time limit of one request, seconds.
HTTP_TIMEOUT_S: Final = 20.0
#: The length of a response that is read for the error message, bytes.
ANSWER_LIMIT: Final = 2_000
#: The interval at which alerts are repeated, seconds: Alertmanager drops an alert after `resolve_timeout`, by default 5
#: minutes.
REFRESH_S: Final = 60.0
#: The time after which Alertmanager may resolve an alert that was not repeated, seconds.
FORGOTTEN_S: Final = 300.0
#: The largest message in bytes; ntfy turns a longer one into an attachment.
NTFY_LIMIT: Final = 3_900


class RequestRoute(Protocol):
    """Provide the certificates and the proxy of a request."""

    @property
    def ca_file(self) -> Path | None:
        """Return the path of the trusted certificates."""

    @property
    def proxy(self) -> str | None:
        """Return the proxy; proxies of the environment are not used."""


async def post(address: Key, body: bytes, headers: Mapping[str, str], route: RequestRoute) -> None:
    """Send one request without following redirects; raise DeliveryError unless the status is 2xx."""
    url = _url(address)
    try:
        with anyio.fail_after(HTTP_TIMEOUT_S):
            is_tls = url.startswith("https") or (route.proxy or "").startswith("https")
            context = await anyio.to_thread.run_sync(_context, route.ca_file) if is_tls else None
            proxy = None if route.proxy is None else _proxy(route.proxy)
            async with (
                httpx.AsyncClient(
                    trust_env=False, timeout=HTTP_TIMEOUT_S, verify=context or False, proxy=proxy
                ) as client,
                client.stream("POST", url, content=body, headers={"User-Agent": _AGENT, **headers}) as answer,
            ):
                if answer.is_success:
                    return
                said = await _beginning(answer)
    except TimeoutError:
        raise DeliveryError(f"{_host(url)} did not answer within {HTTP_TIMEOUT_S:.0f} s") from None
    except ImportError:
        raise DeliveryError("a SOCKS proxy needs a package more: pip install 'docferry[socks]'") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        by = " through the proxy" if route.proxy else ""
        raise DeliveryError(f"{_host(url)}{by}: {error or type(error).__name__}") from error
    if answer.is_redirect:
        raise DeliveryError(f"{_host(url)} redirects to another address ({answer.status_code}); set url to that one")
    raise DeliveryError(f"{_host(url)} answered {answer.status_code} {said}".rstrip())


class Webhook(ConfiguredReceiver):
    """Deliver to a receiver of kind `webhook`: Alertmanager's JSON, signed by Standard Webhooks if a secret is set."""

    async def send(self, message: Message) -> None:
        """Deliver a message, or raise DeliveryError."""
        body = await anyio.to_thread.run_sync(webhook_body, message)
        headers = {"Content-Type": "application/json", **self._signature(message.id, body)}
        await post(hide(self._settings.address()), body, headers, self._settings)

    def _signature(self, identity: str, body: bytes) -> dict[str, str]:
        sent = str(int(self._clock.now()))
        headers = {"webhook-id": identity, "webhook-timestamp": sent}
        secret = self._settings.secret()
        if secret.problem:
            raise DeliveryError(secret.problem)
        if secret.value:
            logs.hide(secret.value)
            headers["webhook-signature"] = sign(secret.value, identity, sent, body)
        return headers


class Alertmanager(ConfiguredReceiver):
    """Deliver to a receiver of kind `alertmanager`. Alertmanager expects every lasting alert to be repeated."""

    refresh = REFRESH_S

    async def send(self, message: Message) -> None:
        """Deliver a message, or raise DeliveryError."""
        forgotten = iso(self._clock.now() + FORGOTTEN_S) or ""
        body = await anyio.to_thread.run_sync(_alertmanager_body, message, forgotten)
        address = self._settings.address()
        if address.value is not None:
            address = Key(value=f"{address.value.rstrip('/')}/api/v2/alerts", origin=address.origin)
        await post(address, body, {"Content-Type": "application/json"}, self._settings)


class Ntfy(ConfiguredReceiver):
    """Deliver to a receiver of kind `ntfy`; `url` names the topic."""

    async def send(self, message: Message) -> None:
        """Deliver a message, or raise DeliveryError."""
        token = self._settings.secret()
        if token.problem:
            raise DeliveryError(token.problem)
        critical = message.severity == "critical" and message.status == "firing"
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Title": Header(message.subject, "utf-8", maxlinelen=10_000).encode()
            if not message.subject.isascii()
            else message.subject,
            "Priority": "high" if critical else "default",
            "Tags": "white_check_mark" if message.status == "resolved" else "warning",
        }
        if token.value:
            logs.hide(token.value)
            headers["Authorization"] = f"Bearer {token.value}"
        body = message.text.encode()
        if len(body) > NTFY_LIMIT:
            body = body[:NTFY_LIMIT].decode("utf-8", "ignore").encode() + "…".encode()
        await post(hide(self._settings.address()), body, headers, self._settings)


def webhook_body(message: Message) -> bytes:
    """Return a message in the format of Alertmanager's webhooks. A thousand alerts need a thread."""
    return json.dumps(message.webhook(), ensure_ascii=False).encode()


def _alertmanager_body(message: Message, forgotten: str) -> bytes:
    """Return a message in the format of Alertmanager's API. Lasting alerts end at `forgotten` unless repeated."""
    alerts = []
    for item in message.items:
        told = alert_json(item, message.host)
        ends = told["endsAt"] if item.kind is Kind.RESOLVED else forgotten
        alerts.append({key: told[key] for key in ("labels", "annotations", "startsAt")} | {"endsAt": ends})
    return json.dumps(alerts, ensure_ascii=False).encode()


def sign(secret: str, identity: str, sent: str, body: bytes) -> str:
    """Return the value of `webhook-signature` (Standard Webhooks, HMAC-SHA256). `secret` is `whsec_` and Base64."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise DeliveryError(
            'the signing secret is not Base64; write it like "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"'
        ) from None
    said = hmac.new(key, f"{identity}.{sent}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(said).decode()


_AGENT: Final = f"docferry/{__version__}"


def _url(address: Key) -> str:
    if address.value is None:
        raise DeliveryError(address.problem or "has no address")
    return address.value


def hide(address: Key) -> Key:
    """Register an address that contains a secret, its path and its query for redaction in all logs."""
    if address.value is not None:
        parts = urlsplit(address.value)
        for secret in (address.value, parts.path, parts.query):
            if len(secret) >= 12:  # shorter paths, such as /alerts, are not secret
                logs.hide(secret)
    return address


def _proxy(address: str) -> httpx.Proxy:
    proxy = parse_proxy(address)
    if proxy.password:
        logs.hide(proxy.password)
        logs.hide(f"{proxy.user}:{proxy.password}")
    return httpx.Proxy(proxy.url, auth=None if proxy.user is None else (proxy.user, proxy.password))


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _context(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


async def _beginning(answer: httpx.Response) -> str:
    """Return the first line of an error, for the log."""
    read = b""
    async for chunk in answer.aiter_raw(ANSWER_LIMIT):
        read += chunk
        if len(read) >= ANSWER_LIMIT:
            break
    return " ".join(read[:ANSWER_LIMIT].decode("utf-8", "replace").split())[:200]
