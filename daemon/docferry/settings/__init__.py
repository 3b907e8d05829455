"""Read TOML, environment and credentials into one frozen `Settings`, and report all problems at once."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from docferry.errors import ConfigError
from docferry.model import RemoteName
from docferry.settings import cross_checks, keys, problems, sources, trust
from docferry.settings.alerts import AlertsSettings, HeartbeatSettings
from docferry.settings.antivirus import AntivirusSettings
from docferry.settings.keys import Secrets
from docferry.settings.listeners import Metrics, Web
from docferry.settings.mappings import Download, Route, Upload
from docferry.settings.own_files import output_files
from docferry.settings.real_paths import RealPaths
from docferry.settings.receipts import Receipts, Verify
from docferry.settings.remotes import CodatSettings, WootivSettings
from docferry.settings.section import SECTION
from docferry.settings.values import Count, Octets, PlainPath, Seconds, SomeSeconds

__all__ = [
    "CodatSettings",
    "Download",
    "Metrics",
    "Retry",
    "Route",
    "Secrets",
    "Settings",
    "Upload",
    "Web",
    "WootivSettings",
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
    settings.place_mappings()
    return settings


def resolve_again(settings: Settings) -> Settings:
    """Return the same settings with the folders of the mappings resolved again.

    Raises ConfigError if a folder that did not answer before contradicts another mapping.
    """
    uploads = tuple(upload.model_copy() for upload in settings.uploads)
    downloads = tuple(download.model_copy() for download in settings.downloads)
    fresh = settings.model_copy(update={"uploads": uploads, "downloads": downloads})
    fresh.__dict__.pop("real_paths", None)
    if found := problems.contradictions(fresh):
        raise ConfigError(found)
    fresh.place_mappings()
    return fresh


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


def _senders(written: object) -> object:
    if written == "auto" or (isinstance(written, int) and not isinstance(written, bool) and 0 <= written <= 32):
        return written
    if isinstance(written, str) and written.strip().isascii() and written.strip().isdecimal() and int(written) <= 32:
        return int(written)
    raise ValueError('must be "auto", or a number from 0 to 32')


def _lowered(written: object) -> object:
    return written.strip().lower() if isinstance(written, str) else written


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

    @cached_property
    def real_paths(self) -> RealPaths:
        """Return the targets of the state folder and of the folders of all mappings, read at the first use."""
        return RealPaths([self.state_dir, *chain.from_iterable(entry.folders for entry in self._entries)])

    @property
    def unanswered(self) -> dict[str, str]:
        """Return a sentence for each mapping, by its name, that waits for a folder that does not answer."""
        return {entry.name: entry.unanswered for entry in self._entries if entry.unanswered is not None}

    def place_mappings(self) -> None:
        """Exclude docferry's own files from the mappings, and let mappings wait whose folders do not answer.

        The own files are the state folder, the configuration file, all key files and docferry's output.
        """
        own = [self.state_dir, *(path for _, path in _files_of(self)), *self.receipts.files, *output_files()]
        own += [path for path in (self._path, self.metrics.textfile) if path is not None]
        real = RealPaths(own)
        for upload in self.uploads:
            upload.protect(self.real_paths[upload.root].path, [real[path].path for path in own])
        for entry in self._entries:
            entry.wait_for(self.real_paths.unanswered(entry.folders))

    @property
    def _entries(self) -> tuple[Upload | Download, ...]:
        return (*self.uploads, *self.downloads)

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
