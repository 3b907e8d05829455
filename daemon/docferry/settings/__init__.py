"""Read TOML, environment and credentials into one frozen `Settings`, and report all problems at once."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from docferry import endpoints
from docferry.errors import ConfigError
from docferry.model import RemoteName
from docferry.settings import cross_checks, keys, problems, sources, trust
from docferry.settings.alerts import AlertsSettings, HeartbeatSettings
from docferry.settings.antivirus import AntivirusSettings
from docferry.settings.keys import Secrets
from docferry.settings.listeners import Metrics, Web
from docferry.settings.mappings import (
    CaFile,
    Count,
    Download,
    Octets,
    PlainPath,
    Proxy,
    Route,
    Seconds,
    Share,
    SomeSeconds,
    Upload,
)
from docferry.settings.own_files import output_files
from docferry.settings.receipts import Receipts, Verify
from docferry.settings.section import SECTION

__all__ = [
    "Codat",
    "Download",
    "Metrics",
    "Retry",
    "Route",
    "Secrets",
    "Settings",
    "Upload",
    "Web",
    "Wootiv",
    "load",
    "missing_keys",
]


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of the file at `path`, else of the first default file, and of the environment.

    Raises ConfigError with all problems at once.
    """
    written = sources.collect(path, environ)
    settings, found = problems.validate(Settings, written)
    if settings is not None:
        found += [f"{key}: {problem}" for key, problem in settings.unsafe_files()]
    if settings is None or found:
        raise ConfigError(found)
    if settings.database_url is not None:
        settings = _with_own_names(settings)
    settings._path = written.path
    settings._passed_over = tuple(written.warnings)
    settings._warnings = cross_checks.warnings(settings)
    settings.protect_own_files()
    return settings


def _with_own_names(settings: Settings) -> Settings:
    """Return settings whose mappings have the name NAME@HOST in the shared queue, except shared mappings.

    So several hosts can use one configuration with folders of their own. Each host claims only the transfers of its own
    mappings and of shared ones, because it can read only these.
    """
    host = settings.host_name
    uploads = tuple(upload if upload.shared else upload.of_host(host) for upload in settings.uploads)
    downloads = tuple(download.of_host(host) for download in settings.downloads)
    return settings.model_copy(update={"uploads": uploads, "downloads": downloads})


def missing_keys(settings: Settings, secrets: Secrets) -> list[str]:
    """Return a sentence for each remote in use without a key, with the places for one."""
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
        raise ValueError('is not an address; write it like "https://api.example.com"')
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be an address without a user, a query and a fragment")
    return endpoints.validate_url(written.strip().rstrip("/"))


def _senders(written: object) -> object:
    if written == "auto" or (isinstance(written, int) and not isinstance(written, bool) and 0 <= written <= 32):
        return written
    if isinstance(written, str) and written.strip().isascii() and written.strip().isdecimal() and int(written) <= 32:
        return int(written)
    raise ValueError('must be "auto", or a number from 0 to 32')


def _lowered(written: object) -> object:
    return written.strip().lower() if isinstance(written, str) else written


Url = Annotated[str, AfterValidator(_url)]
Headers = Annotated[dict[str, str], AfterValidator(endpoints.validate_headers)]
LocalAddress = Annotated[str, AfterValidator(endpoints.validate_local_address)]


def validate_database_url(written: SecretStr) -> SecretStr:
    """Return a PostgreSQL URL. Raises ValueError for any other."""
    scheme, separator, _ = written.get_secret_value().partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("is no PostgreSQL URL; write postgresql://USER:PASSWORD@SERVER/DATABASE")
    return written


DatabaseUrl = Annotated[SecretStr, AfterValidator(validate_database_url)]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


Senders = Annotated[
    Literal["auto"] | int,
    BeforeValidator(_senders),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 0, "maximum": 32}]}),
]


class Retry(BaseModel):
    """Hold the section `[retry]`: the pauses between attempts, and their end."""

    model_config = SECTION

    initial: SomeSeconds = Field(default=0.5, description="the first wait")
    factor: float = Field(default=1.5, ge=1, le=100, allow_inf_nan=False, description="the factor between two waits")
    max: SomeSeconds = Field(default=60.0, description="the longest wait")
    give_up_after: SomeSeconds = Field(
        default=604_800.0, description="then a document is held until someone retries it"
    )


class _Remote(BaseModel):
    model_config = SECTION

    timeout: SomeSeconds = Field(default=60.0, description="the longest time without progress of a request")
    connect_timeout: SomeSeconds = Field(default=10.0, description="over all addresses of a name")
    read_timeout: SomeSeconds | None = Field(default=None, description="timeout of responses; default: timeout")
    write_timeout: SomeSeconds | None = Field(default=None, description="timeout of requests; default: timeout")
    proxy: Proxy | None = Field(default=None, repr=False, description="the environment's proxies are not used")
    ca_file: CaFile | None = Field(default=None, description="certificates to trust, as PEM")
    cert_file: PlainPath | None = Field(default=None, description="a client certificate, as PEM")
    key_file: PlainPath | None = Field(default=None, description="its private key, where cert_file does not hold it")
    headers: Headers = Field(default_factory=dict, repr=False, description="sent with every request")
    local_address: LocalAddress | None = Field(default=None, description="the address to connect from")
    api_key: SecretStr | None = Field(
        default=None, repr=False, description="only in a file that no other user can read"
    )
    api_key_file: PlainPath | None = Field(default=None, description="a file that holds the key alone")

    @model_validator(mode="after")
    def _check_client_certificate(self) -> Self:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is set without cert_file; set both, or none")
        if self.cert_file is not None:
            endpoints.load_trust(self.ca_file, self.cert_file, self.key_file)
        return self


class CodatSettings(_Remote):
    """Hold the section `[codat]`: address, limits and key of the Codat API."""

    base_url: Url = Field(default="https://api.codat.io", description="the server")
    requests_per_minute: Count = Field(default=1000, ge=1, description="over all companies")
    concurrent_per_company: Count = Field(default=10, ge=1, le=1000, description="requests at once for one company")
    batch: Count = Field(default=1, ge=1, le=20, description="files in one request")
    list_lag: Seconds = Field(default=30.0, description="how long Codat's list may lag behind an upload")
    quota_reserve: Share = Field(default=0.05, description="of the daily quota, kept for resolving doubtful documents")


class WootivSettings(_Remote):
    """Hold the section `[wootiv]`: address and key of Wootiv."""

    base_url: Url | None = Field(default=None, description="the server; it or environment is required")
    environment: Literal["production", "environment_1"] | None = Field(
        default=None, description="the server by its name in Wootiv's SDK; base_url overrides it"
    )
    batch: Count = Field(default=1, ge=1, le=20, description='files in one request of mappings with via = "direct"')
    storage_hosts: tuple[str, ...] = Field(
        default=(), description="patterns of hosts where signed URLs may point; default: any public host"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_server(cls, written: object) -> object:
        if isinstance(written, dict) and written.get("base_url") is None:
            environment = written.get("environment")
            if isinstance(environment, str) and environment in endpoints.WOOTIV_SERVERS:
                return {**written, "base_url": endpoints.WOOTIV_SERVERS[environment]}
        return written


class Settings(BaseSettings):
    """Hold the whole configuration."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    state_dir: PlainPath = Field(
        description="default: $STATE_DIRECTORY, /var/lib/docferry where it exists, or $XDG_STATE_HOME/docferry"
    )
    database_url: DatabaseUrl | None = Field(
        default=None,
        repr=False,
        description="a PostgreSQL queue for several hosts; default: SQLite in state_dir",
    )
    host: Host | None = Field(default=None, description="this machine's name in a shared queue; default: its host name")
    senders: Senders = Field(
        default="auto", description='processes that read, encrypt and send: "auto", or 0 (in this process) to 32'
    )
    workers: Count = Field(default=8, ge=1, le=1000, description="uploads in flight over all remotes")
    settle: SomeSeconds = Field(default=5.0, description="the time without a change after which a file is complete")
    rescan: SomeSeconds = Field(default=300.0, description="the interval between two scans of every folder")
    spool_max: Octets = Field(
        default=2_000_000_000, description="the largest total size of incomplete downloads in the state folder"
    )
    stop_grace: Seconds = Field(default=30.0, description="the time for uploads in flight to finish after SIGTERM")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lowered)] = "info"
    log_format: Annotated[Literal["auto", "text", "json"], BeforeValidator(_lowered)] = "auto"
    # Constructed without validation: `Retry()` would build a validator of its own, 1 ms each.
    retry: Retry = Retry.model_construct()
    codat: CodatSettings = CodatSettings.model_construct()
    wootiv: WootivSettings = WootivSettings.model_construct()
    metrics: Metrics = Metrics.model_construct()
    web: Web = Web.model_construct()
    alerts: AlertsSettings = AlertsSettings.model_construct()
    heartbeat: HeartbeatSettings = HeartbeatSettings.model_construct()
    receipts: Receipts = Receipts.model_construct()
    verify: Verify = Verify.model_construct()
    antivirus: AntivirusSettings = AntivirusSettings.model_construct()
    uploads: tuple[Upload, ...] = Field(default=(), alias="upload")
    downloads: tuple[Download, ...] = Field(default=(), alias="download")

    _path: Path | None = PrivateAttr(None)
    _warnings: tuple[str, ...] = PrivateAttr(())
    _passed_over: tuple[str, ...] = PrivateAttr(())

    def model_post_init(self, _context: Any, /) -> None:
        """Pass the common `settle` to the mappings."""
        for upload in self.uploads:
            upload._common_settle = self.settle

    @classmethod
    def settings_customise_sources(  # pydantic defines the signature
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings defines the signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings defines the signature
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings defines the signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings defines the signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only the values of `sources`, which reads lists by index and reports unknown variables."""
        return (init_settings,)

    @property
    def host_name(self) -> str:
        """Return the name of this machine in a shared queue."""
        return self.host or re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "localhost"

    @property
    def queue_host(self) -> str:
        """Return the name of this machine in rows of one host; empty if the queue belongs to one machine."""
        return "" if self.database_url is None else self.host_name

    @property
    def path(self) -> Path | None:
        """Return the file of these settings."""
        return self._path

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each allowed but risky combination."""
        return self._warnings

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Return a sentence for each configuration file that was found first but ignored, as others may change it."""
        return self._passed_over

    @property
    def remotes(self) -> frozenset[RemoteName]:
        """Return the remotes that a mapping uses."""
        return frozenset(upload.to for upload in self.uploads) | {download.source for download in self.downloads}

    def unsafe_files(self) -> list[tuple[str, str]]:
        """Return the key files that others could read or change: the key in the configuration, and the fix."""
        found = []
        files = dict(_files_of(self))
        for key, path in files.items():
            # Certificates are public; cert_file also holds the private key if there is no key_file.
            if key.endswith("ca_file") or key.replace("cert_file", "key_file") in files.keys() - {key}:
                continue
            if (problem := trust.unsafe_key_file(path)) is not None:
                found.append((key, problem))
        return found

    def protect_own_files(self) -> None:
        """Exclude the state folder, the configuration file, every key file and docferry's output from every mapping."""
        own = [self.state_dir, *(path for _, path in _files_of(self)), *self.receipts.files, *output_files()]
        own += [path for path in (self._path, self.metrics.textfile) if path is not None]
        for upload in self.uploads:
            upload.protect(own)

    def secrets(self, environ: Mapping[str, str] = os.environ) -> Secrets:
        """Return the keys, read again. A missing or unreadable key is None, see `missing_keys`."""
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


def _files_of(section: BaseModel, prefix: str = "") -> list[tuple[str, Path]]:
    """Return every setting that names a file (its key ends in `_file`), with its key, in all sections."""
    found: list[tuple[str, Path]] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name.endswith("_file") and isinstance(value, Path):
            found.append((prefix + name, value))
        elif isinstance(value, BaseModel):
            found += _files_of(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for at, each in enumerate(value):
                if isinstance(each, BaseModel):
                    found += _files_of(each, f"{prefix}{name}[{at}].")
    return found
