"""Run docferry with a wall clock that is wrong: `python skewed.py SECONDS MODE ARGUMENT…`.

With the mode `senders`, sender processes start with the first document, and soon again after each death; usually 64 MiB
must be due for that, and the pause after a death grows to a minute.

libfaketime breaks `time.sleep` of Python 3.11, so that the function behind the clock is replaced here.
"""

from __future__ import annotations

import runpy
import sys
import time
from unittest import mock

real, lead = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + lead
if sys.argv.pop(1) == "senders":
    mock.patch("docferry.senders.pool.START_BYTES", 1).start()
    mock.patch("docferry.senders.pool.LONGEST_PAUSE_S", 1.0).start()
sys.argv[0] = "docferry"
runpy.run_module("docferry", run_name="__main__", alter_sys=True)
