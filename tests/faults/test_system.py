"""Test rows S1 to S7: signals, closed streams, and exhausted resources."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from app_env import Daemon, digest, until
from docferry.simulator import Fault, SimulatorOptions
from faults.conftest import FULL, FaultEnv

PDF = b"a document\n"  # of no kind whose end tells whether it is complete


def _drop(folder: Path, count: int, mark: str = "") -> dict[tuple[str, str], int]:
    """Write documents; return name and digest of each, once."""
    made = {}
    for number in range(count):
        content = PDF + f"{mark}{number}".encode()
        (folder / f"{mark}{number}.pdf").write_bytes(content)
        made[f"{mark}{number}.pdf", digest(content)] = 1
    return made


def _in_flight(fault_env: FaultEnv, requests: int) -> None:
    until(lambda: fault_env.simulator.requests["codat.upload"] >= requests, what=f"{requests} requests")


def test_s1_sigterm_with_8_in_flight(fault_env: FaultEnv) -> None:
    """The daemon exits within `stop_grace` and 5 s, however the remote hangs; the next run continues exactly."""
    folder = fault_env.upload("bank")
    fault_env.settings["stop_grace"] = '"1s"'
    fault_env.codat["timeout"] = '"60s"'
    made: dict[tuple[str, str], int] = {}
    for round_ in range(10 if FULL else 2):
        fault_env.simulator.set_faults(
            [Fault("stall", "codat.upload", params={"seconds": 50, "stored": bool(round_ % 2)})]
        )
        made |= _drop(folder, 12, f"r{round_}-")
        before = fault_env.simulator.requests["codat.upload"]  # the daemon sends before it says that it is ready
        with fault_env.daemon() as daemon:
            _in_flight(fault_env, before + 8)
            began = time.monotonic()
            assert daemon.end() == 0
            assert time.monotonic() - began < (6 if FULL else 25)  # the load of all tests decides the time
    fault_env.simulator.set_faults([])
    with fault_env.daemon():
        until(lambda: len(fault_env.stored()) == len(made))
    until(lambda: fault_env.sync(code=None)["due"] == 0)
    assert fault_env.stored() == made


HANGING = """
import signal, time
def hang(*_):
    time.sleep(3600)
signal.signal(signal.SIGUSR1, hang)
"""


def _hear_out(manager: socket.socket) -> None:
    """Read messages until none comes for as long as `manager` waits."""
    try:
        while True:
            manager.recv(4096)
    except TimeoutError:
        return


def test_s2_event_loop_hangs(fault_env: FaultEnv) -> None:
    """A blocked loop does not feed the watchdog; killed by it, nothing is lost or doubled."""
    folder = fault_env.upload("bank")
    fault_env.wrapper = HANGING
    address = fault_env.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)
        fault_env.extra = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "1000000"}
        made = _drop(folder, 20)
        with fault_env.daemon() as daemon:
            while b"WATCHDOG=1" not in manager.recv(4096):
                continue
            fault_env.simulator.options.latency = 0.3
            made |= _drop(folder, 20, "b")
            until(lambda: len(fault_env.stored()) >= 22)
            daemon.running.send_signal(signal.SIGUSR1)
            manager.settimeout(3)  # the deadline that systemd would keep
            _hear_out(manager)
            daemon.kill()
    fault_env.extra, fault_env.wrapper = {}, None
    with fault_env.daemon():
        until(lambda: len(fault_env.stored()) == 40)
    until(lambda: fault_env.sync(code=None)["due"] == 0)
    assert fault_env.stored() == made


def test_s3_64_descriptors(fault_env: FaultEnv) -> None:
    """All documents arrive once, with 64 descriptors and a remote that breaks connections."""
    folder = fault_env.upload("bank")
    scans = fault_env.upload("scans", "wootiv", object_name='"{name}"')
    fault_env.prefix = ["prlimit", "--nofile=64:64"]
    fault_env.simulator.set_faults([Fault("reset_before", rate=0.1), Fault("reset_after", rate=0.05)])
    with fault_env.daemon() as daemon:
        made = _drop(folder, 60) | _drop(scans, 30, "s")
        until(lambda: len(fault_env.stored()) == 90, 90)
        assert daemon.running.poll() is None
    fault_env.prefix = []
    fault_env.simulator.set_faults([])
    until(lambda: fault_env.sync(code=None)["due"] == 0)
    assert fault_env.stored() == made


def _refused(daemon: Daemon, said: str) -> None:
    until(lambda: any(said in line for line in daemon.text().split("reload_refused")[1:]), what=said)


def test_s4_sighup_with_a_broken_file(fault_env: FaultEnv) -> None:
    """The old configuration stays, every problem is reported, and requests in flight continue."""
    folder = fault_env.upload("bank")
    config = fault_env.root / fault_env.config_name
    with fault_env.daemon() as daemon:
        good = config.read_text()
        for broken, said in (
            ("nonsense = [\n" + good, "TOML"),
            (good.replace("settle", "setle") + "\n[codat2]\n", "codat2"),
            (good.replace('to = "codat"', 'to = "nowhere"'), "nowhere"),
            ("", "state_dir can't change"),
        ):
            config.write_text(broken)
            daemon.running.send_signal(signal.SIGHUP)
            _refused(daemon, said)
        assert "settle" in daemon.text()  # the nearest right key, said in the same breath as the other problem
        (folder / "a.pdf").write_bytes(PDF)
        until(lambda: fault_env.names() == {"a.pdf"})
        assert "reloaded" not in daemon.text()
        config.write_text(good)
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in daemon.text())
        (folder / "b.pdf").write_bytes(PDF + b"b")
        until(lambda: "b.pdf" in fault_env.names())


CANARIES = ("canary-codat-4711/with+odd=chars", "canary-wootiv-0815")


def test_s5_secrets(fault_env: FaultEnv) -> None:
    """Keys and signatures appear in no log at debug level, traceback, output, or file of the state folder."""
    options: SimulatorOptions = fault_env.simulator.options
    options.codat_key, options.wootiv_key = CANARIES
    folder, scans = fault_env.upload("bank"), fault_env.upload("scans", "wootiv", object_name='"{name}"')
    fault_env.simulator.set_faults(
        [
            Fault("status", "s3.*", rate=0.3, params={"status": 403}),
            Fault("html_502", rate=0.1),
            Fault("reset_inside", rate=0.1),
            Fault("redirect", rate=0.05),
        ]
    )
    shown = b""
    with fault_env.daemon() as daemon:
        _drop(folder, 12)
        _drop(scans, 12, "s")
        until(lambda: len(fault_env.simulator.objects) >= 8)
        daemon.running.send_signal(signal.SIGHUP)
        until(lambda: "reloaded" in daemon.text())
        for words in (["status", "--json"], ["status"], ["list", "--json"], ["config", "show"], ["check"]):
            done = fault_env.run(*words)
            shown += (done.stdout + done.stderr).encode()
        daemon.running.send_signal(signal.SIGABRT)  # a traceback with local values, if one is printed
        daemon.running.wait()
        shown += daemon.log.read_bytes()
    shown += b"".join(path.read_bytes() for path in fault_env.state.rglob("*") if path.is_file())
    for secret in (*CANARIES, "X-Amz-Signature="):
        assert secret.encode() not in shown


NASTY = (
    "\x1b[31mred\x1b[0m.pdf",
    "line\nbreak action=sent.pdf",
    "return\rback.pdf",
    "\u202efdp.exe.pdf",
    "%s%n%d{0}{name!r}.pdf",
    "[bold red]rich.pdf",
    "\x07bell\x9b.pdf",
    "zero\u200bwidth.pdf",
)


def test_s6_names_with_control_characters(fault_env: FaultEnv) -> None:
    """Sent, and escaped wherever they are shown: log, list, show, status, sync and check."""
    folder = fault_env.upload("bank")
    held = fault_env.upload("held")
    for number, name in enumerate(NASTY):
        (folder / name).write_bytes(b"%d" % number)
        (held / name.replace(".pdf", ".exe")).write_bytes(b"%d" % number)
        (folder / name.replace(".pdf", "")).mkdir()
    with fault_env.daemon() as daemon:
        until(lambda: len(fault_env.stored()) == len(NASTY))
        until(lambda: len(fault_env.rows("--state", "held")) == len(NASTY))
        with (folder / NASTY[0].replace("red", "open")).open("wb") as writer:
            writer.write(PDF)
            writer.flush()
            until(lambda: "open" in fault_env.status())
            shown = [
                fault_env.run(*words) for words in (["status"], ["list"], ["list", "--json"], ["check", "--offline"])
            ]
        shown.append(fault_env.run("show", str(folder / NASTY[0])))
        texts = [daemon.text(), *(each.stdout + each.stderr for each in shown)]
    for text in texts:
        for char in text:
            assert char == "\n" or char.isprintable(), (repr(char), text[max(0, text.index(char) - 80) :][:160])
    assert "%s%n%d{0}{name!r}.pdf" in texts[0]
    assert "[bold red]rich" in texts[2] + texts[3]


@pytest.mark.parametrize("sink", ["closed", "full"])
def test_s7_log_goes_nowhere(fault_env: FaultEnv, sink: str) -> None:
    """The daemon continues and exits with 0, although the reader of the log is gone or its disk is full."""
    folder = fault_env.upload("bank")
    fault_env.write_config()
    if sink == "full":
        target = os.open("/dev/full", os.O_WRONLY)
        reader = None
    else:
        reader, target = os.pipe()
    running = subprocess.Popen(
        fault_env.command("run"), env=fault_env.environment, stdout=target, stderr=target, stdin=subprocess.DEVNULL
    )
    os.close(target)
    try:
        if reader is not None:
            os.read(reader, 1)
            os.close(reader)
        made = _drop(folder, 20)
        until(lambda: fault_env.stored() == made)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()
