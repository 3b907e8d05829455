"""Check without a network: configuration, state folder, mapped folders, and limits of the kernel."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct, field

from docferry.cli.output import count
from docferry.detect.left_out import LeftOut, unmatched
from docferry.errors import ConfigError, FolderError, StateError
from docferry.files import lease_service, scan
from docferry.files.safe_open import FILE, OpenRoot, Root, replaceable
from docferry.files.write_lease import no_writer
from docferry.model import Target, escaped, joined
from docferry.receipts.heads import open_signer
from docferry.settings import Download, Settings, Upload, missing_keys
from docferry.settings.outbox import outboxes
from docferry.settings.patterns import EVERYTHING
from docferry.settings.real_paths import RealPaths
from docferry.store import state_dir
from docferry.store.second_queue import second_queues

Level = Literal["ok", "note", "warn", "fail"]

#: Free space below which a check warns, and below which it fails, bytes.
ROOMY, TIGHT = 1_000_000_000, 100_000_000
_CAP_LEASE: Final = 28  # from linux/capability.h
#: The largest number of connections checked among those named by folders; each costs a request of the daily quota.
MOST_ASKED: Final = 20


class Check(Struct, frozen=True):
    """Hold the result of one check, with the fix of a problem. `away` marks a problem that may pass by itself."""

    level: Level
    subject: str
    detail: str
    cure: str = ""
    away: bool = False


class FolderCounts(Struct):
    """Hold the counts of one walk through a mapping's folder."""

    folders: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    sample: bytes | None = None  # a document for testing leases
    left_out: LeftOut = field(default_factory=LeftOut)
    paths: list[bytes] = field(default_factory=list)  # of all files, if the mapping has its own patterns


def local(settings: Settings) -> Iterator[Check]:
    """Yield the findings of all checks that need no network."""
    yield Check("ok", "configuration", escaped(str(settings.path)))
    yield from (Check("warn", "configuration", sentence) for sentence in (*settings.passed_over, *settings.warnings))
    yield from _keys(settings)
    yield from _state(settings)
    if settings.database_url is None:
        yield from _sqlite()
    watched = 0
    for upload in settings.uploads:
        walked = FolderCounts()
        yield from _upload(upload, walked)
        watched += 0 if upload.poll else walked.folders
    for download in settings.downloads:
        yield from _download(download, settings.state_dir)
    yield from _outboxes(settings)
    yield from object_names(settings.uploads)
    yield from _alerts(settings)
    yield from _receipts(settings)
    if settings.uploads:
        yield from _limits(watched, sum(not upload.poll for upload in settings.uploads))


def _outboxes(settings: Settings) -> Iterator[Check]:
    """Report outboxes that contain documents but belong to no mapping: these documents are never sent."""
    served = {box.root for box in outboxes(settings.uploads, settings.state_dir, settings.host_name).values()}
    with suppress(OSError):
        for folder in sorted((settings.state_dir / "outbox").iterdir()):
            if folder not in served and (left := sum(path.is_file() for path in folder.rglob("*"))):
                said = f"{count(left, 'document')} in {escaped(str(folder))} belong to a mapping that is not configured"
                yield Check("warn", "outbox", said, "configure the mapping again, or move the documents away")


def object_names(uploads: Iterable[Upload]) -> Iterator[Check]:
    """Warn if two mappings can produce one object name: the second file with that name is held as `name_taken`."""
    known: list[Upload] = []
    for upload in uploads:
        if upload.to != "wootiv" or "{mapping}" in upload.object_name:
            continue
        start = upload.object_name.partition("{")[0]
        for other in known:
            other_start = other.object_name.partition("{")[0]
            if start.startswith(other_start) or other_start.startswith(start):
                detail = f'its object names can be those of "{other.name}"; the second file of a name is held'
                yield Check("warn", upload.name, detail, 'separate them: object_name = "{mapping}/{path}"')
                break
        known.append(upload)


def _receipts(settings: Settings) -> Iterator[Check]:
    """Check that the key of the receipts can be read, and that heads can be appended to each anchor file."""
    try:
        if settings.receipts.key_file is not None:
            open_signer(settings.receipts.key_file)
            yield Check("ok", "receipts", f"heads are signed with {escaped(str(settings.receipts.key_file))}")
    except ConfigError as error:
        yield from (Check("fail", "receipts", problem) for problem in error.problems)
    real = RealPaths(settings.receipts.files)
    for file in settings.receipts.files:
        if not real[file].answers:
            detail = f"{escaped(str(file))} does not answer"
            yield Check("fail", "receipts", detail, "is its server there?", away=True)
            continue
        where = file if file.exists() else file.parent
        if not os.access(where, os.W_OK):
            advice = "mount it, or let this user write there"
            yield Check("fail", "receipts", f"heads cannot be appended to {escaped(str(file))}", advice, away=True)
        elif where.stat().st_dev == _device(settings.state_dir):
            sentence = f"{escaped(str(file))} is on the file system of the state folder: both are lost together"
            yield Check("warn", "receipts", sentence, "name a file on other storage in [receipts] anchor")


def _device(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


def _alerts(settings: Settings) -> Iterator[Check]:
    """Check that each receiver has an address and a secret. Only `docferry alerts test` checks delivery."""
    for receiver in settings.alerts.to:
        needed = [receiver.secret()] + ([receiver.address()] if receiver.url_file is not None else [])
        problems = [found.problem for found in needed if found.problem is not None]
        yield from (Check("fail", f"alerts to {receiver.name}", *_split(problem)) for problem in problems)
        if not problems:
            yield Check(
                "ok", f"alerts to {receiver.name}", f"{receiver.kind}; try it: docferry alerts test {receiver.name}"
            )
    problem = settings.heartbeat.address().problem
    if problem is not None:
        yield Check("fail", "heartbeat", *_split(problem))


def targets(settings: Settings) -> tuple[list[Target], int]:
    """Return the companies and connections of the mappings, and the number of skipped ones.

    Of the targets that folders name by placeholders, return at most MOST_ASKED.
    """
    found = [
        Target(upload.to, upload.company_id, upload.connection_id) for upload in settings.uploads if not _open(upload)
    ]
    found += [Target("codat", company) for download in settings.downloads for company in download.companies]
    by_folder: dict[Target, None] = {}
    for upload in settings.uploads:
        if _open(upload) and upload.unanswered is None:
            by_folder.update(dict.fromkeys(_by_folders(upload)))
    named = [target for target in dict.fromkeys(found) if target.remote == "codat"]
    return [*named, *list(by_folder)[:MOST_ASKED]], max(0, len(by_folder) - MOST_ASKED)


def _open(upload: Upload) -> bool:
    return bool(upload.placeholders)


def _by_folders(upload: Upload) -> Iterator[Target]:
    """Yield the targets of the existing folders at the levels of the placeholders."""
    ahead: list[tuple[bytes, int]] = [(b"", 0)]
    while ahead:
        folder, depth = ahead.pop()
        if depth == len(upload.levels):
            target = upload.route(folder + b"/x").target
            if target is not None:
                yield target
            continue
        for name in _subfolders(os.fsencode(upload.root), folder):
            path = joined(folder, name)
            if upload.enters(path):
                ahead.append((path, depth + 1))


def _subfolders(root: bytes, folder: bytes) -> list[bytes]:
    try:
        with os.scandir(root + b"/" + folder) as found:
            return sorted((each.name for each in found if each.is_dir(follow_symlinks=False)), reverse=True)
    except OSError:
        return []


def _keys(settings: Settings) -> Iterator[Check]:
    secrets = settings.secrets()
    missing = missing_keys(settings, secrets)
    yield from (Check("fail", "key", *_split(sentence)) for sentence in missing)
    for remote, key in (("codat", secrets.codat_key), ("wootiv", secrets.wootiv_key)):
        if remote in settings.remotes and key.value is not None:
            yield Check("ok", "key", f"{remote}: from {key.origin}")


def _state(settings: Settings) -> Iterator[Check]:
    folder, shown = settings.state_dir, escaped(str(settings.state_dir))
    if not _exists(folder):
        parent = _nearest(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Check("ok", "state folder", f"{shown} is created at the first start")
        else:
            cure = f"create it: mkdir -m 700 {shown}; or set state_dir"
            yield Check("fail", "state folder", f"{shown} does not exist, and this user cannot create it", cure)
            return
    else:
        try:
            with state_dir.usable(folder):
                problem = state_dir.problem_of(folder)
        except StateError as error:
            problem = str(error)
        if problem is not None:
            yield Check("fail", "state folder", *_split(problem))
            return
        if not os.access(folder, os.W_OK | os.X_OK):
            yield Check("fail", "state folder", f"{shown} cannot be written", "run docferry as the user that owns it")
            return
        yield Check("ok", "state folder", shown)
    for sentence in second_queues(settings):
        yield Check("warn", "state folder", *_split(sentence))
    free = shutil.disk_usage(_nearest(folder)).free
    level: Level = "fail" if free < TIGHT else "warn" if free < ROOMY else "ok"
    cure = "" if level == "ok" else "free disk space, or set state_dir to a larger disk"
    yield Check(level, "disk space", f"{free / 1e9:.1f} GB free for the state folder", cure)


def _sqlite() -> Iterator[Check]:
    found = sqlite3.sqlite_version_info
    mended = found >= (3, 51, 3) or (3, 50, 7) <= found < (3, 51) or (3, 44, 6) <= found < (3, 45)
    said = f"SQLite {sqlite3.sqlite_version}"
    if mended:
        yield Check("ok", "database", said)
    else:
        cure = "upgrade SQLite to 3.51.3, 3.50.7 or 3.44.6 when it is available"
        yield Check("warn", "database", f"{said} has a rare defect in its write-ahead log (WAL reset)", cure)


def _upload(upload: Upload, walked: FolderCounts) -> Iterator[Check]:
    root = Root.of(upload)
    if upload.unanswered is not None:
        yield Check("fail", upload.name, upload.unanswered, away=True)
        return
    try:
        for listings in scan.walk(root, upload):
            _count(upload, listings, walked)
    except FolderError as error:
        yield Check("fail", upload.name, *_split(str(error)), away=True)
        return
    yield from _root_links(upload, root)
    for problem in walked.problems[:5]:
        yield Check("warn", upload.name, problem, "let docferry's user read it, or exclude it")
    if len(walked.problems) > 5:
        yield Check("warn", upload.name, f"{len(walked.problems) - 5} more folders cannot be read")
    for sentence in [*walked.left_out.sentences(upload), *unmatched(upload, walked.paths)]:
        detail, _, cure = sentence.partition(": ")
        yield Check("warn", upload.name, detail, cure)
    if walked.files:
        documents = f"{count(walked.files, 'document')} in {count(walked.folders, 'folder')}"
        yield Check("ok", upload.name, f"{root.shown}: {documents}")
    else:
        yield Check("note", upload.name, f"{root.shown} has no documents; if it is a share: is it mounted?")
    yield from _lease(upload, root, walked)
    if upload.after_upload != "keep" and not os.access(root.raw, os.W_OK):
        cure = 'let docferry\'s user write there, or set after_upload = "keep"'
        yield Check("fail", upload.name, f'after_upload = "{upload.after_upload}" needs to write in {root.shown}', cure)


def _root_links(upload: Upload, root: Root) -> Iterator[Check]:
    """Report a component of the folder's path that an unprivileged user could replace by a link."""
    if upload.follow_root_links or (found := replaceable(root)) is None:
        return
    detail = f"{escaped(found)} can be replaced by other users; a link in its place is not followed"
    cure = "let root own the folder above it, without write permission for others; or set follow_root_links = true"
    yield Check("warn", upload.name, detail, cure)


def _count(upload: Upload, listings: Iterable[scan.Listing], walked: FolderCounts) -> None:
    for listing in listings:
        walked.folders += 1
        walked.left_out.add_listing(listing)
        if listing.problem is not None:
            walked.problems.append(listing.problem)
        for name, *_ in listing.files:
            path = joined(listing.folder, name)
            if upload.include != EVERYTHING:
                walked.paths.append(path)
            if upload.wanted(path):
                walked.files += 1
                walked.left_out.documents += 1
                walked.sample = walked.sample or path
            else:
                walked.left_out.add_unwanted(upload, [path])


def _lease(upload: Upload, root: Root, walked: FolderCounts) -> Iterator[Check]:
    """Report where the kernel cannot detect writers, so that only `settle` protects unfinished files."""
    told = True if os.geteuid() == 0 or _has_cap_lease() or lease_service.is_reachable() else None
    if walked.sample is not None:
        try:
            with OpenRoot(root) as opened, opened.opened(walked.sample, FILE) as descriptor:
                told = no_writer(descriptor)
        except OSError as error:
            cure = "let docferry's user read the documents"
            yield Check("fail", upload.name, f"{escaped(walked.sample)} cannot be read: {error.strerror}", cure)
            return
    if told is None:
        detail = (
            "the kernel does not tell docferry which files are open for writing, so that only settle decides: "
            "an upload that pauses for longer is sent in parts"
        )
        cure = "start docferry-lease.socket, or run docferry as the files' owner; else choose a generous settle"
        yield Check("warn", upload.name, detail, cure)


def _has_cap_lease() -> bool:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_LEASE & 1)
    return False


def _download(download: Download, state_dir: Path) -> Iterator[Check]:
    if download.unanswered is not None:
        yield Check("fail", download.name, download.unanswered, away=True)
        return
    for folder in dict.fromkeys(download.folders):
        shown, place = escaped(str(folder)), _nearest(folder)
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            cure = f"create {shown} and let docferry's user write there"
            yield Check("fail", download.name, f"{shown} cannot be written by this user", cure)
            continue
        will = "" if _exists(folder) else "; it is created when needed"
        yield Check("ok", download.name, f"{shown} can be written{will}")
        with suppress(OSError):
            if place.stat().st_dev != _nearest(state_dir).stat().st_dev:
                detail = f"{shown} is on another filesystem than the state folder: files are copied once more"
                yield Check("note", download.name, detail)


def _limits(folders: int, roots: int) -> Iterator[Check]:
    for name, needed, what in (
        ("max_user_watches", folders, "folders to watch"),
        ("max_user_instances", roots + 2, "watches of whole trees, to be safe"),
    ):
        try:
            limit = int(Path("/proc/sys/fs/inotify", name).read_text())
        except (OSError, ValueError):
            continue
        said = f"{needed:,} {what}; the kernel allows {limit:,}"
        if needed <= limit * 0.9:
            yield Check("ok", "inotify", said)
            continue
        wanted = max(limit * 2, needed * 2)
        cure = f"sysctl fs.inotify.{name}={wanted}, and in /etc/sysctl.d/; until then docferry scans instead"
        yield Check("warn", "inotify", said, cure)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # the folder exists and cannot be examined; opening it reports the reason


def _nearest(path: Path) -> Path:
    """Return the path, or its nearest existing parent folder."""
    return next((each for each in (path, *path.parents) if _exists(each)), Path("/"))


def _split(sentence: str) -> tuple[str, str]:
    """Split a sentence into the problem and the fix."""
    wrong, _, cure = sentence.partition("; ")
    if not cure and ": run " in wrong:
        wrong, _, cure = wrong.partition(": ")
    return wrong, cure
