"""Test canonical JSON: one text for each receipt, readable by any JSON parser."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docferry.receipts.record import FIELDS, LoggedReceipt, ReceiptKind, has
from docferry.store.receipts import EndedReceipt, about_transfer

VALUES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=40)


@settings(suppress_health_check=[HealthCheck.too_slow])  # hypothesis builds its table of Unicode first
@given(st.dictionaries(st.sampled_from([n for n in FIELDS if n not in ("index", "kind")]), VALUES), st.integers(0))
def test_a_body_is_canonical_json_of_its_fields(fields: dict[str, str | int | None], index: int) -> None:
    body = LoggedReceipt(1, ReceiptKind.SENT, fields).body(index)
    read = json.loads(body)
    assert read == {k: v for k, v in fields.items() if v is not None} | {"index": index, "kind": "sent"}
    assert body == json.dumps(read, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    for name in FIELDS:
        assert has(body, name, read.get(name))


TEXTS = st.text(max_size=40)
SOME = st.none() | TEXTS


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(TEXTS, TEXTS, st.sampled_from(["codat", "wootiv"]), SOME, SOME, TEXTS, SOME, st.integers(0, 2**53)),
    st.tuples(st.binary(max_size=20), st.binary(min_size=1, max_size=20)) | st.just((None, None)),
    st.tuples(st.none() | st.integers(100, 599), SOME, SOME, SOME, SOME, st.floats(0, 4e9)),
    st.sampled_from([ReceiptKind.SENT, ReceiptKind.ADOPTED, ReceiptKind.GONE]),
)
def test_the_receipt_of_an_ended_transfer_is_the_same_canonical_json(
    about: tuple[object, ...], path: tuple[bytes | None, bytes | None], end: tuple[object, ...], kind: ReceiptKind
) -> None:
    row = dict(zip(("status", "correlation_id", "etag", "proof", "detail", "at"), end, strict=True))
    facts = (7, *about, *path)
    fields = {name: value for name, value in row.items() if name != "at"} | {"host": "sftp-1"}
    general = about_transfer(facts, kind, row["at"], fields)  # type: ignore[arg-type]  # drawn from the types above
    assert EndedReceipt(7, kind, facts, row, "sftp-1").body(12) == general.body(12)


def test_a_value_cannot_pass_for_another_field() -> None:
    body = LoggedReceipt(1, ReceiptKind.SENT, {"path": '","sha256":"aa","x":"', "size": 12}).body(0)
    assert not has(body, "sha256", "aa")
    assert has(body, "sha256", None)
    assert has(body, "size", 12)
    assert not has(body, "size", 1)
