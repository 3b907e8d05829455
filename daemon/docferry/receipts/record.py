"""Encode a receipt as canonical JSON: sorted keys, no white space, ASCII, no floating-point numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

Value = str | int | bool


class ReceiptKind(StrEnum):
    """Name the kinds of events that a receipt attests."""

    SENT = "sent"  # the remote accepted the document
    ADOPTED = "adopted"  # a lookup found the document at the remote; docferry did not see its acceptance
    GONE = "gone"  # the document will not be sent: its file vanished or changed, or `retry --missing` replaced it
    RELEASED = "released"  # a person released a held document
    DOWNLOADED = "downloaded"


#: Kinds that end a transfer as `sent`.
DELIVERED: Final = frozenset({ReceiptKind.SENT, ReceiptKind.ADOPTED})
#: The order of the columns in CSV and HTML; in JSON keys are sorted.
FIELDS: Final = (
    *("index", "kind", "time", "mapping", "path", "size", "sha256", "remote", "company_id", "connection_id"),
    *("remote_name", "status", "correlation_id", "etag", "proof", "detail", "actor", "uid", "host", "version"),
    "reconstructed",
)
quoted: Final = json.encoder.encode_basestring_ascii


class LoggedReceipt(Struct, frozen=True):
    """Hold one leaf of the log: its index, its transfer (None for a download), and its fields."""

    transfer_id: int | None
    kind: ReceiptKind
    fields: Mapping[str, Value | None]

    def body(self, index: int) -> str:
        """Return the canonical JSON of the leaf at `index`, without fields that are None."""
        found = {**self.fields, "index": index, "kind": self.kind}
        pairs = [f'"{name}":{_encoded(found[name])}' for name in sorted(found) if found[name] is not None]
        return f"{{{','.join(pairs)}}}"


def has(body: str, name: str, value: Value | None) -> bool:
    """Return whether canonical JSON has this field with this value, or lacks it for None, without parsing all of it.

    A quotation mark inside a string is escaped, so a string cannot contain another field.
    """
    if value is None:
        return f'"{name}":' not in body
    fragment = f'"{name}":{_encoded(value)}'
    at = body.find(fragment)
    return at >= 0 and body[at + len(fragment)] in ",}"


def _encoded(value: Value | None) -> str:
    """Encode one value, several times faster than `json.dumps`, which builds an encoder for each call."""
    if isinstance(value, str):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
