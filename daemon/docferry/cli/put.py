"""Run `docferry put`: store files, or the standard input, in the queue of a mapping."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import anyio

from docferry import logs
from docferry.cli import args
from docferry.cli.output import Screen, count, line
from docferry.client import Queue
from docferry.errors import ConfigError
from docferry.model import escaped
from docferry.settings import Settings
from docferry.store import locks


def command(asked: Namespace) -> int:
    """Run `docferry put`."""
    settings = args.load(asked.config)
    logs.configure("warning", settings.log_format)
    if asked.name is not None and len(asked.files) > 1:
        raise ConfigError(["--name is for one file; leave it out, and each file has its own name"])
    if asked.name is None and "-" in asked.files:
        raise ConfigError(["the standard input has no name; give the document one with --name"])
    anyio.run(_put, settings, asked)
    return 0


async def _put(settings: Settings, asked: Namespace) -> None:
    screen = Screen()
    async with Queue.open(settings) as queue:
        for file in asked.files:
            name = asked.name or Path(file).name
            with _opened(file) as content:
                document = await _stored(queue, asked.mapping, name, content)
            said = {"id": document, "mapping": asked.mapping, "name": name}
            screen.write(json.dumps(said) + "\n" if asked.json else f"{escaped(document)}\n")
    if asked.json:
        return
    runs = locks.running(settings.state_dir) is not None
    stored, them = count(len(asked.files), "document"), "it" if len(asked.files) == 1 else "them"
    screen.show(line(f"{stored} stored; {'the daemon' if runs else '`docferry sync`'} sends {them}"))


async def _stored(queue: Queue, mapping: str, name: str, content: BinaryIO) -> str:
    try:
        return await queue.put(mapping, name, content)
    except OSError as error:
        raise ConfigError([f"{escaped(name)} was not stored: {(error.strerror or str(error)).lower()}"]) from error


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """Open a file, or return the standard input for `-`. Raises ConfigError if it cannot be read."""
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 - closed below; errors inside the block belong to the caller
    except OSError as error:
        raise ConfigError([f"{escaped(file)} cannot be read: {(error.strerror or 'unknown error').lower()}"]) from error
    with opened:
        yield opened
