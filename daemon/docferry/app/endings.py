"""How a run ends: what is in flight first, and an error that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from docferry.app.house import House
from docferry.errors import DocferryError


async def finish(house: House, group: anyio.abc.TaskGroup) -> None:
    """No new claims; what is in flight gets `stop_grace`; the rest is cut and handed back."""
    house.runner.stop()
    with anyio.move_on_after(house.settings.stop_grace):
        await house.runner.ended.wait()
    group.cancel_scope.cancel()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors meant for people come out as themselves, not in the groups that task groups make of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        meant, others = group.split(DocferryError)
        if meant is not None and others is None:
            raise first(meant) from group
        raise


def first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
