"""Convert the filter of the documents page from and to URLs and forms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from docferry.store.pages import Filter

STATES: Final = ("waiting", "leased", "sending", "doubtful", "asking", "sent", "held", "gone")
_LONGEST_SEARCH: Final = 200


def asked_filter(query: Sequence[tuple[str, str]]) -> Filter:
    """Return the filter of a query, without invalid parts."""
    found = {name: value for name, value in query if value}
    states = tuple(state for state in STATES if ("state", state) in query)
    return Filter(
        mapping=found.get("mapping"),
        states=states,
        reason=found.get("reason"),
        search=found.get("q", "").strip()[:_LONGEST_SEARCH],
    )


def filter_query(wanted: Filter) -> list[tuple[str, Any]]:
    """Return the query of a filter."""
    pairs = [("q", wanted.search), ("mapping", wanted.mapping), *(("state", state) for state in wanted.states)]
    return [(name, value) for name, value in [*pairs, ("reason", wanted.reason)] if value]
