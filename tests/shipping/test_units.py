"""The units: systemd understands every line of them, and they give the program nothing it does not need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from docferry.settings import Settings
from docferry.settings.units import seconds

PROGRAM = "/usr/local/bin/docferry"
SERVICES = ("docferry.service", "docferry-sync.service")

systemd_only = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")


@pytest.fixture
def units(root: Path, tmp_path: Path) -> Path:
    """The units as they are shipped, for a program that is there: systemd looks whether it is."""
    for unit in (root / "systemd").glob("*.*"):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, shutil.which("true") or "/bin/true"))
    return tmp_path


def _settings(root: Path, unit: str) -> dict[str, list[str]]:
    """Each key of a unit with all its values."""
    found: dict[str, list[str]] = {}
    for line in (root / "systemd" / unit).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@systemd_only
@pytest.mark.parametrize("unit", [*SERVICES, "docferry-sync.timer"])
def test_systemd_has_nothing_to_say_about(unit: str, units: Path) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", str(units / unit)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@systemd_only
@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_at_most_two(unit: str, units: Path) -> None:
    analyze = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(units / unit)]
    done = subprocess.run(analyze, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level is not None, done.stdout
    assert float(level[1]) <= 2.0


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed here")
def test_systemd_makes_the_user_of_the_units(root: Path) -> None:
    dry_run = ["systemd-sysusers", "--dry-run", str(root / "systemd" / "docferry.sysusers")]
    done = subprocess.run(dry_run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {tuple(_settings(root, unit)["User"]) for unit in SERVICES} == {("docferry",)}
    assert (root / "systemd" / "docferry.sysusers").read_text().splitlines()[-1].startswith("u docferry ")


def test_both_services_are_fenced_in_alike(root: Path) -> None:
    """From User= on they are the same, line by line."""
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
    # A credential that is named by a path and missing would fail the unit; by a name in the store it does not.
    assert all("/" not in line for line in unit["LoadCredential"])
    assert _settings(root, "docferry-sync.service")["SuccessExitStatus"] == ["75"]
