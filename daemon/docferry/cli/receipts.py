"""Run `docferry receipts`: verify, show, find, prove and export the record of sent documents."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import Namespace
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from msgspec import Struct

from docferry.cli import args
from docferry.cli.output import BAD, FAINT, GOOD, STRONG, Cell, Screen, Table, complain, count, line
from docferry.cli.queue import open_queue
from docferry.clock import SystemClock, iso
from docferry.errors import ConfigError, StateError
from docferry.model import escaped
from docferry.receipts.audit import NamedHead
from docferry.receipts.export import Export, write_exports
from docferry.receipts.heads import Signer, open_signer, read_notes
from docferry.receipts.merkle import Tree
from docferry.receipts.record import FIELDS, has
from docferry.settings import Settings
from docferry.store.receipt_log import AuditReport, ReceiptLog, StoredHead, StoredReceipt
from docferry.store.receipt_upkeep import ReceiptUpkeep

#: Transfers that get a receipt in one step, if they are older than the log.
_STEP: Final = 1000
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")


def command(asked: Namespace) -> int:
    """Run `docferry receipts WHAT`."""
    work = {"verify": _verify, "show": _show, "find": _find, "prove": _prove, "export": _export}[asked.what]

    async def run(settings: Settings) -> int:
        async with open_queue(settings) as database:
            if database is None:
                raise ConfigError(["docferry has not seen any document yet; run `docferry sync` or `docferry run`"])
            while await ReceiptUpkeep(database).reconstruct(_STEP):
                pass
            return await work(ReceiptLog(database, SystemClock()), settings, asked)

    return anyio.run(run, args.load(asked.config))


# -- verify ------------------------------------------------------------------------------------------------------------


async def _verify(log: ReceiptLog, settings: Settings, asked: Namespace) -> int:
    signer = _signer(settings)
    anchored, unreadable = [], list[str]()
    for file in dict.fromkeys([*settings.receipts.files, *asked.anchor]):
        try:
            anchored += [NamedHead(f"a head in {escaped(str(file))}", each) for each in _heads_of(file)]
        except ConfigError as error:
            if file in asked.anchor:
                raise
            unreadable += error.problems  # for instance before the first anchor, or while a share is not mounted
    report = await log.audit(anchored, signer.public_key if signer is not None else None)
    complain(*unreadable)
    _tell_report(report, as_json=asked.json)
    return 1 if report.problem_count else 0


def _heads_of(file: Path) -> list[Any]:
    try:
        found = read_notes(file.read_bytes())
    except OSError as error:
        raise ConfigError([f"the anchor {escaped(str(file))} cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"the anchor {escaped(str(file))} contains an invalid head: {error}"]) from error
    if not found:
        raise ConfigError([f"the anchor {escaped(str(file))} has no head"])
    return found


def _tell_report(report: AuditReport, *, as_json: bool) -> None:
    screen = Screen()
    if as_json:
        told = {name: getattr(report, name) for name in report.__struct_fields__}
        screen.write(json.dumps(told, ensure_ascii=False) + "\n")
        return
    for problem in report.problems:
        screen.show(line(Cell("wrong", BAD), problem))
    if report.problem_count > len(report.problems):
        screen.show(line(f"and {report.problem_count - len(report.problems):,} more"))
    whose = report.origin if len(report.logs) < 2 else f"{len(report.logs)} hosts"
    seen = f"{count(report.receipts, 'receipt')} of {whose}, compared with {count(report.heads, 'head')}"
    if report.erased:
        seen += f"; the texts of {report.erased:,} are erased"
    if report.other_keys:
        seen += f"; another key signed {report.other_keys:,} of the heads"
    verdict = Cell("all is right", GOOD) if not report.problem_count else Cell("not all is right", BAD)
    screen.show(line(f"{seen}:", verdict))


# -- show and find -----------------------------------------------------------------------------------------------------


async def _show(log: ReceiptLog, _settings: Settings, asked: Namespace) -> int:
    _tell_receipts(await _of(log, asked.document), as_json=asked.json)
    return 0


async def _find(log: ReceiptLog, _settings: Settings, asked: Namespace) -> int:
    digest = await anyio.to_thread.run_sync(_digest_of, asked.digest)
    found = await log.select(_WithText(f'"sha256":"{digest}"'))
    _tell_receipts(found, as_json=asked.json)
    if not found:
        complain(f"there is no receipt for {digest}")
    return 0 if found else 1


async def _of(log: ReceiptLog, document: str) -> list[StoredReceipt]:
    """Return the receipts of a document by its number, or one by `rN` or `rN@HOST`.

    Raises ConfigError if there is none.
    """
    number, _, host = document.removeprefix("r").partition("@")
    if not (number.isascii() and number.isdecimal()) or int(number) >= 2**63 or (host and document[:1] != "r"):
        raise ConfigError([f'"{escaped(document)}" is no number of a document; `docferry list` shows them'])
    if document.startswith("r"):
        found = [each for each in [await log.at_index(int(number), host or None)] if each is not None]
    else:
        found = await log.of_document(int(number))
    if not found:
        raise ConfigError([f"there is no receipt for {document}: it was not sent, and is not gone"])
    return found


def _digest_of(written: str) -> str:
    if _DIGEST.fullmatch(written):
        return written.lower()
    try:
        with Path(written).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            [f'"{escaped(written)}" is neither a SHA-256 nor a file that can be read: {error.strerror}']
        ) from error


def _tell_receipts(receipts: Sequence[StoredReceipt], *, as_json: bool) -> None:
    screen = Screen()
    for at, receipt in enumerate(receipts):
        fields = _fields(receipt)
        if as_json:
            screen.write(json.dumps(fields, ensure_ascii=False) + "\n")
            continue
        facts = Table(("", ""), folds=frozenset({1}))
        shown = [*FIELDS, *(name for name in fields if name not in FIELDS)]
        facts.rows += [(Cell(name.replace("_", " "), FAINT), _cell(fields[name])) for name in shown if name in fields]
        screen.show(*([line()] if at else []), facts)


def _fields(receipt: StoredReceipt) -> dict[str, Any]:
    more = {"leaf": receipt.leaf.hex()}
    if receipt.body is None:
        return {"index": receipt.index, "kind": receipt.kind, "erased": True, **more}
    try:
        return {**json.loads(receipt.body), **more}
    except (ValueError, TypeError) as error:
        raise StateError(f"receipt {receipt.index} was changed: run `docferry receipts verify`") from error


def _cell(value: object) -> Cell:
    return Cell(value if isinstance(value, str) else json.dumps(value), STRONG if isinstance(value, int) else "")


# -- prove and export --------------------------------------------------------------------------------------------------


async def _prove(log: ReceiptLog, settings: Settings, asked: Namespace) -> int:
    signer = _signer(settings)
    for receipt in await _of(log, asked.document):
        head, tree = await _head_and_tree(log, signer, receipt.log)
        told = {
            "receipt": receipt.body,
            "leaf_hash": _text(receipt.leaf),
            "index": receipt.index,
            "size": tree.size,
            "proof": [_text(each) for each in tree.inclusion_proof(receipt.index)],
            "root": _text(tree.root()),
            "head": head.signed.note(),
        }
        Screen().write(json.dumps(told, ensure_ascii=False) + "\n")
    return 0


async def _export(log: ReceiptLog, settings: Settings, asked: Namespace) -> int:
    signer = _signer(settings)
    receipts = await log.select(_OfPeriod(asked.company, asked.since, asked.until))
    exports, size = {}, 0
    for state in await log.logs():
        head, tree = await _head_and_tree(log, signer, state.number)
        heads = await log.heads(state.number)
        size += tree.size
        host = [("host", state.host)] if state.host else []
        exports[state.host or f"log-{state.number}"] = Export(
            receipts=[(each.index, each.body) for each in receipts if each.body and each.log == state.number],
            tree=tree,
            head=head.signed,
            heads=[each.signed for each in heads],
            exported=iso(SystemClock().now()) or "",
            about=", ".join(f"{name} {value}" for name, value in [*host, *_asked_for(asked)]),
            public_key=signer.public_key if signer is not None else None,
            anchors=_anchors(settings, heads),
        )
    try:
        await anyio.to_thread.run_sync(write_exports, asked.output, exports)
    except OSError as error:
        raise ConfigError([f"{escaped(str(asked.output))} cannot be written: {error.strerror}"]) from error
    if asked.json:
        Screen().write(json.dumps({"receipts": len(receipts), "size": size, "file": str(asked.output)}) + "\n")
    else:
        Screen().show(line(f"{count(len(receipts), 'receipt')} in {asked.output}; verify: unzip, python3 -I verify.py"))
    return 0


class _WithText(Struct, frozen=True):
    """Select receipts with this text in their bodies."""

    text: str

    def wants(self, body: str) -> bool:
        return self.text in body


class _OfPeriod(Struct, frozen=True):
    """Select receipts of one company and period; None means every company, from the first, up to the last."""

    company: str | None
    since: str | None
    until: str | None

    def wants(self, body: str) -> bool:
        # The receipt of a download has no company_id: its remote_name begins with the company.
        theirs = self.company is None or has(body, "company_id", self.company)
        if not theirs and f'"remote_name":"{self.company}/' not in body:
            return False
        if self.since is None and self.until is None:
            return True
        at = body.find('"time":"') + len('"time":"')
        time = body[at : body.find('"', at)]
        return (self.since is None or time >= self.since) and (self.until is None or time < self.until)


def _asked_for(asked: Namespace) -> list[tuple[str, str]]:
    named = (("company", asked.company), ("from", asked.since), ("before", asked.until))
    return [(name, value) for name, value in named if value is not None]


def _anchors(settings: Settings, heads: Sequence[StoredHead]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for each in heads:
        if each.timestamp is not None:  # with exactly the stamped bytes
            found[f"head-{each.signed.head.size}.tsr"] = each.timestamp
            found[f"head-{each.signed.head.size}.txt"] = each.signed.note().encode()
    for number, file in enumerate(settings.receipts.files, 1):
        try:
            found[f"{number}-{file.name}"] = file.read_bytes()
        except OSError as error:
            complain(f"the anchor {escaped(str(file))} cannot be read and is not exported: {error.strerror}")
    return found


async def _head_and_tree(log: ReceiptLog, signer: Signer | None, number: int) -> tuple[StoredHead, Tree]:
    head = await log.take_head(signer, number)
    size = head.signed.head.size
    tree = Tree(await log.leaves(size, number))
    if tree.size != size or tree.root() != head.signed.head.root:
        raise StateError("the log of receipts is damaged: run `docferry receipts verify`")
    return head, tree


def _signer(settings: Settings) -> Signer | None:
    return None if settings.receipts.key_file is None else open_signer(settings.receipts.key_file)


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
