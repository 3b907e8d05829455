"""Write and read heads of the log as C2SP checkpoints (tlog-checkpoint): notes signed with Ed25519, or unsigned."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from docferry.errors import ConfigError
from docferry.receipts.merkle import HASH_SIZE
from docferry.receipts.verify_export import verify_ed25519

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: The prefix of every origin: `docferry/HOST/ID`.
ORIGIN: Final = "docferry/"
#: The signature type of Ed25519 in a signed note.
_ED25519: Final = b"\x01"
#: Matches the result of `one_line` anywhere in a line.
_LOGGED: Final = re.compile(r"(docferry/[^\s\"]+) (\d+) ([A-Za-z0-9+/]{43}=)(?: ([A-Za-z0-9+/]{80,}=*))?")
_SIGNATURE: Final = re.compile(r"— (\S+) (\S+)")


class Head(Struct, frozen=True):
    """Hold the size and root of a log at one moment."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the body of the checkpoint: three lines, each with a line feed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode('ascii')}\n"


class Signature(Struct, frozen=True):
    """Hold one signature line of a note."""

    name: str
    key_id: bytes
    value: bytes


class SignedHead(Struct, frozen=True):
    """Hold a head with its signatures, as stored and exported."""

    head: Head
    signatures: tuple[Signature, ...] = ()

    def note(self) -> str:
        """Return the signed note; an unsigned note ends after the blank line."""
        lines = [f"— {s.name} {b64encode(s.key_id + s.value).decode('ascii')}\n" for s in self.signatures]
        return f"{self.head.text()}\n{''.join(lines)}"

    def one_line(self) -> str:
        """Return the head for a line of a log: `docferry/HOST/ID 17 ROOT KEYID+SIGNATURE`."""
        signatures = [b64encode(s.key_id + s.value).decode("ascii") for s in self.signatures]
        return " ".join([*self.head.text().split("\n")[:3], *signatures])

    def names_key(self, public_key: bytes) -> bool:
        """Return whether a signature names this Ed25519 public key, valid or not."""
        return any(s.key_id == key_id(s.name, public_key) for s in self.signatures)

    def is_signed_by(self, public_key: bytes) -> bool:
        """Return whether a valid signature of this Ed25519 public key (32 bytes) exists."""
        text = self.head.text().encode()
        return any(
            s.key_id == key_id(s.name, public_key) and verify_ed25519(public_key, text, s.value)
            for s in self.signatures
            if s.name == self.head.origin
        )


class Signer:
    """Sign heads with the Ed25519 key of a file."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()

    def sign(self, head: Head) -> SignedHead:
        """Return the head with the key's signature under the log's origin."""
        value = self._key.sign(head.text().encode())
        return SignedHead(head, (Signature(head.origin, key_id(head.origin, self.public_key), value),))


def open_signer(key_file: Path) -> Signer:
    """Read an Ed25519 private key, PEM or OpenSSH. Raises ConfigError with the problem and the way to make a key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
    except ImportError:
        raise ConfigError(
            ["[receipts] key_file needs the extra `receipts`: pip install 'docferry[receipts]', or remove key_file"]
        ) from None
    cure = f"make one: openssl genpkey -algorithm ed25519 -out {key_file}"
    try:
        data = key_file.read_bytes()
        read = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
        key = read(data, password=None)
    except OSError as error:
        raise ConfigError([f"[receipts] key_file {key_file} cannot be read: {error.strerror}; {cure}"]) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            [f"[receipts] key_file {key_file} holds no private key without a password; {cure}"]
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError([f"[receipts] key_file {key_file} holds another kind of key than Ed25519; {cure}"])
    return Signer(key)


def key_id(name: str, public_key: bytes) -> bytes:
    """Return the four bytes that identify a key in a signature line."""
    return sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def parse_note(text: str) -> SignedHead:
    """Read one note. Raises ValueError with the problem."""
    body, _, rest = text.partition("\n\n")
    lines = body.rstrip("\n").split("\n")
    if len(lines) < 3 or not lines[0].startswith(ORIGIN):
        raise ValueError("it is no head of docferry's log: three lines, the first docferry/HOST/ID")
    origin, size, root = lines[:3]
    if not (size.isascii() and size.isdecimal()) or (len(size) > 1 and size.startswith("0")):
        raise ValueError(f"its second line is no number of receipts: {size!r}")
    found = _decoded(root)
    if len(found) != HASH_SIZE:
        raise ValueError(f"its third line is no root hash: {root!r}")
    return SignedHead(Head(origin, int(size), found), tuple(_signatures(rest)))


def parse_notes(text: str, *, strict: bool = True) -> Iterator[SignedHead]:
    """Read every head of a text in order, and skip other text: whole notes, and lines of a log.

    If `strict`, the first broken head raises ValueError; otherwise broken heads are skipped.
    """
    lines = text.splitlines(keepends=True)
    starts = [at for at, line in enumerate(lines) if line.startswith(ORIGIN) or _LOGGED.search(line)]
    for start, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        logged = _LOGGED.search(lines[start])
        try:
            yield _from_log(logged) if logged else parse_note("".join(lines[start:end]))
        except ValueError as error:
            if strict:
                raise ValueError(f"line {start + 1}: {error}") from error


def read_notes(data: bytes) -> list[SignedHead]:
    """Read every head of a file: notes, lines of a log, or a saved mail. Raises ValueError like `parse_notes`."""
    if b"\nContent-Transfer-Encoding:" in data:
        from email import message_from_bytes
        from email.policy import default

        body = message_from_bytes(data, policy=default).get_body(("plain",))
        text = "" if body is None else str(body.get_content())
    else:
        text = data.decode("utf-8", "replace")
    return list(parse_notes(text.replace("\r\n", "\n")))


def _from_log(found: re.Match[str]) -> SignedHead:
    origin, size, root, signature = found.groups()
    signed = f"— {origin} {signature}\n" if signature else ""
    return parse_note(f"{origin}\n{size}\n{root}\n\n{signed}")


def _signatures(text: str) -> Iterator[Signature]:
    for name, value in _SIGNATURE.findall(text):
        data = _decoded(value)
        if len(data) > 4:
            yield Signature(name, data[:4], data[4:])


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return b""
