"""Programs of Debian packages that tests run, unpacked into a folder of their own: nothing is installed or started.

`python tests/debian_tools.py prometheus prometheus-alertmanager` downloads and unpacks packages, as `.ci/run` does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

#: Where packages are unpacked. Kept between runs; `make clean` removes it.
FOLDER = Path(
    os.environ.get("DOCFERRY_DEBIAN_TOOLS") or Path(__file__).resolve().parent.parent / "build" / "debian-tools"
)


def tool(name: str, package: str) -> str:
    """Return the path of a program, from $PATH or from an unpacked package; skip the test where there is none."""
    unpacked = FOLDER / package / "usr" / "bin" / name
    found = shutil.which(name) or (str(unpacked) if unpacked.is_file() else None)
    if found is None:
        pytest.skip(f"{name} is missing; get it with: python tests/debian_tools.py {package}")
    return found


def unpack(package: str) -> str | None:
    """Download and unpack a Debian package; return why that failed, None when it is there."""
    target = FOLDER / package
    if target.is_dir():
        return None
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "there is no apt-get here"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        done = subprocess.run(
            ["apt-get", "-q", "download", package], cwd=folder, capture_output=True, text=True, check=False
        )
        archives = list(Path(folder).glob("*.deb"))
        if done.returncode or not archives:
            return f"apt-get download {package} failed: {done.stderr.strip()}"
        unpacked = Path(folder) / "unpacked"
        subprocess.run(["dpkg", "-x", str(archives[0]), str(unpacked)], check=True)
        unpacked.rename(target)
    return None


def main(packages: list[str]) -> int:
    """Unpack packages; report the missing ones."""
    problems = [problem for package in packages if (problem := unpack(package)) is not None]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
