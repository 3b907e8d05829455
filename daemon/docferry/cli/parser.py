"""The command line: every command, its options and its help. Imports the standard library alone, to start fast."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn, cast

from docferry import __version__
from docferry.cli import streams
from docferry.cli.receipts_parser import add_receipts, add_verify

if TYPE_CHECKING:
    from datetime import date

    from _typeshed import SupportsWrite

_STATES: Final = ("waiting", "leased", "sending", "doubtful", "asking", "sent", "held", "gone")
_CONFIG_HELP: Final = "the configuration file; else $DOCFERRY_CONFIG, ./docferry.toml, … are tried"
_CHOICE: Final = re.compile(r"argument (\S+): invalid choice: '(.*?)' ?\(choose from (.*)\)", re.DOTALL)

_ABOUT: Final = """\
Uploads documents from folders to Codat and Wootiv, each exactly once, and downloads new ones.
"""
_TO_BEGIN: Final = """\
to begin:
  docferry demo                            see it work against a simulator; needs nothing
  docferry config init > docferry.toml     write a configuration, then edit it
  docferry check                           check configuration, keys and folders
  docferry sync                            one pass, with a progress bar
  docferry run                             the daemon

exit codes:
  0 all done   1 some documents are held   2 configuration or command line wrong
  75 something is still due, or a folder can't be read: nothing is lost, run it again
"""


class Misused(Exception):
    """The command line is wrong; the message names the word and the nearest right one."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments.

    Raises Misused where they are wrong, and SystemExit after --help and --version.
    """
    parser = build_parser()
    if argv and argv[0].startswith("-") and argv[0].partition("=")[0] not in _options(parser):
        # Before the command, where its value would be taken for the command.
        raise Misused(_unknown(argv[0], parser, None))
    asked, rest = parser.parse_known_args(list(argv))
    if rest and asked.command == "remote" and not rest[0].startswith("-") and getattr(asked, "name", "") is None:
        asked.name = rest.pop(0)  # argparse takes an optional word only beside the word before it
    if rest:
        raise Misused(_unknown(rest[0], parser, asked.command))
    if asked.command is None:
        parser.print_help()
        raise SystemExit(2)
    return asked


def build_parser() -> Parser:
    """Return the parser with all commands."""
    parser = Parser(
        prog="docferry",
        description=_ABOUT,
        epilog=_TO_BEGIN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"docferry {__version__}")
    parser.add_argument("--config", type=Path, metavar="PATH", help=_CONFIG_HELP)
    parser.commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (
        _run,
        _sync,
        _status,
        _list,
        _show,
        _retry,
        _put,
        _remote,
        _check,
        _health,
        _metrics,
        _ui,
        _config,
        _alerts,
        _hosts,
        _queue,
        add_verify,
        add_receipts,
        _simulate,
        _demo,
    ):
        add(parser)
    return parser


class Parser(argparse.ArgumentParser):
    """An argument parser that raises Misused instead of ending the program."""

    commands: argparse._SubParsersAction[Parser]

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
        """Write help and version as all other output: argparse would keep silent about what could not be written."""
        streams.write(cast("IO[str] | None", file), message)

    def command(self, name: str, summary: str, *examples: str, more: str = "") -> Parser:
        """Add a command; each example is a complete line."""
        shown = "examples:\n" + "\n".join(f"  docferry {name} {each}".rstrip() for each in examples)
        added = self.commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.\n{more}".rstrip(),
            epilog=shown if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Accepted after the command too; SUPPRESS keeps a value that was given before it.
        added.add_argument("--config", type=Path, metavar="PATH", default=argparse.SUPPRESS, help=_CONFIG_HELP)
        return added


def _run(parser: Parser) -> None:
    parser.command(
        "run",
        "the daemon, in the foreground, as systemd starts it",
        "",
        "--config /etc/docferry/docferry.toml",
        more="SIGTERM and Ctrl-C stop it after the uploads in flight; SIGHUP reads the configuration again.",
    )


def _sync(parser: Parser) -> None:
    sync = parser.command(
        "sync",
        "one pass: scan, upload all that is due, download what is new, then exit",
        "",
        "--dry-run",
        "--mapping acme-bank --mapping scans --timeout 10m",
        "--json | jq .uploaded",
        more="Safe beside a running daemon, and beside another sync.",
    )
    sync.add_argument("--mapping", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    sync.add_argument("--dry-run", action="store_true", help="list what would be done, and change nothing")
    sync.add_argument("--json", action="store_true", help="one object when it is done (with --dry-run, one a line)")
    sync.add_argument("--no-upload", action="store_true", help="only download")
    sync.add_argument("--no-download", action="store_true", help="only upload")
    sync.add_argument("--timeout", metavar="TIME", type=_duration, help='stop after so long, such as "10m"')
    sync.add_argument(
        "--adopt",
        action="store_true",
        help="after a lost database: mark as sent what the remote proves to have, and send the rest",
    )


def _status(parser: Parser) -> None:
    status = parser.command(
        "status",
        "counts by mapping and state, activity of each remote, problems that need a person",
        "",
        "--watch",
        "--json | jq .held",
    )
    status.add_argument("--json", action="store_true", help="one object")
    status.add_argument("--watch", action="store_true", help="repeat until Ctrl-C")


def _list(parser: Parser) -> None:
    listing = parser.command(
        "list",
        "documents, one a line",
        "--state held",
        "--state waiting --state doubtful --mapping acme-bank",
        "--reason too_large --json",
    )
    listing.add_argument("--mapping", metavar="NAME", help="only those of this mapping")
    listing.add_argument(
        "--state", action="append", default=[], choices=_STATES, metavar="STATE", help=f"one of {', '.join(_STATES)}"
    )
    listing.add_argument("--reason", metavar="CODE", help="only those held, or waiting, for this reason")
    listing.add_argument("--limit", type=_count, metavar="N", help="print at most N documents")
    listing.add_argument("--json", action="store_true", help="one object a line")


def _show(parser: Parser) -> None:
    show = parser.command(
        "show", "one document and every attempt", "17", "/srv/customers/acme/bank/march.pdf", "17 --json"
    )
    show.add_argument("document", metavar="ID|PATH", help="its id in `docferry list`, or its path")
    show.add_argument("--json", action="store_true", help="one object a line, the newest version of a path first")


def _retry(parser: Parser) -> None:
    retry = parser.command(
        "retry",
        "makes held and waiting documents due now, and opens closed gates",
        "17 18",
        "--reason too_large",
        "--mapping acme-bank",
        "--all",
        more="A running daemon sends them within seconds; else run `docferry sync`. What is held for approval is "
        "released only by its id or by --reason approval.",
    )
    retry.add_argument("ids", nargs="*", type=_count, metavar="ID", help="ids from `docferry list`")
    retry.add_argument("--mapping", metavar="NAME", help="those of this mapping")
    retry.add_argument("--reason", metavar="CODE", help="those held, or waiting, for this reason")
    retry.add_argument("--missing", action="store_true", help="send again what `docferry verify` proved missing")
    retry.add_argument("--all", action="store_true", help="all of them")


def _put(parser: Parser) -> None:
    put = parser.command(
        "put",
        "store files in the queue of a mapping, to be sent as if they lay in its folder",
        "acme-bank statement.pdf",
        "scans - --name 2026/letter.pdf < letter.pdf",
        more="A file is copied: it may be removed once the command ends. A running daemon sends the copy; else run "
        "`docferry sync`.",
    )
    put.add_argument("mapping", metavar="MAPPING", help="the name of an upload mapping")
    put.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for the standard input")
    put.add_argument("--name", metavar="NAME", help="the path in the mapping's folder; default: the name of the file")
    put.add_argument("--json", action="store_true", help="one object a line, with the id")


def _remote(parser: Parser) -> None:
    remote = parser.command(
        "remote",
        "the files that a remote has for a mapping; fetch one; its health",
        "ls acme-bank",
        "get acme-bank --date 2026-08-01 --to /tmp/august",
        "get scans reports/latest.pdf",
        "health",
        more="Nothing is changed at the remote. `ls` ends with 1 where a file that docferry sent is missing.",
    )
    whats = remote.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    listing = whats.add_parser("ls", help="its files, and whether docferry sent them; at Wootiv buckets, too")
    listing.add_argument("--json", action="store_true", help="one object a line")
    get = whats.add_parser("get", help="fetch one file, those of a day, or all")
    get.add_argument("--date", type=_day, metavar="DATE", help="the day of the upload at Codat, such as 2026-08-01")
    get.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="default: the working folder")
    for each in (listing, get):
        each.add_argument("mapping", metavar="MAPPING", help="the name of a mapping")
        each.add_argument("--company", metavar="ID", help="one of the mapping's companies at Codat")
    get.add_argument("name", nargs="?", metavar="NAME", help="the name of the file, as `remote ls` shows it")
    health = whats.add_parser("health", help="keys, companies, connections and buckets, and the quota that is left")
    health.add_argument("mapping", nargs="?", metavar="MAPPING", help="only the remote of this mapping")


def _check(parser: Parser) -> None:
    check = parser.command(
        "check",
        "checks configuration, keys, folders and limits; names the fix of each problem",
        "",
        "--offline",
    )
    check.add_argument("--offline", action="store_true", help="make no request")
    check.add_argument("--json", action="store_true", help="one object")


def _health(parser: Parser) -> None:
    health = parser.command(
        "health",
        "whether the daemon is alive, or ready: exit 0 when it is, 1 when it is not",
        "",
        "--ready",
        more="For container health checks. The remotes are no part of it: docferry waits for them.",
    )
    health.add_argument("--ready", action="store_true", help="the first scan was planned, and the queue can be written")


def _metrics(parser: Parser) -> None:
    parser.command(
        "metrics",
        "the metrics once, as text",
        "",
        "| grep held",
        more="Events are counted in the daemon: without one, or without metrics.listen, only states are told.",
    )


def _ui(parser: Parser) -> None:
    parser.command(
        "ui",
        "a one-time link to the status page, or the ssh line for its socket",
        "",
        more="The link is good for a minute, and once. Whoever may write to the state folder can make one.",
    )


def _config(parser: Parser) -> None:
    config = parser.command(
        "config",
        "a commented example; the effective settings, secrets hidden; JSON Schema",
        "init > docferry.toml",
        "show",
        "schema > docferry.schema.json",
    )
    config.add_argument(
        "what",
        choices=("init", "show", "schema", "names"),
        metavar="WHAT",
        help="init, show, schema, or names (of all mappings, one a line, for shell completion)",
    )


def _alerts(parser: Parser) -> None:
    alerts = parser.command(
        "alerts",
        "which conditions last and who was told; a test message to each receiver; silence",
        "list",
        "test",
        "test ops",
        "silence held/scans/empty 8h",
        "silence 'folder/*' 2026-12-24T18:00",
        more="A condition's key is its event and labels; a pattern may stand for many. TIME is a duration or a date; "
        "0 ends a silence.",
    )
    whats = alerts.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    listing = whats.add_parser("list", help="the conditions that last, or ended and are not told to all yet")
    listing.add_argument("--json", action="store_true", help="one object a line")
    test = whats.add_parser("test", help="send a test message to each receiver, or to one")
    test.add_argument("name", nargs="?", metavar="NAME", help="only this receiver")
    silence = whats.add_parser("silence", help="tell nobody of a condition until a time")
    silence.add_argument("key", metavar="KEY", help="its key as `docferry alerts list` shows it, or a pattern")
    silence.add_argument("until", metavar="TIME", type=_moment, help='such as "8h" or "2026-12-24T18:00"; 0 ends it')


def _hosts(parser: Parser) -> None:
    hosts = parser.command(
        "hosts", "the machines that share the queue, their heartbeats and what they hold", "", "--json"
    )
    hosts.add_argument("--json", action="store_true", help="one object a line")


def _queue(parser: Parser) -> None:
    queue = parser.command(
        "queue",
        "move the queue of this machine to PostgreSQL, completely or not at all",
        "move --to postgresql://docferry@db.example.com/docferry",
        more="Stop docferry first. The moved file is kept as docferry.db.moved; then set database_url to the URL.",
    )
    whats = queue.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    move = whats.add_parser("move", help="move it to an empty PostgreSQL database")
    move.add_argument("--to", required=True, metavar="URL", help="postgresql://USER:PASSWORD@SERVER/DATABASE")


def _simulate(parser: Parser) -> None:
    simulate = parser.command(
        "simulate",
        "a local Codat and Wootiv for trials",
        "",
        "--port 8025",
        "--faults faults.toml",
        more="It listens on this machine alone, prints a configuration for it, and ends on Ctrl-C.",
    )
    simulate.add_argument("--port", type=_port, default=0, metavar="N", help="default: any free port")
    simulate.add_argument("--faults", type=Path, metavar="FILE", help="TOML or JSON: the requests that fail, and how")


def _demo(parser: Parser) -> None:
    demo = parser.command(
        "demo",
        "the daemon on a temporary folder against the simulator, shown as it happens",
        "",
        "--page",
        more="Needs no account, no key and no configuration; ends by itself within a minute, or with --page at Ctrl-C.",
    )
    demo.add_argument("--page", action="store_true", help="keep the demo and its status page open until Ctrl-C")


def _duration(written: str) -> float:
    from docferry.settings import units

    try:
        return units.seconds(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'"{written}" {error}') from None


def _moment(written: str) -> float:
    """Return a duration from now, or a local date, as wall seconds."""
    import time
    from datetime import datetime

    from docferry.settings import units

    try:
        return time.time() + units.seconds(written)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(written).timestamp()
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f'"{written}" is no time; write it like "8h", "30m" or "2026-12-24T18:00"'
        ) from None


def _day(written: str) -> date:
    from datetime import date

    try:
        return date.fromisoformat(written)
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{written}" is not a date; write it like 2026-08-01') from None


def _count(written: str) -> int:
    if not written.isascii() or not written.isdecimal() or not 0 < int(written) < 2**63:
        raise argparse.ArgumentTypeError(f'"{written}" is not a number from 1 on')
    return int(written)


def _port(written: str) -> int:
    if not written.isascii() or not written.isdecimal() or int(written) > 65535:
        raise argparse.ArgumentTypeError(f'"{written}" is not a port; choose one from 1024 to 65535')
    return int(written)


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
