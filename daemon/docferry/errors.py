"""The error tree. Each message is written for the person who must act.

DocferryError
├── ConfigError          the configuration or command line is wrong: exit 2, all problems at once
├── StateError           the state folder or database cannot be used: exit 2
│   ├── AlreadyRunning   another `run` has this state folder
│   ├── DatabaseLost     the database was removed or replaced under us
│   └── DatabaseBusy     it can't be written now (a full disk, a lock that stays): exit 75, run it again
├── SourceError          a document's file; nothing was sent, or the body was never completed
│   ├── SourceVanished
│   ├── SourceChanged
│   └── SourceUnreadable
├── RemoteError          an attempt at a remote failed; `body_complete` tells whether it can have been stored
├── NotNow               a stop or a gate came before its first byte: nothing was done
├── FolderError          a mapping's folder is missing, unreadable or suddenly empty
├── LeaseLost            somebody else has the transfer now
└── ArchiveError         a downloaded archive is broken or hostile
"""

from __future__ import annotations

from collections.abc import Sequence


class DocferryError(Exception):
    """Everything that docferry raises on purpose."""


class ConfigError(DocferryError):
    """The configuration or command line is wrong; `problems` has one sentence for each, naming key and cure."""

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
    """A document's file could not be given out whole."""


class SourceVanished(SourceError):
    """The file is no longer there."""


class SourceChanged(SourceError):
    """The file's bytes are not those that were planned; the body was not completed."""


class SourceUnreadable(SourceError):
    """The file is there and cannot be read."""


class NotNow(DocferryError):
    """It waited to be sent, and must not go any more."""


class FolderError(DocferryError):
    """A mapping's folder is missing, unreadable or suddenly empty; only that mapping stops."""


class LeaseLost(DocferryError):
    """The transfer is no longer ours: another row count than one came back from a move."""


class ArchiveError(DocferryError):
    """A downloaded archive is broken or hostile; nothing of it is kept."""


class RemoteError(DocferryError):
    """An attempt at a remote that did not end in a receipt.

    status         the HTTP status, None when no answer came
    body_complete    the last byte of the body was given to the kernel: the remote may have stored it
    retry_after    seconds the remote asked for, None when it did not
    should_retry   `x-should-retry`, None when it was not sent
    scope          what the remote refused, as a gate key prefix ("codat", "codat/COMPANY", ...); None: the document
    kind           "answer" | "unreachable" | "timeout" | "cut" | "not_ours" (an answer no such remote gives) |
                   "redirect" | "signature" (a signed URL was refused: ask for a new one) | "redo" (the PUT's ETag
                   does not match: repeat it)
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "answer",
        status: int | None = None,
        body_complete: bool = False,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        scope: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.body_complete = body_complete
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.scope = scope
        self.correlation_id = correlation_id
