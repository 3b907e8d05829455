"""Run functions in threads that a hung network share may keep for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread

from docferry.files.safe_open import Root
from docferry.model import escaped

_Arguments = TypeVarTuple("_Arguments")
_Result = TypeVar("_Result")


async def run_in_folder(
    folder: Root | Path | bytes,
    function: Callable[[Unpack[_Arguments]], _Result],
    *arguments: *_Arguments,
    limiter: anyio.CapacityLimiter | None = None,
) -> _Result:
    """Run a function that reads or changes a mapped folder, or a file of it, in a thread, and return its result.

    A cancellation does not wait for the thread, because a share may never answer. The function then has to bear what a
    kill would do to it, and to leave nothing open. The thread has the name of the folder or file meanwhile.
    """

    def named() -> _Result:
        thread = threading.current_thread()
        usual, thread.name = thread.name, folder.shown if isinstance(folder, Root) else escaped(bytes(folder))
        try:
            return function(*arguments)
        finally:
            thread.name = usual

    return await anyio.to_thread.run_sync(named, abandon_on_cancel=True, limiter=limiter)
