"""Test heads as signed notes, with a real key and two implementations."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from docferry.errors import ConfigError
from docferry.receipts.heads import Head, SignedHead, open_signer, parse_note, parse_notes
from docferry.receipts.verify_export import verify_ed25519

HEAD = Head("docferry/sftp-1/0123456789abcdef", 17, sha256(b"root").digest())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "receipts.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    return path


def test_a_note_is_read_as_it_was_written(key_file: Path) -> None:
    signer = open_signer(key_file)
    signed = signer.sign(HEAD)
    assert parse_note(signed.note()) == signed
    assert signed.note().startswith(f"{HEAD.origin}\n17\n{b64encode(HEAD.root).decode()}\n\n— {HEAD.origin} ")
    assert signed.is_signed_by(signer.public_key)
    assert not SignedHead(HEAD).is_signed_by(signer.public_key)


def test_another_head_or_key_has_no_signature(key_file: Path) -> None:
    signed = open_signer(key_file).sign(HEAD)
    forged = SignedHead(Head(HEAD.origin, 18, HEAD.root), signed.signatures)
    assert not forged.is_signed_by(open_signer(key_file).public_key)
    assert not signed.is_signed_by(Ed25519PrivateKey.generate().public_key().public_bytes_raw())


def test_an_openssh_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = Ed25519PrivateKey.generate()
    from cryptography.hazmat.primitives import serialization as form

    path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()))
    assert open_signer(path).public_key == key.public_key().public_bytes_raw()


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"rsa"])
def test_a_bad_key_file_is_named_with_the_cure(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "receipts.key"
    if content == b"rsa":
        subprocess.run(["openssl", "genrsa", "-out", path, "2048"], check=True, capture_output=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path}.*openssl genpkey -algorithm ed25519") as caught:
        open_signer(path)
    assert len(caught.value.problems) == 1


def test_every_note_of_a_file_is_read_whatever_lies_between(key_file: Path) -> None:
    signer = open_signer(key_file)
    heads = [signer.sign(Head(HEAD.origin, size, HEAD.root)) for size in (1, 2)]
    unsigned = SignedHead(Head(HEAD.origin, 3, HEAD.root))
    text = "2026-11-30 head\n" + "\n".join(each.note() for each in [*heads, unsigned]) + "\n"
    assert list(parse_notes(text)) == [*heads, unsigned]


@pytest.mark.parametrize(
    "text", ["", "docferry/h/1\n5\n", "docferry/h/1\nfive\nAAAA\n", "docferry/h/1\n5\nAAAA\n", "other/h\n5\nAAAA\n"]
)
def test_a_broken_note_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"it is no|line is no"):
        parse_note(text)


@settings(max_examples=25, deadline=None)  # pure Python takes milliseconds for one signature
@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32), st.integers(0, 511), st.booleans())
def test_the_verifier_of_exports_agrees_with_cryptography(
    message: bytes, seed: bytes, bit: int, is_changed: bool
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    signature = bytearray(key.sign(message))
    if is_changed:
        signature[bit // 8] ^= 1 << bit % 8
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes(signature), message)
        expected = True
    except InvalidSignature:
        expected = False
    assert verify_ed25519(public, message, bytes(signature)) is expected is not is_changed
