"""Define the error tree. Each message tells a person what happened, to which document, and what to do.

DocferryError
├── ConfigError          the configuration or command line is wrong: exit 2, all problems at once
├── StateError           the state folder or database cannot be used: exit 2
│   ├── AlreadyRunning   another `run` has this state folder
│   ├── DatabaseLost     the database was removed or replaced while in use
│   └── DatabaseBusy     it cannot be written for now (full disk, a lock that stays): exit 75, run it again
├── SourceError          the file of a document; nothing was sent, or the body was never completed
│   ├── SourceVanished
│   ├── SourceChanged
│   └── SourceUnreadable
├── RemoteError          a request failed; `body_complete` tells whether the document can have been stored
├── NotNow               a stop or a gate came before the first byte: nothing was sent
├── FolderError          the folder of a mapping is missing, unreadable or suddenly empty
├── LeaseLost            another process has the transfer now
└── ArchiveError         a downloaded archive is broken or hostile
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from docferry.redaction import redacted


class DocferryError(Exception):
    """The base of all errors that docferry raises on purpose."""


class ConfigError(DocferryError):
    """The configuration or command line is wrong; `problems` has one sentence each, with the key and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StateError(DocferryError):
    """The state folder or the database cannot be used."""


class AlreadyRunning(StateError):
    """Another `docferry run` holds this state folder."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"docferry already runs on this state folder{f' (pid {pid})' if pid else ''}; stop it first")
        self.pid = pid


class DatabaseLost(StateError):
    """The database file was removed or replaced while it was in use."""


class DatabaseBusy(StateError):
    """The database cannot be written for now; nothing is wrong with it."""


class SourceError(DocferryError):
    """The file of a document could not be read to its end."""


class SourceVanished(SourceError):
    """The file is no longer there."""


class SourceChanged(SourceError):
    """The bytes of the file are not the planned ones; the body was not completed."""


class SourceUnreadable(SourceError):
    """The file is there and cannot be read."""


class NotNow(DocferryError):
    """The permit to send was withdrawn before the first byte."""


class FolderError(DocferryError):
    """The folder of a mapping is missing, unreadable or suddenly empty; only that mapping stops."""


class LeaseLost(DocferryError):
    """The lease of a transfer is lost: a guarded transition changed another row count than one."""


class ArchiveError(DocferryError):
    """A downloaded archive is broken or hostile; nothing of it is kept."""


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """The fields of an error response beside its status."""

    retry_after: float | None = None  # seconds that the remote asked to wait
    should_retry: bool | None = None  # the header `x-should-retry`
    correlation_id: str | None = None  # for the remote's support
    about_document: bool = False  # a structured error of the remote itself about this document


_NO_DETAILS = ErrorDetails()


class RemoteError(DocferryError):
    """A request that did not end in a receipt or in a usable answer.

    Attributes:
        kind: One of
            "answer" (an error of the remote itself),
            "not_ours" (an answer that this remote never gives: a proxy, a web page),
            "unreachable", "timeout", "cut" (no answer),
            "redirect",
            "signature" (a signed URL was refused: ask for a new one),
            "storage" (the storage refused its account, bucket, signer or quota),
            "redo" (the storage has other bytes than were sent: repeat the PUT).
        status: The HTTP status, None when there was no answer.
        body_complete: The last byte of the body was handed to the kernel, so that the remote may have stored it.
        scope: The part of the remote that was refused, as the key of a gate; None: no more than this document.
        details: The pause, correlation id and scope of an error response.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "answer",
        status: int | None = None,
        body_complete: bool = False,
        scope: str | None = None,
        details: ErrorDetails = _NO_DETAILS,
    ) -> None:
        super().__init__(redacted(message))  # it may quote the remote
        self.kind = kind
        self.status = status
        self.body_complete = body_complete
        self.scope = scope
        self.details = details

    @property
    def retry_after(self) -> float | None:
        """Seconds that the remote asked to wait, None when it did not."""
        return self.details.retry_after

    @property
    def correlation_id(self) -> str | None:
        """The id that the remote's support asks for."""
        return self.details.correlation_id

    @property
    def about_document(self) -> bool:
        """Whether the remote itself refused this document in a structured error."""
        return self.details.about_document
