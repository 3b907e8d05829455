"""Test the content of the wheel and the source archive, and the wheel without a checkout."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from docferry import __version__
from docferry.store import schema


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel like pip, without its dependencies, which are installed already."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, folder, wheel], check=True, capture_output=True)
    return folder


def _run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Not measured: coverage would count the unpacked copy as a second, mostly untested, docferry.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environ = {**ours, "PYTHONPATH": str(installed), "HOME": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environ, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_the_program_and_all_it_reads(wheel: Path, root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = root / "daemon"
    wanted = {str(path.relative_to(sources)) for path in sources.rglob("*.py")} | {"docferry/py.typed"}
    for folder, inside in (
        ("migrations", "_migrations"),
        ("config", "_config"),
        ("systemd", "_systemd"),
        ("monitoring", "_monitoring"),
    ):
        files = [p for p in (root / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert files, folder
        wanted |= {f"docferry/{inside}/{path.relative_to(root / folder)}" for path in files}
    assert wanted <= names, wanted - names
    strays = {name for name in names if not name.startswith(("docferry/", f"docferry-{__version__}.dist-info/"))}
    assert not strays
    assert f"docferry-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_source_archive_can_be_built_and_tested_again(dist: Path) -> None:
    (found,) = dist.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "requirements.lock", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"}
    wanted |= {"migrations/env.py", "config/docferry.toml", "systemd/docferry.service", "tests/conftest.py"}
    assert wanted <= names, wanted - names


def test_the_wheel_works_without_a_checkout(installed: Path) -> None:
    said = _run(installed, "-c", "import docferry; print(docferry.__file__)").stdout
    assert said.strip() == str(installed / "docferry" / "__init__.py")
    assert _run(installed, "-m", "docferry", "--version").stdout == f"docferry {__version__}\n"
    example = _run(installed, "-m", "docferry", "config", "init")
    assert example.returncode == 0, example.stderr
    assert "[[upload]]" in example.stdout


@pytest.mark.parametrize("way", ["prepare", "migrate"])
def test_the_wheel_makes_its_database(installed: Path, tmp_path: Path, way: str) -> None:
    """Create the database directly, and by the included migrations."""
    database = tmp_path / "docferry.db"
    code = f"import sys, pathlib; from docferry.store import schema; schema.{way}(pathlib.Path(sys.argv[1]))"
    done = _run(installed, "-c", code, str(database))
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.HEAD,)]
    connection.close()
