"""Open the client of the virus scanner, and remove the gates of mappings that no longer use it."""

from __future__ import annotations

from docferry.remotes.clamd import Clamd
from docferry.settings import Settings
from docferry.settings.antivirus import clamd_address
from docferry.store.gates import Gates
from docferry.upload.antivirus import Antivirus
from docferry.upload.gates import GateManager
from docferry.upload.selection import antivirus_gate


def open_clamd(settings: Settings) -> Clamd | None:
    """Return a client of clamd; None if no clamd is configured."""
    written = settings.antivirus.clamd
    return None if written is None else Clamd(*clamd_address(written))


def open_antivirus(settings: Settings, gate_manager: GateManager) -> Antivirus | None:
    """Return the virus scanner for documents before they are sent, None if none is configured."""
    clamd = open_clamd(settings)
    return None if clamd is None else Antivirus(clamd, settings.antivirus.max_size, gate_manager)


async def forget_gates(settings: Settings, gates: Gates) -> None:
    """Open the gates of mappings that no longer have `antivirus = true`."""
    asking = {antivirus_gate(upload.name) for upload in settings.uploads if upload.antivirus}
    for key in await gates.all():
        if key.startswith(antivirus_gate("")) and key not in asking:
            await gates.open_one(key)
