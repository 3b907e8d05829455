"""What one worker carries: transfers that go together, and the key their request goes under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from docferry.model import State, Transfer
from docferry.store.documents import Place
from docferry.upload.selection import company_of

#: Where the bytes of transfers lie, by their ids.
Places = Mapping[int, Sequence[Place]]


@dataclass(slots=True, eq=False)
class Batch:
    """Transfers of one lane, all LEASED or all ASKING, and where their bytes lie."""

    transfers: list[Transfer]
    places: Places
    lane: str = field(init=False)
    remote: str = field(init=False)
    company: str = field(init=False)  # the part of the lane that has limits of its own
    asks: bool = field(init=False)

    def __post_init__(self) -> None:
        first = self.transfers[0]
        self.lane, self.remote, self.asks = first.target.lane, first.target.remote, first.state is State.ASKING
        self.company = company_of(self.lane)


def idempotency_key(transfers: Sequence[Transfer]) -> str:
    """The idempotency key of a request: the same documents in the same generation give the same key."""
    digest = sha256("/".join(f"{t.uid}.{t.generation}" for t in transfers).encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"  # a UUID of version 8
