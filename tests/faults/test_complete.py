"""Test rows C1 to C10 and seven models of writers: only complete files in their last version are sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app_env import digest, until
from docferry.simulator import Fault
from faults import writers
from faults.conftest import FULL, FaultEnv
from faults.measured import Drops, peak_memory, report
from faults.writers import (
    MODELS,
    Model,
    Tempo,
    appends,
    body_of,
    maps,
    preallocates,
    stalls,
    stalls_before_the_first_byte,
    unfinished,
    write,
)

STALL = 60.0 if FULL else 1.5  # seconds; many times `settle`


def _digests(fault_env: FaultEnv) -> set[str]:
    return {sha256 for _, sha256 in fault_env.stored()}


def _final(folder: Path) -> dict[tuple[str, str], int]:
    """Return name and digest of every file as it is now, once each."""
    return {(path.name, digest(path.read_bytes())): 1 for path in folder.rglob("*") if path.is_file()}


def _body(number: int) -> bytes:
    return b"%d/" % number * 800_000


def _pause(seconds: float) -> None:
    """Pause the writer. The pause is the fault itself, not a wait for the daemon."""
    time.sleep(seconds)


# -- the seven models ------------------------------------------------------------------------------------------------


def _leases(folder: Path) -> None:
    """Skip without kernel leases, which reveal silent writers."""
    import fcntl

    probe = folder / ".probe"
    probe.touch()
    with probe.open("rb") as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            pytest.skip(f"this filesystem gives no leases: {error}")
        finally:
            probe.unlink()


def test_c0_seven_models_of_writers(fault_env: FaultEnv) -> None:
    """All at once, many files each: no digest at the remote differs from that of the final file."""
    settle = 1.0
    folder = fault_env.upload("bank", settle=f'"{settle:g}s"')
    fault_env.settings["log_level"] = '"info"'
    _leases(folder)
    each = 10_000 if FULL else 12
    program = [sys.executable, str(Path(writers.__file__)), str(folder), str(each)]
    tempo = [600 if FULL else 100, 1.5 * settle, 5 * settle if FULL else 2 * settle, 0.3 * settle, settle]
    drops = Drops(fault_env)
    with fault_env.daemon() as daemon:
        done = subprocess.run([*program, *map(str, tempo)], stdout=subprocess.PIPE, check=True, timeout=1200)
        for _, path, body in writers.all_files(folder, each):
            drops.at[digest(body)] = path.stat().st_ctime  # of the last byte, or the last name
        arrived = drops.arrive(600 if FULL else 60)
        until(lambda: not fault_env.sync(code=None)["due"])
        memory = peak_memory(daemon.running.pid)
        assert " held " not in daemon.text()
    report("C0", f"{each:,} files of each of {len(MODELS)} models: sent after the last byte", arrived, 600)
    late = [
        body_of(model, int(number[:-4])) for model, _, number in (n.partition("-") for n in json.loads(done.stdout))
    ]
    early = (_digests(fault_env) - drops.at.keys()) & {digest(half) for body in late for half in unfinished(body)}
    late_and_early = f"{len(late)} stood closed for as long as `settle`, {len(early)} of them went early"
    print(f"  C0: {late_and_early}; at most {memory / 1e6:.0f} MB")
    assert _digests(fault_env) - early == drops.at.keys()
    assert set(fault_env.stored().values()) == {1}


def _told_by(name: str) -> bytes:
    model, _, number = name.removesuffix(".pdf").partition("-")
    return body_of(model, int(number))


# -- the rows --------------------------------------------------------------------------------------------------------


def _all_at_once(folder: Path, *models: Model) -> None:
    files = [
        (model, folder / f"{model.__name__}.pdf", body_of(model.__name__, number))
        for number, model in enumerate(models)
    ]
    write(files, Tempo(STALL, STALL, gap=0.1, settle=0.2), len(files), lambda path, _: path)


def test_c1_writer_stalls(fault_env: FaultEnv) -> None:
    """No incomplete document is sent, and no empty file is held while it is written."""
    folder = fault_env.upload("bank")
    _leases(folder)
    with fault_env.daemon() as daemon:
        _all_at_once(folder, stalls, stalls_before_the_first_byte, appends)
        until(lambda: len(fault_env.names()) == 3)
        assert " held " not in daemon.text()
    assert fault_env.stored() == _final(folder)


def test_c2_preallocating_or_mmap_writer(fault_env: FaultEnv) -> None:
    """Never half, though the size is right from the start."""
    folder = fault_env.upload("bank")
    _leases(folder)
    with fault_env.daemon():
        _all_at_once(folder, preallocates, maps)
        until(lambda: len(fault_env.names()) == 2)
    assert fault_env.stored() == _final(folder)


def test_c3_scanner_reopens(fault_env: FaultEnv) -> None:
    """A scanner that closes and reopens its file within `settle` causes one final version."""
    folder = fault_env.upload("bank", settle='"4s"')
    with fault_env.daemon():
        for page in range(6):
            with (folder / "scan.pdf").open("ab") as file:
                file.write(b"page %d" % page)
            _pause(0.4)
        until(lambda: fault_env.names() == {"scan.pdf"})
    assert fault_env.stored() == _final(folder)


def test_c4_mtime_old_or_in_the_future(fault_env: FaultEnv) -> None:
    """Such a file is sent neither early nor never."""
    folder = fault_env.upload("bank", settle='"1s"')
    now = time.time()
    with fault_env.daemon():
        began = {}
        for name, mtime in (("old", 0), ("future", now + 10 * 365 * 86_400), ("tomorrow", now + 86_400), ("now", now)):
            path = folder / f"{name}.pdf"
            path.write_bytes(name.encode())
            os.utime(path, (mtime, mtime))
            began[path.name] = time.time()
        until(lambda: len(fault_env.names()) == 4)
    at = {each.name: each.at for each in fault_env.simulator.stored}
    assert all(at[name] - began[name] > 0.9 for name in at), "one went before it had been quiet for so long"
    assert fault_env.stored() == _final(folder)


@pytest.mark.parametrize("change", ["grows", "shrinks", "changes"])
def test_c5_changes_while_it_is_sent(fault_env: FaultEnv, change: str) -> None:
    """The attempt is void, the new version is sent, and nothing mixed is ever stored."""
    folder = fault_env.upload("bank")
    old, new = _body(3), {"grows": _body(3) * 2, "shrinks": b"shorter", "changes": _body(5)}[change]
    path = folder / "a.pdf"
    fault_env.simulator.set_faults([Fault("slow_read", "codat.upload", first=1, params={"rate": 1_500_000})])
    with fault_env.daemon():
        path.write_bytes(old)
        until(lambda: fault_env.simulator.log, what="the request")
        with path.open("r+b") as file:
            file.write(new)
            file.truncate(len(new))
        until(lambda: digest(new) in _digests(fault_env))
    assert _digests(fault_env) <= {digest(old), digest(new)}
    assert set(fault_env.stored().values()) == {1}


def test_c6_same_size_and_mtime(fault_env: FaultEnv) -> None:
    """A rewrite in place with the mtime set back is noticed by its ctime."""
    folder = fault_env.upload("bank")
    path = folder / "a.pdf"
    path.write_bytes(b"first")
    before = path.stat()
    with fault_env.daemon():
        until(lambda: digest(b"first") in _digests(fault_env))
        with path.open("r+b") as file:
            file.write(b"other")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        until(lambda: digest(b"other") in _digests(fault_env))


def test_c7_deleted_or_renamed_before_sending(fault_env: FaultEnv) -> None:
    """Gone, or followed to its new name; and no storm of attempts."""
    folder = fault_env.upload("bank")
    for number in range(6):
        (folder / f"{number}.pdf").write_bytes(b"%d" % number)
    fault_env.sync(code=75, CODAT_API_KEY="wrong")  # planned, and the gate is closed
    asked = sum(fault_env.simulator.requests.values())
    for number in range(3):
        (folder / f"{number}.pdf").unlink()
    (folder / "sub").mkdir()
    for number in range(3, 6):
        (folder / f"{number}.pdf").rename(folder / "sub" / f"moved-{number}.pdf")
    fault_env.sync()
    fault_env.sync()  # the next pass finds a file that was renamed while it was claimed
    assert _digests(fault_env) == {digest(b"%d" % number) for number in range(3, 6)}
    assert sum(fault_env.simulator.requests.values()) - asked < 12
    assert fault_env.sync()["requests"] == 0
    assert {row["state"] for row in fault_env.rows()} <= {"sent", "gone"}


EIO = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int struck(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, path, sizeof path - 1);
    if (got < 0) return 0;
    path[got] = 0;
    const char *switched = getenv("FAULT_WHILE");
    return strstr(path, "sick.pdf") && switched && access(switched, F_OK) == 0;
}
#define READ(name) ssize_t name(int fd, void *to, size_t count, off_t at) { \
    static ssize_t (*real)(int, void *, size_t, off_t); \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    if (struck(fd)) { errno = NUMBER; return -1; } \
    return real(fd, to, count, at); }
READ(pread)
READ(pread64)
"""


@pytest.mark.parametrize("number", ["EIO", "ESTALE"])
def test_c8_disk_error_on_the_source(fault_env: FaultEnv, preloaded: Callable[[str], str], number: str) -> None:
    """The file is retried, then held as unreadable with a fix; other files continue; a retry sends it."""
    folder = fault_env.upload("bank")
    ill = fault_env.root / "ill"
    ill.touch()
    fault_env.extra = {"LD_PRELOAD": preloaded(EIO.replace("NUMBER", number)), "FAULT_WHILE": str(ill)}
    (folder / "sick.pdf").write_bytes(b"sick")
    (folder / "well.pdf").write_bytes(b"well")
    with fault_env.daemon():
        until(lambda: fault_env.names() == {"well.pdf"})
        (held,) = until(lambda: fault_env.rows("--state", "held"), what="being held")
        assert held["reason"] == "unreadable"
        assert "check the disk" in held["detail"]
        ill.unlink()
        assert fault_env.run("retry", "--reason", "unreadable").returncode == 0
        until(lambda: "sick.pdf" in fault_env.names())


def test_c8_a_passing_disk_error_holds_nothing(fault_env: FaultEnv, preloaded: Callable[[str], str]) -> None:
    """A share fails once, and the file is sent later."""
    folder = fault_env.upload("bank", settle='"1s"')
    ill = fault_env.root / "ill"
    ill.touch()
    fault_env.extra = {"LD_PRELOAD": preloaded(EIO.replace("NUMBER", "EIO")), "FAULT_WHILE": str(ill)}
    with fault_env.daemon() as daemon:
        (folder / "sick.pdf").write_bytes(b"sick")
        until(lambda: "sick.pdf" in fault_env.status(), what="its being waited for")
        ill.unlink()
        until(lambda: fault_env.names() == {"sick.pdf"})
        assert " held " not in daemon.text()


def test_c9_empty_too_large_or_wrong_type(fault_env: FaultEnv) -> None:
    """The file is held with its reason, without a request. Once corrected, it is sent."""
    folder = fault_env.upload("bank")
    (folder / "empty.pdf").touch()
    (folder / "large.pdf").write_bytes(bytes(10 * 1024 * 1024 + 1))
    (folder / "program.exe").write_bytes(b"MZ")
    with fault_env.daemon():
        until(lambda: len(fault_env.rows("--state", "held")) == 3, what="three being held")
        assert sum(fault_env.simulator.requests.values()) == 0
        reasons = {row["path"].rsplit("/", 1)[1]: row["reason"] for row in fault_env.rows("--state", "held")}
        assert reasons == {"empty.pdf": "empty", "large.pdf": "too_large", "program.exe": "extension"}
        (folder / "empty.pdf").write_bytes(b"not empty")
        (folder / "large.pdf").write_bytes(bytes(1024))
        (folder / "program.exe").rename(folder / "program.pdf")
        until(lambda: fault_env.names() == {"empty.pdf", "large.pdf", "program.pdf"})
        until(lambda: not fault_env.rows("--state", "held"), what="the old versions being gone")


def test_c10_same_bytes_two_names_and_two_versions_one_name(fault_env: FaultEnv) -> None:
    """`show` lists every path and every version."""
    folder = fault_env.upload("bank")
    (folder / "one.pdf").write_bytes(b"same")
    shutil.copy(folder / "one.pdf", folder / "two.pdf")
    (folder / "versions.pdf").write_bytes(b"v1")
    fault_env.sync()
    (folder / "versions.pdf").write_bytes(b"v2")
    fault_env.sync()
    stored = fault_env.stored()
    assert _digests(fault_env) == {digest(b"same"), digest(b"v1"), digest(b"v2")}
    assert set(stored.values()) == {1}
    for name in ("one.pdf", "two.pdf", "versions.pdf"):
        done = fault_env.run("show", str(folder / name), "--json")
        assert done.returncode == 0, (name, done.stderr)
        assert '"sent"' in done.stdout
    assert {row["sha256"] for row in fault_env.rows()} == {digest(b"same"), digest(b"v1"), digest(b"v2")}
