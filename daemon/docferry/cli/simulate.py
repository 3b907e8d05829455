"""Run `docferry simulate`: a local Codat and Wootiv that shows every request."""

from __future__ import annotations

import shlex
import signal
import time
from argparse import Namespace
from collections import Counter
from itertools import islice

import anyio
from anyio.abc import TaskStatus

from docferry.cli.output import BAD, FAINT, GOOD, STRONG, WARN, Cell, Line, Screen, Table, count, line, size
from docferry.simulator import Fault, Simulator, SimulatorOptions, load_faults, load_switches, run_simulator
from docferry.simulator.recorder import RequestSeen

#: Interval between two reads of the log of requests, seconds.
REQUEST_POLL_S = 0.1
_CONFIG = """\
# docferry.toml
state_dir = "state"
settle = "1s"

[codat]
base_url = "{url}"
list_lag = "2s"

[wootiv]
base_url = "{url}"

[[upload]]
name = "to-codat"
folder = "outbox/codat"
to = "codat"
company_id = "8a210b68-6988-11ed-a1eb-0242ac120002"
connection_id = "2e9d2c44-f675-40ba-8049-353bfcb5e171"

[[upload]]
name = "to-wootiv"
folder = "outbox/wootiv"
to = "wootiv"
"""


def command(asked: Namespace) -> int:
    """Run the simulator until a signal, and return the exit code."""
    faults = load_faults(asked.faults) if asked.faults else []
    options = load_switches(asked.faults) if asked.faults else SimulatorOptions()
    screen = Screen()
    simulated = anyio.run(_simulate, screen, asked.port, faults, options.with_random_keys())
    if simulated is not None:
        _sum_up(screen, simulated)
    return 0


async def _simulate(screen: Screen, port: int, faults: list[Fault], options: SimulatorOptions) -> Simulator | None:
    """Serve until a signal, and return the simulator; None if the signal precedes the port."""
    simulator, is_ready = Simulator(options, faults), False
    async with anyio.create_task_group() as group:
        await group.start(_until_signal, group.cancel_scope)
        await group.start(run_simulator, simulator, port)
        is_ready = True
        _greet(screen, simulator)
        group.start_soon(_follow, screen, simulator)
    return simulator if is_ready else None


async def _until_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


def _greet(screen: Screen, simulator: Simulator) -> None:
    options = simulator.options
    screen.show(
        line("Codat, Wootiv and S3 are simulated at", Cell(simulator.url, STRONG)),
        line(),
        line(Cell("1. the keys it takes, for the shell you run docferry in:", FAINT)),
        line(f"export CODAT_API_KEY={shlex.quote(options.codat_key)}"),
        line(f"export WOOTIV_API_KEY={shlex.quote(options.wootiv_key)}"),
        line(),
        line(Cell("2. a configuration (any UUIDs do):", FAINT)),
        *(line(text) for text in _CONFIG.format(url=simulator.url).splitlines()),
        line(),
        line(Cell("3. mkdir -p outbox/codat outbox/wootiv, put a PDF there, and: docferry sync", FAINT)),
        line(),
        line(Cell("what is stored, with its content:", FAINT)),
        line(f'curl -H "Authorization: Bearer $CODAT_API_KEY" {simulator.url}/_sim/stored'),
        line(),
        line(Cell("requests as they come; Ctrl-C ends it", FAINT)),
    )


async def _follow(screen: Screen, simulator: Simulator) -> None:
    """Show each finished request. The log drops its oldest entries, so the position is a count."""
    known = 0
    under_way: list[RequestSeen] = []
    while True:
        total = simulator.requests.total()
        fresh = min(total - known, len(simulator.log))
        known = total
        under_way += islice(simulator.log, len(simulator.log) - fresh, None)
        screen.show(*(_seen(each) for each in under_way if each.at))
        under_way = [each for each in under_way if not each.at]
        await anyio.sleep(REQUEST_POLL_S)


def _seen(each: RequestSeen) -> Line:
    when = time.strftime("%H:%M:%S", time.localtime(each.at))
    status = "no answer" if each.status is None else str(each.status)
    style = GOOD if each.status is not None and each.status < 300 else BAD
    took = f"{(each.at - each.at_first_byte) * 1000:.0f} ms"
    fault = Cell(f"[{each.fault}]" if each.fault else "", WARN)
    return line(Cell(when, FAINT), Cell(status, style), each.method, each.path, Cell(took, FAINT), fault)


def _sum_up(screen: Screen, simulator: Simulator) -> None:
    table = Table(("asked for", "times"), right=frozenset({1}))
    table.rows += [(route, f"{times:,}") for route, times in sorted(simulator.requests.items())]
    stored = [each for each in simulator.stored if each.via == "api"]
    struck = Counter(each.fault for each in simulator.log if each.fault)
    faults = ", ".join(f"{kind} {times}" for kind, times in struck.most_common())
    if table.rows:
        screen.show(line(), table)
    total = size(sum(each.size for each in stored))
    screen.show(line(), line(f"{count(len(stored), 'document')} stored, {total};", f"faults: {faults or 'none'}"))
