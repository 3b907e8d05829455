"""Define the faults of a storm: half of all requests, each kind equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from docferry.simulator import KINDS, Event, Fault

#: The share of requests with a fault.
SHARE = 0.5
#: A share of the documents that the remote may refuse for good: these are held, and nobody can do otherwise.
REFUSED = 0.0005

#: The requests with documents, and the lookups.
DOCUMENTS = ("codat.upload", "s3.put", "s3.post")
QUESTIONS = ("codat.list", "codat.download", "codat.connection", "wootiv.sign")


def fault_variants(lag: float) -> dict[str, list[dict[str, Any]]]:
    """Return the parameters of each kind of fault. Sizes and times fit the shortened lag."""
    late = lag / 2
    return {
        **{kind: [{}] for kind in KINDS},
        "refuse": [{"seconds": 0.05}, {"seconds": 0.05, "mode": "reset"}, {"seconds": 0.05, "all": False}],
        "reset_inside": [{}, {"after": 1}, {"after": 20_000}],
        "lost_answer": [{}, {"how": "close"}, {"late": late}],
        "stall": [{"stored": True}, {"stored": False}, {"stored": True, "seconds": 0.3, "late": late}],
        "slow_read": [{"rate": 400_000}],
        "slow_answer": [{"rate": 1}, {"rate": 3_000}],
        "truncated_answer": [{}, {"at": 0}, {"at": 5}],
        "html_200": [{"stored": True}, {"stored": False}],
        "html_502": [{"stored": True}, {"stored": False}, {"stored": True, "late": late}],
        "gzip_bomb": [{"size": 1 << 25, "stored": True}, {"size": 1 << 25, "stored": False}],
        "endless_json": [{"stored": True}, {"stored": False}],
        "redirect": [{}, {"status": 302}],
        "status": [
            *({"status": status, "stored": stored} for status in (500, 502, 503, 504) for stored in (True, False)),
            *({"status": status} for status in (402, 403, 404, 408, 409, 422)),
            {"status": 503, "headers": {"Retry-After": "0"}},
        ],
        "too_many": [{"retry_after": form, "seconds": 0} for form in ("seconds", "date", "past", "garbage")],
        "late": [{"late": late}],
    }


def fault_rules(documents: int, lag: float) -> list[Fault]:
    """Return rules that apply to `SHARE` of all requests, each kind equally often."""
    no = round(documents * REFUSED)
    rules = [Fault("early_413", "codat.upload", rate=0.01, first=no)] if no else []
    every = fault_variants(lag)
    for route in (*DOCUMENTS, *QUESTIONS):
        left = 1.0
        ways = {kind: [params for params in every[kind] if _leaves_hope(route, kind, params)] for kind in KINDS}
        ways = {kind: found for kind, found in ways.items() if found}
        for kind, found in ways.items():
            for params in found:
                part = SHARE / len(ways) / len(found)
                rules.append(Fault(kind, route, rate=part / left, params=params))
                left -= part
    return rules


def _leaves_hope(route: str, kind: str, params: Mapping[str, Any]) -> bool:
    """Exclude a refusal, which holds a document, and a receipt for a document that is not stored."""
    if route == "wootiv.sign" and params.get("status") == 422:
        return False
    return route not in DOCUMENTS or kind not in {"early_413", "swallow"}


class AppliedFaults(Counter[tuple[str, str]]):
    """Count the applied faults of a simulator, by route and kind."""

    def append(self, event: Event) -> None:
        if event.kind == "fault":
            self[event.route, event.detail] += 1
