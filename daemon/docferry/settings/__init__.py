"""TOML + environment + credentials → one frozen `Settings`, all problems reported at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from docferry.errors import ConfigError
from docferry.model import RemoteName
from docferry.settings import complaints, contradictions, keys, sources
from docferry.settings.alerts import Alerts, Heartbeat
from docferry.settings.keys import Secrets
from docferry.settings.mappings import CaFile, Count, Download, PlainPath, Route, Seconds, Share, SomeSeconds, Upload

__all__ = ["Codat", "Download", "Retry", "Route", "Secrets", "Settings", "Upload", "Wootiv", "load", "missing_keys"]


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of the file at `path` (else of the first of the usual places) and of the environment.

    Raises ConfigError with all problems at once."""
    written = sources.gathered(path, environ)
    settings, problems = complaints.judged(Settings, written)
    if settings is None or problems:
        raise ConfigError(problems)
    settings._path, settings._warnings = written.path, contradictions.warnings(settings)
    return settings


def missing_keys(settings: Settings, secrets: Secrets) -> list[str]:
    """One sentence for each remote that a mapping uses and that has no key: what is wrong and where to put it."""
    sentences = []
    for remote, key in (("codat", secrets.codat_key), ("wootiv", secrets.wootiv_key)):
        if remote in settings.remotes and key.value is None:
            why = f"{remote} has no API key: {key.problem}" if key.problem else f"{remote} has no API key"
            sentences.append(
                f"{why}; set {remote.upper()}_API_KEY, or the systemd credential {remote}_api_key, "
                f'or api_key_file = "…" under [{remote}]'
            )
    return sentences


def _url(written: str) -> str:
    try:
        parts = urlsplit(written.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not written.isprintable() or " " in written.strip():
        raise ValueError('is no address; write it like "https://api.example.com"')
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be a bare address, without a user, a query or a fragment")
    return written.strip().rstrip("/")


def _proxy(written: str) -> str:
    try:
        parts = urlsplit(written.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError('is no proxy address; write it like "http://proxy.example.com:3128"')
    return written.strip()


def _lowered(written: object) -> object:
    return written.strip().lower() if isinstance(written, str) else written


Url = Annotated[str, AfterValidator(_url)]
Proxy = Annotated[str, AfterValidator(_proxy)]


class Retry(BaseModel):
    """`[retry]`: how long a failed document waits, and for how long it is tried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial: SomeSeconds = Field(default=0.5, description="the first wait")
    factor: float = Field(default=1.5, ge=1, le=100, allow_inf_nan=False, description="each wait is so much longer")
    max: SomeSeconds = Field(default=60.0, description="the longest wait")
    give_up_after: SomeSeconds = Field(
        default=604_800.0, description="then a document is held until someone retries it"
    )


class _Remote(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout: SomeSeconds = Field(default=60.0, description="how long one request may make no headway")
    proxy: Proxy | None = Field(default=None, repr=False, description="the environment's proxies are not used")
    ca_file: CaFile | None = Field(default=None, description="certificates to trust, as PEM")
    api_key: SecretStr | None = Field(default=None, repr=False, description="only in a file that nobody else can read")
    api_key_file: PlainPath | None = Field(default=None, description="a file that holds the key alone")


class Codat(_Remote):
    """`[codat]`: where it is, and how much it may be asked."""

    base_url: Url = Field(default="https://api.codat.io", description="the server")
    requests_per_minute: Count = Field(default=1000, ge=1, description="over all companies")
    concurrent_per_company: Count = Field(default=10, ge=1, le=1000, description="requests at once for one company")
    batch: Count = Field(default=1, ge=1, le=20, description="files in one request")
    list_lag: Seconds = Field(default=30.0, description="how long Codat's list may lag behind an upload")
    quota_reserve: Share = Field(default=0.05, description="of the daily quota, kept for resolving doubtful documents")


class Wootiv(_Remote):
    """`[wootiv]`: where it is."""

    base_url: Url | None = Field(default=None, description="the server; required when a mapping uses it")


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    state_dir: PlainPath = Field(description="default: $STATE_DIRECTORY, else $XDG_STATE_HOME/docferry")
    workers: Count = Field(default=8, ge=1, le=1000, description="uploads in flight over all remotes")
    settle: SomeSeconds = Field(default=5.0, description="a file is complete when it has not changed for so long")
    rescan: SomeSeconds = Field(default=300.0, description="every folder is read again so often")
    stop_grace: Seconds = Field(default=30.0, description="at SIGTERM, uploads in flight get so long to finish")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lowered)] = "info"
    log_format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_lowered)] = "auto"
    retry: Retry = Retry()
    codat: Codat = Codat()
    wootiv: Wootiv = Wootiv()
    alerts: Alerts = Alerts()
    heartbeat: Heartbeat = Heartbeat()
    uploads: tuple[Upload, ...] = Field(default=(), alias="upload")
    downloads: tuple[Download, ...] = Field(default=(), alias="download")

    _path: Path | None = PrivateAttr(None)
    _warnings: tuple[str, ...] = PrivateAttr(())

    def model_post_init(self, _context: Any, /) -> None:
        for upload in self.uploads:
            upload._common_settle = self.settle

    @classmethod
    def settings_customise_sources(  # the signature is the library's
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - as above
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `sources` gathered: it reads lists by index and names unknown variables, which the others don't."""
        return (init_settings,)

    @property
    def path(self) -> Path | None:
        """The file these settings came from."""
        return self._path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed and yet unwise, one sentence each."""
        return self._warnings

    @property
    def remotes(self) -> frozenset[RemoteName]:
        """The remotes that some mapping uses."""
        return frozenset(upload.to for upload in self.uploads) | {download.source for download in self.downloads}

    def secrets(self, environ: Mapping[str, str] = os.environ) -> Secrets:
        """The keys, read afresh. Never raises: a key that is missing or unreadable is None, see `missing_keys`."""
        codat, wootiv = (
            keys.find(
                remote,
                environ,
                key_file=section.api_key_file,
                written=section.api_key.get_secret_value() if section.api_key else None,
                written_in=self._path,
            )
            for remote, section in (("codat", self.codat), ("wootiv", self.wootiv))
        )
        return Secrets(codat.value, wootiv.value, codat, wootiv)
