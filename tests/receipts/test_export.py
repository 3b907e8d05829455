"""Test that an export is verified by its own script, without docferry and its libraries."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from base64 import b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from docferry.receipts.export import Export, safe_cell, write_exports
from docferry.receipts.heads import Head, SignedHead, Signer
from docferry.receipts.merkle import Tree, leaf_hash
from docferry.receipts.record import LoggedReceipt, ReceiptKind

ORIGIN = "docferry/sftp-1/0123456789abcdef"


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


def bodies(count: int) -> list[tuple[int, str]]:
    paths = ["=HYPERLINK(1)", '<script>alert("x")</script>', "a,b\nc.pdf", "x.pdf"]
    return [
        (
            n,
            LoggedReceipt(
                n, ReceiptKind.SENT, {"path": paths[n % 4], "size": n, "reconstructed": True if n % 3 else None}
            ).body(n),
        )
        for n in range(count)
    ]


def make(path: Path, signer: Signer, count: int = 21) -> Path:
    receipts = bodies(count)
    tree = Tree([leaf_hash(body.encode()) for _, body in receipts])
    heads = [signer.sign(Head(ORIGIN, size, tree.root(size))) for size in (1, 8, 13)]
    chosen = [each for each in receipts if each[0] % 2]
    head = signer.sign(Head(ORIGIN, count, tree.root()))
    about = "company 8a210b68, all times"
    anchors = {"heads.txt": b"copied"}
    found = Export(chosen, tree, head, heads, "2026-11-30T12:00:00Z", about, signer.public_key, anchors)
    write_exports(path, {"sftp-1": found})
    return path


def verify(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the script as an auditor would, isolated from every installed package."""
    return subprocess.run(
        [sys.executable, "-I", "-S", folder / "verify.py", *more], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def export(tmp_path: Path, signer: Signer) -> Path:
    folder = tmp_path / "export"
    with zipfile.ZipFile(make(tmp_path / "x.zip", signer)) as archive:
        archive.extractall(folder)
    return folder


def test_an_untouched_export_is_right(export: Path, tmp_path: Path, signer: Signer) -> None:
    done = verify(export)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"10 receipts are in the log {ORIGIN}, whose head has 21 receipts, signed by ")
    assert verify(export, str(tmp_path / "x.zip")).returncode == 0
    assert verify(export, "--key", b64encode(signer.public_key).decode()).returncode == 0


def test_another_key_is_refused(export: Path) -> None:
    done = verify(export, "--key", b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode())
    assert done.returncode == 1
    assert "head.txt: no signature of the key" in done.stdout


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("receipts.jsonl", '"size":5', '"size":6', "receipt 5): it is not in the log"),
        ("receipts.jsonl", '"index":7', '"index":8', "receipt 8): it is not in the log"),
        ("proofs.jsonl", '"index": 3', '"index": 4', "it is not in the log"),
        ("receipts.csv", '"17"', '"16"', "receipts.csv, receipt 17: index is '16'"),
        ("head.txt", "\n21\n", "\n20\n", "head.txt: no signature"),
        ("heads.txt", "\n8\n", "\n9\n", "heads.txt: the head of 9 receipts"),
        ("consistency.jsonl", '"size": 13', '"size": 12', "heads.txt: the head of 13 receipts is not part"),
    ],
)
def test_every_change_of_an_export_is_named(export: Path, name: str, old: str, new: str, said: str) -> None:
    file = export / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    done = verify(export)
    assert done.returncode == 1
    assert said in done.stdout


def test_heads_that_were_kept_are_compared(export: Path, tmp_path: Path, signer: Signer) -> None:
    tree = Tree([leaf_hash(body.encode()) for _, body in bodies(21)])
    kept = tmp_path / "kept.txt"
    kept.write_text(SignedHead(Head(ORIGIN, 8, tree.root(8))).note())
    assert verify(export, "--anchor", str(kept)).returncode == 0
    for head, said in [
        (Head(ORIGIN, 8, tree.root(7)), "history was rewritten"),
        (Head(ORIGIN, 30, tree.root()), "may have lost some"),
        (Head("docferry/sftp-1/other", 8, tree.root(8)), "is of another log"),
    ]:
        kept.write_text(signer.sign(head).note())
        done = verify(export, "--anchor", str(kept))
        assert done.returncode == 1
        assert said in done.stdout


def test_what_is_no_export_is_said_plainly(export: Path) -> None:
    done = verify(export, str(export / "verify.py"))
    assert done.returncode == 2
    assert done.stderr.startswith("the export cannot be read")
    (export / "receipts.jsonl").write_text("nonsense\n")
    assert verify(export).returncode == 2


def test_a_hostile_export_is_said_plainly(export: Path, tmp_path: Path) -> None:
    """Its maker would like a traceback, a full memory, or a terminal that shows something else."""
    texts = {path.name: path.read_text() for path in export.glob("*.*")}
    deep = "[" * 100_000 + "]" * 100_000 + "\n"
    index = "\x1b[2J\u202eright"
    named = json.dumps({"index": index}, ensure_ascii=False) + "\n"
    for name, content, code, said in [
        ("receipts.jsonl", deep, 2, "cannot be read"),
        ("consistency.jsonl", deep, 2, "cannot be read"),
        ("receipts.jsonl", "[]\n", 2, "cannot be read"),
        ("receipts.csv", '"' + "x" * 200_000, 2, "cannot be read"),
        ("receipts.jsonl", " " * 50_000_000, 2, "grow without limit"),
        ("receipts.jsonl", named, 1, "it was changed"),
        ("receipts.jsonl", texts["receipts.jsonl"] + '{"index": 1}', 1, "last line without an end"),
    ]:
        with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for each, text in {**texts, name: content}.items():
                archive.writestr(each, text)
        done = verify(export, str(tmp_path / "y.zip"))
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), (name, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stdout
        assert "\u202e" not in done.stdout
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("receipts.jsonl", "other bytes")
    assert verify(export, str(tmp_path / "x.zip")).returncode == 2


def test_no_cell_is_a_formula_and_no_text_is_markup(export: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((export / "receipts.csv").read_text())))
    assert [row["path"] for row in rows[:2]] == ['<script>alert("x")</script>', "x.pdf"]
    assert safe_cell("=1+1") == "'=1+1"
    for start in "=+-@\t\r":
        assert safe_cell(f"{start}x").startswith("'")
    html = (export / "receipts.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert json.loads((export / "receipts.jsonl").read_text().splitlines()[0])["index"] == 1
    assert (export / "anchors" / "heads.txt").read_bytes() == b"copied"
