"""Begin a request as a sender process, then send an invalid frame."""

from __future__ import annotations

import socket
import sys
import time

from docferry.senders.channel import Frame, encoded
from docferry.senders.messages import READY
from docferry.senders.progress import ProgressPage

channel, page = socket.socket(fileno=int(sys.argv[1])), ProgressPage(int(sys.argv[2]))
channel.recv(1 << 20)
channel.sendall(b"".join(encoded(Frame(READY))))
channel.recv(1 << 20)
page.write(1023, begun=True, given=0)
channel.sendall(b"\xff" * 100)
time.sleep(60)  # until it is killed
