"""Scan opened documents for viruses directly before they are sent: the same bytes, proved by the same fingerprint."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from docferry import logs
from docferry.files.source import FileSource
from docferry.model import Gate, Outcome, Reason, State, Transfer, escaped
from docferry.remotes.clamd import Clamd, ClamdError, ScanVerdict
from docferry.upload.gates import GateManager
from docferry.upload.selection import antivirus_gate

log = logs.get("antivirus")

#: The number of attempts after which a document is held on which a running clamd fails.
SCAN_TRIES: Final = 5


class Antivirus:
    """Run the scanner of one process, with its gates: one for each mapping with `antivirus = true`."""

    def __init__(self, clamd: Clamd, max_size: int, gate_manager: GateManager) -> None:
        self._clamd = clamd
        self._max_size = max_size
        self._gate_manager = gate_manager

    async def scan(self, mapping: str, transfer: Transfer, source: FileSource) -> Outcome | None:
        """Return None for a clean document, else its outcome. Raises SourceError."""
        if source.size > self._max_size:
            said = f"its {source.size:,} bytes are more than antivirus.max_size of {self._max_size:,}"
            return self._unscanned(transfer, said)
        key = antivirus_gate(mapping)
        gate = self._gate_manager.closed.get(key)
        if gate is not None and gate.until > self._gate_manager.now():
            return _blocked(transfer, gate, gate.until - self._gate_manager.now())
        try:
            async with aclosing(source.blocks()) as blocks:
                verdict = await self._clamd.scan(blocks)
        except ClamdError as error:
            return await self._failed(key, transfer, error)
        finally:
            source.is_wanted = False  # nothing was sent to the remote
        if gate is not None:
            await self._gate_manager.open(key)
        return self._outcome(transfer, verdict)

    def _outcome(self, transfer: Transfer, verdict: ScanVerdict) -> Outcome | None:
        if verdict.signature is not None:
            detail = f"clamd found {verdict.signature}; remove the file. A retry scans it again"
            log.error("infected", detail, mapping=transfer.mapping, name=transfer.remote_name)
            return Outcome(State.HELD, Reason.INFECTED, detail, costs_a_try=False)
        return None if verdict.too_large is None else self._unscanned(transfer, f"clamd says: {verdict.too_large}")

    async def _failed(self, key: str, transfer: Transfer, error: ClamdError) -> Outcome:
        if not error.about_document:
            gate = self._gate_manager.next_gate(key, Reason.ANTIVIRUS, f"{error}; nothing of the mapping is sent")
            await self._gate_manager.close(gate)
            return _blocked(transfer, gate, gate.until - self._gate_manager.now())
        if transfer.tries + 1 >= SCAN_TRIES:
            return self._unscanned(transfer, str(error))
        state = State.DOUBTFUL if transfer.state is State.ASKING else State.WAITING
        return Outcome(state, transfer.reason, str(error), delay=self._gate_manager.pause(transfer))

    def _unscanned(self, transfer: Transfer, why: str) -> Outcome:
        advice = "let clamd take it (StreamMaxLength, MaxFileSize, antivirus.max_size), then run `docferry retry`"
        detail = f"{escaped(transfer.remote_name)} was not scanned: {why}; {advice}"
        log.warning("unscanned", detail, mapping=transfer.mapping, name=transfer.remote_name)
        return Outcome(State.HELD, Reason.UNSCANNED, detail, costs_a_try=False)


def _blocked(transfer: Transfer, gate: Gate, wait: float) -> Outcome:
    """Return the outcome of a document that waits for clamd; a doubtful document stays doubtful."""
    if transfer.state is State.ASKING:
        return Outcome(State.DOUBTFUL, transfer.reason, gate.detail, delay=wait, costs_a_try=False)
    return Outcome(State.WAITING, gate.reason, gate.detail, costs_a_try=False)
