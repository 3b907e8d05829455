"""Run `docferry config`: print an example, the effective settings without secrets, or their JSON Schema."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel

from docferry.cli.args import load
from docferry.cli.output import Screen
from docferry.model import escaped
from docferry.settings import Download, Settings, Upload, sources, units
from docferry.settings.alerts import AlertsSettings, ReceiverSettings
from docferry.settings.keys import HIDDEN_KEY, Key

_DURATIONS: Final = frozenset(
    {
        "settle",
        "rescan",
        "stop_grace",
        "initial",
        "max",
        "give_up_after",
        "timeout",
        "connect_timeout",
        "read_timeout",
        "write_timeout",
        "list_lag",
        "every",
        "after",
        "repeat",
        "oldest_due",
    }
)
_UNUSED: Final[Mapping[tuple[str, str] | None, tuple[str, ...]]] = {
    ("upload", "codat"): ("object_name",),
    ("upload", "wootiv"): ("file_name",),
    ("download", "codat"): ("objects",),
    ("download", "wootiv"): ("company_id",),
}


def command(asked: Namespace) -> int:
    """Print the text that was asked for, and return the exit code."""
    match asked.what:
        case "init":
            text = init_text()
        case "show":
            text = show(load(asked.config))
        case "names":
            text = mapping_names(asked.config)
        case _:
            text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    Screen().write(text)
    return 0


def init_text() -> str:
    """Return the example with its comments."""
    package = Path(__file__).parents[1]
    for place in (package / "_config" / "docferry.toml", package.parents[1] / "config" / "docferry.toml"):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise FileNotFoundError("docferry.toml is missing from the installation; install docferry again")


def show(settings: Settings, environ: Mapping[str, str] = os.environ) -> str:
    """Return the effective settings as TOML; for a key, only its origin."""
    return "\n".join(_lines(settings, environ)) + "\n"


def mapping_names(path: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the names of all mappings, one a line, also from a file with problems: shells complete them."""
    values = sources.collect(path, environ).values
    lists = [values[key] for key in ("upload", "download") if isinstance(values.get(key), list)]
    names = [entry["name"] for entries in lists for entry in entries if isinstance(entry, dict) and "name" in entry]
    return "".join(f"{escaped(name)}\n" for name in names if isinstance(name, str))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file, for editors."""
    found = Settings.model_json_schema(by_alias=True)
    found["required"] = [key for key in found.get("required", []) if key != "state_dir"]  # it has a default
    _without_titles(found)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "docferry.toml", **found}


def _lines(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    secrets = settings.secrets(environ)
    if settings.path:
        yield f"# from {escaped(str(settings.path))} and the environment"
    yield from _pairs(settings)
    yield from ("", "[retry]", *_pairs(settings.retry))
    for name, section, key in (
        ("codat", settings.codat, secrets.codat_key),
        ("wootiv", settings.wootiv, secrets.wootiv_key),
    ):
        yield from ("", f"[{name}]", *_pairs(section), _key(key))
    for name, plain in (("metrics", settings.metrics), ("web", settings.web)):
        yield from ("", f"[{name}]", *_pairs(plain))
    yield from _alerts(settings, environ)
    yield from ("", "[receipts]", *_pairs(settings.receipts), "", "[verify]", *_pairs(settings.verify))
    yield from ("", "[antivirus]", *_pairs(settings.antivirus))
    for upload in settings.uploads:
        yield from ("", "[[upload]]", *_pairs(upload))
    for download in settings.downloads:
        yield from ("", "[[download]]", *_pairs(download))


def _alerts(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    yield from ("", "[alerts]", *_pairs(settings.alerts))
    for receiver in settings.alerts.to:
        yield from ("", "[[alerts.to]]", *_pairs(receiver))
        if receiver.kind in ("email", "webhook", "ntfy"):
            found = receiver.secret(environ)
            yield f"# its secret: {found.problem or ('from ' + found.origin if found.origin else 'none found')}"
    yield from ("", "[heartbeat]", *_pairs(settings.heartbeat))


def _key(key: Key) -> str:
    if key.value is not None:
        return f'api_key = "{HIDDEN_KEY}"  # from {key.origin}'
    return f"# api_key: {key.problem or 'none found'}"


def _pairs(model: BaseModel) -> Iterator[str]:
    """Yield `key = value` for each plain value that is set."""
    for field, facts in type(model).model_fields.items():
        key = facts.alias or field
        value = getattr(model, key, None) if key == "settle" else getattr(model, field)
        tables = (
            isinstance(value, BaseModel)
            or key in ("upload", "download")
            or (isinstance(model, AlertsSettings) and key == "to")
        )
        if isinstance(model, Upload | Download) and key == "name":
            value = model.configured_name
        if isinstance(model, ReceiverSettings) and value == ():
            continue
        if value is None or tables or key == "api_key" or key in _UNUSED.get(_remote(model), ()):
            continue
        yield f"{key} = {_toml(_notation(key, value))}"


def _remote(model: BaseModel) -> tuple[str, str] | None:
    if isinstance(model, Upload):
        return "upload", model.to
    return ("download", model.source) if isinstance(model, Download) else None


def _notation(key: str, value: Any) -> Any:
    """Return a value in readable notation, if no precision is lost."""
    if key == "url":  # the path of a webhook is a secret
        parts = urlsplit(value)
        plain = f"{parts.scheme}://{parts.netloc}"
        return value if value.rstrip("/") == plain else f"{plain}/{HIDDEN_KEY}"
    if key == "database_url":
        scheme, _, rest = value.get_secret_value().partition("://")
        user, at, place = rest.rpartition("@")
        return f"{scheme}://{user.partition(':')[0]}{f':{HIDDEN_KEY}' if ':' in user else ''}{at}{place}"
    if key == "proxy":
        scheme, _, rest = value.partition("://")
        return f"{scheme}://{HIDDEN_KEY}@{rest.rpartition('@')[2]}" if "@" in rest else value
    if key in _DURATIONS and units.seconds(units.duration(value)) == value:
        return units.duration(value)
    return value


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case date():
            return value.isoformat()
        case tuple():
            return f"[{', '.join(_toml(each) for each in value)}]"
        case dict():
            return f"{{{', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())}}}"
        case _:
            return f'"{"".join(_character(char) for char in str(value))}"'


def _character(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def _without_titles(node: Any) -> None:
    """Remove the titles that are derived from field names; they repeat the key."""
    if isinstance(node, list):
        for each in node:
            _without_titles(each)
    if isinstance(node, dict):
        if isinstance(node.get("title"), str):
            del node["title"]
        for each in node.values():
            _without_titles(each)
