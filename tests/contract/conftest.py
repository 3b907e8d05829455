"""Provide every remote for the contract tests: the same document and faults, by every way of upload."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields  # noqa: TID251 - HttpOptions is a dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from api_keys import StaticKey
from contract.upload_items import CODAT, WOOTIV, item
from docferry.clock import SystemClock
from docferry.model import Receipt, Target, UploadItem
from docferry.remotes.codat.client import Codat, CodatOptions
from docferry.remotes.http import HttpClient, HttpOptions
from docferry.remotes.wootiv.client import Wootiv, WootivOptions
from docferry.remotes.wootiv.signed_url import SignedUrlPolicy
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread


@dataclass
class RemoteEnv:
    """Provide one remote before its simulator. `route`: the request with the document."""

    remote: Codat | Wootiv
    sim: Simulator
    target: Target
    route: str

    async def send(self, name: str, content: bytes = b"some bytes", key: str = "", **source: Any) -> Receipt:
        return await self.remote.send([self.item(name, content, **source)], key or str(uuid.uuid4()))

    def item(self, name: str, content: bytes = b"some bytes", **source: Any) -> UploadItem:
        return item(name, content, self.target, **source)

    def inject(self, kind: str, match: str = "", **params: Any) -> None:
        """Apply this fault to each request with a document."""
        first = params.pop("first", None)
        self.sim.set_faults([Fault(kind, match or self.route, first=first, params=params)])

    @property
    def names(self) -> list[str]:
        return [stored.name for stored in self.sim.stored]


@dataclass(frozen=True)
class Certificates:
    server: ssl.SSLContext
    ca_file: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return Certificates(context, ca_file)


Make = Callable[..., Any]


def _make_codat(settings: dict[str, Any]) -> Codat:
    options = {name: settings.pop(name) for name in CodatOptions.__struct_fields__ if name in settings}
    return Codat(settings.pop("http"), CodatOptions(**options), **(settings | {"key": StaticKey(settings["key"])}))


def _make_wootiv(settings: dict[str, Any]) -> Wootiv:
    urls = SignedUrlPolicy(settings["base_url"], settings.pop("storage_hosts", ()))
    options = WootivOptions(settings.pop("base_url"), settings.pop("direct", frozenset()))
    return Wootiv(urls=urls, options=options, **(settings | {"key": StaticKey(settings["key"])}))


def http_client(name: str, more: dict[str, Any]) -> HttpClient:
    """Return a client for the HTTP settings, which are removed from `more`."""
    options = {each.name: more.pop(each.name) for each in fields(HttpOptions) if each.name in more}
    return HttpClient(name, more.get("clock") or SystemClock(), HttpOptions(**({"timeout": 5.0} | options)))


@pytest.fixture
def simulated() -> Iterator[Callable[..., Simulator]]:
    """`simulated(SimulatorOptions(…))` runs a simulator until the test ends."""
    with ExitStack() as stack:

        def start(
            options: SimulatorOptions | None = None, *, tls: ssl.SSLContext | None = None, **more: Any
        ) -> Simulator:
            options = options or SimulatorOptions(requests_per_minute=0, concurrent_per_company=0)
            return stack.enter_context(SimulatorThread.start(Simulator(options, **more), ssl_context=tls)).simulator

        yield start


@pytest.fixture
async def codat(simulated: Make, tmp_path: Path) -> AsyncIterator[Make]:
    """`codat(sim=…, timeout=…)` returns a client for a simulator, by default for a new one."""
    made: list[Codat] = []

    def make(sim: Simulator | None = None, **more: Any) -> RemoteEnv:
        sim = sim or simulated()
        settings: dict[str, Any] = {
            "base_url": sim.url,
            "requests_per_minute": 100_000,
            "list_lag": 0.0,
        }
        settings |= {"key": lambda: sim.options.codat_key, "clock": SystemClock(), "spool": tmp_path / "spool"}
        settings["http"] = http_client("Codat", more)
        made.append(_make_codat(settings | more))
        return RemoteEnv(made[-1], sim, CODAT, "codat.upload")

    yield make
    for each in made:
        await each.aclose()


@pytest.fixture
async def wootiv(simulated: Make) -> AsyncIterator[Make]:
    """Provide Wootiv; `signed` is the kind of its signed URLs."""
    made: list[Wootiv] = []

    def make(sim: Simulator | None = None, signed: str = "put", **more: Any) -> RemoteEnv:
        sim = sim or simulated()
        sim.options.change({"signed": signed})
        settings: dict[str, Any] = {"base_url": sim.url, "clock": SystemClock()}
        settings["key"] = lambda: sim.options.wootiv_key
        settings["http"], settings["storage"] = http_client("Wootiv", dict(more)), http_client("Wootiv's storage", more)
        made.append(_make_wootiv(settings | more))
        route = "wootiv.upload" if "direct" in settings | more else f"s3.{signed}"
        return RemoteEnv(made[-1], sim, WOOTIV, route)

    yield make
    for each in made:
        await each.aclose()


@pytest.fixture(params=["codat", "codat-tls", "wootiv-put", "wootiv-put-tls", "wootiv-post", "wootiv-direct"])
def open_env(
    request: pytest.FixtureRequest, simulated: Make, certificates: Certificates, codat: Make, wootiv: Make
) -> Make:
    """`open_env(timeout=…)` opens one remote after the other, with each way of upload."""

    def make(**more: Any) -> RemoteEnv:
        name, *way = request.param.split("-")
        sim = simulated(tls=certificates.server if "tls" in way else None)
        if "tls" in way:
            more.setdefault("ca_file", certificates.ca_file)
        if way[:1] == ["direct"]:
            more["direct"] = frozenset({"test"})
        elif name == "wootiv":
            more["signed"] = way[0]
        made: RemoteEnv = (codat if name == "codat" else wootiv)(sim, **more)
        return made

    return make
