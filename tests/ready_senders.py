"""Let senders be ready before anything is claimed, however little is due, and get every document."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from docferry.senders.pool import START_BYTES, SenderPool

#: `make test-senders`: the tests that can send every document through a sender process do so.
THROUGH_SENDERS = "THROUGH_SENDERS" in os.environ
in_process = pytest.mark.skipif(THROUGH_SENDERS, reason="it replaces functions of this process")

Run = Callable[[SenderPool], AbstractAsyncContextManager[None]]


def ready_first(run: Run) -> Run:
    """Return `SenderPool.run` that begins once a sender is ready."""

    @asynccontextmanager
    async def started(self: SenderPool) -> AsyncIterator[None]:
        async with run(self):
            self.claimed([START_BYTES])
            while not self.is_running:  # noqa: ASYNC110 - the pool announces it in its log alone
                await anyio.sleep(0.005)  # polling interval
            yield

    return started
