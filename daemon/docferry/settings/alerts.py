"""Define `[alerts]`, `[[alerts.to]]` and `[heartbeat]`: when docferry alerts people, and where."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from docferry.settings import keys
from docferry.settings.keys import Key
from docferry.settings.section import SECTION
from docferry.settings.values import CaFile, Octets, PlainPath, Proxy, Seconds, SomeSeconds

#: All events that docferry can report. Receivers select events by patterns of these names.
EVENTS: Final = (
    "held",
    "gate",
    "overdue",
    "folder",
    "still_written",
    "disk",
    "queue",
    "key",
    "clock",
    "unanchored",
    "missing",
    "old_copy",
    "projected_late",
    "host",
    "digest",
)

Kind = Literal["email", "webhook", "alertmanager", "ntfy", "command"]

#: Keys that each kind of receiver requires, and its optional keys. A nested tuple: one of them.
_NEEDS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "email": (("smtp",), ("from",), ("to",)),
    "webhook": (("url", "url_file"),),
    "alertmanager": (("url", "url_file"),),
    "ntfy": (("url", "url_file"),),
    "command": (("command",),),
}
_MAY_HAVE: Final[Mapping[str, frozenset[str]]] = {
    "email": frozenset({"smtp", "from", "to", "password_file", "ca_file"}),
    "webhook": frozenset({"url", "url_file", "secret_file", "ca_file", "proxy"}),
    "alertmanager": frozenset({"url", "url_file", "ca_file", "proxy"}),
    "ntfy": frozenset({"url", "url_file", "token_file", "ca_file", "proxy"}),
    "command": frozenset({"command"}),
}
#: The secret of each kind of receiver, as the last part of its variable's name.
_SECRET: Final[Mapping[str, str]] = {"email": "password", "webhook": "secret", "ntfy": "token"}

_ADDRESS: Final = re.compile(r"[!-~]+@[!-~]+")
_RECEIVER_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TIME_OF_DAY: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_SMTP_SCHEMES: Final = ("smtps", "smtp", "smtp+starttls")


def _receiver_name(name: str) -> str:
    if not _RECEIVER_NAME.fullmatch(name) or name.lower() == "to":
        raise ValueError('must be a plain name of letters, digits, "_" and "-", and not "to"')
    return name


def _events(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        if not any(fnmatchcase(event, pattern) for event in EVENTS):
            raise ValueError(f"has a pattern that fits no event; the events are {', '.join(EVENTS)}")
    return patterns


def _mail_address(address: str) -> str:
    if not _ADDRESS.fullmatch(address) or set(address) & set('<>,;"\\()'):
        raise ValueError('must be a bare mail address; write it like "ops@example.com"')
    return address


def _smtp(written: str) -> str:
    try:
        parts = urlsplit(written)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in _SMTP_SCHEMES or not written.isascii() or not written.isprintable():
        raise ValueError('is no mail server; write it like "smtps://user@mail.example.com"')
    if parts.password is not None:
        raise ValueError("must not hold the password; put it in password_file")
    if parts.path.strip("/") or parts.query or parts.fragment or " " in written:
        raise ValueError('must name a server alone; write it like "smtps://user@mail.example.com"')
    return written


def web_address(written: str) -> str:
    """Return `written` if it is a usable http or https address. Raises ValueError otherwise."""
    try:
        parts = urlsplit(written)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    usable = written.isascii() and written.isprintable() and " " not in written
    if not host or not usable or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.fragment:
        raise ValueError('is no address; write it like "https://example.com/alerts"')
    return written


def _time_of_day(written: str) -> str:
    if not _TIME_OF_DAY.fullmatch(written):
        raise ValueError('is no time of day; write it like "07:00"')
    return written


def _listed(written: object) -> object:
    return (written,) if isinstance(written, str) else written


MailAddress = Annotated[str, AfterValidator(_mail_address)]
WebAddress = Annotated[str, AfterValidator(web_address)]
MailAddresses = Annotated[
    tuple[MailAddress, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]


class ReceiverSettings(BaseModel):
    """Hold `[[alerts.to]]`: one destination of alerts."""

    model_config = SECTION

    name: Annotated[str, AfterValidator(_receiver_name)] = Field(description="unique over receivers")
    kind: Kind = Field(description="how it is reached")
    events: Annotated[tuple[str, ...], AfterValidator(_events)] = Field(
        default=("*",), description="patterns of the events it gets"
    )
    smtp: Annotated[str, AfterValidator(_smtp)] | None = Field(default=None, description="email: the mail server")
    sender: MailAddress | None = Field(default=None, alias="from", description="email: the sender")
    to: MailAddresses = Field(default=(), description="email: the recipients")
    password_file: PlainPath | None = Field(default=None, description="email: a file that holds the password alone")
    url: WebAddress | None = Field(default=None, repr=False, description="webhook, alertmanager, ntfy: the address")
    url_file: PlainPath | None = Field(default=None, description="a file that holds the address alone")
    secret_file: PlainPath | None = Field(default=None, description="webhook: a file that holds the signing secret")
    token_file: PlainPath | None = Field(default=None, description="ntfy: a file that holds the access token")
    command: tuple[str, ...] = Field(default=(), description="command: the program and its arguments")
    ca_file: CaFile | None = Field(default=None, description="certificates to trust, as PEM")
    proxy: Proxy | None = Field(default=None, repr=False, description="webhook, alertmanager, ntfy: as for Codat")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> ReceiverSettings:
        given = {facts.alias or name for name, facts in type(self).model_fields.items() if getattr(self, name)}
        for choices in _NEEDS[self.kind]:
            if not given & set(choices):
                raise ValueError(f"a receiver of kind {self.kind} needs {' or '.join(choices)}")
        foreign = sorted(given - _MAY_HAVE[self.kind] - {"name", "kind", "events"})
        if foreign:
            raise ValueError(f"a receiver of kind {self.kind} has no {foreign[0]}; remove it")
        if {"url", "url_file"} <= given:
            raise ValueError("has url and url_file; keep one of them")
        if self.command and (not self.command[0] or any("\0" in word for word in self.command)):
            raise ValueError('has a command that cannot be started; write it like ["/usr/local/bin/page", "ops"]')
        return self

    def wants(self, event: str) -> bool:
        """Return whether the receiver gets this event."""
        return any(fnmatchcase(event, pattern) for pattern in self.events)

    def secret(self, environ: Mapping[str, str] = os.environ) -> Key:
        """Return the password, signing secret or token, read again; an empty `Key` if there is none."""
        kind = _SECRET.get(self.kind)
        if kind is None:
            return Key()
        file = {"password": self.password_file, "secret": self.secret_file, "token": self.token_file}[kind]
        return keys.find_secret(
            environ,
            variable=f"{_variable(self.name)}__{kind.upper()}",
            credential=f"alert_{self.name}",
            file=file,
            file_key=f"{kind}_file",
        )

    def address(self) -> Key:
        """Return the address of a webhook, Alertmanager or ntfy topic, read again."""
        return _address(self.url, self.url_file)


class AlertsSettings(BaseModel):
    """Hold `[alerts]`: which conditions are reported, and how often."""

    model_config = SECTION

    after: Seconds = Field(
        default=300.0, description="how long a condition must last to be reported, and be absent to end"
    )
    repeat: SomeSeconds = Field(default=86_400.0, description="a reminder while a condition lasts")
    digest: Annotated[str, AfterValidator(_time_of_day)] | None = Field(
        default=None, description="a daily summary at this local time, also when all is well"
    )
    oldest_due: SomeSeconds = Field(default=3600.0, description="a document due for longer is overdue")
    disk_free: Octets = Field(default=1_000_000_000, description="less free space than this is too little")
    to: tuple[ReceiverSettings, ...] = Field(default=(), description="the receivers")

    @model_validator(mode="after")
    def _has_each_name_once(self) -> AlertsSettings:
        seen: set[str] = set()
        for receiver in self.to:
            if (name := _variable(receiver.name)) in seen:
                raise ValueError(f'has two receivers whose names are alike: "{receiver.name}"; give each its own')
            seen.add(name)
        return self


class HeartbeatSettings(BaseModel):
    """Hold `[heartbeat]`: the service that reports missing pings of docferry."""

    model_config = SECTION

    url: WebAddress | None = Field(default=None, repr=False, description="the address to ping")
    url_file: PlainPath | None = Field(default=None, description="a file that holds the address alone")
    every: SomeSeconds = Field(default=300.0, description="how often it is pinged")
    ca_file: CaFile | None = Field(default=None, description="certificates to trust, as PEM")
    proxy: Proxy | None = Field(default=None, repr=False, description="as for Codat")

    @model_validator(mode="after")
    def _has_one_address(self) -> HeartbeatSettings:
        if self.url is not None and self.url_file is not None:
            raise ValueError("has url and url_file; keep one of them")
        return self

    @property
    def is_set(self) -> bool:
        """Return whether an address for pings is set."""
        return self.url is not None or self.url_file is not None

    def address(self) -> Key:
        """Return the address, read again; an empty `Key` if there is none."""
        return _address(self.url, self.url_file)


def receiver_of(variable: str) -> str | None:
    """Return the receiver's part of `DOCFERRY_ALERTS__OPS__PASSWORD`; None for any other variable."""
    found = re.fullmatch(r"(DOCFERRY_ALERTS__(?!TO__)\w+?)__(PASSWORD|SECRET|TOKEN)", variable)
    return found[1] if found else None


def names_a_receiver(variable: str, names: list[str]) -> bool:
    """Return whether a variable that `receiver_of` recognises belongs to one of these receivers."""
    return receiver_of(variable) in {_variable(name) for name in names}


def _variable(name: str) -> str:
    """Return the variable's name up to the receiver: `DOCFERRY_ALERTS__NIGHT_SHIFT`."""
    return "DOCFERRY_ALERTS__" + name.upper().replace("-", "_")


def _address(url: str | None, url_file: Path | None) -> Key:
    if url is not None:
        return Key(value=url, origin="url")
    found = keys.find_secret({}, variable="", credential=None, file=url_file, file_key="url_file")
    if found.value is None:
        return found
    try:
        web_address(found.value)
    except ValueError as error:
        return Key(origin=found.origin, problem=f"{found.origin} {error}")
    return found
