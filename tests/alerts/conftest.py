"""Provide servers that receive alerts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from alerts.servers import Hook


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook().running() as found:
        yield found


@dataclass(frozen=True)
class Authority:
    """Provide a certificate authority and a server's certificate for 127.0.0.1."""

    ca_file: Path
    context: ssl.SSLContext


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    return Authority(ca_file, context)
