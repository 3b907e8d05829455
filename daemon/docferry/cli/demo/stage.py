"""Set up the demo: a temporary folder with documents, a simulator with faults, and the real daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

import anyio

from docferry.cli.demo import papers
from docferry.simulator import Event, Fault, Simulator, SimulatorOptions, SimulatorThread

COMPANY: Final = "8a210b68-6988-11ed-a1eb-0242ac120002"
CONNECTION: Final = "2e9d2c44-f675-40ba-8049-353bfcb5e171"
OBJECT: Final = "reports/latest.pdf"
_CONFIG: Final = """\
state_dir = "{base}/state"
settle = "600ms"
rescan = "10s"
stop_grace = "5s"
log_format = "json"

[retry]
initial = "400ms"
max = "2s"

[codat]
base_url = "{url}"
list_lag = "1s"

[wootiv]
base_url = "{url}"

[[upload]]
name = "acme-bank"
folder = "{base}/outbox/acme"
to = "codat"
company_id = "{company}"
connection_id = "{connection}"

[[upload]]
name = "scans"
folder = "{base}/outbox/scans"
to = "wootiv"
object_name = "scans/{{path}}"

[[download]]
name = "acme-inbox"
from = "codat"
company_id = "{company}"
folder = "{base}/inbox/acme"
every = "2s"
layout = "{{date}}/{{name}}"

[[download]]
name = "reports"
from = "wootiv"
objects = ["{object}"]
folder = "{base}/inbox/wootiv"
every = "2s"
"""
_PAGE: Final = '\n[web]\nlisten = "127.0.0.1:0"\n'
#: The faults of the demo; each occurs once, at a request that always occurs.
FAULTS: Final = (
    Fault("lost_answer", "codat.upload", nth=3),
    Fault("too_many", "codat.upload", nth=6, params={"retry_after": 1}),
    Fault("reset_inside", "codat.upload", nth=9),
    Fault("status", "codat.upload", nth=12, params={"status": 500}),
    Fault("status", "s3.put", nth=2, params={"status": 503}),
)
_TOO_LARGE: Final = 10 * 1024 * 1024 + 1


@dataclass(slots=True)
class Stage:
    """Hold the folders, the simulator and the events of one demo."""

    base: Path
    simulator: Simulator
    events: list[Event]  # events of the simulator; appended from its thread

    @property
    def outbox(self) -> Path:
        """Return the folder of documents to upload."""
        return self.base / "outbox"

    @property
    def inbox(self) -> Path:
        """Return the folder of downloads."""
        return self.base / "inbox"

    @property
    def config(self) -> Path:
        """Return the path of the configuration file."""
        return self.base / "docferry.toml"

    @property
    def log(self) -> Path:
        """Return the path of the daemon's log."""
        return self.base / "docferry.log"


@contextmanager
def set_up(*, page: bool = False) -> Iterator[Stage]:
    """Create the folder, documents, configuration and simulator; remove them at the end."""
    events: list[Event] = []
    simulator = Simulator(SimulatorOptions(list_lag=0.4).with_random_keys(), FAULTS, events=events)
    with TemporaryDirectory(prefix="docferry-demo-") as folder, SimulatorThread.start(simulator):
        stage = Stage(Path(folder), simulator, events)
        text = _CONFIG.format(base=folder, url=simulator.url, company=COMPANY, connection=CONNECTION, object=OBJECT)
        stage.config.write_text(text + (_PAGE if page else ""), encoding="utf-8")
        _lay_out(stage.outbox)
        for number in (1, 2):
            simulator.put_company_file(COMPANY, f"from-the-customer-{number}.pdf", papers.statement(40 + number))
        simulator.put_object(OBJECT, papers.pdf("Latest report", ["made by somebody else"]))
        yield stage


@contextmanager
def daemon(stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real daemon as a process; stop it with SIGTERM."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("DOCFERRY_", "NOTIFY_", "WATCHDOG_"))
    }
    options = stage.simulator.options
    keys = {"CODAT_API_KEY": options.codat_key, "WOOTIV_API_KEY": options.wootiv_key}
    with stage.log.open("wb") as log:
        # In its own session: Ctrl-C at the terminal then reaches only the demo, which stops the daemon.
        started = _started(stage, kept | keys, log)
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(timeout=10)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


async def perform(stage: Stage) -> None:
    """Write a slow file and a whole tree, and upload a document as a customer, while the daemon runs."""
    await anyio.sleep(2)
    async with anyio.create_task_group() as group:
        group.start_soon(_write_slowly, stage.outbox / "acme" / "slowly-written.pdf", papers.statement(30))
        quarter = stage.outbox / "acme" / "2026" / "Q3"
        quarter.mkdir(parents=True)
        for number in (31, 32):
            (quarter / f"statement-{number}.pdf").write_bytes(papers.statement(number))
        (stage.outbox / "scans" / "late.png").write_bytes(papers.png(33))
        (stage.outbox / "acme" / "the-same-as-statement-01.pdf").write_bytes(papers.statement(1))
        stage.simulator.put_company_file(COMPANY, "from-the-customer-3.pdf", papers.statement(43))


def _lay_out(outbox: Path) -> None:
    acme, scans = outbox / "acme", outbox / "scans"
    (acme / "ledgers").mkdir(parents=True)
    (scans / "receipts").mkdir(parents=True)
    for number in range(1, 9):
        (acme / f"statement-{number:02}.pdf").write_bytes(papers.statement(number))
    for number in range(1, 5):
        (acme / "ledgers" / f"ledger-{number:02}.csv").write_bytes(papers.csv(number))
    for number in range(1, 4):
        (scans / "receipts" / f"receipt-{number}.jpg").write_bytes(papers.jpeg(number))
        (scans / f"scan-{number}.png").write_bytes(papers.png(number))
    (acme / "too-large.pdf").write_bytes(papers.pdf("Too large", ["more than Codat takes"], _TOO_LARGE))
    (acme / "wrong-type.exe").write_bytes(b"MZ this is no document")


async def _write_slowly(path: Path, content: bytes) -> None:
    step = len(content) // 10 + 1
    async with await anyio.open_file(path, "wb") as file:
        for at in range(0, len(content), step):
            await file.write(content[at : at + step])
            await file.flush()
            await anyio.sleep(0.3)


def _started(stage: Stage, environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - starts docferry itself
        [sys.executable, "-m", "docferry", "run", "--config", str(stage.config)],
        cwd=stage.base,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
