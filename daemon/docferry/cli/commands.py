"""Define the commands with their options and help, except `verify` and `receipts`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple

from docferry.cli import argument_types
from docferry.cli.argument_parser import Parser
from docferry.cli.receipts_parser import add_receipts, add_verify

_STATES: Final = ("waiting", "leased", "sending", "doubtful", "asking", "sent", "held", "gone")


class CommandEntry(NamedTuple):
    """Name the function of a command, which is imported only when the command runs."""

    add: Callable[[Parser], None]  # adds the command to the parser
    module: str  # below docferry.cli
    function: str = "command"


def add_commands(parser: Parser, names: Collection[str]) -> None:
    """Add these commands in the order of the help."""
    for name, command in COMMANDS.items():
        if name in names:
            command.add(parser)


def _run(parser: Parser) -> None:
    parser.command(
        "run",
        "run the daemon in the foreground, as systemd does",
        "",
        "--config /etc/docferry/docferry.toml",
        more="SIGTERM and Ctrl-C stop it after the uploads in flight; SIGHUP reads the configuration again.",
    )


def _sync(parser: Parser) -> None:
    sync = parser.command(
        "sync",
        "run one pass: scan, upload due documents, download new ones, then exit",
        "",
        "--dry-run",
        "--mapping acme-bank --mapping scans --timeout 10m",
        "--json | jq .uploaded",
        more="Safe beside a running daemon, and beside another sync.",
    )
    sync.add_argument(
        "--mapping", action="append", default=[], metavar="NAME", help="only this mapping; may be repeated"
    )
    sync.add_argument("--dry-run", action="store_true", help="list the actions of a pass, and change nothing")
    sync.add_argument(
        "--json", action="store_true", help="print one JSON object at the end (with --dry-run, one a line)"
    )
    sync.add_argument("--no-upload", action="store_true", help="only download")
    sync.add_argument("--no-download", action="store_true", help="only upload")
    sync.add_argument(
        "--timeout", metavar="TIME", type=argument_types.duration, help='stop after this time, such as "10m"'
    )
    sync.add_argument(
        "--adopt",
        action="store_true",
        help="after the loss of the database: look up every document, and send only the absent ones",
    )


def _status(parser: Parser) -> None:
    status = parser.command(
        "status",
        "show counts by mapping and state, activity of each remote, problems that need a person",
        "",
        "--watch",
        "--json | jq .held",
    )
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument("--watch", action="store_true", help="repeat until Ctrl-C")


def _list(parser: Parser) -> None:
    listing = parser.command(
        "list",
        "list documents, one a line",
        "--state held",
        "--state waiting --state doubtful --mapping acme-bank",
        "--reason too_large --json",
    )
    listing.add_argument("--mapping", metavar="NAME", help="only documents of this mapping")
    listing.add_argument(
        "--state", action="append", default=[], choices=_STATES, metavar="STATE", help=f"one of {', '.join(_STATES)}"
    )
    listing.add_argument("--reason", metavar="CODE", help="only documents that are held or wait for this reason")
    listing.add_argument("--limit", type=argument_types.count, metavar="N", help="print at most N documents")
    listing.add_argument("--json", action="store_true", help="print one JSON object a line")


def _show(parser: Parser) -> None:
    show = parser.command(
        "show", "show one document and every attempt", "17", "/srv/customers/acme/bank/march.pdf", "17 --json"
    )
    show.add_argument("document", metavar="ID|PATH", help="the document's id in `docferry list`, or its path")
    show.add_argument(
        "--json", action="store_true", help="print one JSON object a line, the newest version of a path first"
    )


def _retry(parser: Parser) -> None:
    retry = parser.command(
        "retry",
        "make held and waiting documents due now, and open closed gates",
        "17 18",
        "--reason too_large",
        "--mapping acme-bank",
        "--all",
        more="A running daemon sends them within seconds; otherwise run `docferry sync`. Documents held for\n"
        "approval are released only by id or by --reason approval.",
    )
    retry.add_argument("ids", nargs="*", type=argument_types.count, metavar="ID", help="ids from `docferry list`")
    retry.add_argument("--mapping", metavar="NAME", help="documents of this mapping")
    retry.add_argument("--reason", metavar="CODE", help="documents that are held or wait for this reason")
    retry.add_argument(
        "--missing", action="store_true", help="documents that `docferry verify` proved missing: send them again"
    )
    retry.add_argument("--all", action="store_true", help="all held and waiting documents")
    retry.add_argument(
        "--accept-folder",
        action="store_true",
        help="with --mapping: confirm that the shared folder is right, although it has no known document",
    )


def _put(parser: Parser) -> None:
    put = parser.command(
        "put",
        "store files in the queue of a mapping, as if they were in its folder",
        "acme-bank statement.pdf",
        "scans - --name 2026/letter.pdf < letter.pdf",
        more="Files are copied, and may be removed after the command. A running daemon sends the copies;\n"
        "otherwise run `docferry sync`.",
    )
    put.add_argument("mapping", metavar="MAPPING", help="the name of an upload mapping")
    put.add_argument("files", nargs="+", metavar="FILE", help="a file, or - for the standard input")
    put.add_argument("--name", metavar="NAME", help="the path in the mapping's folder; default: the name of the file")
    put.add_argument("--json", action="store_true", help="print one JSON object a line, with the id")


def _remote(parser: Parser) -> None:
    remote = parser.command(
        "remote",
        "list the files of a mapping at its remote, fetch files, or show the remote's health",
        "ls acme-bank",
        "get acme-bank --date 2026-08-01 --to /tmp/august",
        "get scans reports/latest.pdf",
        "health",
        more="Nothing changes at the remote. `ls` exits with 1 if a file that docferry sent is missing.",
    )
    listing = remote.subcommand("ls", "list the files, and whether docferry sent them; at Wootiv also the buckets")
    listing.add_argument("--json", action="store_true", help="print one JSON object a line")
    get = remote.subcommand("get", "fetch one file, all files of a day, or all files")
    get.add_argument(
        "--date", type=argument_types.day, metavar="DATE", help="the day of the upload at Codat, such as 2026-08-01"
    )
    get.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="default: the working folder")
    for each in (listing, get):
        each.add_argument("mapping", metavar="MAPPING", help="the name of a mapping")
        each.add_argument("--company", metavar="ID", help="one of the mapping's companies at Codat")
    get.add_argument("name", nargs="?", metavar="NAME", help="the name of the file, as `remote ls` shows it")
    health = remote.subcommand("health", "check keys, companies, connections, buckets, and the remaining quota")
    health.add_argument("mapping", nargs="?", metavar="MAPPING", help="only the remote of this mapping")


def _check(parser: Parser) -> None:
    check = parser.command(
        "check",
        "check configuration, keys, folders and limits, and print the fix of each problem",
        "",
        "--offline",
    )
    check.add_argument("--offline", action="store_true", help="send no request")
    check.add_argument("--json", action="store_true", help="print one JSON object")


def _health(parser: Parser) -> None:
    health = parser.command(
        "health",
        "check whether the daemon is alive, or ready: exit 0 if yes, 1 if not",
        "",
        "--ready",
        more="For health checks of containers. Remotes are not checked, because docferry waits for them.",
    )
    health.add_argument(
        "--ready", action="store_true", help="also check that the first scan was planned and the queue can be written"
    )


def _metrics(parser: Parser) -> None:
    parser.command(
        "metrics",
        "print the metrics once, as text",
        "",
        "| grep held",
        more="Only the daemon counts events: without it, or without metrics.listen, only states are shown.",
    )


def _ui(parser: Parser) -> None:
    parser.command(
        "ui",
        "print a one-time link to the status page, or the ssh command for its socket",
        "",
        more="The link works once, within a minute. The command needs write access to the state folder.",
    )


def _config(parser: Parser) -> None:
    config = parser.command(
        "config",
        "print a commented example, the effective settings without secrets, or their JSON Schema",
        "init > docferry.toml",
        "show",
        "schema > docferry.schema.json",
    )
    config.add_argument(
        "what",
        choices=("init", "show", "schema", "names"),
        metavar="WHAT",
        help="init, show, schema, or names (all mappings, one a line, for shell completion)",
    )


def _alerts(parser: Parser) -> None:
    alerts = parser.command(
        "alerts",
        "list conditions that need attention, test the receivers, or silence conditions",
        "list",
        "test",
        "test ops",
        "silence held/scans/empty 8h",
        "silence 'folder/*' 2026-12-24T18:00",
        more="The key of a condition is its event and labels; a pattern matches several. TIME is a duration or a\n"
        "date; 0 ends a silence.",
    )
    listing = alerts.subcommand("list", "list lasting conditions, and ended ones that a receiver still has to get")
    listing.add_argument("--json", action="store_true", help="print one JSON object a line")
    test = alerts.subcommand("test", "send a test message to each receiver, or to one")
    test.add_argument("name", nargs="?", metavar="NAME", help="only this receiver")
    silence = alerts.subcommand("silence", "send no message about a condition until a time")
    silence.add_argument("key", metavar="KEY", help="the key in `docferry alerts list`, or a pattern")
    silence.add_argument(
        "until", metavar="TIME", type=argument_types.moment, help='such as "8h" or "2026-12-24T18:00"; 0 ends it'
    )


def _hosts(parser: Parser) -> None:
    hosts = parser.command(
        "hosts", "list the machines that share the queue, with their heartbeats and transfers", "", "--json"
    )
    hosts.add_argument("--json", action="store_true", help="print one JSON object a line")


def _queue(parser: Parser) -> None:
    queue = parser.command(
        "queue",
        "move the queue of this machine to PostgreSQL, completely or not at all",
        "move --to postgresql://docferry@db.example.com/docferry",
        more="Stop docferry first. The moved file is kept as docferry.db.moved. Then set database_url to the URL.",
    )
    move = queue.subcommand("move", "move the queue to an empty PostgreSQL database")
    move.add_argument("--to", required=True, metavar="URL", help="postgresql://USER:PASSWORD@SERVER/DATABASE")


def _simulate(parser: Parser) -> None:
    simulate = parser.command(
        "simulate",
        "run a local Codat and Wootiv for trials",
        "",
        "--port 8025",
        "--faults faults.toml",
        more="The simulator listens only on this machine, prints a configuration for it, and ends on Ctrl-C.",
    )
    simulate.add_argument("--port", type=argument_types.port, default=0, metavar="N", help="default: any free port")
    simulate.add_argument("--faults", type=Path, metavar="FILE", help="TOML or JSON: rules for requests that fail")


def _demo(parser: Parser) -> None:
    demo = parser.command(
        "demo",
        "run the daemon on a temporary folder against the simulator, and show each event",
        "",
        "--page",
        more="Needs no account, no key and no configuration. Ends within a minute, or with --page on Ctrl-C.",
    )
    demo.add_argument("--page", action="store_true", help="keep the demo and its status page open until Ctrl-C")


#: The commands in the order of the help, by name.
COMMANDS: Final[dict[str, CommandEntry]] = {
    "run": CommandEntry(_run, "run"),
    "sync": CommandEntry(_sync, "sync"),
    "status": CommandEntry(_status, "status"),
    "list": CommandEntry(_list, "documents", "list_command"),
    "show": CommandEntry(_show, "documents", "show_command"),
    "retry": CommandEntry(_retry, "retry"),
    "put": CommandEntry(_put, "put"),
    "remote": CommandEntry(_remote, "remote"),
    "check": CommandEntry(_check, "check"),
    "health": CommandEntry(_health, "health"),
    "metrics": CommandEntry(_metrics, "metrics"),
    "ui": CommandEntry(_ui, "ui"),
    "config": CommandEntry(_config, "config"),
    "alerts": CommandEntry(_alerts, "alerts"),
    "hosts": CommandEntry(_hosts, "hosts"),
    "queue": CommandEntry(_queue, "move"),
    "verify": CommandEntry(add_verify, "verify"),
    "receipts": CommandEntry(add_receipts, "receipts"),
    "simulate": CommandEntry(_simulate, "simulate"),
    "demo": CommandEntry(_demo, "demo.command"),
}
