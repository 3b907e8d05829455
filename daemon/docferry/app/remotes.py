"""The far shores of one configuration: their rules, their keys, and the lines to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from docferry import logs
from docferry import settings as settings_of
from docferry.clock import Clock
from docferry.remotes.codat.client import RULES as CODAT_RULES
from docferry.remotes.codat.client import Codat
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.protocol import Remote, Rules
from docferry.remotes.wootiv.client import RULES as WOOTIV_RULES
from docferry.remotes.wootiv.client import Wootiv
from docferry.settings import Secrets, Settings

#: What each remote takes, known without asking it.
RULES: Mapping[str, Rules] = {"codat": CODAT_RULES, "wootiv": WOOTIV_RULES}


class ApiKeys:
    """The keys in use; read again when a remote says 401."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secrets = Secrets(None, None)
        self.read()

    def read(self) -> None:
        self._secrets = self._settings.secrets()
        for key in (self._secrets.codat, self._secrets.wootiv):
            if key:
                logs.hide(key)

    def codat(self) -> str:
        return self._secrets.codat or ""

    def wootiv(self) -> str:
        return self._secrets.wootiv or ""


def open_remotes(settings: Settings, keys: ApiKeys, clock: Clock) -> dict[str, Remote]:
    """The remotes that some mapping uses."""

    def open_client(name: str, to: settings_of.Codat | settings_of.Wootiv) -> HttpClient:
        return HttpClient(name, clock, HttpOptions(to.timeout, proxy=to.proxy, ca_file=to.ca_file))

    remotes: dict[str, Remote] = {}
    codat, wootiv = settings.codat, settings.wootiv
    if "codat" in settings.remotes:
        remotes["codat"] = Codat(
            http=open_client("Codat", codat),
            base_url=codat.base_url,
            key=keys.codat,
            clock=clock,
            spool=spool(settings),
            requests_per_minute=codat.requests_per_minute,
            concurrent_per_company=codat.concurrent_per_company,
            list_lag=codat.list_lag,
        )
    if "wootiv" in settings.remotes and wootiv.base_url is not None:
        clients = open_client("Wootiv", wootiv), open_client("Wootiv's storage", wootiv)
        remotes["wootiv"] = Wootiv(*clients, base_url=wootiv.base_url, key=keys.wootiv, clock=clock)
    return remotes


def spool(settings: Settings) -> Path:
    """Where downloads lie until they are whole."""
    return settings.state_dir / "spool"
