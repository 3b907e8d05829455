"""Resolve the names in a command: the settings, mappings and reasons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from docferry import settings
from docferry.cli.output import complain
from docferry.errors import ConfigError
from docferry.model import Reason, escaped
from docferry.settings import Settings
from docferry.settings.outbox import outboxes


def load(path: Path | None) -> Settings:
    """Return the settings of the given or default file; print ignored files and waiting mappings on stderr."""
    found = settings.load(path)
    complain(*(f"warning: {sentence}" for sentence in found.passed_over))
    complain(*(f'warning: mapping "{escaped(name)}": {why}' for name, why in found.unanswered.items()))
    return found


def mappings(wanted: Settings, names: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """Return the names without repetitions.

    Raises ConfigError for a name that is neither configured nor in `also`, and suggests the nearest name.
    """
    known = [*(each.name for each in wanted.uploads), *(each.name for each in wanted.downloads), *also]
    problems = [_unknown(name, known) for name in names if name not in known]
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(names))


def reason(code: str | None) -> str | None:
    """Return the reason code. Raises ConfigError for an unknown code, and suggests the nearest one."""
    if code is not None and code not in list(Reason):
        raise ConfigError([_unknown(code, list(Reason), "reason")])
    return code


def roots(wanted: Settings) -> dict[str, bytes]:
    """Return the root folder of each upload mapping and of its outbox, as bytes."""
    uploads = [*wanted.uploads, *outboxes(wanted.uploads, wanted.state_dir, wanted.host_name).values()]
    return {upload.name: os.fsencode(upload.root) for upload in uploads}


def _unknown(name: str, known: Sequence[str], kind: str = "mapping") -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    cure = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known) or 'none'}"
    return escaped(f'there is no {kind} "{name}"; {cure}')
