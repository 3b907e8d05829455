"""Provide an environment whose daemon can get limits, mounts, wrappers and preloaded libraries."""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from app_env import AppEnv, until
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread
from faults.network import quick

#: Use the sizes of the catalogue instead of small ones.
FULL = os.environ.get("DOCFERRY_FULL") == "1"
#: Limit of a test at full size, seconds.
LONGEST = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if FULL else []:
        item.add_marker(pytest.mark.timeout(LONGEST))


@dataclass
class FaultEnv(AppEnv):
    """Provide an environment that starts docferry in a special way."""

    prefix: list[str] = field(default_factory=list)  # a command that starts another one
    wrapper: str | None = None  # Python to run before docferry's main
    extra: dict[str, str] = field(default_factory=dict)  # environment

    def command(self, *words: str) -> list[str]:
        start = ["-m", "docferry"]
        if self.wrapper is not None:
            start = ["-c", f"{self.wrapper}\nimport sys\nfrom docferry.__main__ import main\nsys.exit(main())"]
        return [*self.prefix, sys.executable, *start, "--config", str(self.root / self.config_name), *words]

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.extra}

    def names(self) -> set[str]:
        """Return the names of everything that the remotes have."""
        return {name for name, _ in self.stored()}

    def wait_for_upload(self, name: str) -> None:
        """Wait for a document of this name."""
        until(lambda: name in self.names(), what=f"the arrival of {name}")

    def status(self) -> str:
        """Return the text of the status file; empty before the daemon has written one."""
        path = self.state / "status.json"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def fault_env(tmp_path: Path) -> Iterator[FaultEnv]:
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as simulator_thread:
        yield FaultEnv(tmp_path, simulator_thread)


@pytest.fixture(scope="session")
def namespace() -> Callable[[str], list[str]]:
    """Return a function that builds a command prefix. A line of shell sets up its limits and mounts."""
    probe = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no user namespaces")
    return lambda first: ["unshare", "-Urm", "sh", "-c", f'{first} && exec "$@"', "sh"]


@pytest.fixture(scope="session")
def bounded() -> list[str]:
    """Return a command prefix that makes permissions apply to root, too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv to give up its privileges")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return a function that compiles C which overrides functions of libc; it returns the path for LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")

    def build(source: str) -> str:
        folder = tmp_path_factory.mktemp("preload")
        (folder / "fault.c").write_text(source)
        words = shlex.split(f"{compiler} -shared -fPIC -O1 -o {folder}/fault.so {folder}/fault.c -ldl")
        subprocess.run(words, check=True)
        return f"{folder}/fault.so"

    return build


@pytest.fixture(params=["plain", "tls"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AppEnv]:
    """Provide an environment with a simulator over HTTP, and one over HTTPS."""
    context = None
    if request.param == "tls":
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0)), ssl_context=context) as simulator_thread:
        app_env = AppEnv(tmp_path, simulator_thread)
        if context is not None:
            app_env.codat["ca_file"] = f'"{tmp_path / "ca.pem"}"'
        yield quick(app_env)
