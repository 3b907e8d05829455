"""Start docferry for a measurement: a configuration, an empty state folder, one complete `docferry sync`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.programs import Failed, Run, run

COMPANY = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
LANE = f"codat/{COMPANY}/{CONNECTION}"
KEYS = {"CODAT_API_KEY": "benchmark-key-of-codat", "WOOTIV_API_KEY": "benchmark-key-of-wootiv"}
PROGRAM = [sys.executable, "-m", "docferry"]


@dataclass(frozen=True, slots=True)
class DocferryRun:
    """Run docferry with one configuration: a mapping named `bench` from a folder to a remote."""

    place: Path  # where its configuration and state are kept
    folder: Path
    url: str
    to: str = "codat"
    batch: int = 1
    workers: int = 8
    settle: str = "500ms"
    ca_file: Path | None = None
    cores: int | None = None  # None: all
    settings: str = ""  # more lines for the start of the file
    senders: int | None = None  # None: as many as docferry chooses

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def config(self) -> Path:
        return self.place / "docferry.toml"

    def prepare(self, *, state_of: Path | None = None) -> None:
        """Write the configuration; the state folder is empty, or a copy."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.place.mkdir(parents=True, exist_ok=True)
        if state_of is not None:
            shutil.copytree(state_of, self.state)
            os.sync()  # else the first commit that is timed waits for the copy to reach the disk
        target = f'company_id = "{COMPANY}"\nconnection_id = "{CONNECTION}"' if self.to == "codat" else ""
        if self.batch > 1:  # a token lets the list alone prove the first batch; without one a ZIP is asked for
            target += '\nfile_name = "{stem}~{token}{suffix}"'
        senders = f"senders = {self.senders}" if self.senders is not None else ""
        trust = f'ca_file = "{self.ca_file}"' if self.ca_file else ""
        self.config.write_text(
            f"""
{self.settings}
state_dir = "{self.state}"
settle = "{self.settle}"
workers = {self.workers}
{senders}
[codat]
base_url = "{self.url}"
requests_per_minute = 10000000
batch = {self.batch}
list_lag = "100ms"
{trust}
[wootiv]
base_url = "{self.url}"
{trust}
[[upload]]
name = "bench"
folder = "{self.folder}"
to = "{self.to}"
{target}
""",
            encoding="utf-8",
        )

    def command(self, *words: str) -> list[str]:
        return [*PROGRAM, "--config", str(self.config), *words]

    def sync(self, *, uploaded: int | None = None) -> Run:
        """Time one pass. Fails if the pass uploads another number of documents."""
        cores = ["taskset", "-c", f"0-{self.cores - 1}"] if self.cores else []
        done = run([*cores, *self.command("sync", "--json")], env=KEYS)
        report: dict[str, Any] = json.loads(done.said)
        if uploaded is not None and report["uploaded"] != uploaded:
            raise Failed(f"docferry uploaded {report['uploaded']} of {uploaded} documents: {done.said}")
        return done
