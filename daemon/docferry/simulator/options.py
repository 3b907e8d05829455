"""Define how the simulated remotes behave without faults; changeable while they run."""

from __future__ import annotations

import secrets
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal

from docferry.errors import ConfigError


@dataclass
class SimulatorOptions:
    """Hold options for users and tests. Times are in seconds; 0 means none or unlimited."""

    codat_key: str = "codat-demo-key"
    wootiv_key: str = "wootiv-demo-key"
    storage_secret: str = "docferry-simulated-secret-key"  # noqa: S105 - public on purpose; signs the URLs of S3
    record_is_open: bool = True  # whether /_sim needs no key; otherwise it needs Codat's
    idempotency: bool = True  # whether Codat honours Idempotency-Key
    list_lag: float = 0.0  # delay between storing and listing at Codat
    store_lag: float = 0.0  # delay between the response and storing
    keeps_only_first_of_batch: bool = False
    companies: dict[str, set[str]] | None = None  # None: every UUID is a company, and has every connection
    connection_status: dict[str, str] = field(default_factory=dict)  # connection → status; default "Linked"
    unlinked_status: int = 400  # status of an upload to such a connection; not documented by Codat
    daily_quota: int | None = None  # None: no limit
    requests_per_minute: int = 1000
    concurrent_per_company: int = 10
    reset_format: Literal["iso", "http"] = "iso"  # of X-Rate-Limit-Reset, which Codat documents only as "a date"
    rename: Literal["quote", "nfc", "cut"] | None = None  # change of file names by Codat
    swallow: tuple[str, ...] = ()  # names (glob patterns) that get a 200 and are never stored
    platform: str = "Business file upload"  # platformName of connections; the ZIP's folder for API uploads
    source_type: str = "Other"
    signed: Literal["put", "post"] = "put"
    url_lifetime: float = 300.0
    sign_content_type: bool = False
    date_skew: float = 0.0  # lead of the remotes' clocks
    latency: float = 0.0  # delay of every response

    def change(self, values: Mapping[str, object]) -> None:
        """Set options from decoded JSON or TOML. Raises ConfigError with all problems."""
        hints = typing.get_type_hints(SimulatorOptions)
        problems = [f"unknown switch {name!r}; known are {', '.join(hints)}" for name in values if name not in hints]
        taken: dict[str, object] = {}
        for name in values.keys() & hints.keys():
            try:
                taken[name] = _convert(hints[name], values[name])
            except ValueError as error:
                problems.append(f"switch {name!r} {error}")
        if problems:
            raise ConfigError(problems)
        for name, value in taken.items():
            setattr(self, name, value)

    def with_random_keys(self) -> SimulatorOptions:
        """Return the options with a random key in place of each public one, to refuse other local users."""
        public, found = SimulatorOptions(), replace(self, record_is_open=False)
        for name in _KEYS:
            if getattr(self, name) == getattr(public, name):
                setattr(found, name, secrets.token_urlsafe(24))
        return found

    def reset(self) -> None:
        """Restore the defaults, except keys that are not public."""
        fresh = SimulatorOptions()
        kept = () if self.record_is_open else (*_KEYS, "record_is_open")
        for each in fields(self):
            if each.name not in kept:
                setattr(self, each.name, getattr(fresh, each.name))


_KEYS: Final = ("codat_key", "wootiv_key", "storage_secret")


def _convert(hint: Any, value: Any) -> object:
    """Return `value` as the type `hint`. Raises ValueError with the end of a sentence."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(next(arm for arm in inner if arm is not types.NoneType), value)
    if origin is Literal:
        return _check_choice(value, inner)
    if origin is dict:
        return _mapping(value, inner[1])
    if origin in (tuple, set):
        if not isinstance(value, list | tuple | set) or not all(isinstance(each, str) for each in value):
            raise ValueError("must be a list of strings")
        return origin(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"must be of type {hint.__name__}, not {type(value).__name__}")
    return typing.cast(object, value)


def _check_choice(value: object, allowed: tuple[object, ...]) -> object:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(map(str, allowed))}, not {value!r}")
    return value


def _mapping(value: object, of: Any) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")  # noqa: TRY004 - the caller reports the problem
    return {str(name): _convert(of, each) for name, each in value.items()}
