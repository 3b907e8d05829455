"""Check values against each other: contradictions are errors, risky combinations are warnings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from docferry import endpoints
from docferry.model import escaped
from docferry.settings import overlaps
from docferry.settings.mappings import Download, Upload
from docferry.settings.outbox import SUFFIX
from docferry.settings.real_paths import RealPath
from docferry.settings.sources import Loc

if TYPE_CHECKING:
    from docferry.settings import Settings

Found = Iterator[tuple[Loc, str]]


def found(settings: Settings, upload_places: Sequence[int], download_places: Sequence[int]) -> Found:
    """Yield each contradiction: the key to change, and the fix. `places` are the numbers of the mappings."""
    uploads = list(zip(upload_places, settings.uploads, strict=True))
    downloads = list(zip(download_places, settings.downloads, strict=True))
    real = settings.real_paths
    if settings.retry.max < settings.retry.initial:
        yield ("retry", "max"), "must not be shorter than retry.initial"
    if "wootiv" in settings.remotes and settings.wootiv.base_url is None:
        yield ("wootiv", "base_url"), 'is missing and a mapping uses it; write base_url = "https://…" under [wootiv]'
    if settings.web.listen == settings.metrics.listen and not (settings.web.listen or ":0").endswith(":0"):
        yield ("web", "listen"), "is the address of metrics.listen too; choose another"
    yield from _of_receipts(settings)
    named = [("upload", at, upload.name) for at, upload in uploads]
    yield from _names_twice(named + [("download", at, download.name) for at, download in downloads])
    yield from _of_outboxes(uploads)
    yield from _duplicates(uploads)
    yield from overlaps.find(uploads, downloads, real)
    for at, upload in uploads:
        if upload.shared and settings.database_url is None:
            yield ("upload", at, "shared"), "is for a queue of several hosts; set database_url, or remove it"
        if _lies_in(real[upload.root], real[settings.state_dir]):
            yield ("upload", at, "folder"), "lies in the state folder, whose files are never sent; name another folder"
        if upload.antivirus and settings.antivirus.clamd is None:
            fix = 'is true without a scanner; write clamd = "unix:/run/clamav/clamd.ctl" under [antivirus]'
            yield ("upload", at, "antivirus"), fix
        checks = (_of_codat_upload, _of_archive) if upload.to == "codat" else (_of_wootiv_upload, _of_archive)
        for check in checks:
            yield from ((("upload", at, key), predicate) for key, predicate in check(upload))
    for at, download in downloads:
        check_download = _of_codat_download if download.source == "codat" else _of_wootiv_download
        yield from ((("download", at, key), predicate) for key, predicate in check_download(download))


def _of_receipts(settings: Settings) -> Found:
    for kind in ("email", "webhook"):
        if kind in settings.receipts.anchor and all(receiver.kind != kind for receiver in settings.alerts.to):
            yield ("receipts", "anchor"), f'has "{kind}" and no [[alerts.to]] is of this kind; add one'


def warnings(settings: Settings) -> tuple[str, ...]:
    """Return a sentence for each allowed but risky combination."""
    return tuple(_warnings(settings))


def _names_twice(named: Sequence[tuple[str, int, str]]) -> Found:
    first: dict[str, tuple[str, int]] = {}
    for kind, at, name in named:
        other = first.setdefault(name, (kind, at))
        if other != (kind, at):
            yield (kind, at, "name"), f'"{escaped(name)}" is the name of {other[0]}[{other[1]}] too; choose another'


def _of_outboxes(uploads: Sequence[tuple[int, Upload]]) -> Found:
    names = {f"{upload.name}{SUFFIX}" for _, upload in uploads}
    for at, upload in uploads:
        if upload.name in names:
            yield ("upload", at, "name"), f'"{escaped(upload.name)}" is how an outbox is called; choose another'


def _duplicates(uploads: Sequence[tuple[int, Upload]]) -> Found:
    first: dict[tuple[object, ...], int] = {}
    for at, upload in uploads:
        rules = upload.folder, upload.to, upload.company_id, upload.connection_id, upload.include, upload.exclude
        other = first.setdefault(rules, at)
        if other != at:
            yield ("upload", at, "folder"), f"upload[{other}] uploads the same documents already; remove one of the two"


def _of_codat_upload(upload: Upload) -> Iterator[tuple[str, str]]:
    for key, given in (("company_id", upload.company_id), ("connection_id", upload.connection_id)):
        if given is None and key not in upload.placeholders:
            yield key, f"is missing; give Codat's UUID, or use {{{key}}} in the folder"
        if given is not None and key in upload.placeholders:
            yield key, f"is given twice, here and as {{{key}}} in the folder; remove one"


def _of_wootiv_upload(upload: Upload) -> Iterator[tuple[str, str]]:
    for key, given in (("company_id", upload.company_id), ("connection_id", upload.connection_id)):
        if given is not None:
            yield key, "is for Codat, and this mapping goes to wootiv; remove it"
    if upload.levels:
        yield "folder", "has placeholders, which only Codat takes; name the folder and use {path} in object_name"


def _of_archive(upload: Upload) -> Iterator[tuple[str, str]]:
    archive = upload.archive_folder
    if archive is None:
        if upload.after_upload == "archive":
            yield "archive_folder", 'is missing, and after_upload is "archive"; say where sent files go'
        return
    if "{" in str(archive) or "}" in str(archive):
        yield "archive_folder", "takes no placeholders; files keep their path below it"
    elif _scans(upload, archive):
        yield "archive_folder", "lies inside the mapping's folder; put it elsewhere, or exclude it"
    elif archive in upload.root.parents:
        yield "archive_folder", "has the mapping's folder inside it; put it elsewhere"


def _of_codat_download(download: Download) -> Iterator[tuple[str, str]]:
    companies = download.companies
    if not companies:
        yield "company_id", "is missing; give Codat's UUID, or a list of them"
    if len(set(companies)) < len(companies):
        yield "company_id", "names one company twice; remove one"
    if len(companies) > 1 and "{company_id}" not in download.folder:
        yield "folder", "is shared by several companies; use {company_id} in it"
    if download.objects:
        yield "objects", "is for wootiv, and this mapping is from codat; remove it"


def _of_wootiv_download(download: Download) -> Iterator[tuple[str, str]]:
    if not download.objects:
        yield "objects", 'is missing; name the objects: ["reports/latest.pdf"]'
    if download.companies:
        yield "company_id", "is for Codat, and this mapping is from wootiv; remove it"
    if "{" in download.folder:
        yield "folder", "has a placeholder, which is for Codat; name the folder"


def _lies_in(inner: RealPath, outer: RealPath) -> bool:
    return inner.is_same(outer) or outer.path in inner.path.parents


def _scans(upload: Upload, folder: Path) -> bool:
    """Return whether a scan of the mapping would enter a folder."""
    if folder == upload.root:
        return True
    return upload.root in folder.parents and upload.enters(bytes(folder.relative_to(upload.root)))


def _warnings(settings: Settings) -> Iterator[str]:
    if not settings.uploads and not settings.downloads:
        yield "there is no [[upload]] and no [[download]]: there is nothing to do"
    for remote, section in (("codat", settings.codat), ("wootiv", settings.wootiv)):
        if remote in settings.remotes and section.base_url and not _is_private(section.base_url):
            yield f"{remote}.base_url is http: the key and the documents go over the network in the clear; use https"
    yield from _of_wootiv_server(settings)
    yield from _of_names(settings.uploads)
    for at, upload in enumerate(settings.uploads):
        for unused in ("object_name", "via") if upload.to == "codat" else ("file_name",):
            if unused in upload.model_fields_set:
                yield f"upload[{at}].{unused} is not used for {upload.to}; remove it"
        if upload.archive_folder and upload.after_upload != "archive":
            yield f'upload[{at}].archive_folder is not used while after_upload is "{upload.after_upload}"'
    yield from _taken_away(settings.uploads)


def _of_names(uploads: Sequence[Upload]) -> Iterator[str]:
    for at, upload in enumerate(uploads):
        if upload.to == "wootiv" and not any(word in upload.object_name for word in ("{path}", "{token}", "{sha256}")):
            yield f"upload[{at}].object_name: documents of one name in two folders replace each other; use {{path}}"
        if upload.to == "codat" and ("/" in upload.file_name or "{path}" in upload.file_name):
            yield f"upload[{at}].file_name: Codat may keep only what follows the last slash; use {{name}}"
        if upload.to == "codat" and not _keeps_suffix(upload.file_name):
            yield f"upload[{at}].file_name: drops the suffix by which Codat knows the type; add {{suffix}}"


def _of_wootiv_server(settings: Settings) -> Iterator[str]:
    server = endpoints.WOOTIV_SERVERS.get(settings.wootiv.environment or "")
    if "wootiv" in settings.remotes and server == settings.wootiv.base_url and _is_loopback(server or ""):
        yield (
            f'wootiv.environment: "{settings.wootiv.environment}" is {server} in Wootiv\'s SDK, an address of this '
            "machine; set base_url to the server of your account"
        )


def _keeps_suffix(template: str) -> bool:
    """Return whether names made by a template end with a suffix: that of the file, or one in the template."""
    last = template.rpartition("/")[2]
    return any(word in last for word in ("{suffix}", "{name}", "{path}")) or "." in last.rpartition("}")[2]


def _taken_away(uploads: Sequence[Upload]) -> Iterator[str]:
    for (at, upload), (other_at, other) in permutations(enumerate(uploads), 2):
        if upload.after_upload != "keep" and (_scans(upload, other.root) or _scans(other, upload.root)):
            verb = "archives" if upload.after_upload == "archive" else "deletes"
            yield f"upload[{at}] {verb} files that upload[{other_at}] may still have to send; use keep where both read"


def _is_private(url: str) -> bool:
    return urlsplit(url).scheme == "https" or _is_loopback(url)


def _is_loopback(url: str) -> bool:
    parts = urlsplit(url)
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
