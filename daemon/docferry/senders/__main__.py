"""The program of a sender process: `python -m docferry.senders CHANNEL PAGE PARENT`, started by the daemon alone."""

from __future__ import annotations

import signal
import socket
import sys


def main() -> None:
    """Serve the daemon until it closes the channel, or ends."""
    # The daemon ends its senders. A terminal and systemd signal the whole group, and requests get `stop_grace` then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel, page, parent = map(int, sys.argv[1:])
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # httpx's command, with packages of 8 MB
    from docferry.senders import process, sandbox  # only here, after the signals

    sandbox.end_with_parent(parent)
    process.run(socket.socket(fileno=channel), page)


if __name__ == "__main__":
    main()
