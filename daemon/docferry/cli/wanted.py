"""What a command was asked to work on: the settings, and the mappings by name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from docferry import settings
from docferry.errors import ConfigError
from docferry.model import escaped
from docferry.settings import Settings


def load(path: Path | None) -> Settings:
    return settings.load(path)


def mappings(wanted: Settings, names: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """The names as they are; ConfigError names each that is neither configured nor in `also`, and the nearest."""
    known = [*(each.name for each in wanted.uploads), *(each.name for each in wanted.downloads), *also]
    problems = [_unknown(name, known) for name in names if name not in known]
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(names))


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(known) or "none"
    cure = f'did you mean "{near[0]}"?' if near else f"the configuration has {listed}"
    return escaped(f'there is no mapping "{name}"; {cure}')
