"""A local Codat, Wootiv and S3 to try things against."""

from docferry.simulator.faults import KINDS, Fault, load_faults, load_switches
from docferry.simulator.ledger import Event, RequestSeen, S3Object, Stored
from docferry.simulator.running import Running, run_simulator
from docferry.simulator.server import Simulator
from docferry.simulator.sigv4 import Credentials
from docferry.simulator.switches import Switches

__all__ = [
    "KINDS",
    "Credentials",
    "Event",
    "Fault",
    "RequestSeen",
    "Running",
    "S3Object",
    "Simulator",
    "Stored",
    "Switches",
    "load_faults",
    "load_switches",
    "run_simulator",
]
