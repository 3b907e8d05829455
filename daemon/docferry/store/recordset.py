"""Pass many rows as one parameter: a JSON array that PostgreSQL reads as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from docferry.store.connection import Parameters, storable

#: Characters that PostgreSQL cannot store: NUL, and half of a surrogate pair.
_SIGNS = ("\\u0000", "\\ud")
#: Type of byte columns, which JSON contains as hex.
BYTES = "bytea"


def recordset(columns: Mapping[str, str], alias: str = "r") -> str:
    """Return the FROM item that reads the parameter `rows`: a table of columns (by name) with these types."""
    listed = ", ".join(f'"{name}" {"text" if kind == BYTES else kind}' for name, kind in columns.items())
    return f"json_to_recordset(CAST(:rows AS json)) AS {alias}({listed})"


def selected(columns: Mapping[str, str], alias: str = "r") -> str:
    """Return the expressions that read all columns of `recordset`."""
    return ", ".join(
        f"""decode({alias}."{name}", 'hex')""" if kind == BYTES else f'{alias}."{name}"'
        for name, kind in columns.items()
    )


def as_json(rows: Sequence[Parameters]) -> str:
    """Return the value of the parameter `rows`. Unstorable values are replaced by the nearest storable ones.

    Integers must fit into 64 bits.
    """
    try:
        found = json.dumps(rows, default=bytes.hex, allow_nan=False)
    except ValueError:
        found = None
    if found is None or any(sign in found for sign in _SIGNS):
        found = json.dumps([{name: _storable(value) for name, value in row.items()} for row in rows], default=bytes.hex)
    return found


def _storable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return storable(value)
