"""Wake the upload and detection loops without callbacks between their packages."""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from docferry.model import Transfer


class Wakeup:
    """Hold a flag that one loop waits for. Several calls of `set` before the wait wake the loop once."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake the loop."""
        self._event.set()

    def clear(self) -> None:
        """Reset earlier calls of `set`. Clear before reading the work, so that no later call is lost."""
        if self._event.is_set():
            self._event = anyio.Event()

    async def wait(self) -> None:
        """Return as soon as the flag is set."""
        await self._event.wait()


class Wakeups:
    """Hold hints between the packages of one process. The database decides."""

    def __init__(self) -> None:
        self.upload = Wakeup()  # for the scheduler: the queue may have due transfers
        self.detection = Wakeup()  # for the scan scheduler: paths to check, or files that are not quiet yet
        self.after_upload = Wakeup()  # for the after-upload actions: files were sent, or a scan has ended
        self._paths: dict[str, set[bytes]] = {}
        self._large_paths: dict[str, set[bytes]] = {}
        self._scanned: set[str] = set()
        self._sent: dict[int, str] = {}
        self.needs_sent = False  # otherwise each document would wake an idle task

    def queue_changed(self) -> None:
        """Report to the scheduler that a transfer may be due."""
        self.upload.set()

    def debounce_changed(self) -> None:
        """Report to the scan scheduler that a file waits until it is quiet."""
        self.detection.set()

    def check_paths(self, mapping: str, paths: Iterable[bytes]) -> None:
        """Request checks of these paths, relative to the mapping's folder."""
        self._paths.setdefault(mapping, set()).update(paths)
        self.detection.set()

    def take_paths(self) -> dict[str, set[bytes]]:
        """Return and clear the paths to check, by mapping."""
        taken, self._paths = self._paths, {}
        return taken

    def check_large_paths(self, mapping: str, paths: Iterable[bytes]) -> None:
        """Request checks of these large files in the turns of their top-level folders."""
        self._large_paths.setdefault(mapping, set()).update(paths)
        self.detection.set()

    def take_large_paths(self) -> dict[str, set[bytes]]:
        """Return and clear the large files to check, by mapping."""
        taken, self._large_paths = self._large_paths, {}
        return taken

    def scanned(self, mapping: str) -> None:
        """Report to the after-upload actions that a scan has ended: failed actions are tried again."""
        self._scanned.add(mapping)
        self.after_upload.set()

    def take_scanned(self) -> set[str]:
        """Return and clear the mappings whose scan has ended."""
        taken, self._scanned = self._scanned, set()
        return taken

    def documents_sent(self, transfers: Iterable[Transfer]) -> None:
        """Report to the after-upload actions that these transfers were sent."""
        if not self.needs_sent:
            return
        self._sent.update((transfer.id, transfer.sha256) for transfer in transfers)
        self.after_upload.set()

    def take_sent(self) -> dict[int, str]:
        """Return and clear the sent transfers: the digest by the transfer's id."""
        taken, self._sent = self._sent, {}
        return taken
