"""Change the queue from the page, and parse the forms for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from docferry.app.application import forget_emptied
from docferry.app.running import RunningDaemon
from docferry.errors import FolderError
from docferry.model import Reason
from docferry.store.pages import Filter, Pages
from docferry.web.filters import asked_filter

Form = Sequence[tuple[str, str]]

_LONGEST_FORM: Final = 16_384
#: Transfers of one commit.
_TOGETHER: Final = 1_000
_NOTICES: Final = {
    "retried": "{n} made due now.",
    "gate": "The gate is open; the next document tries it.",
    "emptied": "The folder is accepted as emptied; {n} marked as absent.",
    "nothing": "Nothing to do: the documents or the gate have changed in the meantime.",
}


class Actions:
    """Change the queue like the commands."""

    def __init__(self, daemon: RunningDaemon) -> None:
        self._app = daemon.app
        self._pages = Pages(daemon.app.database)

    async def do(self, what: str, form: Form, actor: str) -> tuple[str, int]:
        """Perform the action for `actor`; return a notice and its number.

        Raises HTTPException for an incomplete request.
        """
        values = dict(form)
        match what:
            case "retry" if "id" in values:
                number = await self._app.transfers.retry(ids=[_document_id(values["id"])], actor=actor)
            case "retry":
                number = await self._retry_all(form, actor)
            case "gate":
                opened = await self._app.gates.open_one(values.get("key", ""))
                self._app.scheduler.wake()
                return ("gate" if opened else "nothing"), 0
            case "emptied":
                return await self._accept_emptied(values.get("mapping", ""))
            case _:
                raise HTTPException(404, "There is no such action.")
        self._app.scheduler.wake()
        return ("retried" if number else "nothing"), number

    async def _retry_all(self, form: Form, actor: str) -> int:
        """Retry the documents of a filter. Only a filter for the reason `approval` releases documents from approval."""
        wanted = asked_filter(form)
        if wanted == Filter():
            return await self._app.transfers.retry(everything=True)
        if wanted == Filter(mapping=wanted.mapping, reason=wanted.reason):
            return await self._app.transfers.retry(mapping=wanted.mapping, reason=wanted.reason, actor=actor)
        ids = await self._pages.all_ids(wanted)
        number = 0
        for start in range(0, len(ids), _TOGETHER):
            together = ids[start : start + _TOGETHER]
            approve = wanted.reason == Reason.APPROVAL
            number += await self._app.transfers.retry(ids=together, approve=approve, actor=actor)
        return number

    async def _accept_emptied(self, mapping: str) -> tuple[str, int]:
        upload = self._app.uploads.get(mapping)
        if upload is None:
            raise HTTPException(404, "There is no such mapping.")
        try:
            number = await forget_emptied(self._app.documents, upload)
        except FolderError:
            return "nothing", 0
        self._app.scan_scheduler.scan_soon(mapping)
        return "emptied", number


async def form(request: Request) -> Form:
    """Return the fields of a form. Raises HTTPException if it is invalid or too long."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send a form.")
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > _LONGEST_FORM:
            raise HTTPException(413, "The form is too long.")
    try:
        return parse_qsl(content.decode("utf-8"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        raise HTTPException(400, "The form is broken.") from None


def notice(done: str | None, number: str | None) -> str | None:
    """Return the sentence that describes the result of an action."""
    if done not in _NOTICES:
        return None
    count = int(number) if number is not None and number.isascii() and number.isdecimal() and len(number) < 12 else 0
    return _NOTICES[done].format(n=f"{count:,} {'document' if count == 1 else 'documents'}")


def local_path(written: str) -> str:
    """Return a path of this page, or "/" for any other address."""
    is_local = written.startswith("/") and not written.startswith("//") and "\\" not in written
    return written if is_local and written.isprintable() and len(written) < 2_000 else "/"


def _document_id(written: str) -> int:
    if not (written.isascii() and written.isdecimal() and len(written) < 19):
        raise HTTPException(400, "An id is a number.")
    return int(written)
