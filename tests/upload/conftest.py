"""Run the application over real files and the simulator: write documents, upload them, check the remotes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from app_env import COMPANY, AppEnv
from docferry import settings
from docferry.app.application import Application, open_application
from docferry.model import State
from docferry.senders.pool import SenderPool
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread
from ready_senders import THROUGH_SENDERS, ready_first

OPEN = {State.WAITING, State.LEASED, State.SENDING, State.DOUBTFUL, State.ASKING}
#: A company that no mapping names.
OTHER = "11111111-6988-11ed-a1eb-0242ac120002"


@dataclass
class UploadEnv:
    """Provide the folders, application and remotes of one test."""

    app_env: AppEnv
    environ: dict[str, str] = field(default_factory=dict)  # on top of the configuration

    @property
    def simulator(self) -> Simulator:
        return self.app_env.simulator

    def inject(self, *faults: Fault) -> None:
        """Apply these faults from now on."""
        self.simulator.set_faults(faults)

    def write_documents(self, folder: Path, *names: str, content: Callable[[str], bytes] = str.encode) -> None:
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(name))
            os.utime(path, (1_700_000_000, 1_700_000_000))

    @asynccontextmanager
    async def app(self, **more: Any) -> AsyncIterator[Application]:
        """Open the application and scan every folder once."""
        loaded = settings.load(self.app_env.write_config(), self.app_env.environment | self.environ)
        os.environ.update({k: v for k, v in self.app_env.environment.items() if k.endswith("_API_KEY")})
        async with open_application(loaded, **more) as app:
            await app.scheduler.prepare()
            await app.scan_scheduler.round()
            yield app

    async def run_uploads(
        self, app: Application, done: Callable[[dict[str, int]], bool] | None = None
    ) -> dict[str, int]:
        """Run the scheduler until nothing is due, or until `done`. Return the documents by state."""

        def settled(counts: dict[str, int]) -> bool:
            resting = app.reconciler.debouncer.next_due() is None
            return resting and not app.scheduler.is_busy and not any(counts.get(state) for state in OPEN)

        counts: dict[str, int] = {}
        with anyio.fail_after(90):
            async with anyio.create_task_group() as group:
                await group.start(app.scheduler.run)
                while not (done or settled)(counts := await self.states(app)):
                    await app.scan_scheduler.serve_hints()
                    await app.after_upload.serve()
                    await anyio.sleep(0.02)  # polling interval
                app.scheduler.stop()
        return counts

    async def run_until(self, app: Application, done: Callable[[], bool]) -> None:
        """Run the scheduler until `done`, then cancel the requests in flight."""
        with anyio.fail_after(90):
            async with anyio.create_task_group() as group:
                await group.start(app.scheduler.run)
                while not done():
                    await app.scan_scheduler.serve_hints()
                    await anyio.sleep(0.01)  # polling interval
                group.cancel_scope.cancel()

    async def states(self, app: Application) -> dict[str, int]:
        """Return the present documents by state, with open transfers."""
        present = await app.documents.present(app.uploads)
        return Counter({**await app.reports.open_counts(app.uploads), **present})

    async def run_daemon(self, done: Callable[[dict[str, int]], bool] | None = None) -> dict[str, int]:
        """Open the application, upload everything, close it."""
        async with self.app() as app:
            return await self.run_uploads(app, done)

    def at_codat(self, company: str = COMPANY) -> Counter[tuple[str, str]]:
        """Return name and digest of the documents that docferry sent to Codat."""
        stored = self.simulator.stored
        return Counter((s.name, s.sha256) for s in stored if s.remote == "codat" and s.company == company)

    def requests(self, route: str) -> int:
        return self.simulator.requests[route]


def once(*names: str) -> Counter[tuple[str, str]]:
    """Return a count of one for each name, with the name as content."""
    return Counter((name, sha256(name.encode()).hexdigest()) for name in names)


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadEnv]:
    for key in ("CODAT_API_KEY", "WOOTIV_API_KEY"):
        monkeypatch.setenv(key, "to be set")  # so that monkeypatch removes it at the end
    if THROUGH_SENDERS:
        monkeypatch.setattr(SenderPool, "run", ready_first(SenderPool.run))
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as simulator:
        app_env = AppEnv(tmp_path, simulator)
        app_env.settings |= {"settle": '"10ms"', "log_level": '"error"'}
        app_env.codat |= {"list_lag": '"150ms"', "timeout": '"10s"'}
        if THROUGH_SENDERS:
            app_env.settings["senders"] = "1"
        yield UploadEnv(app_env)


def names_of(count: int, start: str = "d") -> Sequence[str]:
    return [f"{start}{number}.pdf" for number in range(count)]


async def until_queued(env: UploadEnv, app: Application, number: int) -> None:
    """Wait until `number` documents are queued, so that they share a batch."""
    with anyio.fail_after(60):
        while (await env.states(app)).get("waiting") != number:
            await app.scan_scheduler.serve_hints()
            await anyio.sleep(0.01)  # polling interval
