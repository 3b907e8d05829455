"""Memory that a response can take: each case runs in a process of its own, whose peak is read."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

#: The whole daemon stays below 250 MB: the limit for one response, interpreter and libraries included.
MOST_MB = 200
_MEASURED = """
import anyio, sys
from pathlib import Path
from docferry.errors import RemoteError
{body}
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""
_ZIP = """
from docferry.remotes.codat import zip_digests
from docferry.remotes.codat.reconcile import Members
try:
    zip_digests.count(Path(sys.argv[1]), Members())
    print("counted")
except RemoteError as error:
    print(error)
"""
_LIST = """
from docferry.remotes.codat.company_list import ListReader
reader = ListReader()
async def read():
    async with reader.sink() as feed:
        with open(sys.argv[1], "rb") as file:
            while block := file.read(1 << 20):
                await feed(block)
    print(len(reader.rows()), "rows")
try:
    anyio.run(read)
except RemoteError as error:
    print(error)
"""


def measured(body: str, file: Path) -> tuple[str, int]:
    """Return the output, and the peak of memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED.format(body=body), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said, peak = done.stdout.splitlines()
    return said, int(peak)


def directory_of(path: Path, entries: int) -> Path:
    """Write a ZIP64 whose central directory has the smallest possible entries, all of one empty member."""
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    with path.open("wb") as file:
        file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a")
        start = file.tell()
        for _ in range(entries // 1000):
            file.write(entry * 1000)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, end - start, start))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path


@pytest.mark.parametrize("entries", [1000, 350_000, 4_000_000])
def test_a_large_directory_of_a_zip(tmp_path: Path, entries: int) -> None:
    said, peak = measured(_ZIP, directory_of(tmp_path / "day.zip", entries))
    assert said == "counted" if entries == 1000 else "exceeds the limits" in said
    assert peak < MOST_MB


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" + b"{}," * (16 * 1024**2 // 3) + b"{}]", "more than 300,000 rows"),
        (b"[" * (16 * 1024**2), "has a row that is not an object"),
        (b'[{"a":' + b"[" * (16 * 1024**2), "ends early"),
        (b'[{"a":' * 5000, "ends early"),
        (b'[{"fileName":"' + b"x" * (16 * 1024**2), "ends early"),
        (b"[" + b'{"fileName":"a.pdf","uploaded":"20261121T100000Z"},' * 120_000 + b"{}]", "120001 rows"),
        (b'[{"uploaded":' + b"9" * 5_000 + b"}]", "is not valid JSON"),
        (b'[{"uploaded":' + b"9" * 1_000_000 + b"}]", "is not valid JSON"),
        (b'[{"uploaded":1e999}]', "is not valid JSON"),
        (b'[{"size":9007199254740993,"share":0.5}]', "1 rows"),
        (b'[{"fileName":"\\ud800"}]', "1 rows"),
        (b"\xff\xfe[\x00", "is not valid JSON"),
    ],
    ids=[
        "empty rows",
        "arrays",
        "deep",
        "deep rows",
        "long text",
        "many rows",
        "5,000 digits",
        "long number",
        "exponent",
        "numbers",
        "surrogate",
        "utf-16",
    ],
)
def test_a_list_of_any_shape(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "list").write_bytes(content)
    said, peak = measured(_LIST, tmp_path / "list")
    assert says in said
    assert peak < MOST_MB
