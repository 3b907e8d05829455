"""Test the repository: one version, the newest schema, Python versions, no local paths."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from docferry import __version__
from docferry.store import schema

#: A home folder: no file of the project may name one. The tests have a made-up user called u.
_HOME = re.compile(rb"/(?:home|Users|root)/(?!u\b)[\w.]")


def test_the_version_is_one_number_in_one_place(root: Path, tracked: list[Path]) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["dynamic"] == ["version"]
    apart = {"CHANGELOG.md", "requirements.lock"}  # a history, and other people's versions
    written = [str(p.relative_to(root)) for p in tracked if p.name not in apart and _names_version(p)]
    assert written == ["daemon/docferry/__init__.py"]
    assert f"## [{__version__}]" in (root / "CHANGELOG.md").read_text()


def _names_version(path: Path) -> bool:
    return re.search(rb"(?<![\d.])" + re.escape(__version__.encode()) + rb"(?![\d.]*\d)", path.read_bytes()) is not None


def test_the_schema_constant_is_the_newest_migration(root: Path) -> None:
    revisions: dict[str, str | None] = {}
    for path in (root / "migrations" / "versions").glob("*.py"):
        text = path.read_text()
        revision = re.search(r'^revision(?:: \w+)? = "(\w+)"', text, re.MULTILINE)
        before = re.search(r'^down_revision(?:: [\w| ]+)? = (?:"(\w+)"|None)', text, re.MULTILINE)
        assert revision is not None, path.name
        assert before is not None, path.name
        assert path.name.startswith(f"{revision[1]}_"), path.name
        revisions[revision[1]] = before[1]
    assert set(revisions) - set(revisions.values()) == {schema.HEAD}
    assert set(revisions) == schema.KNOWN


def test_imports_go_down_only(root: Path) -> None:
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(
        lint, cwd=root, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_file_names_a_folder_of_somebodys_own(root: Path, tracked: list[Path]) -> None:
    found = {str(path.relative_to(root)) for path in tracked if _HOME.search(path.read_bytes())}
    assert not found


@pytest.mark.parametrize("name", ["run", "debian"])
def test_programs_can_be_run(root: Path, name: str) -> None:
    program = root / ".ci" / name
    assert os.access(program, os.X_OK)
    done = subprocess.run(["bash", "-n", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
