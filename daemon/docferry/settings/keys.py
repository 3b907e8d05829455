"""Find the API keys: environment, systemd credential, key file, configuration file; the first one counts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from docferry.errors import ConfigError
from docferry.model import RemoteName, escaped
from docferry.settings import trust

HIDDEN_KEY: Final = "(hidden)"  # the text of `config show` in place of a key


@dataclass(frozen=True, slots=True)
class Key:
    """Hold one remote's key, a description of its origin, and the problem if there is no key."""

    value: str | None = field(default=None, repr=False)
    origin: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """Hold the present keys of both remotes. The representation shows neither."""

    codat: str | None = field(default=None, repr=False)
    wootiv: str | None = field(default=None, repr=False)
    codat_key: Key = field(default_factory=Key)
    wootiv_key: Key = field(default_factory=Key)

    def known(self) -> tuple[str, ...]:
        """Return every key, for `logs.hide`."""
        return tuple(key for key in (self.codat, self.wootiv) if key)


def find(
    remote: RemoteName,
    environ: Mapping[str, str],
    *,
    key_file: Path | None,
    written: str | None,
    written_in: Path | None,
) -> Key:
    """Return the key of a remote, read again from the first place that has one."""
    for variable in (f"DOCFERRY_{remote.upper()}__API_KEY", f"{remote.upper()}_API_KEY"):
        if environ.get(variable, "").strip():
            return _checked(environ[variable], f"${variable}")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory, f"{remote}_api_key") if directory else None
    if credential is not None and credential.exists():
        return _from_file(credential, f"the systemd credential {remote}_api_key")
    if key_file is not None:
        origin = f"api_key_file {escaped(str(key_file))}"
        if (problem := trust.unsafe_key_file(key_file)) is not None:
            return Key(origin=origin, problem=f"{origin} is not read: {problem}")
        return _from_file(key_file, origin)
    if written is not None and written_in is not None:
        again = _written_again(remote, written_in)
        return _checked(again if again is not None else written, f"api_key in {escaped(str(written_in))}")
    return Key()


def find_secret(
    environ: Mapping[str, str], *, variable: str, credential: str | None, file: Path | None, file_key: str
) -> Key:
    """Return a secret that belongs to no remote, read again from its variable, systemd credential or file."""
    if environ.get(variable, "").strip():
        return _checked(environ[variable], f"${variable}")
    directory = environ.get("CREDENTIALS_DIRECTORY")
    place = Path(directory, credential) if directory and credential else None
    if place is not None and place.exists():
        return _from_file(place, f"the systemd credential {credential}")
    if file is not None:
        origin = f"{file_key} {escaped(str(file))}"
        if (problem := trust.unsafe_key_file(file)) is not None:
            return Key(origin=origin, problem=f"{origin} is not read: {problem}")
        return _from_file(file, origin)
    return Key()


def _from_file(path: Path, origin: str) -> Key:
    try:
        raw, _ = trust.read_regular_file(path)
    except OSError as error:
        return Key(origin=origin, problem=f"{origin} cannot be read: {(error.strerror or 'unknown error').lower()}")
    except ConfigError as error:
        return Key(origin=origin, problem=f"{origin} cannot be read: {error.problems[0]}")
    return _checked(raw.decode("utf-8", "replace"), origin)


def _checked(written: str, origin: str) -> Key:
    value = written.strip()
    if not value:
        return Key(origin=origin, problem=f"{origin} is empty")
    if value == HIDDEN_KEY:
        return Key(origin=origin, problem=f"{origin} is what `config show` writes instead of a key")
    if not (value.isascii() and value.isprintable()):
        return Key(origin=origin, problem=f"{origin} holds more than one line, or characters that no key has")
    return Key(value=value, origin=origin)


def _written_again(remote: RemoteName, path: Path) -> str | None:
    """Return the present key in the file; None for a broken or exposed file, which changes nothing."""
    try:
        content, status = trust.read_regular_file(path)
        if trust.exposed(status, path):
            return None
        section = tomllib.loads(content.decode("utf-8-sig")).get(remote)
    except (OSError, ValueError, ConfigError):
        return None
    value = section.get("api_key") if isinstance(section, dict) else None
    return value if isinstance(value, str) else None
