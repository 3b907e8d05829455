"""Choose the companies that this process claims from a queue of several hosts, and those it requests."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from docferry.clock import Clock
from docferry.settings import Upload
from docferry.store.claims import Lane, company_of
from docferry.store.owners import Owners

#: The time after which a company beyond this host's share is taken if no other host took it, seconds.
LEFT_OVER_S = 5.0


class Choice(Struct, frozen=True):
    """Hold the lanes to select from, and the companies that another process should release soon."""

    lanes: Sequence[Lane]
    ask_for: Collection[str] = ()


class CompanyShares:
    """Divide shared companies equally between the running hosts.

    A company that only this host can serve is not divided. If another process has it in flight, this one requests it.
    """

    def __init__(self, owners: Owners, uploads: Mapping[str, Upload], clock: Clock) -> None:
        self._owners = owners
        self._uploads = uploads
        self._clock = clock
        self._free_since: dict[str, float] = {}  # companies beyond the share, with their first steady second

    def choose(self, lanes: Sequence[Lane], in_hand: Collection[str]) -> Choice:
        """Return the lanes to claim from. `in_hand` are the lanes of batches that this process has claimed."""
        if self._owners.is_local:
            return Choice(lanes)
        now = self._clock.now()
        hidden = self._owners.unreadable
        due = [lane for lane in lanes if "/" in lane.lane and lane.due <= now and lane.mapping not in hidden]
        due.sort(key=lambda lane: lane.due)
        ours = [lane for lane in due if lane.mapping in self._uploads]
        elsewhere = {company_of(lane.lane) for lane in due if lane.elsewhere}
        ask_for = {company_of(lane.lane) for lane in ours if lane.elsewhere and not self._is_shared(lane)}
        served = {company_of(lane.lane) for lane in ours} - ask_for  # those that this host can claim
        divided = dict.fromkeys(
            company for lane in due if self._is_shared(lane) and (company := company_of(lane.lane)) in served
        )
        mine = {company_of(lane) for lane in in_hand} & divided.keys()
        free = [company for company in divided if company not in mine and company not in elsewhere]
        # Take the share of this host, and the companies that no other host took in time.
        hosts = 1 + self._owners.others
        room = max(math.ceil(len(divided) / hosts) - len(mine), 0)
        taken = mine.union(free[:room], self._left_over(free[room:]))
        if len(taken) < max(len(divided) // hosts, 1):  # less than the share: others hold too many
            ask_for |= elsewhere & divided.keys()
        return Choice([lane for lane in lanes if self._may_claim(lane, divided, taken)], ask_for)

    def _is_shared(self, lane: Lane) -> bool:
        """Return whether other hosts can send the transfers of a lane, or have their own transfers of its company."""
        upload = self._uploads.get(lane.mapping)
        return upload is None or upload.shared

    def _left_over(self, free: Sequence[str]) -> list[str]:
        """Return the companies beyond the share that no other host takes."""
        steady = self._clock.steady()
        self._free_since = {company: self._free_since.get(company, steady) for company in free}
        return [company for company, since in self._free_since.items() if steady - since >= LEFT_OVER_S]

    @staticmethod
    def _may_claim(lane: Lane, divided: Collection[str], taken: Collection[str]) -> bool:
        company = company_of(lane.lane)
        return not lane.elsewhere and (company not in divided or company in taken)
