"""Define the error tree. Each message tells a person what happened, to which document, and what to do.

DocferryError
├── ConfigError          the configuration or command line is wrong: exit 2, all problems at once
├── StateError           the state folder or database cannot be used: exit 2
│   ├── AlreadyRunning   another `run` has this state folder
│   ├── DatabaseLost     the database was removed or replaced while in use
│   └── DatabaseBusy     it cannot be written for now (full disk, a lock that stays): exit 75, run it again
│       └── StatementRefused  it refuses some rows (a trigger, a CHECK, a damaged row); others can be written
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

from msgspec import Struct

from docferry.redaction import redacted


class DocferryError(Exception):
    """Serve as the base class of all errors that docferry raises on purpose."""


class ConfigError(DocferryError):
    """Report a wrong configuration or command line. `problems` has one sentence each, with the key and the fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class StateError(DocferryError):
    """Report that the state folder or the database cannot be used."""


class AlreadyRunning(StateError):
    """Report that another `docferry run` holds this state folder."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"docferry already runs on this state folder{f' (pid {pid})' if pid else ''}; stop it first")
        self.pid = pid


class DatabaseLost(StateError):
    """Report that the database file was removed or replaced while in use."""


class DatabaseBusy(StateError):
    """Report that the database is intact but cannot be written for now."""


class StatementRefused(DatabaseBusy):
    """Report that the database refuses a statement about some rows. Nothing was written; waiting may not help."""


class SourceError(DocferryError):
    """Report that the file of a document could not be read completely."""


class SourceVanished(SourceError):
    """Report that the file no longer exists."""


class SourceChanged(SourceError):
    """Report that the bytes of the file differ from the plan; the body was not completed."""


class SourceUnreadable(SourceError):
    """Report that the file exists but cannot be read."""


class NotNow(DocferryError):
    """Report that the permit to send was withdrawn before the first byte."""


class FolderError(DocferryError):
    """Report that the folder of a mapping is missing, unreadable or suddenly empty; only that mapping stops."""


class LeaseLost(DocferryError):
    """Report that the lease of a transfer is lost: a guarded transition did not change exactly one row."""


class ArchiveError(DocferryError):
    """Report that a downloaded archive is broken or hostile; none of it is kept."""


class ErrorDetails(Struct, frozen=True):
    """Hold the fields of an error response besides its status."""

    retry_after: float | None = None  # the pause that the remote requested, seconds
    should_retry: bool | None = None  # the header `x-should-retry`
    correlation_id: str | None = None  # for the support of the remote
    about_document: bool = False  # a structured error by the remote itself about this document


_NO_DETAILS = ErrorDetails()


class RemoteError(DocferryError):
    """Report a request without a receipt or a usable response.

    Attributes:
        kind: One of
            "answer" (an error of the remote itself),
            "not_ours" (a response that this remote never gives: a proxy, a web page),
            "unreachable", "timeout", "cut" (no response),
            "redirect",
            "signature" (a signed URL was refused: ask for a new one),
            "storage" (the storage refused its account, bucket, signer or quota),
            "redo" (the storage has other bytes than were sent: repeat the PUT).
        status: The HTTP status, None without a response.
        body_complete: The last byte of the body was handed to the kernel, so that the remote may have stored the
            document.
        scope: The refused part of the remote, as the key of a gate; None if only this document is affected.
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
        super().__init__(redacted(message))  # may quote the remote
        self.kind = kind
        self.status = status
        self.body_complete = body_complete
        self.scope = scope
        self.details = details

    @property
    def retry_after(self) -> float | None:
        """Return the pause that the remote requested, seconds, or None."""
        return self.details.retry_after

    @property
    def correlation_id(self) -> str | None:
        """Return the id that the remote's support asks for."""
        return self.details.correlation_id

    @property
    def about_document(self) -> bool:
        """Return whether the remote itself refused this document in a structured error."""
        return self.details.about_document
