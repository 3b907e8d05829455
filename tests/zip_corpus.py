"""Build some five hundred crafted archives, each with its verdict: refused, extracted, or either.

The archives are built byte by byte, because no library writes them. In every case nothing may appear outside the
folder.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace  # noqa: TID251 - Row is a dataclass
from typing import Literal

import zips

Verdict = Literal["refused", "taken", "either"]
Case = tuple[str, bytes, Verdict]

PDF = zips.PDF * 20
STORED, DEFLATED = 0, 8


@dataclass(frozen=True, slots=True)
class Row:
    """Define one member: its row in the central directory, and deviations of its local header."""

    name: bytes
    body: bytes = PDF
    method: int = STORED
    flags: int = 0x800  # names are UTF-8
    mode: int = 0o100644
    system: int = 3  # Unix
    extra: bytes = b""
    local_name: bytes | None = None
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None


GOOD = Row(b"Bank/good.pdf")


def build(*rows: Row, before: bytes = b"", after: bytes = b"", end: dict[str, int] | None = None) -> bytes:
    """Build an archive of these rows. `end` overwrites fields of the last record."""
    out, table = bytearray(before), bytearray()
    for row in rows:
        body = _deflated(row.body) if row.method == DEFLATED else row.body
        crc = zlib.crc32(row.body) if row.crc is None else row.crc
        size = len(row.body) if row.size is None else row.size
        packed = len(body) if row.packed is None else row.packed
        offset = len(out) if row.offset is None else row.offset
        local = row.name if row.local_name is None else row.local_name
        common = (20, row.flags, row.method, 0, 0x21, crc, packed, size)
        out += struct.pack("<4s5H3L2H", b"PK\x03\x04", *common, len(local), len(row.extra)) + local + row.extra + body
        table += struct.pack(
            "<4sBB5H3L5H2L",
            *(b"PK\x01\x02", 20, row.system, *common, len(row.name), len(row.extra)),
            *(0, 0, 0, row.mode << 16, offset),
        )
        table += row.name + row.extra
    fields = {"disk": 0, "start": 0, "here": len(rows), "all": len(rows), "size": len(table), "at": len(out)}
    fields |= {"comment": 0, **(end or {})}
    return bytes(out + table + struct.pack("<4s4H2LH", b"PK\x05\x06", *fields.values()) + after)


def corpus() -> Iterator[Case]:
    """Yield all archives."""
    for family in (_slips, _second_names, _kinds, _methods, _numbers, _ends, _bombs, _odd_names, _damaged):
        for what, raw, verdict in family():
            yield f"{family.__name__[1:]}: {what}", raw, verdict


def _slips() -> Iterator[Case]:
    """Names that lead outside, in every place, compression and encoding."""
    for name in zips.LEADING_OUT:
        for method in (STORED, DEFLATED):
            for flags in (0, 0x800):
                row = Row(name.encode(), method=method, flags=flags)
                for place, rows in (("alone", (row,)), ("first", (row, GOOD)), ("last", (GOOD, row))):
                    yield f"{name!r} {place} {method} {flags}", build(*rows), "refused"


def _second_names() -> Iterator[Case]:
    """Use a safe name in the central directory, and another one elsewhere."""
    for name in zips.LEADING_OUT:
        raw = name.encode()
        yield f"local {name!r}", build(GOOD, Row(b"Bank/b.pdf", local_name=raw)), "refused"
        unicode_path = struct.pack("<2HBL", 0x7075, 5 + len(raw), 1, zlib.crc32(b"Bank/b.pdf")) + raw
        yield f"unicode path {name!r}", build(GOOD, Row(b"Bank/b.pdf", extra=unicode_path)), "either"
    yield "both stored", build(GOOD, GOOD), "taken"
    yield "a folder with a body", build(Row(b"Bank/", body=PDF)), "either"


def _kinds() -> Iterator[Case]:
    """Links, devices, pipes, sockets; and modes that would grant rights."""
    for kind in (0o120000, 0o020000, 0o060000, 0o010000, 0o140000, 0o160000):
        for system in (3, 0, 7):
            for name in (b"Bank/x.pdf", b"x"):
                row = Row(name, body=b"/etc/passwd", mode=kind | 0o777, system=system)
                yield f"{kind:o} {system} {name!r}", build(GOOD, row), "refused"
    for mode in (0o104755, 0o102755, 0o101777, 0o100000, 0o000000, 0o000777):
        yield f"mode {mode:o}", build(Row(b"Bank/x.pdf", mode=mode)), "taken"


def _methods() -> Iterator[Case]:
    """Unsupported compression and encryption."""
    for method in (*range(1, 8), *range(9, 21), *range(93, 100), 0xFFFF):
        yield f"method {method}", build(GOOD, Row(b"Bank/x.pdf", method=method)), "refused"
    for flags in (0x1, 0x41, 0x801):
        yield f"flags {flags:x}", build(GOOD, Row(b"Bank/x.pdf", flags=flags)), "refused"
    for flags in (0x20, 0x40, 0x2000, 0x8, 0xFFFE):
        yield f"flags {flags:x}", build(GOOD, Row(b"Bank/x.pdf", flags=flags)), "either"


def _numbers() -> Iterator[Case]:
    """Yield archives with wrong sizes, checksums and offsets."""
    for method in (STORED, DEFLATED):
        for wrong in (0, 1, len(PDF) - 1, len(PDF) + 1, 0x7FFF_FFFF, 0xFFFF_FFF0):
            row = Row(b"Bank/x.pdf", method=method)
            yield f"size {wrong} {method}", build(GOOD, replace(row, size=wrong)), "refused"
            beyond: Verdict = "either" if wrong == len(PDF) + 1 else "refused"  # a byte that nobody reads
            yield f"packed {wrong} {method}", build(GOOD, replace(row, packed=wrong), GOOD), beyond
            yield f"crc {wrong} {method}", build(GOOD, replace(row, crc=wrong)), "refused"
            yield f"offset {wrong} {method}", build(GOOD, replace(row, offset=wrong)), "refused"
    for value in (0, 1, 2**31, 2**32, 2**63, 2**64 - 1):
        large = struct.pack("<2H2Q", 1, 16, value, value)
        row = Row(b"Bank/x.pdf", extra=large, size=0xFFFF_FFFF, packed=0xFFFF_FFFF)
        yield f"zip64 {value}", build(GOOD, row), "refused"
    for extra in (b"\1", b"\1\0", b"\1\0\xff\xff", struct.pack("<2HL", 1, 4, 7)):
        yield f"zip64 cut {extra!r}", build(Row(b"Bank/x.pdf", extra=extra, size=0xFFFF_FFFF)), "refused"


def _ends() -> Iterator[Case]:
    """Last records that do not match the archive."""
    for name in ("disk", "start", "here", "all", "comment"):
        for value in (1, 7, 0xFFFE, 0xFFFF):
            yield f"{name} {value}", build(GOOD, Row(b"Bank/x.pdf"), end={name: value}), "either"
    for name in ("size", "at"):
        for value in (0, 1, 0x7FFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF):
            yield f"{name} {value}", build(GOOD, end={name: value}), "either"
    twice = build(GOOD)
    yield "two archives", twice + build(Row(b"Bank/other.pdf")), "either"
    yield "behind a program", build(GOOD, before=b"\x7fELF" + bytes(500)), "taken"
    yield "before noise", build(GOOD, after=b"noise" * 9), "either"


def _bombs() -> Iterator[Case]:
    """Small archives with much content. The test's caps are 1 MiB a member, 2 MiB in all and 200 members."""
    for mega in (2, 3, 8):
        yield f"{mega} MB of zeros", zips.plain({"Bank/zeros.pdf": bytes(mega << 20)}), "refused"
    for count in (2, 3, 5):
        zeros = {f"Bank/{number}.pdf": bytes(1_048_000) for number in range(count)}
        yield f"{count} times 1 MB of zeros", zips.plain(zeros), "refused" if count > 2 else "either"
    for count in (2, 3, 10, 50, 199, 5000, 65_535):
        yield f"{count} on one body", zips.sharing(count, PDF), "refused"
    for count in (201, 1000, 20_000):
        yield f"{count} members", build(*(Row(b"%d" % number, body=b"") for number in range(count))), "refused"
    for depth in (2, 5, 20):
        yield f"{depth} quoted bodies", _quoted(depth), "refused"
    for mega in (2, 4):
        yield f"{mega} MB stored", build(Row(b"x.pdf", body=bytes(mega << 20))), "refused"
    inner = zips.plain({"Bank/zeros.pdf": bytes(1 << 20)})
    yield "a bomb in an archive", zips.plain({"Bank/inner.zip": inner}), "taken"
    yield "a name of 60 KB", build(Row(b"n" * 60_000)), "either"
    yield "names of 2 MB", build(*(Row(b"%d" % number + b"n" * 60_000, body=b"") for number in range(40))), "refused"


def _quoted(depth: int) -> bytes:
    """Return an archive in which each member's body is the local header of the next."""
    bodies = [Row(b"%d" % number, body=bytes(900_000), method=DEFLATED) for number in range(depth)]
    raw = build(*bodies)
    # Every row says that its body goes on to the end of the last one.
    at = raw.index(b"PK\x01\x02")
    out, reach = bytearray(raw), at
    for number in range(depth):
        row = _row_at(raw, at, number)
        start = struct.unpack_from("<L", raw, row + 42)[0]
        struct.pack_into("<L", out, row + 20, reach - start - 30 - len(b"%d" % number))
    return bytes(out)


def _row_at(raw: bytes, table: int, number: int) -> int:
    at = table
    for _ in range(number):
        at = raw.index(b"PK\x01\x02", at + 4)
    return at


def _odd_names() -> Iterator[Case]:
    """Odd but harmless names, which are accepted under safe names."""
    for name in zips.ODD_NAMES:
        top: Verdict = "refused" if name[1] == ":" else "taken"  # there it is a drive
        yield f"{name!r}", build(Row(name.encode()), GOOD), top
        yield f"in {name!r}", build(Row(b"Bank/" + name.encode() + b"/x.pdf"), GOOD), "taken"
    pairs = (("a.pdf", "A.PDF"), ("é.pdf", "e\u0301.pdf"), ("a", "a/b.pdf"), ("a.pdf", "a.pdf "), ("it:x", "it/x"))
    for one, other in pairs:
        yield f"{one!r} and {other!r}", build(Row(one.encode()), Row(other.encode())), "taken"
    for depth in (10, 100, 1000):
        yield f"{depth} folders", build(Row(b"d/" * depth + b"x.pdf")), "taken"
    for raw in (b"\xff\xfe.pdf", b"M\x81ller.pdf", b"\x80" * 50):
        yield f"not UTF-8 {raw!r}", build(Row(raw, flags=0)), "taken"
        yield f"said to be UTF-8 {raw!r}", build(Row(raw)), "either"
    for number in range(40):
        jitter = random.Random(number)  # noqa: S311 - the same names every time
        name = "".join(
            chr(jitter.choice((jitter.randrange(1, 0x2F), jitter.randrange(0x80, 0xD000)))) for _ in range(9)
        )
        yield f"random {name!r}", build(Row(b"Bank/" + name.encode() + b".pdf"), GOOD), "either"


def _damaged() -> Iterator[Case]:
    """Yield archives that are cut, blanked or repeated."""
    for what, raw in zips.broken():
        yield what, raw, "refused"
    whole = zips.plain({f"Bank/{number}.pdf": PDF for number in range(5)})
    for part in range(1, 24):
        yield f"cut to {part} of 24", whole[: len(whole) * part // 24], "refused"
        at = len(whole) * part // 24
        yield f"blank at {part} of 24", whole[:at] + bytes(20) + whole[at + 20 :], "either"
        yield f"repeated at {part} of 24", whole[:at] + whole[at - 10 :], "either"
    for what, raw in zips.hostile():
        yield f"of old: {what}", raw, "refused"


def _deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()
