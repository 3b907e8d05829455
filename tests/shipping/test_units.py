"""Test the systemd units: every line is valid, and the program gets no needless privilege."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from docferry.files.lease_service import SOCKET
from docferry.settings import Settings
from docferry.settings.units import seconds

PROGRAM = "/usr/local/bin/docferry"
SERVICES = ("docferry.service", "docferry-sync.service")

systemd_only = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")


@pytest.fixture
def units(root: Path, tmp_path: Path) -> Path:
    """Return the shipped units, changed to an existing program, because systemd checks for it."""
    for unit in (root / "systemd").glob("docferry*.*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, shutil.which("true") or "/bin/true"))
    return tmp_path


def _settings(root: Path, unit: str) -> dict[str, list[str]]:
    """Return each key of a unit with all its values."""
    found: dict[str, list[str]] = {}
    for line in (root / "systemd" / unit).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@systemd_only
@pytest.mark.parametrize("unit", [*SERVICES, "docferry-sync.timer", "docferry-lease.socket", "docferry-lease.service"])
def test_systemd_has_nothing_to_say_about(unit: str, units: Path) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", str(units / unit)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _exposure(unit: Path) -> float:
    analyze = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(analyze, capture_output=True, text=True, check=False)
    level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    return float(level[1])


@systemd_only
def test_exposure_of_every_unit_is_at_most_1_1(units: Path) -> None:
    found = {path.name: _exposure(path) for path in units.glob("*.service")}
    assert found.keys() == {*SERVICES, "docferry-lease.service"}
    assert max(found.values()) <= 1.1
    assert found["docferry-lease.service"] <= 0.4


def test_one_unit_has_one_privilege(root: Path) -> None:
    """A lease on the file of another user is granted for CAP_LEASE outside all user namespaces alone."""
    lease = _settings(root, "docferry-lease.service")
    assert lease["CapabilityBoundingSet"] == lease["AmbientCapabilities"] == ["CAP_LEASE"]
    assert "PrivateUsers" not in lease
    for name in SERVICES:
        unit = _settings(root, name)
        assert unit["CapabilityBoundingSet"] == unit["AmbientCapabilities"] == [""]
        assert "docferry-lease.socket" in unit["Wants"][0].split()
    socket = _settings(root, "docferry-lease.socket")
    assert socket["ListenSequentialPacket"] == [SOCKET]
    assert (socket["SocketUser"], socket["SocketMode"]) == (["docferry"], ["0600"])


def test_the_services_cannot_eat_the_machine_or_ask_its_cloud(root: Path) -> None:
    for name in SERVICES:
        unit = _settings(root, name)
        assert unit["MemoryMax"] == ["1G"]
        assert unit["IPAddressDeny"] == ["link-local"]
        assert unit["ProcSubset"] == ["pid"]


def test_the_boot_is_named_where_the_services_cannot_see_it(root: Path) -> None:
    """ProcSubset=pid hides /proc/sys, but without the boot id steady clocks cannot be compared."""
    for name in SERVICES:
        assert "SYSTEMD_BOOT_ID=%b" in _settings(root, name)["Environment"]
    readers = [path.name for path in (root / "daemon").rglob("*.py") if "kernel/random/boot_id" in path.read_text()]
    assert readers == ["clock.py"]


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed here")
def test_systemd_makes_the_user_of_the_units(root: Path) -> None:
    dry_run = ["systemd-sysusers", "--dry-run", str(root / "systemd" / "docferry.sysusers")]
    done = subprocess.run(dry_run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {tuple(_settings(root, unit)["User"]) for unit in SERVICES} == {("docferry",)}
    assert (root / "systemd" / "docferry.sysusers").read_text().splitlines()[-1].startswith("u docferry ")


def test_both_services_are_fenced_in_alike(root: Path) -> None:
    """From User= on, the two units are equal, line by line."""
    fences = [
        (root / "systemd" / unit).read_text().partition("\nUser=")[2].partition("\n[Install]")[0] for unit in SERVICES
    ]
    assert len(fences[0].splitlines()) > 30
    assert fences[0].strip() == fences[1].strip()


def test_the_daemon_is_given_time_to_end(root: Path) -> None:
    grace = Settings.model_fields["stop_grace"].default
    for unit in SERVICES:
        (stop,) = _settings(root, unit)["TimeoutStopSec"]
        assert seconds(stop) >= grace + 10


def test_what_the_daemon_and_its_unit_must_agree_on(root: Path) -> None:
    unit = _settings(root, "docferry.service")
    assert unit["Type"] == ["notify"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["StateDirectoryMode"] == ["0700"]  # docferry refuses a state folder that others can read
    assert "AF_UNIX" in unit["RestrictAddressFamilies"][0].split()  # for readiness and the watchdog
    assert unit["SystemCallErrorNumber"] == ["EPERM"]
    credentials = {line.partition(":")[0] for line in unit["LoadCredential"]}
    assert credentials == {"codat_api_key", "wootiv_api_key"}
    # A missing credential with a path fails the unit. With a name in the store it does not.
    assert all("/" not in line for line in unit["LoadCredential"])
    assert _settings(root, "docferry-sync.service")["SuccessExitStatus"] == ["75"]
