"""Test very large files, which are sparse: they cost a customer nothing, and must not cost the others anything."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from app_env import COMPANY, AppEnv, Daemon, digest, until

TERABYTES = 2 * 10**12
GIB = 1024**3


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _read_bytes(daemon: Daemon) -> int:
    """Return the bytes that the daemon has read from files and sockets."""
    lines = Path(f"/proc/{daemon.running.pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def test_a_file_of_two_terabytes_in_an_inbox_is_not_read(app_env: AppEnv) -> None:
    """The files with the next names are compared by size first."""
    inbox = app_env.download("inbox", company_id=f'"{COMPANY}"', layout='"{name}"')
    for name in ("a.pdf", "a (2).pdf", "a (3).pdf"):
        _sparse(inbox / name, TERABYTES)
    content = b"%PDF-1.4 from the customer %%EOF"
    app_env.simulator.put_company_file(COMPANY, "a.pdf", content)
    assert app_env.sync()["downloaded"] == 1
    assert (inbox / "a (4).pdf").read_bytes() == content
    assert {path.stat().st_size for path in inbox.iterdir()} == {TERABYTES, len(content)}


def test_a_file_that_grows_while_it_is_compared_is_read_no_further(tmp_path: Path) -> None:
    from docferry.files.placement import Content

    content = Content(digest(b"x" * 100), 100)
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert content.equals(folder, b"a")
        _sparse(path, TERABYTES)
        assert not content.equals(folder, b"a")
    finally:
        os.close(folder)


def test_large_files_of_one_customer_neither_delay_the_others_nor_a_stop(app_env: AppEnv) -> None:
    """A file of 2 TB is held unread; reading eight of 5 GiB, which Wootiv takes, is interrupted."""
    folder = app_env.upload("scans", "wootiv")
    app_env.settings |= {"stop_grace": '"1s"', "rescan": '"5m"', "log_level": '"info"'}
    for customer in ("hers", "his"):
        (folder / customer).mkdir()
    _sparse(folder / "hers" / "unread.pdf", TERABYTES)
    for number in range(8):
        _sparse(folder / "hers" / f"{number}.pdf", 5 * GIB)
    for number in range(3):
        (folder / "his" / f"{number}.pdf").write_bytes(b"%d" % number)
    seconds_for_gib = _time_to_hash_a_gib()
    with app_env.daemon(wait=False) as daemon:
        until(
            lambda: {sha for _, sha in app_env.stored()} >= {digest(b"%d" % n) for n in range(3)}, 60, "his documents"
        )
        until(lambda: _read_bytes(daemon) > GIB // 2, 60, "reading hers")
        (folder / "his" / "later.pdf").write_bytes(b"later")
        until(lambda: digest(b"later") in {sha for _, sha in app_env.stored()}, 60, "his later document")
        began = time.monotonic()
        daemon.running.send_signal(signal.SIGTERM)
        assert daemon.running.wait(120) == 0
        stopped = time.monotonic() - began
    assert len(app_env.stored()) == 4, "all of hers is still to be read"
    assert stopped < max(1 + 5, 5 * seconds_for_gib), f"{stopped:.1f} s, a GiB takes {seconds_for_gib:.1f} s"
    (unread,) = app_env.rows("--state", "held")
    assert (Path(unread["path"]).name, unread["reason"]) == ("unread.pdf", "too_large")


def _time_to_hash_a_gib() -> float:
    began, block, sha256, md5 = time.monotonic(), bytes(2**20), hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    for _ in range(64):
        sha256.update(block)
        md5.update(block)
    return (time.monotonic() - began) * 16
