"""Define the sections of the remotes: addresses, limits and keys."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, SecretStr, model_validator

from docferry import endpoints
from docferry.settings.section import SECTION
from docferry.settings.values import CaFile, Count, PlainPath, Proxy, Seconds, Share, SomeSeconds


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


Url = Annotated[str, AfterValidator(_url)]
Headers = Annotated[dict[str, str], AfterValidator(endpoints.validate_headers)]
LocalAddress = Annotated[str, AfterValidator(endpoints.validate_local_address)]


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
