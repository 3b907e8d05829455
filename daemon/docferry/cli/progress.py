"""Show the progress bar of `docferry sync`: files, bytes, rate and remaining time."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from rich.console import Console

    from docferry.app import one_pass


class Bar:
    """Draw the progress in one line, and remove the line before the summary."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._line = self._progress.add_task("scanning", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, now: one_pass.Progress) -> None:
        """Show the progress."""
        words = ["scanning," if now.scanning else "sending,", f"{now.files_done:,} of {now.files_total:,} files"]
        if now.held:
            words.append(f"({now.held:,} held)")
        self._progress.update(
            self._line,
            description=" ".join(words),
            completed=now.bytes_done,
            total=now.bytes_total if now.bytes_total else None,
        )
