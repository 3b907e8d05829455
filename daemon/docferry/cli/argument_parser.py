"""Parse arguments; errors name the wrong word and the nearest valid one."""

from __future__ import annotations

import argparse
import re
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn, cast

from docferry.cli import streams

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

CONFIG_HELP: Final = (
    "the configuration file; default: the first of $DOCFERRY_CONFIG, ./docferry.toml, "
    "~/.config/docferry/docferry.toml and /etc/docferry/docferry.toml"
)
_CHOICE: Final = re.compile(r"argument (\S+): invalid choice: '(.*?)' ?\(choose from (.*)\)", re.DOTALL)


class Misused(Exception):
    """Report a wrong command line. The message names the wrong word and the nearest valid one."""


class Parser(argparse.ArgumentParser):
    """Parse arguments, and raise Misused instead of ending the program."""

    commands: argparse._SubParsersAction[Parser]

    def subcommand(self, name: str, summary: str) -> Parser:
        """Add a subcommand, whose name is parsed into `what`."""
        if "commands" not in vars(self):
            self.commands = self.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
        return self.commands.add_parser(name, help=summary, description=_sentence(summary))

    def error(self, message: str) -> NoReturn:
        """Raise Misused with the nearest valid choice."""
        found = _CHOICE.search(message)
        if found is None:
            raise Misused(f"{message}; see `{self.prog} --help`")
        what, wrong, choices = found[1], found[2], [each.strip(" '") for each in found[3].split(",")]
        near = get_close_matches(wrong, choices, n=1, cutoff=0.5)
        cure = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
        kind = "command" if what in {"COMMAND", "WHAT"} else what
        raise Misused(f'there is no {kind} "{wrong}"; {cure}' if kind == "command" else f'{what}: no "{wrong}"; {cure}')

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Write help and version like all other output: argparse would ignore failed writes."""
        streams.write(cast("IO[str] | None", file), message)

    def command(self, name: str, summary: str, *examples: str, more: str = "") -> Parser:
        """Add a command; each example is a complete line."""
        shown = "examples:\n" + "\n".join(f"  docferry {name} {each}".rstrip() for each in examples)
        added = self.commands.add_parser(
            name,
            help=summary,
            description=f"{_sentence(summary)}\n{more}".rstrip(),
            epilog=shown if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Accepted after the command, too; SUPPRESS keeps a value from before the command.
        added.add_argument("--config", type=Path, metavar="PATH", default=argparse.SUPPRESS, help=CONFIG_HELP)
        return added


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."
