"""Define the whole command line. Imports only the standard library, to start fast."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from docferry import __version__
from docferry.cli.argument_parser import CONFIG_HELP, Misused, Parser
from docferry.cli.commands import COMMANDS, add_commands

_ABOUT: Final = """\
Upload documents from folders to Codat and Wootiv, each exactly once, and download new ones.
"""
_TO_BEGIN: Final = """\
to begin:
  docferry demo                            watch docferry work against a simulator; needs nothing
  docferry config init > docferry.toml     write a configuration, then edit it
  docferry check                           check configuration, keys and folders
  docferry sync                            run one pass, with a progress bar
  docferry run                             run the daemon

when something is wrong:
  docferry status                          problems that need a person, each with its fix
  docferry check                           keys, folders, network and limits, each with its fix
  docferry list --state held               held documents with their reasons; `docferry show ID` explains one
  docferry retry ID                        send a document after you removed the cause

exit codes:
  0 all done   1 some documents are held   2 configuration or command line wrong
  75 something is still due, or a folder can't be read: nothing is lost, run it again

exit code 1 of other commands:
  health                  the daemon is not alive, or not ready
  verify, remote ls       a sent document is missing (verify: or changed) at the remote
  receipts verify         the record of what was sent has a problem
  retry --missing         a missing document has no file any more
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments.

    Raises Misused for wrong arguments, and SystemExit after --help and --version.
    """
    parser = build_parser(_needed(argv))
    if argv and argv[0].startswith("-") and argv[0].partition("=")[0] not in _options(parser):
        # Before the command, where argparse would take the option's value for the command.
        raise Misused(_unknown(argv[0], parser, None))
    asked, rest = parser.parse_known_args(list(argv))
    if rest and asked.command == "remote" and not rest[0].startswith("-") and getattr(asked, "name", "") is None:
        asked.name = rest.pop(0)  # argparse accepts an optional word only next to the previous word
    if rest:
        raise Misused(_unknown(rest[0], parser, asked.command))
    if asked.command is None:
        parser.print_help()
        raise SystemExit(2)
    return asked


def _needed(argv: Sequence[str]) -> Collection[str]:
    """Return the commands that the parser must know for these arguments."""
    words = argv[2:] if argv[:1] == ["--config"] else argv
    if words and words[0] in COMMANDS:
        return {words[0]}
    return set() if list(argv) == ["--version"] else COMMANDS


def build_parser(commands: Collection[str] = COMMANDS) -> Parser:
    """Return the parser with these commands. All of them take 10 ms, one takes 3."""
    parser = Parser(
        prog="docferry",
        description=_ABOUT,
        epilog=_TO_BEGIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"docferry {__version__}")
    parser.add_argument("--config", type=Path, metavar="PATH", help=CONFIG_HELP)
    parser.commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    add_commands(parser, commands)
    return parser


def _unknown(wrong: str, parser: Parser, command: str | None) -> str:
    known = list(_options(parser))
    if command is not None:
        known += _options(parser.commands.choices[command])
    if not wrong.startswith("-"):
        return f'"{wrong}" is one word too many; see `docferry {command} --help`'
    near = get_close_matches(wrong.partition("=")[0], known, n=1, cutoff=0.5)
    cure = f"did you mean {near[0]}?" if near else f"see `docferry {command or ''} --help`".replace("  ", " ")
    return f"there is no option {wrong}; {cure}"


def _options(parser: argparse.ArgumentParser) -> Iterable[str]:
    return (option for action in parser._actions for option in action.option_strings)
