"""Write a ZIP of receipts that an auditor can verify without docferry."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field

from docferry.receipts.heads import SignedHead
from docferry.receipts.merkle import Tree
from docferry.receipts.record import FIELDS

#: Spreadsheets read a cell that begins with one of these as a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Export(Struct, frozen=True):
    """Hold the content of the ZIP: `(index, body)` of each receipt, all leaf hashes, and the heads."""

    receipts: Sequence[tuple[int, str]]
    tree: Tree
    head: SignedHead  # of the whole tree
    heads: Sequence[SignedHead]  # earlier ones, as stored
    exported: str  # time, ISO 8601
    about: str = ""  # the selection of receipts
    public_key: bytes | None = None
    anchors: Mapping[str, bytes] = field(default_factory=dict)  # copies of external heads and time stamps, by file name


def write_exports(path: Path, exports: Mapping[str, Export]) -> None:
    """Write the ZIP to `path`; the file appears completely or not at all. Raises OSError if it cannot be written.

    With several logs, each has a folder with its name in `exports`.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for folder, export in exports.items():
                for name, data in _members(export):
                    archive.writestr(name if len(exports) == 1 else f"{folder}/{name}", data)
            if len(exports) > 1:
                archive.writestr("verify.py", _verifier())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def safe_cell(value: object) -> str:
    """Return text that no spreadsheet reads as a formula."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _members(export: Export) -> Iterator[tuple[str, str | bytes]]:
    bodies = [json.loads(body) for _, body in export.receipts]
    heads = [each for each in export.heads if 0 < each.head.size <= export.tree.size]
    yield "receipts.jsonl", "".join(f"{body}\n" for _, body in export.receipts)
    yield "proofs.jsonl", "".join(_proof_line("index", i, export.tree.inclusion_proof(i)) for i, _ in export.receipts)
    yield "receipts.csv", _csv(bodies)
    yield "receipts.html", _html(export, bodies)
    yield "head.txt", export.head.note()
    yield "heads.txt", "\n".join(each.note() for each in heads)
    sizes = sorted({each.head.size for each in heads})
    yield "consistency.jsonl", "".join(_proof_line("size", n, export.tree.consistency_proof(n)) for n in sizes)
    if export.public_key is not None:
        yield "public_key.txt", b64encode(export.public_key)
    for name, data in export.anchors.items():
        yield f"anchors/{name}", data
    yield "verify.py", _verifier()


def _verifier() -> bytes:
    return Path(__file__).with_name("verify_export.py").read_bytes()


def _proof_line(name: str, value: int, proof: Sequence[bytes]) -> str:
    return json.dumps({name: value, "proof": [b64encode(each).decode("ascii") for each in proof]}) + "\n"


def _csv(bodies: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(FIELDS)
    for body in bodies:
        writer.writerow([safe_cell(body.get(name, "")) for name in FIELDS])
    return text.getvalue()


def _html(export: Export, bodies: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import Environment  # only an export needs this module

    template = Environment(autoescape=True).from_string(Path(__file__).with_name("export.html.j2").read_text("utf-8"))
    return template.render(
        receipts=bodies, about=export.about, exported=export.exported, note=export.head.note().strip()
    )
