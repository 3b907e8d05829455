"""A sender process that begins a request and then says what is no frame."""

from __future__ import annotations

import socket
import sys
import time

from docferry.senders.messages import READY
from docferry.senders.progress import ProgressPage

channel, page = socket.socket(fileno=int(sys.argv[1])), ProgressPage(int(sys.argv[2]))
channel.recv(1 << 20)
words = b'["%s"]' % READY.encode()
channel.sendall(len(words).to_bytes(4, "big") + bytes(4) + words)
channel.recv(1 << 20)
page.write(1023, begun=True, given=0)
channel.sendall(b"\xff" * 100)
time.sleep(60)  # until it is killed
