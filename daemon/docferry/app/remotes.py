"""Open the clients of the remotes that a configuration uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace  # noqa: TID251 - HttpOptions is a dataclass
from pathlib import Path
from typing import Literal

from docferry import redaction
from docferry import settings as settings_of
from docferry.clock import Clock
from docferry.endpoints import parse_proxy
from docferry.remotes.codat.client import CODAT_RULES, Codat, CodatOptions
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.protocol import Remote, Rules
from docferry.remotes.wootiv.client import WOOTIV_RULES, Wootiv, WootivOptions
from docferry.remotes.wootiv.signed_url import SignedUrlPolicy
from docferry.senders.pool import SenderPool
from docferry.settings import Settings
from docferry.settings.outbox import outboxes

#: The limits on documents at each remote, known without a request.
RULES: Mapping[str, Rules] = {"codat": CODAT_RULES, "wootiv": WOOTIV_RULES}


class SettingsKey:
    """Provide the API key of one remote, read again after the remote refuses it."""

    def __init__(self, settings: Settings, remote: Literal["codat", "wootiv"]) -> None:
        self._settings = settings
        self._remote = remote
        self.value: str | None = None
        self.reload()

    def reload(self) -> None:
        """Read the key, and redact it in all later log records and stored texts."""
        secrets = self._settings.secrets()
        self.value = secrets.codat if self._remote == "codat" else secrets.wootiv
        if self.value:
            redaction.hide(self.value)


def open_remotes(settings: Settings, clock: Clock, senders: SenderPool | None = None) -> dict[str, Remote]:
    """Return a client for each remote that a mapping uses, by name; documents are sent through `senders`."""
    senders = senders or SenderPool()

    def open_client(name: str, to: settings_of.CodatSettings | settings_of.WootivSettings) -> HttpClient:
        _hide_proxy_password(to.proxy)
        return senders.http_client(name, clock, http_options(to))

    remotes: dict[str, Remote] = {}
    codat, wootiv = settings.codat, settings.wootiv
    if "codat" in settings.remotes:
        options = CodatOptions(codat.base_url, codat.requests_per_minute, codat.concurrent_per_company, codat.list_lag)
        key = SettingsKey(settings, "codat")
        remotes["codat"] = Codat(open_client("Codat", codat), options, key=key, clock=clock, spool=spool(settings))
    if "wootiv" in settings.remotes and wootiv.base_url is not None:
        urls = SignedUrlPolicy(wootiv.base_url, wootiv.storage_hosts)
        # The storage refuses unsigned headers.
        storage = replace(http_options(wootiv), headers={}, public_only=urls.public_only)
        remotes["wootiv"] = Wootiv(
            open_client("Wootiv", wootiv),
            senders.http_client("Wootiv's storage", clock, storage),
            urls,
            WootivOptions(wootiv.base_url, direct_mappings(settings)),
            key=SettingsKey(settings, "wootiv"),
            clock=clock,
        )
    return remotes


def direct_mappings(settings: Settings) -> frozenset[str]:
    """Return the names of the mappings that send documents through Wootiv itself, not its storage."""
    boxes = outboxes(settings.uploads, settings.state_dir, settings.host_name)
    uploads = [*settings.uploads, *boxes.values()]
    return frozenset(upload.name for upload in uploads if upload.to == "wootiv" and upload.via == "direct")


def http_options(to: settings_of.CodatSettings | settings_of.WootivSettings) -> HttpOptions:
    """Return the HTTP options from the section of a remote."""
    return HttpOptions(
        timeout=to.timeout,
        connect_timeout=to.connect_timeout,
        read_timeout=to.read_timeout,
        write_timeout=to.write_timeout,
        proxy=to.proxy,
        ca_file=to.ca_file,
        headers=to.headers,
        local_address=to.local_address,
        cert_file=to.cert_file,
        key_file=to.key_file,
    )


def _hide_proxy_password(proxy: str | None) -> None:
    """Redact the password of a proxy, both alone and in the proxy's `Basic` credentials."""
    if proxy is not None and (found := parse_proxy(proxy)).password:
        redaction.hide(found.password)
        redaction.hide(f"{found.user}:{found.password}")


def spool(settings: Settings) -> Path:
    """Return the folder for incomplete downloads."""
    return settings.state_dir / "spool"
