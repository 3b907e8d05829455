"""Run a sender process that kills itself at a point: `python -m crash.killed_sender CHANNEL PAGE PARENT POINT`.

The functions of the product are wrapped here; the product has no hooks for it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from docferry.remotes.http.request_body import TrackedBody
from docferry.senders import __main__ as program
from docferry.senders.messages import SendRequest, SendResponse
from docferry.senders.progress import ProgressPage

#: What a sender has done with a request when it dies.
SENDER_KILL_POINTS = ("received", "begun", "sent a part", "sent all", "has the response", "replied")


def main() -> None:
    """Serve requests until the point of the command line is reached."""
    wrap(sys.argv.pop())
    program.main()


def wrap(point: str) -> None:
    """Let this process kill itself at a point of the first request that reaches it."""
    write, handed_over, frame, send_fds = (
        ProgressPage.write,
        TrackedBody.handed_over,
        SendResponse.frame,
        socket.send_fds,
    )
    replies = 0

    def die_at(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def received(*_: object) -> None:
        die_at("received")

    def begun(self: ProgressPage, slot: int, *, begun: bool, given: int) -> None:
        write(self, slot, begun=begun, given=given)
        die_at("begun")

    def given(self: TrackedBody, block: bytes) -> None:
        handed_over(self, block)
        die_at("sent all" if self.complete else "sent a part")

    def answered(self: SendResponse, number: int) -> Any:
        nonlocal replies
        die_at("has the response")
        replies += 1
        return frame(self, number)

    def sent(*arguments: Any) -> int:
        count = send_fds(*arguments)
        if replies:
            die_at("replied")
        return count

    if point == "received":
        SendRequest.read = received  # type: ignore[method-assign,assignment]
    ProgressPage.write = begun  # type: ignore[method-assign]
    TrackedBody.handed_over = given  # type: ignore[method-assign]
    SendResponse.frame = answered  # type: ignore[method-assign]
    socket.send_fds = sent  # type: ignore[assignment]


if __name__ == "__main__":
    main()
