"""How the simulated remotes behave when nothing is wrong: one dataclass, changeable while it runs."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from docferry.errors import ConfigError


@dataclass
class SimulatorOptions:
    """What a user or a test may set; times in seconds, and 0 means none or unlimited."""

    codat_key: str = "codat-demo-key"
    wootiv_key: str = "wootiv-demo-key"
    idempotency: bool = True  # does Codat honour Idempotency-Key?
    list_lag: float = 0.0  # Codat's list shows a file so long after it was stored
    store_lag: float = 0.0  # a file is stored so long after its request was answered
    keeps_only_first_of_batch: bool = False
    companies: dict[str, set[str]] | None = None  # None: every UUID is a company, and has every connection
    connection_status: dict[str, str] = field(default_factory=dict)  # connection → status; else "Linked"
    unlinked_status: int = 400  # the answer to an upload to such a connection; not documented by Codat
    daily_quota: int | None = None  # None: no limit
    requests_per_minute: int = 1000
    concurrent_per_company: int = 10
    reset_format: Literal["iso", "http"] = "iso"  # of X-Rate-Limit-Reset: "a date", says Codat
    rename: Literal["quote", "nfc", "cut"] | None = None  # what Codat does to file names
    swallow: tuple[str, ...] = ()  # names (glob patterns) that are answered with 200 and never stored
    platform: str = "Business file upload"  # platformName of connections; the ZIP's folder for API uploads
    source_type: str = "Other"
    signed: Literal["put", "post"] = "put"
    url_lifetime: float = 300.0
    sign_content_type: bool = False
    date_skew: float = 0.0  # the remotes' clocks run ahead by so much
    latency: float = 0.0  # every answer takes so long

    def change(self, wishes: Mapping[str, object]) -> None:
        """Set some switches from decoded JSON or TOML; all problems at once."""
        hints = typing.get_type_hints(SimulatorOptions)
        problems = [f"unknown switch {name!r}; known are {', '.join(hints)}" for name in wishes if name not in hints]
        taken: dict[str, object] = {}
        for name in wishes.keys() & hints.keys():
            try:
                taken[name] = _fitted(hints[name], wishes[name])
            except ValueError as error:
                problems.append(f"switch {name!r} {error}")
        if problems:
            raise ConfigError(problems)
        for name, value in taken.items():
            setattr(self, name, value)

    def reset(self) -> None:
        """All switches as they come."""
        fresh = SimulatorOptions()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))


def _fitted(hint: Any, value: Any) -> object:
    """`value` as the type `hint`; ValueError with the end of a sentence when it cannot be."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _fitted(next(arm for arm in inner if arm is not types.NoneType), value)
    if origin is Literal:
        return _one_of(value, inner)
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


def _one_of(value: object, allowed: tuple[object, ...]) -> object:
    if value not in allowed:
        raise ValueError(f"must be one of {', '.join(map(str, allowed))}, not {value!r}")
    return value


def _mapping(value: object, of: Any) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("must be a table")  # noqa: TRY004 - the caller gathers these as problems
    return {str(name): _fitted(of, each) for name, each in value.items()}
