"""End a run: drain the requests in flight, and unwrap errors for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.abc

from docferry.app.application import Application
from docferry.errors import DocferryError


async def drain(app: Application, group: anyio.abc.TaskGroup) -> None:
    """Stop claiming, give requests in flight `stop_grace` seconds, then cancel and release the others."""
    app.scheduler.stop()
    with anyio.move_on_after(app.settings.stop_grace):
        await app.scheduler.ended.wait()
    group.cancel_scope.cancel()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise errors for people directly, without the exception groups of task groups."""
    try:
        yield
    except BaseExceptionGroup as group:
        meant, others = group.split(DocferryError)
        if meant is not None and others is None:
            raise first(meant) from group
        raise


def first(error: BaseException) -> BaseException:
    """Return the first error inside exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
