"""Answer pages and metrics even while the database does not answer."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

import anyio
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from docferry.store.database import Database

#: The time limit of a response, seconds.
PATIENCE_S: Final = 10.0


class Patience:
    """Answer 503 with the reason if a request waits for an unreachable database."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self._app = app
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        begun = False

        async def forward(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        with anyio.move_on_after(PATIENCE_S) as waited:
            await self._app(scope, receive, forward)
        if waited.cancelled_caught and not begun:
            reason = self._database.trouble or "the database does not answer"
            await PlainTextResponse(f"{reason}\n", 503)(scope, receive, send)
