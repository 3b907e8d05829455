"""Test the packages in clean Debian roots: install, use, upgrade and purge; `make test-packages` builds and runs them.

mmdebstrap makes each root, and chroot enters it, so the tests need root. Without systemd in the root, calls of
systemctl are recorded.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import older_package
from docferry import __version__
from docferry.simulator import Fault, Simulator, SimulatorOptions, SimulatorThread

pytestmark = [
    pytest.mark.packages,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root of its own needs root"),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed here"),
]

_RELEASES = {"bookworm": "12", "trixie": "13"}
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LANG": "C.UTF-8"}
_ADMIN_CONFIGURATION = """\
# edited by an administrator
settle = "1s"
[codat]
base_url = "{url}"
list_lag = "1s"
[[upload]]
name = "acme"
folder = "/{folder}"
to = "codat"
company_id = "8a210b68-6988-11ed-a1eb-0242ac120002"
connection_id = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
"""
_FOLDER = "srv/customers/acme"
#: Runs the service of the image until its health check succeeds and the document is sent; then the check has to fail.
_WATCHED = """
docferry run & service=$!
tries=0
until HEALTHCHECK >&2 && docferry status --json | grep -q '"sent": 1'; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] && sleep 1 || exit 9
done
kill $service && wait $service || exit 8
HEALTHCHECK >&2 && exit 7
cd /data && ls docferry.db
"""


class Root:
    """Provide a directory with a whole Debian, with its own process table and /proc."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _command(self, *command: str, user: str | None) -> list[str]:
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.path}/proc", "chroot"]
        return [*enter, *([f"--userspec={user}:{user}"] if user else []), str(self.path), *command]

    def run(
        self, *command: str, user: str | None = None, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._command(*command, user=user),
            env={**_ENVIRONMENT, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(params=_RELEASES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a function for the root of a release as mmdebstrap makes it, once; each test gets a copy."""
    folder = tmp_path_factory.mktemp("bases")

    @cache
    def base(suite: str) -> Path:
        path = folder / suite
        options = ["--quiet", "--variant=minbase", "--format=directory", "--skip=cleanup/apt"]
        subprocess.run(["mmdebstrap", *options, suite, path], check=True, stdout=subprocess.DEVNULL)
        shutil.copy("/etc/resolv.conf", path / "etc/resolv.conf")
        # A root that lives for a minute needs no fsync for each file.
        (path / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        return path

    yield base
    _remove(folder)


@pytest.fixture
def debian(suite: str, bases: Callable[[str], Path], tmp_path: Path) -> Iterator[Root]:
    path = tmp_path / suite
    subprocess.run(["cp", "--archive", "--reflink=auto", bases(suite), path], check=True)
    yield Root(path)
    _remove(path)


def _remove(folder: Path) -> None:
    """Delete the folder with a whole Debian, because pytest keeps the folders of three runs."""
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", folder], check=True)


@pytest.fixture
def package(suite: str, root: Path) -> Path:
    (found,) = (root / "dist").glob(f"docferry_{__version__}-1+deb{_RELEASES[suite]}_*.deb")
    return found


def _install(root: Root, package: Path) -> float:
    """Install a package as an administrator does; return the seconds that apt took."""
    shutil.copy(package, root.path / "docferry.deb")
    began = time.monotonic()
    keep = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    root.run("apt-get", "install", "--yes", "--no-install-recommends", *keep, "/docferry.deb")
    return time.monotonic() - began


def test_a_package_from_installation_to_purge(debian: Root, package: Path, suite: str) -> None:
    seconds = _install(debian, package)
    print(f"\n{suite}: package {package.stat().st_size / 1e6:.1f} MB, apt install with dependencies {seconds:.1f} s")
    _assert_whole(debian)
    _print_start_time(debian, suite)

    demo = debian.run("docferry", "demo", user="docferry")
    assert re.search(r"Proved against what the remotes have: \d+ documents, each exactly once", demo.stdout)

    document = _write(debian, "march")
    with SimulatorThread(Simulator()) as thread:
        _configure(debian, thread.url)
        assert _sync(debian)["uploaded"] == 1
    purged = debian.run("apt-get", "purge", "--yes", "docferry")
    assert document.read_bytes() == _pdf("march")
    assert (debian.path / "var/lib/docferry/docferry.db").is_file()
    assert "stay in /var/lib/docferry" in purged.stdout
    for gone in (
        "usr/lib/docferry",
        "usr/bin/docferry",
        "usr/lib/systemd/system/docferry.service",
        "etc/docferry/docferry.toml",
    ):
        assert not (debian.path / gone).exists(), gone


def test_an_upgrade_keeps_queue_and_configuration(
    debian: Root, package: Path, suite: str, root: Path, tmp_path: Path
) -> None:
    """The older package is built from an older commit. Each document is sent once by one of both versions."""
    _install(debian, older_package.build(root, suite, tmp_path))
    assert debian.run("docferry", "--version").stdout == f"docferry {older_package.VERSION}\n"
    with SimulatorThread(Simulator()) as thread:
        configuration = _configure(debian, thread.url)
        written = configuration.read_text()
        _write(debian, "sent")
        assert _sync(debian)["uploaded"] == 1
        (debian.path / _FOLDER / "empty.pdf").write_bytes(b"")
        for name, fault in {
            "doubtful": Fault("lost_answer", "codat.upload"),
            "waiting": Fault("status", "codat.upload", params={"status": 404}),
        }.items():
            thread.simulator.set_faults([fault, Fault("status", "codat.list", params={"status": 503})])
            _write(debian, name)
            _sync(debian, "--timeout", "5s")
        thread.simulator.set_faults([])
        assert _states(debian) == {"sent": "sent", "empty": "held", "doubtful": "doubtful", "waiting": "waiting"}

        with _recorded_systemctl(debian) as calls:
            seconds = _install(debian, package)
        print(f"\n{suite}: upgrade {seconds:.1f} s")
        # Other packages of the root reload systemd, too.
        calls = [call for number, call in enumerate(calls) if calls[number - 1 : number] != [call]]
        stop = "stop docferry.service docferry-sync.timer docferry-sync.service docferry-lease.service"
        assert calls == [stop, "daemon-reload", "start docferry.service"]
        assert configuration.read_text() == written
        _assert_whole(debian)
        assert debian.run("docferry", "retry", "--all", user="docferry").returncode == 0
        report = _sync(debian)
        assert (report["uploaded"], report["held"], report["due"]) == (2, 1, 0)
        assert _states(debian) == {"sent": "sent", "empty": "held", "doubtful": "sent", "waiting": "sent"}
        again = _sync(debian)
        assert (again["uploaded"], again["unchanged"]) == (0, 3)
        stored = sorted((each.name, each.content) for each in thread.simulator.stored)
    assert stored == [(f"{name}.pdf", _pdf(name)) for name in ("doubtful", "sent", "waiting")]


@contextmanager
def _recorded_systemctl(debian: Root) -> Iterator[list[str]]:
    """Let the scripts of the package find a systemd that runs docferry.service; add its calls at the end."""
    program, log = debian.path / "usr/bin/systemctl", debian.path / "systemctl.log"
    program.rename(program.with_suffix(".real"))
    program.write_text(f"""#!/bin/sh
case "$*" in
    "--quiet is-active docferry.service") exit 0 ;;
    *is-active*) exit 3 ;;
esac
echo "$@" >>/{log.name}
""")
    program.chmod(0o755)
    running = debian.path / "run/systemd/system"
    running.mkdir(parents=True)
    calls: list[str] = []
    try:
        yield calls
    finally:
        running.rmdir()
        program.with_suffix(".real").rename(program)
        calls += log.read_text().splitlines()


def _pdf(name: str) -> bytes:
    return f"%PDF-1.4\n% {name}\n%%EOF\n".encode()


def _write(debian: Root, name: str) -> Path:
    document = debian.path / _FOLDER / f"{name}.pdf"
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_bytes(_pdf(name))
    return document


def _configure(debian: Root, url: str) -> Path:
    configuration = debian.path / "etc/docferry/docferry.toml"
    configuration.write_text(_ADMIN_CONFIGURATION.format(url=url, folder=_FOLDER))
    return configuration


def _sync(debian: Root, *words: str) -> dict[str, Any]:
    key = SimulatorOptions().codat_key
    done = debian.run("docferry", "sync", "--json", *words, user="docferry", check=False, CODAT_API_KEY=key)
    assert done.returncode in {0, 1, 75}, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _states(debian: Root) -> dict[str, str]:
    rows = debian.run("docferry", "list", "--json", user="docferry").stdout.splitlines()
    return {Path(row["path"]).stem: row["state"] for row in map(json.loads, rows)}


def _assert_whole(debian: Root) -> None:
    """Assert that all is in its place, verified, and nothing runs or is enabled."""
    assert debian.run("docferry", "--version").stdout == f"docferry {__version__}\n"
    units = [
        f"/usr/lib/systemd/system/{name}"
        for name in ("docferry.service", "docferry-sync.service", "docferry-lease.service")
    ]
    verified = debian.run("systemd-analyze", "verify", "--man=no", *units)
    assert (verified.stdout, verified.stderr) == ("", "")
    state = debian.run("stat", "--format=%U %G %a", "/var/lib/docferry").stdout
    assert state == "docferry docferry 700\n"
    library = debian.path / "usr/lib/docferry"
    modules = [path for path in library.rglob("*.py") if "site-packages/docferry/" in str(path)]
    assert modules
    assert all(list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")) for path in modules)
    assert not list(library.glob("lib/*/site-packages/pip"))
    assert {path.name for path in (library / "bin").iterdir() if not path.name.startswith("python")} == {"docferry"}
    for place in ("man/man1/docferry.1.gz", "man/man5/docferry.toml.5.gz", "bash-completion/completions/docferry"):
        assert (debian.path / "usr/share" / place).is_file(), place
    assert not list((debian.path / "etc/systemd/system").glob("*/docferry*"))


def _print_start_time(debian: Root, suite: str) -> None:
    for command in (["docferry", "--version"], ["docferry", "status"]):
        took = []
        for _ in range(5):
            began = time.monotonic()
            debian.run(*command, user="docferry", check=False)
            took.append(time.monotonic() - began)
        print(f"{suite}: {' '.join(command)} in {min(took):.2f} s")


@pytest.mark.usefixtures("suite")
@pytest.mark.parametrize("suite", ["bookworm"], indirect=True)
def test_the_rpm_package(debian: Root, root: Path) -> None:
    """Install with rpm itself, on Debian: there is no distribution with RPM packages here."""
    (package,) = (root / "dist").glob(f"docferry-{__version__}-1.{platform.machine()}.rpm")
    shutil.copy(package, debian.path / "docferry.rpm")
    debian.run("apt-get", "install", "--yes", "--no-install-recommends", "rpm", "python3", "procps", "systemd")
    asked = debian.run("rpm", "--query", "--package", "--requires", "/docferry.rpm").stdout.splitlines()
    assert {"/usr/bin/python3.11", "ca-certificates", "systemd"} <= set(asked)
    assert debian.run("rpm", "-qpc", "/docferry.rpm").stdout == "/etc/docferry/docferry.toml\n"
    debian.run("rpm", "--install", "--nodeps", "/docferry.rpm")
    _assert_whole(debian)
    (debian.path / "etc/docferry/docferry.toml").write_text("# edited\n")
    debian.run("rpm", "--erase", "docferry")
    assert (debian.path / "etc/docferry/docferry.toml.rpmsave").read_text() == "# edited\n"
    assert (debian.path / "var/lib/docferry").is_dir()
    assert not (debian.path / "usr/lib/docferry").exists()


def test_the_image(root: Path, tmp_path: Path) -> None:
    """The archive has one layer and its settings. The image runs as user 10001 on a read-only root."""
    (archive,) = (root / "dist").glob(f"docferry-{__version__}-image-*.tar")
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", tmp_path], check=True)
    (manifest,) = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["RepoTags"] == [f"localhost/docferry:{__version__}"]
    settings = json.loads((tmp_path / manifest["Config"]).read_text())["config"]
    assert settings["User"] == "10001:10001"
    assert (settings["Entrypoint"], settings["Cmd"]) == (["/usr/bin/docferry"], ["run"])
    assert settings["Volumes"] == {"/data": {}}
    assert settings["Healthcheck"]["Test"] == ["CMD", "/usr/bin/docferry", "health"]

    layers = manifest["Layers"]
    image = tmp_path / "image"
    image.mkdir()
    for layer in layers:
        subprocess.run(["tar", "--extract", "--file", tmp_path / layer, "--directory", image], check=True)
    print(f"\nimage: {archive.stat().st_size / 1e6:.0f} MB")
    enter = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && mount -t tmpfs none "$1/tmp" '
        '&& mount -t tmpfs -o uid=10001,gid=10001,mode=0700 none "$1/data" '
        '&& mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && shift'
    )
    chroot = f'{enter} && exec chroot --userspec=10001:10001 "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", chroot, str(image), str(image)]
    environ = {**_ENVIRONMENT, **dict(each.split("=", 1) for each in settings["Env"])}

    def run(*words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], env={**environ, **extra}, capture_output=True, text=True, check=False, timeout=300
        )

    demo = run("docferry", "demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "each exactly once" in demo.stdout
    unconfigured = run("docferry", "run")
    assert unconfigured.returncode == 2, unconfigured.stdout + unconfigured.stderr
    assert "/etc/docferry/docferry.toml" in unconfigured.stderr

    (image / _FOLDER).mkdir(parents=True)
    (image / _FOLDER / "march.pdf").write_bytes(_pdf("march"))
    with SimulatorThread(Simulator()) as thread:
        configured = _ADMIN_CONFIGURATION.format(url=thread.url, folder=_FOLDER)
        (image / "etc/docferry/docferry.toml").write_text(configured)
        checked = " ".join(settings["Healthcheck"]["Test"][1:])
        watched = run("sh", "-c", _WATCHED.replace("HEALTHCHECK", checked), CODAT_API_KEY=SimulatorOptions().codat_key)
        assert watched.returncode == 0, watched.stdout + watched.stderr
        assert watched.stdout.split() == ["docferry.db"]
        assert [each.name for each in thread.simulator.stored] == ["march.pdf"]


@pytest.mark.skipif(shutil.which("podman-compose") is None, reason="podman-compose is not installed here")
def test_the_compose_file_on_a_network_of_its_own(root: Path, tmp_path: Path) -> None:
    """The service of compose.yaml sends its document over a bridge, is healthy, and stops with exit code 0."""
    (archive,) = (root / "dist").glob(f"docferry-{__version__}-image-*.tar")
    folder = tmp_path / "compose"
    namespaces = ["unshare", "--net", "--mount", sys.executable, str(root / "tests" / "compose_up.py")]
    try:
        done = subprocess.run(
            [*namespaces, str(archive), str(folder)],
            env={**os.environ, "PYTHONPATH": str(root / "tests")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.split() == ["march.pdf"]
    finally:
        _remove(folder)
