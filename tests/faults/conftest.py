"""Faults for the whole program: a ground whose daemon can be given limits, mounts, wrappers and other libraries."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app_env import AppEnv, until
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

#: The sizes of the catalogue; without it, sizes that fit into a run of all tests.
FULL = os.environ.get("DOCFERRY_FULL") == "1"
#: Seconds that a test may take at full size.
LONGEST = 1500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if FULL else []:
        item.add_marker(pytest.mark.timeout(LONGEST))


@dataclass
class Terrain(AppEnv):
    """A ground on which docferry is started in a special way."""

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
        """Names of everything that the remotes have."""
        return {name for name, _ in self.stored()}

    def arrives(self, name: str, seconds: float = 30.0) -> None:
        """Wait for a document of this name."""
        until(lambda: name in self.names(), seconds, f"the arrival of {name}")


@pytest.fixture
def terrain(tmp_path: Path) -> Iterator[Terrain]:
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as shore:
        yield Terrain(tmp_path, shore)


@pytest.fixture(scope="session")
def namespace() -> Callable[[str], list[str]]:
    """The command that gives its successor limits and mounts of its own, after a line of shell in there."""
    probe = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here, which give limits and mounts of one's own")
    return lambda first: ["unshare", "-Urm", "sh", "-c", f'{first} && exec "$@"', "sh"]


@pytest.fixture(scope="session")
def bounded() -> list[str]:
    """The command that makes permissions hold for its successor, root or not."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("these tests are run by root, and there is no setpriv to give up its privileges")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Compiles C that stands before libc's own calls, as libfiu does; the path for LD_PRELOAD."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, to put errors before the kernel's answers")

    def build(source: str) -> str:
        folder = tmp_path_factory.mktemp("preload")
        (folder / "fault.c").write_text(source)
        words = shlex.split(f"{compiler} -shared -fPIC -O1 -o {folder}/fault.so {folder}/fault.c -ldl")
        subprocess.run(words, check=True)
        return f"{folder}/fault.so"

    return build
