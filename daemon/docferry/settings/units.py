"""Parse durations, sizes and shares in readable notation."""

from __future__ import annotations

import math
import re
from typing import Final

_TIMES: Final = {"y": 31_557_600.0, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SIZES: Final = {"": 1, "b": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for kind, base in (("b", 1000), ("ib", 1024))
}
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|y)\s*", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
LONGEST_DURATION_S: Final = 36_500 * 86400.0
LARGEST: Final = 2**62

DURATION_PATTERN: Final = r"^\s*(\d+(\.\d+)?|(\d+(\.\d+)?\s*(ms|s|m|h|d|y)\s*)+)\s*$"
SIZE_PATTERN: Final = r"^\s*\d+(\.\d+)?\s*([kKmMgGtT][iI]?)?[bB]?\s*$"
SHARE_PATTERN: Final = r"^\s*\d+(\.\d+)?\s*%?\s*$"


def seconds(written: object) -> float:
    """Parse `"500ms"`, `"1h30m"`, `"7d"` or a number of seconds. Raises ValueError with the fix."""
    found = _number(written)
    if found is None and isinstance(written, str):
        found = _sum_of_times(written.strip().lower())
    if found is None or not 0 <= found <= LONGEST_DURATION_S:
        raise ValueError(
            'is not a duration; write it like "500ms", "2s", "15m", "1h30m" or "7d", or a number of seconds'
        )
    return found


def octets(written: object) -> int:
    """Parse `"10MB"`, `"10MiB"` or a number of bytes. Raises ValueError with the fix."""
    found = _number(written)
    if found is None and isinstance(written, str) and (match := _SIZE.fullmatch(written.strip().lower())):
        unit = _SIZES.get(match[2])
        found = None if unit is None else float(match[1]) * unit
    if found is None or not 0 <= found <= LARGEST:
        raise ValueError('is not a size; write it like "10MB" or "10MiB", or a number of bytes')
    return round(found)


def share(written: object) -> float:
    """Parse `"5%"` or a fraction from 0 to 1. Raises ValueError with the fix."""
    found = _number(written)
    if found is None and isinstance(written, str) and written.strip().endswith("%"):
        percent = _number(written.strip()[:-1].strip())
        found = None if percent is None else percent / 100
    if found is None or not 0 <= found <= 1:
        raise ValueError('is not a share; write it like "5%" (0% to 100%), or a fraction from 0 to 1')
    return found


def duration(number: float) -> str:
    """Return the shortest notation for a number of seconds: `"1h30m"`, `"500ms"`."""
    left = round(number * 1000)
    parts = []
    for unit, length in _TIMES.items():
        count, left = divmod(left, round(length * 1000))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _number(written: object) -> float | None:
    if isinstance(written, str) and _NUMBER.fullmatch(written.strip()):
        return float(written)
    if isinstance(written, bool) or not isinstance(written, int | float) or not math.isfinite(written):
        return None
    return float(written)


def _sum_of_times(text: str) -> float | None:
    if not text or _TIME.sub("", text):
        return None
    return math.fsum(float(amount) * _TIMES[unit] for amount, unit in _TIME.findall(text))
