"""How a run ends: what is in flight first, and an error that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from docferry.app.application import Application
from docferry.errors import DocferryError


async def finish(app: Application, group: anyio.abc.TaskGroup) -> None:
    """No new claims; what is in flight gets `stop_grace`; the rest is cut and handed back."""
    app.scheduler.stop()
    with anyio.move_on_after(app.settings.stop_grace):
        await app.scheduler.ended.wait()
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
