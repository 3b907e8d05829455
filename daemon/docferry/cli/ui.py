"""Run `docferry ui`: print a one-time link to the status page, or the ssh line that opens its socket."""

from __future__ import annotations

import socket
from argparse import Namespace
from pathlib import Path

from docferry.app.status_file import read_status
from docferry.cli import args
from docferry.cli.output import Screen, complain, line
from docferry.errors import ConfigError, StateError
from docferry.settings.listeners import address

_LATER = 75
_LOCAL_PORT = 8025


def command(asked: Namespace) -> int:
    """Print the link or the ssh line for the page of the running daemon."""
    settings = args.load(asked.config)
    if settings.web.listen is None:
        fix = 'write listen = "unix:/run/docferry/web.sock" or "127.0.0.1:8025" under [web], and restart docferry'
        raise ConfigError([f"the status page is off; {fix}"])
    status = read_status(settings.state_dir)
    if status is None:
        complain("no daemon runs on this state folder; `docferry run` starts it")
        return _LATER
    listen = status.get("listening", {}).get("web")
    if listen is None:
        complain("the daemon does not serve the status page; it is starting, or its log tells why not")
        return _LATER
    screen = Screen()
    where = address(listen)
    if where.path is not None:
        screen.show(line(f"ssh -N -L {_LOCAL_PORT}:{where.path} {socket.getfqdn()}"))
        screen.show(line(f"then open http://localhost:{_LOCAL_PORT}/"))
        return 0
    screen.show(line(link(settings.state_dir, listen)))
    return 0


def link(state_dir: Path, listen: str) -> str:
    """Return a link that logs in once within a minute. Raises StateError if the state folder has another owner."""
    from docferry.web.sessions import make_link_token

    try:
        token = make_link_token(state_dir)
    except OSError as error:
        raise StateError(f"{state_dir} cannot be written: {error.strerror}; run it as docferry's user") from error
    return f"http://{listen}/login?token={token}"
