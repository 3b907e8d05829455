"""Test rows W11 to W13: links, swapped files, pipes and sockets are never followed or read."""

from __future__ import annotations

import os
import threading

from app_env import digest, until
from faults.conftest import FaultEnv
from faults.watch_status import wait_until_watched, watch_status

PDF = b"a document\n"  # of no kind whose end tells whether it is complete


SETTLE = 0.2  # seconds, as in the environment


def test_w11_links_are_never_followed(fault_env: FaultEnv) -> None:
    """A loop, a link to the outside and a link to a secret, created before and after the start."""
    folder = fault_env.upload("bank")
    fault_env.settings["rescan"] = '"1s"'
    outside = fault_env.root / "outside"
    outside.mkdir()
    (outside / "secret.pdf").write_bytes(b"secret")

    def write_documents(when: str) -> None:
        (folder / f"{when}-loop").symlink_to(folder)
        (folder / f"{when}-out").symlink_to(outside)
        (folder / f"{when}-secret.pdf").symlink_to(outside / "secret.pdf")
        (folder / f"{when}-dangling.pdf").symlink_to(outside / "nothing.pdf")

    write_documents("before")
    with fault_env.daemon() as daemon:
        wait_until_watched(fault_env)
        write_documents("after")
        (outside / "new.pdf").write_bytes(b"new")
        (folder / "plain.pdf").write_bytes(b"plain")
        until(lambda: "plain.pdf" in fault_env.names())
        scanned = watch_status(fault_env, "bank")["last_scan"]
        until(lambda: watch_status(fault_env, "bank")["last_scan"] != scanned, what="one more scan")
        assert daemon.running.poll() is None
    assert fault_env.names() == {"plain.pdf"}
    assert len(fault_env.rows()) == 1


def test_w12_file_swapped_for_a_link(fault_env: FaultEnv) -> None:
    """A program swaps file and link during scan and upload: the link's target is never sent."""
    folder = fault_env.upload("bank")
    fault_env.settings |= {"rescan": '"200ms"', "settle": '"1ms"'}
    secret = fault_env.root / "secret.pdf"
    secret.write_bytes(b"secret")
    os.utime(secret, (1, 1))
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            honest, link = folder / ".honest", folder / ".link"
            honest.write_bytes(b"%d" % number)
            honest.rename(folder / "a.pdf")
            link.symlink_to(secret)
            link.rename(folder / "a.pdf")

    with fault_env.daemon() as daemon:
        swapper = threading.Thread(target=swap)
        swapper.start()
        try:
            for number in range(10):
                (folder / f"{number}.pdf").write_bytes(b"plain %d" % number)
                fault_env.wait_for_upload(f"{number}.pdf")
        finally:
            stop.set()
            swapper.join()
        assert daemon.running.poll() is None
    assert digest(b"secret") not in {sha for _, sha in fault_env.stored()}


def test_w13_pipes_and_sockets_named_like_documents(fault_env: FaultEnv) -> None:
    """Pipes and sockets are ignored, and nothing waits for their writer."""
    folder = fault_env.upload("bank")
    os.mkfifo(folder / "before.pdf")
    with fault_env.daemon() as daemon:
        os.mkfifo(folder / "after.pdf")
        if os.geteuid() == 0:
            os.mknod(folder / "zero.pdf", 0o020666, os.makedev(1, 5))
        (folder / "plain.pdf").write_bytes(b"plain")
        until(lambda: fault_env.names() == {"plain.pdf"})
        (folder / "plain.pdf").unlink()
        os.mkfifo(folder / "plain.pdf")
        (folder / "next.pdf").write_bytes(b"next")
        until(lambda: "next.pdf" in fault_env.names())
        assert daemon.running.poll() is None
    assert fault_env.names() == {"plain.pdf", "next.pdf"}
