"""Serve a local Codat, Wootiv and S3 for tests, demonstrations and trials."""

from docferry.simulator.faults import KINDS, Fault, load_faults, load_switches
from docferry.simulator.in_thread import SimulatorThread, run_simulator
from docferry.simulator.options import SimulatorOptions
from docferry.simulator.recorder import Event, RequestSeen, S3Object, Stored
from docferry.simulator.server import Simulator
from docferry.simulator.sigv4 import Credentials

__all__ = [
    "KINDS",
    "Credentials",
    "Event",
    "Fault",
    "RequestSeen",
    "S3Object",
    "Simulator",
    "SimulatorOptions",
    "SimulatorThread",
    "Stored",
    "load_faults",
    "load_switches",
    "run_simulator",
]
