"""Test the state folder in everyday trouble: users, permissions, full and read-only disks, a second queue."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app_env import AppEnv
from docferry.simulator import Simulator, SimulatorOptions, SimulatorThread

NOBODY = 65534
AS_NOBODY = Path(__file__).with_name("as_nobody.py")
COMMANDS = (("sync",), ("run",), ("retry", "--all"), ("check", "--offline"), ("status",), ("list",), ("metrics",))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs programs as another user, and mounts")


@pytest.fixture
def app_env() -> Iterator[AppEnv]:
    """Like the common one, in a folder that other users reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="docferry-test-"))
    folder.chmod(0o755)
    with SimulatorThread(Simulator(SimulatorOptions(requests_per_minute=0))) as simulator_thread:
        yield AppEnv(folder, simulator_thread)
    shutil.rmtree(folder)


def run(
    app_env: AppEnv, *words: str, user: int | None = None, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as another user where one is named."""
    path = app_env.write_config()
    if user is not None:
        os.chown(path, user, user)
        os.chown(app_env.root, user, user)
    command = app_env.command(*words)
    if user is not None:
        command = [sys.executable, str(AS_NOBODY), str(user), *command[3:]]
    return subprocess.run(
        command,
        env={**app_env.environment, **(more or {})},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )


def files_of(folder: Path) -> dict[str, int]:
    """Return the mode of each file. A daemon may replace one meanwhile; it is not counted then."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if stat.S_ISREG((state := path.stat()).st_mode):
                found[path.name] = stat.S_IMODE(state.st_mode)
    return found


def test_every_file_of_a_daemon_is_private(app_env: AppEnv) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    mask = os.umask(0o022)
    try:
        with app_env.daemon():
            found = files_of(app_env.state)
            assert {"docferry.db", "docferry.db-wal", "docferry.db-shm", "run.lock"} <= found.keys()
            assert set(found.values()) == {0o600}
        assert run(app_env, "sync").returncode == 0
    finally:
        os.umask(mask)
    assert set(files_of(app_env.state).values()) == {0o600}


@needs_root
def test_after_root_ran_it_the_service_says_chown_and_then_works(app_env: AppEnv) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    assert run(app_env, "sync").returncode == 0
    for words in COMMANDS:
        done = run(app_env, *words, user=NOBODY)
        assert done.returncode == 2, (words, done)
        assert "chown" in done.stderr + done.stdout or "sudo -u" in done.stderr, (words, done)
    subprocess.run(["chown", "-R", str(NOBODY), app_env.state], check=True)
    done = run(app_env, "sync", user=NOBODY)
    assert done.returncode == 0, done.stderr


@needs_root
def test_root_leaves_nothing_in_the_folder_of_the_service(app_env: AppEnv) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    assert run(app_env, "sync", user=NOBODY).returncode == 0
    os.chown(app_env.root / "docferry.toml", 0, 0)
    os.chown(app_env.root, 0, 0)
    done = run(app_env, "sync")
    assert done.returncode == 2
    assert "sudo -u nobody docferry" in done.stderr
    assert {path.stat().st_uid for path in app_env.state.rglob("*")} == {NOBODY}
    assert run(app_env, "sync", user=NOBODY).returncode == 0


@needs_root
@pytest.mark.parametrize("left", ["run.lock", "owners", "docferry.db-wal", "status.json"])
def test_one_file_of_root_is_named_with_the_command(app_env: AppEnv, left: str) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    assert run(app_env, "sync", user=NOBODY).returncode == 0
    (app_env.state / left).touch()
    os.chown(app_env.state / left, 0, 0)
    for words in (("sync",), ("run",)):
        done = run(app_env, *words, user=NOBODY)
        assert done.returncode == 2, done
        assert f"chown -R nobody {app_env.state}" in done.stderr


@needs_root
@pytest.mark.parametrize("options", ["ro", "size=4k,nr_inodes=1", "nr_inodes=3", "size=64k"])
def test_a_read_only_or_full_disk_is_named(app_env: AppEnv, options: str) -> None:
    """The exit code is 2 if a person must change something, 75 if space may return, and never 70."""
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    app_env.state.mkdir(mode=0o700)
    inside = f'mount -t tmpfs -o mode=700,{options} tmpfs "$0" || exit 99; exec "$@"'
    app_env.write_config()
    for words in (("sync", "--timeout", "3"), ("run",), ("check", "--offline"), ("status",), ("list",), ("metrics",)):
        limit = ["timeout", "8" if words[0] == "run" else "40"]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inside, str(app_env.state), *limit, *app_env.command(*words)],
            env=app_env.environment,
            capture_output=True,
            text=True,
            timeout=60.0,
            check=False,
        )
        if done.returncode in (1, 99):
            pytest.skip(f"no mount namespace: {done.stderr}")
        if words[0] in ("sync", "run"):
            waits = words[0] == "run" and done.returncode in (0, 124)  # a full disk is waited for
            assert waits or done.returncode in (2, 75), (words, done)
        else:
            assert done.returncode in (0, 2, 75), (words, done)
        assert "Traceback" not in done.stderr


def test_a_second_queue_of_the_same_configuration_is_reported(app_env: AppEnv) -> None:
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    home = app_env.root / "home"
    here = {"XDG_STATE_HOME": str(home), "STATE_DIRECTORY": ""}
    app_env.settings["state_dir"] = f'"{home}/docferry"'
    assert "second queue" not in run(app_env, "sync", more=here).stderr
    app_env.settings["state_dir"] = f'"{app_env.state}"'
    for words in (("sync",), ("check", "--offline")):
        done = run(app_env, *words, more=here)
        assert done.returncode == 0
        said = done.stderr + done.stdout
        assert "second queue" in said
        assert str(home) in said.replace("\n", "") or "home/docferry" in said
    app_env.sections.clear()
    app_env.upload("other")
    assert "second queue" not in run(app_env, "sync", more=here).stderr


@needs_root
def test_a_queue_in_the_home_folder_is_used_on_beside_an_empty_shared_folder(app_env: AppEnv) -> None:
    """An earlier version kept the queue in the home folder; the package's folder in /var/lib is new and empty."""
    (app_env.upload("bank") / "a.pdf").write_bytes(b"a")
    home = app_env.root / "home"
    app_env.settings["state_dir"] = f'"{home}/docferry"'
    assert app_env.sync()["uploaded"] == 1
    app_env.settings["state_dir"] = '""'
    app_env.write_config()
    inside = 'mount -t tmpfs tmpfs /var/lib && mkdir -m 700 /var/lib/docferry || exit 99; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, "sh", *app_env.command("sync", "--json")],
        env={**app_env.environment, "XDG_STATE_HOME": str(home), "STATE_DIRECTORY": ""},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    if done.returncode == 99:
        pytest.skip(f"no mount namespace: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unchanged"] == 1
    assert len(app_env.simulator.stored) == 1
