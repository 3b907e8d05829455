"""Test that frames arrive whole and in order, with their descriptors, however much is sent at once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from docferry.senders.channel import MAX_DESCRIPTORS, Channel, ChannelError, Frame, encoded
from docferry.senders.messages import MAX_REPLY_META_BYTES, SendResponse, read_reply

pytestmark = pytest.mark.anyio


class Receiver:
    """Give the frames of a channel to a function, or to nobody."""

    def __init__(self, take: Callable[[Frame], None] = lambda _: None) -> None:
        self.take = take


@asynccontextmanager
async def serving(end: socket.socket, take: Callable[[Frame], None]) -> AsyncIterator[Channel]:
    """Yield a channel of this end; it ends with the other one."""
    channel = Channel(end, takes_descriptors=True)
    async with anyio.create_task_group() as group:
        group.start_soon(channel.serve, Receiver(take))
        try:
            yield channel
        finally:
            channel.shut_down()
    channel.close()


async def test_many_frames_at_once_arrive_in_order_with_their_files(tmp_path: Path) -> None:
    """More descriptors than one system call takes, and more bytes than the kernel buffers."""
    count, found = 2 * MAX_DESCRIPTORS + 1, list[tuple[int, bytes, int, int]]()
    for number in range(count):
        (tmp_path / str(number)).touch()
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((tmp_path / str(number)).open()) for number in range(count)]
        inodes = [os.fstat(file.fileno()).st_ino for file in files]

        def take(frame: Frame) -> None:
            (descriptor,) = receiver.take_descriptors(1)
            found.append((frame.number, frame.meta, len(frame.tail), os.fstat(descriptor).st_ino))
            os.close(descriptor)

        async with serving(theirs, take) as receiver:
            sender = Channel(ours, takes_descriptors=False)
            for number, file in enumerate(files):
                sender.write(Frame(1, number, b"%d" % number, bytes(5_000)), [file.fileno()])
            await sender.flush()
            stack.close()  # they have left: the receiver has files of its own
            with anyio.fail_after(30):
                while len(found) < count:  # noqa: ASYNC110 - the other end's callback sets no event
                    await anyio.sleep(0.001)  # polling interval
        sender.close()
    assert found == [(number, b"%d" % number, 5_000, inode) for number, inode in enumerate(inodes)]


async def test_a_channel_that_loses_frames_ends() -> None:
    """The kernel can refuse descriptors or memory. Otherwise a request would wait for its reply for ever."""
    ours, theirs = socket.socketpair()
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)
    async with serving(theirs, lambda _: None):
        channel = Channel(ours, takes_descriptors=False)
        channel.write(Frame(1), [closed])
        with anyio.fail_after(30):
            await channel.serve(Receiver())
    channel.close()


async def test_a_frame_may_come_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    came, frame = anyio.Event(), Frame(7, 1 << 40, b"meta", b"tail")
    found: list[Frame] = []

    def take(each: Frame) -> None:
        found.append(each)
        came.set()

    async with serving(theirs, take):
        for byte in b"".join(encoded(frame)):
            ours.send(bytes([byte]))
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(30):
            await came.wait()
    ours.close()
    assert found == [frame]


async def test_an_invalid_frame_and_missing_descriptors_are_errors() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs, takes_descriptors=True)
    ours.send(b"\xff" * 100)
    with anyio.fail_after(30), pytest.raises(ChannelError, match="too long"):
        await channel.serve(Receiver())
    with pytest.raises(ChannelError, match="missing"):
        channel.take_descriptors(1)
    channel.close()
    ours.close()


async def test_the_headers_of_a_reply_fill_no_memory() -> None:
    """A sender may be in the hands of the server that it talks to; millions of empty lines would be 8 GB."""
    head = SendResponse(200, [], b"", complete=True, maybe_complete=True, is_cut=False).frame(1)
    with pytest.raises(ChannelError, match="too long"):
        read_reply(head._replace(meta=head.meta + b"\n" * MAX_REPLY_META_BYTES))


async def test_nothing_waits_for_a_process_that_has_ended() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, takes_descriptors=False)
    channel.write(Frame(1, 1, b"", bytes(4_000_000)))  # the kernel takes a part of it
    await anyio.lowlevel.checkpoint()
    async with anyio.create_task_group() as group:
        group.start_soon(channel.flush)
        await anyio.wait_all_tasks_blocked()
        theirs.close()
        with anyio.fail_after(30):
            await channel.serve(Receiver())
            await channel.flush()
    channel.write(Frame(1, 2))
    with anyio.fail_after(30):
        await channel.flush()
    channel.close()
