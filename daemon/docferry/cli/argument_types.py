"""Parse the values of arguments. Each function raises ArgumentTypeError with a valid example."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date


def duration(written: str) -> float:
    """Return the seconds of a duration such as "10m"."""
    from docferry.settings import units

    try:
        return units.seconds(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{written}" {error}') from None


def moment(written: str) -> float:
    """Return the wall seconds of a local date, or of a duration from now."""
    import time
    from datetime import datetime

    from docferry.settings import units

    try:
        return time.time() + units.seconds(written)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(written).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f'"{written}" is no time; write it like "8h", "30m" or "2026-12-24T18:00"'
        ) from None


def day(written: str) -> date:
    """Return the date from a text such as 2026-08-01."""
    from datetime import date

    try:
        return date.fromisoformat(written)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{written}" is not a date; write it like 2026-08-01') from None


def count(written: str) -> int:
    """Return an integer of at least 1."""
    if not written.isascii() or not written.isdecimal() or not 0 < int(written) < 2**63:
        raise argparse.ArgumentTypeError(f'"{written}" is not a number from 1 on')
    return int(written)


def port(written: str) -> int:
    """Return a port number; 0 means any free port."""
    if not written.isascii() or not written.isdecimal() or int(written) > 65535:
        raise argparse.ArgumentTypeError(f'"{written}" is not a port; choose one from 1024 to 65535')
    return int(written)
