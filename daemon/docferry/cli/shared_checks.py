"""Check shared mappings for `docferry check`: whether this host and the others can read the folders."""

from __future__ import annotations

from docferry.cli.local_checks import Check
from docferry.cli.queue import open_queue
from docferry.clock import SystemClock
from docferry.detect.shared_folders import SharedFolders
from docferry.errors import DatabaseBusy, FolderError, StateError
from docferry.settings import Settings
from docferry.store.cursors import Cursors
from docferry.store.database import Database
from docferry.store.documents import Documents
from docferry.store.owners import LocalOwners, processes


async def shared(settings: Settings) -> list[Check]:
    """Return the findings about all shared mappings; none if the database cannot be read, which has its own finding."""
    if not any(upload.shared for upload in settings.uploads):
        return []
    try:
        async with open_queue(settings) as database:
            return [] if database is None else await _findings(settings, database)
    except (DatabaseBusy, StateError):
        return []


async def _findings(settings: Settings, database: Database) -> list[Check]:
    uploads = {upload.name: upload for upload in settings.uploads if upload.shared}
    cursors, owners = Cursors(database, SystemClock()), LocalOwners(settings.state_dir, "check")
    folders = SharedFolders(Documents(database, SystemClock()), cursors, owners, uploads)
    found = []
    for name, upload in uploads.items():
        try:
            looked = await folders.look(upload)
        except FolderError as error:
            found.append(Check("fail", name, str(error), "mount the share on this host", away=True))
        else:
            proof = "a known document lies in it" if looked.is_proved else "no document of it is known yet"
            found.append(Check("ok", name, f"the shared folder can be read: {proof}"))
    for process in await processes(database):
        for name in process.unreadable if process.is_alive else ():
            found.append(Check("warn", name, f"{process.host} cannot read it", "mount the share on that host"))
    return found
