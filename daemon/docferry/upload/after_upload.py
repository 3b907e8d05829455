"""Archive or delete sent files, as their mapping asks; what cannot be done now is tried again after every scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread

from docferry import logs
from docferry.errors import FolderError
from docferry.files import outbox
from docferry.files.safe_open import Root
from docferry.files.sent_files import Fate, Removal, SentFile, remove
from docferry.settings import Upload
from docferry.settings.outbox import Outbox
from docferry.store.documents import Documents
from docferry.wakeups import Wakeups

log = logs.get("after_upload")

#: Files of one turn of a mapping.
FILES_AT_ONCE: Final = 256
#: What is sent within this time is looked up together, seconds: every document wakes this task.
GATHER_S: Final = 0.2


class AfterUpload:
    """Removes sent files, apart from the uploads, so that a slow disk delays none of them.

    Only the version that was sent is removed. A file that was replaced, or that a program has open for writing, stays.
    """

    def __init__(self, uploads: Mapping[str, Upload], documents: Documents, wakeups: Wakeups) -> None:
        self._uploads = {name: upload for name, upload in uploads.items() if upload.after_upload != "keep"}
        self._documents = documents
        self._wakeups = wakeups
        wakeups.needs_sent = bool(self._uploads)
        self._sent: dict[str, list[SentFile]] = {}
        self._scanned: set[str] = set()  # mappings to catch up with
        self._failed: dict[str, dict[int, str]] = {}  # by mapping: document and reason of the files that stay
        self._logged: set[tuple[str, str]] = set()  # mapping and reason
        self._serving = anyio.Lock()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._wakeups.after_upload.clear()
            await self.serve()
            await self._wakeups.after_upload.wait()
            await anyio.sleep(GATHER_S)

    async def serve(self) -> None:
        """Remove the files that were sent since the last call, and what is left in mappings that were scanned since."""
        async with self._serving:
            await self._take_sent()
            while self._sent:  # mappings take turns
                for mapping, files in list(self._sent.items()):
                    await self._remove(self._uploads[mapping], files[:FILES_AT_ONCE])
                    del files[:FILES_AT_ONCE]
                    if not files:
                        del self._sent[mapping]
            self._scanned |= self._wakeups.take_scanned() & self._uploads.keys()
            while self._scanned:
                mapping = next(iter(self._scanned))
                await self._catch_up(self._uploads[mapping])
                self._scanned.discard(mapping)  # a call that was cancelled leaves it to the next one

    def problem(self, mapping: str) -> str | None:
        """Return one sentence with the number of sent files that cannot be removed, None when there are none."""
        failed = self._failed.get(mapping)
        return _sentence(self._uploads[mapping], len(failed), next(iter(failed.values()))) if failed else None

    async def _take_sent(self) -> None:
        """Queue the files of transfers that were just sent."""
        digests = self._wakeups.take_sent()
        if not digests:
            return
        with anyio.CancelScope(shield=True):  # a stop in between would forget them until the next scan
            found = await self._documents.places(list(digests))
        for transfer_id, places in found.items():
            for place in places:
                if place.mapping in self._uploads:
                    file = SentFile(place.document_id, place.path, place.stamp, digests[transfer_id])
                    self._sent.setdefault(place.mapping, []).append(file)

    async def _catch_up(self, upload: Upload) -> None:
        """Try all sent files of a mapping that still exist. Files that fail keep no others from being tried."""
        self._failed.pop(upload.name, None)
        after = 0
        while delivered := await self._documents.delivered(upload.name, after=after, limit=FILES_AT_ONCE):
            after = delivered[-1][0]
            await self._remove(upload, [SentFile(*row) for row in delivered])
        if isinstance(upload, Outbox):
            await anyio.to_thread.run_sync(outbox.sweep, upload.root)
        if upload.name not in self._failed:
            self._logged = {key for key in self._logged if key[0] != upload.name}

    async def _remove(self, upload: Upload, files: Sequence[SentFile]) -> None:
        archive = upload.archive_folder if upload.after_upload == "archive" else None
        into = None if archive is None else Root(archive, upload.follow_root_links)
        try:
            removals = await anyio.to_thread.run_sync(remove, Root.of(upload), files, into)
        except FolderError:
            return  # the scan reports the folder
        await self._documents.mark_removed([each.file.document_id for each in removals if each.fate is Fate.DONE])
        changed = [each.file.path for each in removals if each.fate is Fate.REPLACED]
        if changed:
            self._wakeups.check_paths(upload.name, changed)
        self._report(upload, [each for each in removals if each.fate is Fate.FAILED])

    def _report(self, upload: Upload, failed: Sequence[Removal]) -> None:
        """Log each reason once, with one of its files; `status` has the number."""
        for removal in failed:
            self._failed.setdefault(upload.name, {})[removal.file.document_id] = removal.detail
            key = (upload.name, removal.detail)
            if key not in self._logged:
                self._logged.add(key)
                alike = sum(each.detail == removal.detail for each in failed)
                message = _sentence(upload, alike, removal.detail)
                log.error("not_removed", message, mapping=upload.name, path=removal.file.path, files=alike)


def _sentence(upload: Upload, count: int, reason: str) -> str:
    verb = "archived" if upload.after_upload == "archive" else "deleted"
    files = "1 sent file" if count == 1 else f"{count:,} sent files"
    return f"{files} cannot be {verb} ({reason}); the next scan tries again"
