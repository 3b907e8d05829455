"""Describe a batch: the transfers that share one worker and one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from docferry.model import State, Transfer
from docferry.store.claims import company_of
from docferry.store.documents import Place

#: The present files with the bytes of transfers, by transfer id.
Places = Mapping[int, Sequence[Place]]


@dataclass(slots=True, eq=False)
class Batch:
    """Hold transfers of one lane, all LEASED (to be sent) or all ASKING (to be looked up)."""

    transfers: list[Transfer]
    places: Places
    lane: str = field(init=False)
    remote: str = field(init=False)
    company: str = field(init=False)  # the part of the lane that has its own limits
    is_lookup: bool = field(init=False)

    def __post_init__(self) -> None:
        first = self.transfers[0]
        self.lane, self.remote, self.is_lookup = first.target.lane, first.target.remote, first.state is State.ASKING
        self.company = company_of(self.lane)


def idempotency_key(transfers: Sequence[Transfer]) -> str:
    """Return the idempotency key of a request, a UUID of version 8.

    The same transfers with the same key versions give the same key, also after a restart.
    """
    digest = sha256("/".join(f"{t.uid}.{t.key_version}" for t in transfers).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
