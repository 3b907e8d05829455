"""Read the state of a watch from the daemon's status file."""

from __future__ import annotations

import json
from typing import Any

from app_env import until
from faults.conftest import FaultEnv


def watch_status(fault_env: FaultEnv, mapping: str) -> dict[str, Any]:
    """Return the status of a mapping as the daemon last wrote it."""
    try:
        found: dict[str, Any] = json.loads((fault_env.state / "status.json").read_text())["mappings"][mapping]
    except (OSError, ValueError, KeyError):
        return {"watch": "", "problem": None, "unsettled": []}
    return found


def wait_until_watched(fault_env: FaultEnv, mapping: str = "bank") -> None:
    until(lambda: watch_status(fault_env, mapping)["watch"] == "watching", what="the folder being watched")
