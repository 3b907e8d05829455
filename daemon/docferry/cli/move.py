"""Run `docferry queue move`: move the queue of this machine to PostgreSQL."""

from __future__ import annotations

from argparse import Namespace

from pydantic import SecretStr

from docferry.cli import args
from docferry.cli.output import Screen, line
from docferry.errors import ConfigError, StateError
from docferry.settings import validate_database_url
from docferry.store import locks, move, schema


def command(asked: Namespace) -> int:
    """Move the queue; return the exit code."""
    settings = args.load(asked.config)
    try:
        url = validate_database_url(SecretStr(asked.to)).get_secret_value()
    except ValueError as error:
        raise ConfigError([f"--to {error}"]) from error
    path = settings.state_dir / "docferry.db"
    if not path.exists() and not schema.moving(path).exists():
        raise StateError(f"{path} does not exist: there is nothing to move")
    shared = {upload.name for upload in settings.uploads if upload.shared}
    with locks.single_instance(settings.state_dir):
        rows = move.move(path, url, settings.host_name, shared)
    screen = Screen()
    screen.show(line(f"{rows:,} rows were moved; {path} is now {path.name}.moved"))
    screen.show(line("set database_url to the same URL before docferry is started again"))
    return 0
