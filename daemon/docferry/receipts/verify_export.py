"""Verify an export of docferry's receipts; needs only Python 3.9 or newer.

Usage: python3 -I verify.py [--key BASE64] [--anchor FILE]... [EXPORT.zip]

Without EXPORT.zip, the files beside this script are verified. `--key` is the log's Ed25519 public key from a source
that you trust. Without it, the key in the export is used. `--anchor` names a file of heads that you kept. Exit status
0: everything is valid. 1: there are problems, all printed. 2: the export cannot be read.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Head = tuple[str, int, bytes, bytes, list[tuple[str, bytes]]]
    Point = tuple[int, int, int, int]
    Read = Callable[[str], bytes]

#: Receipts become 5 to 20 times smaller in a ZIP.
MAX_RATIO = 300

# -- the Merkle tree of RFC 6962 ---------------------------------------------------------------------------------------


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root computed from an inclusion proof (RFC 9162, section 2.1.3.2), None for a malformed proof."""
    if not 0 <= index < size:
        return None
    position, last, found = index, size - 1, leaf
    for each in proof:
        if last == 0:
            return None
        if position & 1 or position == last:
            found = node_hash(each, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, each)
        position, last = position >> 1, last >> 1
    return found if last == 0 else None


def roots_from_consistency(
    old_size: int, old_root: bytes, size: int, proof: Sequence[bytes]
) -> tuple[bytes, bytes] | None:
    """Return the old and new root computed from a consistency proof (RFC 9162, section 2.1.4.2), or None."""
    if old_size == size:
        return (old_root, old_root) if not proof else None
    path = ([old_root] if old_size & (old_size - 1) == 0 else []) + list(proof)
    if not 0 < old_size < size or not path:
        return None
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for each in path[1:]:
        if last == 0:
            return None
        if position & 1 or position == last:
            old, new = node_hash(each, old), node_hash(each, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, each)
        position, last = position >> 1, last >> 1
    return (old, new) if last == 0 else None


# -- Ed25519 (RFC 8032), verification only -----------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def _point_add(a: Point, b: Point) -> Point:
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def _point_multiply(scalar: int, point: Point) -> Point:
    found = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            found = _point_add(found, point)
        point, scalar = _point_add(point, point), scalar >> 1
    return found


def _recover_x(y: int, sign: int) -> int | None:
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    if square == 0:
        return None if sign else 0
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return P - x if (x & 1) != sign else x


def _point_decompress(data: bytes) -> Point | None:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    x = _recover_x(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


BASE_Y = 4 * pow(5, P - 2, P) % P
BASE_X = _recover_x(BASE_Y, 0) or 0
BASE = (BASE_X, BASE_Y, 1, BASE_X * BASE_Y % P)


def verify_ed25519(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether the signature (64 bytes) of the message was made with the key (32 bytes)."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    a, r = _point_decompress(public_key), _point_decompress(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    left, right = _point_multiply(s, BASE), _point_add(r, _point_multiply(h, a))
    return (left[0] * right[2] - right[0] * left[2]) % P == 0 and (left[1] * right[2] - right[1] * left[2]) % P == 0


# -- heads: C2SP checkpoints -------------------------------------------------------------------------------------------


def read_heads(text: str) -> list[Head]:
    """Return `(origin, size, root, signed text, signatures)` of every head in a text."""
    heads: list[Head] = []
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if line.startswith("docferry/"):
            body = "\n".join(lines[at : at + 3]) + "\n"
            signatures = []
            for after in lines[at + 4 :]:
                if not after.startswith("— "):
                    break
                name, value = after[2:].split(" ")
                signatures.append((name, base64.b64decode(value)))
            heads.append((line, int(lines[at + 1]), base64.b64decode(lines[at + 2]), body.encode(), signatures))
    return heads


def is_signed(head: Head, public_key: bytes) -> bool:
    """Return whether a head has a valid signature of this key."""
    origin, _, _, body, signatures = head
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public_key).digest()[:4]
    return any(
        name == origin and value[:4] == key_id and verify_ed25519(public_key, body, value[4:])
        for name, value in signatures
    )


# -- the export --------------------------------------------------------------------------------------------------------


def verify(
    read: Read, public_key: bytes, anchors: Sequence[tuple[str, str]], others: Sequence[str] = ()
) -> Iterator[str]:
    """Yield one sentence for each problem. `read(name)` returns a file's bytes, b"" if there is none.

    `others` are the names of further logs, whose heads in `anchors` are not compared.
    """
    heads = read_heads(read("head.txt").decode())
    if not heads:
        yield "head.txt has no head"
        return
    head = heads[-1]
    if public_key and not is_signed(head, public_key):
        yield f"head.txt: no signature of the key {base64.b64encode(public_key).decode()}"
    yield from verify_receipts(read, head)
    yield from verify_csv(read)
    yield from verify_heads(read, head, public_key)
    for name, text in anchors:
        yield from verify_anchor(name, text, read, head, others)


def verify_receipts(read: Read, head: Head) -> Iterator[str]:
    """Yield the problems of receipts and their proofs."""
    _, size, root, _, _ = head
    *bodies, rest = read("receipts.jsonl").split(b"\n")
    proofs = read("proofs.jsonl").split(b"\n")[:-1]
    if rest:
        yield "receipts.jsonl has a last line without an end, which belongs to no proof"
    if len(bodies) != len(proofs):
        yield f"receipts.jsonl has {len(bodies)} receipts, proofs.jsonl {len(proofs)} proofs"
    for number, (body, proof) in enumerate(zip(bodies, proofs), 1):  # noqa: B905 - `strict` is new in Python 3.10
        try:
            index, stated = json.loads(body)["index"], json.loads(proof)
            path = [base64.b64decode(each) for each in stated["proof"]]
            is_right = index == stated["index"] and root_from_inclusion(leaf_hash(body), index, size, path) == root
        except (ValueError, KeyError, TypeError, RecursionError):
            is_right, index = False, "?"
        if not is_right:
            yield f"receipts.jsonl, line {number} (receipt {index}): it is not in the log of head.txt; it was changed"


def verify_csv(read: Read) -> Iterator[str]:
    """Yield the differences between the CSV file and the receipts."""
    rows = list(csv.DictReader(io.StringIO(read("receipts.csv").decode("utf-8-sig"), newline="")))
    bodies = [json.loads(line) for line in read("receipts.jsonl").split(b"\n")[:-1]]
    if len(rows) != len(bodies):
        yield f"receipts.csv has {len(rows)} receipts, receipts.jsonl {len(bodies)}"
    for row, body in zip(rows, bodies):  # noqa: B905 - `strict` is new in Python 3.10
        for name, value in row.items():
            found = body.get(name, "")
            shown = found if isinstance(found, str) else json.dumps(found)
            if value not in (shown, "'" + shown):
                yield f"receipts.csv, receipt {body.get('index')}: {name} is {value!r}, receipts.jsonl has {shown!r}"


def verify_heads(read: Read, head: Head, public_key: bytes) -> Iterator[str]:
    """Yield the problems of signed heads and of their consistency proofs."""
    _, size, root, _, _ = head
    proofs = [json.loads(line) for line in read("consistency.jsonl").split(b"\n")[:-1]]
    by_size = {proof["size"]: [base64.b64decode(each) for each in proof["proof"]] for proof in proofs}
    for old in read_heads(read("heads.txt").decode()):
        if old[1] and roots_from_consistency(old[1], old[2], size, by_size.get(old[1], [])) != (old[2], root):
            yield f"heads.txt: the head of {old[1]} receipts is not part of the history of head.txt"
        if public_key and old[4] and not is_signed(old, public_key):
            yield f"heads.txt: the head of {old[1]} receipts has no signature of that key"


def verify_anchor(name: str, text: str, read: Read, head: Head, others: Sequence[str] = ()) -> Iterator[str]:
    """Yield the problems of a file of heads that was kept elsewhere."""
    known = {(each[0], each[1]): each[2] for each in [*read_heads(read("heads.txt").decode()), head]}
    found = read_heads(text)
    if not found:
        yield f"{name} has no head"
    for origin, size, root, _, _ in found:
        if origin in others:
            continue
        if origin != head[0]:
            yield f"{name}: the head of {size} receipts is of another log, {origin}"
        elif (origin, size) not in known:
            yield f"{name}: the export has no head of {size} receipts; its log may have lost some"
        elif known[origin, size] != root:
            yield f"{name}: the head of {size} receipts has another root; history was rewritten"


def open_exports(path: str | None) -> list[Read]:
    """Return functions from a name to a file's bytes, one for each log; with several logs, each has a folder."""
    if path is None:
        top = Path(__file__).resolve().parent
        folders = [top] if (top / "head.txt").exists() else sorted(found.parent for found in top.glob("*/head.txt"))
        return [_reader_of_folder(folder) for folder in folders or [top]]
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a name occurs twice")  # other programs may show the other one
    if any(member.file_size > MAX_RATIO * max(member.compress_size, 1) for member in members):
        raise ValueError("it would grow without limit when it is unpacked")
    heads = sorted(name for name in archive.namelist() if name == "head.txt" or name.endswith("/head.txt"))
    return [_reader_of_zip(archive, name[: -len("head.txt")]) for name in heads or ["head.txt"]]


def _reader_of_folder(folder: Path) -> Read:
    return lambda name: (folder / name).read_bytes() if (folder / name).exists() else b""


def _reader_of_zip(archive: zipfile.ZipFile, folder: str) -> Read:
    names = set(archive.namelist())
    return lambda name: archive.read(folder + name) if folder + name in names else b""


def main(argv: Sequence[str]) -> int:
    """Verify an export, print its problems, and return the exit code."""
    parser = argparse.ArgumentParser(description="Verify an export of docferry's receipts.")
    parser.add_argument("--key", help="the log's Ed25519 public key, base64")
    parser.add_argument("--anchor", action="append", default=[], help="a file of heads that you kept")
    parser.add_argument("export", nargs="?", help="the ZIP; default: the files beside this script")
    asked = parser.parse_args(argv)
    try:
        logs = open_exports(asked.export)
        anchors = [(name, Path(name).read_text(encoding="utf-8")) for name in asked.anchor]
        origins = [head[0] for read in logs for head in read_heads(read("head.txt").decode())[-1:]]
        return max([verify_log(read, asked.key, anchors, origins) for read in logs])
    except Exception as error:  # noqa: BLE001 - the export may come from anybody, and hold anything
        print(printable(f"the export cannot be read: {str(error) or type(error).__name__}"), file=sys.stderr)
        return 2


def verify_log(read: Read, key_text: str | None, anchors: Sequence[tuple[str, str]], origins: Sequence[str]) -> int:
    """Verify one log, print its problems, and return the exit code. `origins` are the names of all logs."""
    key = base64.b64decode(key_text or read("public_key.txt"))
    receipts, heads = read("receipts.jsonl").count(b"\n"), read_heads(read("head.txt").decode())
    others = [origin for origin in origins if not heads or origin != heads[-1][0]]
    problems = list(verify(read, key, anchors, others))
    for problem in problems:
        print(printable(problem))
    if problems:
        print(f"{len(problems)} problems")
        return 1
    signed = f"signed by {base64.b64encode(key).decode()}" if key else "without a signature"
    origin, size = heads[-1][:2]
    print(printable(f"{receipts} receipts are in the log {origin}, whose head has {size} receipts, {signed}"))
    return 0


def printable(text: str) -> str:
    """Return text without control characters: foreign ones could make a terminal hide a problem."""
    return "".join([char if char.isprintable() else ascii(char)[1:-1] for char in text])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
