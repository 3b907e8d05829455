"""Test that a configuration that a customer plants steals no key."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from app_env import AppEnv, until
from docferry.cli.main import main
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

CUSTOMER, SERVICE = 65533, 65534
AS_NOBODY = Path(__file__).with_name("as_nobody.py")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs programs as another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder that other users reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="docferry-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@root_only
@pytest.mark.parametrize("words", [("check",), ("sync",), ("run",), ("status",), ("config", "show")])
@pytest.mark.parametrize(("owner", "mode"), [(CUSTOMER, 0o755), (CUSTOMER, 0o777), (SERVICE, 0o777), (0, 0o1777)])
def test_a_planted_file_in_the_working_folder_is_passed_over(
    place: Path, words: tuple[str, ...], owner: int, mode: int
) -> None:
    """A folder of a customer, a folder of the service that a customer may write, and one like /tmp."""
    key = place / "codat.key"
    key.write_text("the-service-key")
    key.chmod(0o600)
    os.chown(key, SERVICE, SERVICE)
    folder = place / "customer"
    folder.mkdir()
    with SimulatorThread(Simulator(SimulatorOptions())) as hers:
        planted = folder / "docferry.toml"
        planted.write_text(
            f'state_dir = "{place}/state"\n[codat]\nbase_url = "{hers.url}"\napi_key_file = "{key}"\n'
            f'[[upload]]\nname = "a"\nfolder = "{folder}"\nto = "codat"\n'
            'company_id = "8a210b68-6988-11ed-a1eb-0242ac120002"\n'
            'connection_id = "2e9d2c44-f675-40ba-8049-353bfcb5e171"\n'
        )
        os.chown(planted, CUSTOMER, CUSTOMER)
        (folder / "a.pdf").write_bytes(b"a")
        folder.chmod(mode)
        os.chown(folder, owner, owner)
        done = subprocess.run(
            [sys.executable, str(AS_NOBODY), str(SERVICE), *words],
            env={"PATH": os.environ["PATH"], "HOME": str(place / "home")},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60.0,
            check=False,
        )
        assert hers.simulator.requests.total() == 0
    assert done.returncode == 2
    assert "passed over" in done.stderr
    assert f"{folder}" in done.stderr
    assert not (place / "state").exists()


#: Every command that reads a configuration, but `run`.
COMMANDS = [
    "sync --no-download", "status", "status --json", "list", "show 1", "retry --all", "check --offline", "config show",
    "verify", "receipts verify", "remote health", "alerts list", "hosts", "metrics", "health", "ui", "put a 1.pdf",
]  # fmt: skip


@pytest.fixture
def planted_env(app_env: AppEnv, monkeypatch: pytest.MonkeyPatch) -> AppEnv:
    """Provide a working folder with a configuration that others may write, and a good one in $XDG_CONFIG_HOME."""
    app_env.upload("a")
    home = app_env.root / "xdg" / "docferry"
    home.mkdir(parents=True, mode=0o700)
    app_env.write_config().rename(home / "docferry.toml")
    folder = app_env.root / "work"
    folder.mkdir()
    planted = folder / "docferry.toml"
    planted.write_text("")
    planted.chmod(0o666)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home.parent))
    monkeypatch.delenv("DOCFERRY_CONFIG", raising=False)
    for name, value in app_env.environment.items():
        monkeypatch.setenv(name, value)
    return app_env


def test_every_command_names_the_configuration_that_it_passed_over(
    planted_env: AppEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = planted_env.root / "work" / "docferry.toml"
    for words in COMMANDS:
        main(words.split())
        captured = capsys.readouterr()
        shown = captured.out if words.startswith("check") else captured.err
        said = [line for line in shown.splitlines() if "passed over" in line]
        assert len(said) == 1, (words, captured)
        assert str(planted) in said[0], (words, captured)


def test_the_daemon_logs_the_configuration_that_it_passed_over(planted_env: AppEnv) -> None:
    log = planted_env.root / "log"
    with log.open("wb") as sink, subprocess.Popen([sys.executable, "-m", "docferry", "run"], stderr=sink) as running:
        try:
            until(lambda: "configuration_passed_over" in log.read_text(), 30)
        finally:
            running.terminate()
