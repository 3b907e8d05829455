"""Archive or delete sent files, by the option of their mapping; repeat failed actions after every scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread

from docferry import logs
from docferry.errors import FolderError
from docferry.files import outbox
from docferry.files.folder_thread import run_in_folder
from docferry.files.safe_open import Root
from docferry.files.sent_files import Fate, Removal, SentFile, remove
from docferry.settings import Upload
from docferry.settings.outbox import Outbox
from docferry.store.documents import Documents
from docferry.store.refusals import refusal_logged
from docferry.wakeups import Wakeups

log = logs.get("after_upload")

#: Files of one batch of a mapping.
FILES_AT_ONCE: Final = 256
#: Documents sent within this time are looked up together, seconds: every document wakes this task.
GATHER_S: Final = 0.2


class AfterUpload:
    """Remove sent files separately from the uploads, so that a slow disk does not delay uploads.

    Only the sent version is removed. A replaced file, or one that a program has open for writing, stays.
    """

    def __init__(self, uploads: Mapping[str, Upload], documents: Documents, wakeups: Wakeups) -> None:
        self._uploads = {
            name: upload
            for name, upload in uploads.items()
            if upload.after_upload != "keep" and upload.unanswered is None
        }
        self._documents = documents
        self._wakeups = wakeups
        wakeups.needs_sent = bool(self._uploads)
        self._sent: dict[str, list[SentFile]] = {}
        self._scanned: set[str] = set()  # mappings to process again
        self._failed: dict[str, dict[int, str]] = {}  # by mapping: document and reason of the remaining files
        self._logged: set[tuple[str, str]] = set()  # mapping and reason
        self.serving = anyio.Lock()  # held while files are removed and until the database knows it

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._wakeups.after_upload.clear()
            await self.serve()
            await self._wakeups.after_upload.wait()
            await anyio.sleep(GATHER_S)

    async def serve(self) -> None:
        """Remove the files sent since the last call, and remaining ones in mappings scanned since."""
        async with self.serving:
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
                with refusal_logged(f"sent files of {mapping}"):  # tried again after the next scan
                    await self._catch_up(self._uploads[mapping])
                self._scanned.discard(mapping)  # the next call continues after a cancellation

    def problem(self, mapping: str) -> str | None:
        """Return one sentence with the number of sent files that cannot be removed, None if there are none."""
        failed = self._failed.get(mapping)
        return _sentence(self._uploads[mapping], len(failed), next(iter(failed.values()))) if failed else None

    async def _take_sent(self) -> None:
        """Queue the files of newly sent transfers."""
        digests = self._wakeups.take_sent()
        if not digests:
            return
        with anyio.CancelScope(shield=True):  # a stop in between would delay them until the next scan
            found = await self._documents.places(list(digests))
        for transfer_id, places in found.items():
            for place in places:
                if place.mapping in self._uploads:
                    file = SentFile(place.document_id, place.path, place.stamp, digests[transfer_id])
                    self._sent.setdefault(place.mapping, []).append(file)

    async def _catch_up(self, upload: Upload) -> None:
        """Try all existing sent files of a mapping; failures do not stop the others."""
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
            removals = await run_in_folder(Root.of(upload), remove, Root.of(upload), files, into)
        except FolderError:
            return  # the scan reports the problem of the folder
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
