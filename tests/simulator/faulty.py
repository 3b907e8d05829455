"""Start simulators with one fault, and check that they work afterwards."""

from __future__ import annotations

import ssl

import trustme

from docferry.simulator import Fault, SimulatorThread
from simulator.conftest import Start
from simulator.rawclient import (
    upload,
)


def faulty(start: Start, kind: str, match: str = "codat.upload", **params: object) -> SimulatorThread:
    return start(faults=[Fault(kind, match, first=1, params=params)])


def then_all_is_well(running: SimulatorThread, *, stored: int) -> None:
    """Check the effects of the fault, and that the next request is served."""
    assert len(running.simulator.stored) == stored
    assert upload(running.url, key="next").status == 200
    assert len(running.simulator.stored) == stored + 1


def over_tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client
