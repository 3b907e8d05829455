"""Write the metrics as a file for node_exporter's textfile collector, replaced as a whole."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from docferry import logs
from docferry.app.running import RunningDaemon
from docferry.web.facts import scrape
from docferry.web.metrics import EventMetrics

log = logs.get("metrics")

EVERY_S: Final = 15.0


def replace(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`, readable for all users; a reader sees the old or the new file.

    Raises:
        OSError: The folder is missing or cannot be written.
    """
    # Not "*.prom": a collector must not read the incomplete file.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, 0o644)
        os.replace(name, path)  # noqa: PTH105 - a name from mkstemp
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - a name from mkstemp
        raise


async def keep_written(path: Path, daemon: RunningDaemon, events: EventMetrics) -> None:
    """Rewrite the file every `EVERY_S` seconds until cancelled; log a lasting failure once."""
    trouble = False
    while True:
        content = await scrape(daemon, events, plain=True)
        try:
            await anyio.to_thread.run_sync(replace, path, content)
            trouble = False
        except OSError as error:
            if not trouble:
                advice = f"{path} cannot be written: {error.strerror}; correct metrics.textfile"
                log.error("textfile_unwritable", advice)
            trouble = True
        await anyio.sleep(EVERY_S)
