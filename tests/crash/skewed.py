"""Run docferry with a wall clock that is wrong: `python skewed.py SECONDS ARGUMENT…`.

libfaketime breaks `time.sleep` of Python 3.11, so that the function behind the clock is replaced here.
"""

from __future__ import annotations

import runpy
import sys
import time

real, lead = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + lead
sys.argv[0] = "docferry"
runpy.run_module("docferry", run_name="__main__", alter_sys=True)
