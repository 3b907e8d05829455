"""Run the other programs: rclone, s5cmd and Codat's own SDK, as far as they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.programs import PROJECT, Run, run
from benchmarks.trees import Tree

#: The programs have an environment of their own, so that their dependencies do not change docferry's.
VENV = PROJECT / "benchmarks" / ".venv"
Send = Callable[[Tree, str], Run]


@dataclass(frozen=True, slots=True)
class Peer:
    """Describe a program that sends a tree to a sink."""

    name: str
    send: Send


def furnish() -> None:
    """Install the extra `bench` of pyproject.toml; report and leave out what cannot be installed."""
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    python, done = VENV / "bin" / "python", VENV / "furnished"
    if done.exists() and done.read_text(encoding="utf-8") == repr(wanted["bench"]):
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    for requirement in wanted["bench"]:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", requirement]
        if subprocess.run(pip, check=False, capture_output=True).returncode:
            print(f"{requirement} cannot be installed: it is left out")
    done.write_text(repr(wanted["bench"]), encoding="utf-8")


def found(venv: Path) -> tuple[dict[str, Peer], list[str]]:
    """Return the programs in an environment or on the path, and a line for each missing one."""
    peers: dict[str, Peer] = {}
    missing: list[str] = []
    rclone = _binary(venv, "rclone")
    if rclone is not None:
        peers["rclone"] = Peer("rclone → S3, 8 transfers", lambda tree, url: _rclone(rclone, tree, url))
    s5cmd = _binary(venv, "s5cmd")
    if s5cmd is not None:
        peers["s5cmd"] = Peer("s5cmd → S3, 8 workers", lambda tree, url: _s5cmd(s5cmd, tree, url))
    python = venv / "bin" / "python"
    if (
        python.exists()
        and not subprocess.run([python, "-c", "import codat_lending"], check=False, capture_output=True).returncode
    ):
        peers["sdk"] = Peer("Codat's SDK, async, 8", lambda tree, url: _sdk(python, tree, url))
    for name in ("rclone", "s5cmd", "sdk"):
        if name not in peers:
            missing.append(f"{name} is not installed: left out")
    return peers, missing


def _binary(venv: Path, name: str) -> str | None:
    """Return the program itself if the package installs only a script that starts it."""
    inside = sorted(venv.glob(f"lib/python*/site-packages/{name}*/**/{name}"))
    real = next((path for path in inside if path.is_file() and os.access(path, os.X_OK)), None)
    beside = venv / "bin" / name
    return str(real or (beside if beside.exists() else "")) or shutil.which(name)


def _rclone(rclone: str, tree: Tree, url: str) -> Run:
    options = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_SINK_TYPE": "s3",
        "RCLONE_CONFIG_SINK_PROVIDER": "Other",
        "RCLONE_CONFIG_SINK_ENDPOINT": url,
        "RCLONE_CONFIG_SINK_ACCESS_KEY_ID": "benchmark",
        "RCLONE_CONFIG_SINK_SECRET_ACCESS_KEY": "benchmark",
        "RCLONE_CONFIG_SINK_REGION": "us-east-1",
        "RCLONE_CONFIG_SINK_FORCE_PATH_STYLE": "true",
        "RCLONE_CONFIG_SINK_NO_CHECK_BUCKET": "true",
        "RCLONE_CONFIG_SINK_NO_HEAD": "true",
        "RCLONE_CONFIG_SINK_UPLOAD_CUTOFF": "5G",
        "RCLONE_MULTI_THREAD_CUTOFF": "10G",  # one PUT, however large
    }
    return run([rclone, "copy", str(tree.root), "sink:bench", "--transfers", "8", "--retries", "1"], env=options)


def _s5cmd(s5cmd: str, tree: Tree, url: str) -> Run:
    options = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_REGION": "us-east-1"}
    size = ["--part-size", "5000"] if tree.size > 50 << 20 else []
    command = [s5cmd, "--endpoint-url", url, "--numworkers", "8", "--log", "error", "cp", *size]
    return run([*command, f"{tree.root}/", "s3://bench/"], env=options)


def _sdk(python: Path, tree: Tree, url: str) -> Run:
    return run([str(python), str(Path(__file__).with_name("codat_sdk.py")), str(tree.root), url, "8"])
