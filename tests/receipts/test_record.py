"""Test canonical JSON: one text for each receipt, readable by any JSON parser."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from docferry.receipts.record import FIELDS, LoggedReceipt, ReceiptKind, has

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


def test_a_value_cannot_pass_for_another_field() -> None:
    body = LoggedReceipt(1, ReceiptKind.SENT, {"path": '","sha256":"aa","x":"', "size": 12}).body(0)
    assert not has(body, "sha256", "aa")
    assert has(body, "sha256", None)
    assert has(body, "size", 12)
    assert not has(body, "size", 1)
