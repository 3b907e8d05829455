"""Collect the configured values: the configuration file in its default places, and the environment over it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from docferry.errors import ConfigError
from docferry.model import escaped
from docferry.settings import trust
from docferry.settings.alerts import names_a_receiver, receiver_of

Loc = tuple[str | int, ...]  # the place of a value: ("upload", 2, "folder")

PREFIX: Final = "DOCFERRY_"
_NO_SETTINGS: Final = frozenset({"DOCFERRY_CONFIG", "DOCFERRY_CODAT__API_KEY", "DOCFERRY_WOOTIV__API_KEY"})
_PATHS: Final = frozenset(
    {
        "state_dir",
        "folder",
        "archive_folder",
        "ca_file",
        "cert_file",
        "key_file",
        "api_key_file",
        "password_file",
        "secret_file",
        "token_file",
        "url_file",
        "textfile",
    }
)
_SHARED_STATE_DIR: Final = Path("/var/lib/docferry")


class Written(Struct):
    """Hold the configured values with their origin, and the problems found before validation."""

    path: Path
    values: dict[str, Any]
    variables: dict[Loc, str] = field(default_factory=dict)  # the values from the environment
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect(path: Path | None, environ: Mapping[str, str]) -> Written:
    """Return the configuration file with the environment laid over it, its paths made absolute.

    Raises ConfigError if no file is found, or the file cannot be used.
    """
    file, warnings = choose_file(path, environ)
    written = _read(file)
    written.warnings += warnings
    _lay_over(written, environ)
    _make_absolute(written.values, file.parent, environ)
    if not written.values.get("state_dir"):
        written.values["state_dir"] = str(_default_state_dir(environ, file.parent))
    return written


def choose_file(path: Path | None, environ: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Return the file to read, and a warning for each ignored file.

    The file is the given one, else the first in the default places. A file in the working folder that others could
    change is ignored: a planted file must not steal a key.
    """
    named = path or (Path(environ["DOCFERRY_CONFIG"]) if environ.get("DOCFERRY_CONFIG") else None)
    if named is not None:
        return _named(named, "--config" if path else "$DOCFERRY_CONFIG"), []
    warnings: list[str] = []
    places = usual_places(environ)
    for place in places:
        if not _exists(place):
            continue
        if place == places[0] and (problem := trust.untrusted(place)) is not None:
            warnings.append(f"{escaped(str(place))} was passed over: {problem}")
            continue
        return place, warnings
    listed = ", ".join(escaped(str(place)) for place in places)
    advice = "Write one with: docferry config init > docferry.toml"
    raise ConfigError([*warnings, f"no configuration found; looked for {listed}. {advice}"])


def usual_places(environ: Mapping[str, str]) -> list[Path]:
    """Return the default places of the file, in order."""
    home = _home(environ)
    given = environ.get("XDG_CONFIG_HOME", "")
    config = Path(given) if given.startswith("/") else home / ".config" if home else None
    own = [config / "docferry" / "docferry.toml"] if config else []
    return [Path("docferry.toml").absolute(), *own, Path("/etc/docferry/docferry.toml")]


def default_state_dirs(environ: Mapping[str, str], base: Path) -> list[Path]:
    """Return the possible state folders without `state_dir`, with the effective one first.

    The effective folder is `$STATE_DIRECTORY`, else an existing /var/lib/docferry, else `$XDG_STATE_HOME/docferry`.
    """
    found: list[Path] = []
    if first := environ.get("STATE_DIRECTORY", "").split(":")[0]:
        found.append(Path(first))
    if _exists(_SHARED_STATE_DIR):
        found.append(_SHARED_STATE_DIR)
    given = environ.get("XDG_STATE_HOME", "")
    home = _home(environ)
    root = Path(given) if given.startswith("/") else home / ".local" / "state" if home else base
    return [*found, root / "docferry"]


def _default_state_dir(environ: Mapping[str, str], base: Path) -> Path:
    """Return the state folder without `state_dir`.

    If only a later one of the default folders has a queue, that folder stays in use: with a new, empty queue its
    documents would be sent again.
    """
    first, *others = default_state_dirs(environ, base)
    if environ.get("STATE_DIRECTORY") or _exists(first / "docferry.db"):
        return first
    return next((folder for folder in others if _exists(folder / "docferry.db")), first)


def _named(path: Path, by: str) -> Path:
    with suppress(PermissionError):  # reading the file reports it
        if not path.exists():
            raise ConfigError([f"{by} names {escaped(str(path))}, which does not exist"])
    return path.absolute()


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _read(path: Path) -> Written:
    shown = escaped(str(path))
    try:
        content, status = trust.read_regular_file(path)
        values = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{shown} cannot be read: {(error.strerror or 'unknown error').lower()}"]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{shown}, line {line}: is not UTF-8; save the file as UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax(shown, str(error))]) from None
    except (ValueError, RecursionError):  # a number of 5,000 digits, a thousand brackets
        raise ConfigError([f"{shown}: a value is larger than any setting can be; the file must be TOML"]) from None
    exposed = trust.exposed(status, path)
    sections = [name for name in ("codat", "wootiv") if "api_key" in _table(values.get(name))]
    if exposed and sections:
        advice = "(or use api_key_file)"
        return Written(path, values, problems=[f"{s}.api_key is in the file, and {exposed} {advice}" for s in sections])
    if (problem := trust.untrusted(path)) is not None:
        raise ConfigError([f"{shown} is not read: {problem}"])
    return Written(path, values)


def _syntax(shown: str, message: str) -> str:
    said, _, place = message.rpartition(" (at ")
    found = re.match(r"line (\d+), column (\d+)", place)
    where = f", line {found[1]}, column {found[2]}" if found else " at its end"
    return f"{shown}{where}: {escaped((said or message).lower())}; the file must be TOML"


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _lay_over(written: Written, environ: Mapping[str, str]) -> None:
    names = _receiver_names(written.values)
    written.problems += [
        f"${variable}: belongs to no receiver; there are: {', '.join(names) or 'none'}"
        for variable in sorted(environ)
        if receiver_of(variable) and not names_a_receiver(variable, names)
    ]
    for variable, loc in sorted(_locs(environ), key=lambda pair: [str(part).zfill(9) for part in pair[1]]):
        try:
            _put(written.values, loc, environ[variable])
        except LookupError as error:
            written.problems.append(f"${variable}: {error.args[0]}")
        else:
            written.variables[loc] = variable


def _receiver_names(values: Mapping[str, Any]) -> list[str]:
    """Return the valid names of receivers in the file."""
    receivers = _table(values.get("alerts")).get("to")
    found = [_table(each).get("name") for each in receivers] if isinstance(receivers, list) else []
    return [name for name in found if isinstance(name, str)]


def _locs(environ: Mapping[str, str]) -> Iterator[tuple[str, Loc]]:
    for variable, value in environ.items():
        if variable.startswith(PREFIX) and variable not in _NO_SETTINGS and not receiver_of(variable) and value:
            parts = variable.removeprefix(PREFIX).lower().split("__")
            yield variable, tuple(int(part) if part.isascii() and part.isdecimal() else part for part in parts)


def _put(values: Any, loc: Loc, value: str) -> None:
    """Set one value, and create the tables above it. A list accepts an existing index, or the next one."""
    for part, following in pairwise(loc):
        values = _part(values, part, [] if isinstance(following, int) else {})
    if isinstance(values, dict):
        values[str(loc[-1])] = value
    else:
        _part(values, loc[-1], value)
        values[loc[-1]] = value


def _part(values: Any, part: str | int, fresh: Any) -> Any:
    """Return the part of that name or number, created if absent."""
    if isinstance(values, dict):
        return values.setdefault(str(part), fresh)
    length = len(values) if isinstance(values, list) and isinstance(part, int) else -1
    if length < 0:
        raise LookupError("names a part of a value that has no parts")
    if int(part) > length:
        raise LookupError(f"there are {length}, counted from 0; number {part} is not among them")
    if part == length:
        values.append(fresh)
    return values[part]


def _make_absolute(values: Any, base: Path, environ: Mapping[str, str]) -> None:
    """Make paths relative to the configuration file absolute; `~/` is the home folder."""
    if isinstance(values, list):
        for value in values:
            _make_absolute(value, base, environ)
    elif isinstance(values, dict):
        for key, value in values.items():
            if key in _PATHS and isinstance(value, str) and value.strip():
                values[key] = _absolute(value, base, environ)
            else:
                _make_absolute(value, base, environ)


def _absolute(written: str, base: Path, environ: Mapping[str, str]) -> str:
    home = _home(environ)
    if home and (written == "~" or written.startswith("~/")):
        written = str(home) + written[1:]
    return os.path.normpath(base / written) if "\0" not in written else written


def _home(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return Path(home)
    try:
        return Path.home() if not home and environ is os.environ else None
    except RuntimeError:  # a user without an entry in passwd
        return None
