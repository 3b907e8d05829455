"""Run a sender process: `python -m docferry.senders CHANNEL PAGE PARENT`, started only by the daemon."""

from __future__ import annotations

import signal
import socket
import sys


def main() -> None:
    """Serve the daemon until it closes the channel or ends."""
    # Ignore signals to the process group: the daemon ends its senders, and requests get `stop_grace` first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel, page, parent = map(int, sys.argv[1:])
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # httpx's command, with packages of 8 MB
    from docferry.senders import process, sandbox  # imported after the signals are set

    sandbox.end_with_parent(parent)
    process.run(socket.socket(fileno=channel), page)


if __name__ == "__main__":
    main()
