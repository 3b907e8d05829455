"""Name the files that docferry itself writes or reads, which no mapping may send."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_STANDARD_OUTPUTS: Final = (1, 2)


def output_files() -> Iterator[Path]:
    """Yield the files that stdout and stderr write to.

    A daemon's log in a mapped folder would otherwise be planned again after each line about its own change.
    """
    for descriptor in _STANDARD_OUTPUTS:
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                yield Path(f"/proc/self/fd/{descriptor}").readlink()
        except OSError:  # closed, or without /proc
            continue
