"""Find the command for the arguments and run it. Print errors on stderr and return an exit code."""

from __future__ import annotations

import gc
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Final

from docferry.cli import streams
from docferry.cli.argument_parser import Misused
from docferry.cli.commands import COMMANDS
from docferry.cli.parser import parse

WRONG = 2  # the configuration or the command line
BROKEN = 70  # a defect of docferry (EX_SOFTWARE)
UNWRITTEN = 74  # the output could not be written (EX_IOERR)
LATER = 75  # nothing is lost: run it again (EX_TEMPFAIL)
INTERRUPTED = 130
#: New objects between two garbage collections. Python's default of 700 spends a twenty-fifth of an upload's processor
#: time on scanning the requests in flight.
GARBAGE_THRESHOLD: Final = 10_000
PIPE_CLOSED = 141  # the exit code after SIGPIPE

Command = Callable[[Namespace], int]


def main(argv: Sequence[str]) -> int:
    """Run the command that `argv` names and return its exit code."""
    try:
        code = _command(parse(argv))
    except Misused as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as leaving:  # after --help and --version
        code = leaving.code if isinstance(leaving.code, int) else 0
    except Exception as error:  # noqa: BLE001 - last resort: print a sentence instead of a traceback
        code = _failed(error)
    return code or _output_code()


def _output_code() -> int:
    """Return the exit code for the output: written, closed by its reader, or not writable."""
    streams.flush()
    if streams.lost.reader_left:
        return PIPE_CLOSED
    return UNWRITTEN if streams.lost.unwritten else 0


def _command(asked: Namespace) -> int:
    """Import the command only when needed, so that `--version` and `list` start fast, and run it."""
    entry = COMMANDS[asked.command]
    command: Command = getattr(import_module(f"docferry.cli.{entry.module}"), entry.function)
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    gc.enable()
    return command(asked)


def _failed(error: Exception) -> int:
    from docferry.errors import ConfigError, DatabaseBusy, DocferryError

    leaves = list(_leaves(error))
    strangers = [leaf for leaf in leaves if not isinstance(leaf, DocferryError)]
    if strangers:
        return _report_defect(strangers[0])
    said = [each for leaf in leaves for each in (leaf.problems if isinstance(leaf, ConfigError) else (str(leaf),))]
    code = _complain(*dict.fromkeys(said))
    return LATER if any(isinstance(leaf, DatabaseBusy) for leaf in leaves) else code


def _report_defect(error: BaseException) -> int:
    """Report a defect of docferry in one sentence; log the traceback at level debug."""
    import logging

    from docferry import logs

    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" ({os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno})" if where else ""  # noqa: PTH119 - a name, not a file
    _complain(logs.redacted(f"internal error: {type(error).__name__}: {error}{place}"))
    if os.environ.get("DOCFERRY_LOG_LEVEL", "").lower() == "debug":
        logs.configure("debug")
    logs.get("cli").debug("failed", exc=error)
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        _complain("nothing is lost; run it again with DOCFERRY_LOG_LEVEL=debug for the traceback, and report it")
    return BROKEN


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside exception groups, which task groups raise."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _complain(*sentences: str) -> int:
    from docferry.cli.output import complain

    complain(*sentences)
    return WRONG
