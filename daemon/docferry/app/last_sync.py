"""Store the result of the last one-shot `sync` in a small file of the state folder, for the metrics."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from docferry.store.state_dir import replace_file

_NAME = "last_sync.json"


class LastSync(Struct, frozen=True):
    """Hold the end of the last pass and of the last successful pass, wall seconds, and the last exit code."""

    ended: float
    exit_code: int
    succeeded: float | None


def write(state_dir: Path, exit_code: int, now: float) -> None:
    """Record the end of a pass. A state folder that cannot be written does not fail the pass."""
    known = read(state_dir)
    succeeded = now if exit_code == 0 else known.succeeded if known else None
    with suppress(OSError):
        replace_file(state_dir / _NAME, json.dumps(asdict(LastSync(now, exit_code, succeeded))))


def read(state_dir: Path) -> LastSync | None:
    """Return the last end; None if there was none or its file cannot be read."""
    try:
        said = json.loads((state_dir / _NAME).read_text(encoding="utf-8"))
        succeeded = said["succeeded"]
        return LastSync(float(said["ended"]), int(said["exit_code"]), None if succeeded is None else float(succeeded))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
