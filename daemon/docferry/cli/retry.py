"""Run `docferry retry`: make held and waiting documents due now, and open closed gates."""

from __future__ import annotations

from argparse import Namespace

import anyio
import anyio.to_thread

from docferry.cli import args
from docferry.cli.argument_parser import Misused
from docferry.cli.documents import full_path
from docferry.cli.output import Screen, complain, count, line
from docferry.cli.queue import open_queue
from docferry.errors import FolderError
from docferry.settings import Settings
from docferry.store import locks
from docferry.store.database import Database
from docferry.store.gates import Gates
from docferry.store.reports import Reports
from docferry.store.server_clock import queue_clock
from docferry.store.state_dir import prepare_state_dir
from docferry.store.transfers import Transfers
from docferry.store.verification import Verifications


def command(asked: Namespace) -> int:
    """Make the chosen documents due, and return the exit code."""
    chosen = sum((bool(asked.ids), bool(asked.mapping or asked.reason), asked.all, asked.missing))
    if chosen != 1:
        what = "say which documents" if chosen == 0 else "choose one of these ways"
        raise Misused(f"{what}: docferry retry ID…, --mapping NAME and/or --reason CODE, --missing or --all")
    if asked.missing:
        return anyio.run(_resend_missing, args.load(asked.config))
    return anyio.run(_retry, args.load(asked.config), asked)


async def _retry(settings: Settings, asked: Namespace) -> int:
    args.reason(asked.reason)
    async with open_queue(settings) as database:
        if asked.mapping is not None:
            left = [] if database is None else list(await Reports(database).counts())
            args.mappings(settings, [asked.mapping], also=left)
        if database is None:
            Screen().show(line("nothing to retry: docferry has not seen any document yet"))
            return 0
        code = await _report_ids(database, asked.ids)
        await anyio.to_thread.run_sync(prepare_state_dir, settings.state_dir)
        with locks.lease_owner(settings.state_dir) as owner:
            number = await Transfers(database, await queue_clock(database), owner).retry(
                ids=asked.ids, mapping=asked.mapping, reason=asked.reason, everything=asked.all
            )
        await Gates(database).open_all()
        unapproved = 0 if asked.ids or asked.reason else await _awaiting_approval(database, asked.mapping)
    _tell(settings, number)
    if unapproved:
        what = f"{count(unapproved, 'document')} still held for approval:"
        Screen().show(line(what, "`docferry retry ID` releases one, `docferry retry --reason approval` all"))
    if asked.mapping is not None and asked.reason is None:
        await _accept_folder(settings, asked.mapping, is_right=asked.accept_folder)
    return code


async def _awaiting_approval(database: Database, mapping: str | None) -> int:
    held = await Reports(database).held_reasons()
    return sum(number for name, reason, number in held if reason == "approval" and mapping in (None, name))


async def _resend_missing(settings: Settings) -> int:
    """Make the next scan send documents that `docferry verify` proved missing."""
    async with open_queue(settings) as database:
        if database is None:
            Screen().show(line("nothing is missing: docferry has not seen any document yet"))
            return 0
        number, left = await Verifications(database, await queue_clock(database)).resend_missing()
    roots = args.roots(settings)
    for each in left:
        where = each.remote_name if each.path is None else full_path(each.mapping, each.path, roots)
        complain(f"{where} is missing at the remote, and its file is not there any more: put it back, and it is sent")
    runs = locks.running(settings.state_dir) is not None
    how = "the daemon sends them after its next scan" if runs else "`docferry sync` sends them"
    Screen().show(line(f"{count(number, 'document')} to be sent again: {how}" if number else "nothing is sent again"))
    return 1 if left else 0


async def _report_ids(database: Database, ids: list[int]) -> int:
    """Report the ids that cannot be retried, and return the exit code."""
    code = 0
    for number in ids:
        row = await Reports(database).by_id(number)
        if row is None:
            complain(f"there is no document {number}; `docferry list` shows the ids")
            code = 2
        elif row.state not in {"held", "waiting", "doubtful"}:
            complain(f"document {number} is {row.state}: there is nothing to retry")
    return code


def _tell(settings: Settings, number: int) -> None:
    if not number:
        Screen().show(line("nothing was held or waiting; all gates are open"))
        return
    due = f"{count(number, 'document')} {'is' if number == 1 else 'are'} due now, and all gates are open;"
    runs = locks.running(settings.state_dir) is not None
    Screen().show(line(due, "the daemon sends them" if runs else "`docferry sync` sends them"))


async def _accept_folder(settings: Settings, mapping: str, *, is_right: bool) -> None:
    """Accept that the folder of a mapping was emptied on purpose.

    A shared folder may be empty because it is not mounted on this host. Only `is_right` confirms the mount.
    """
    upload = next((upload for upload in settings.uploads if upload.name == mapping), None)
    if upload is None or upload.unanswered is not None:
        return
    if not upload.root.is_dir() or (upload.shared and not is_right):
        return
    from docferry.app.application import accept_empty, accept_share

    if upload.shared:
        await accept_share(settings, mapping)
        Screen().show(line(f"the folder of {mapping} is accepted as its share"))
    if any(upload.root.iterdir()):
        return
    try:
        number = await accept_empty(settings, mapping)
    except FolderError:
        return  # a file has just arrived: the folder is not empty
    if number:
        marked = f"{count(number, 'document')} marked as absent"
        Screen().show(line(f"the folder of {mapping} is accepted as emptied: {marked}"))
