"""Define the commands with their options and help, except `verify` and `receipts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from docferry.cli import argument_types
from docferry.cli.argument_parser import Parser
from docferry.cli.receipts_parser import add_receipts, add_verify

_STATES: Final = ("waiting", "leased", "sending", "doubtful", "asking", "sent", "held", "gone")


def add_commands(parser: Parser, only: str | None = None) -> None:
    """Add the command `only`, else every command in the order of the help."""
    for name, add in COMMANDS.items():
        if only in (None, name):
            add(parser)


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
        "one pass: scan, upload due documents, download new ones, then exit",
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
    sync.add_argument(
        "--timeout", metavar="TIME", type=argument_types.duration, help='stop after so long, such as "10m"'
    )
    sync.add_argument(
        "--adopt",
        action="store_true",
        help="after the loss of the database: look up every document, and send only the absent ones",
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
    listing.add_argument("--mapping", metavar="NAME", help="only documents of this mapping")
    listing.add_argument(
        "--state", action="append", default=[], choices=_STATES, metavar="STATE", help=f"one of {', '.join(_STATES)}"
    )
    listing.add_argument("--reason", metavar="CODE", help="only documents that are held or wait for this reason")
    listing.add_argument("--limit", type=argument_types.count, metavar="N", help="print at most N documents")
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
        more="A running daemon sends them within seconds; else run `docferry sync`. Documents held for "
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
        help="with --mapping: the shared folder is the right one, although all known documents left it",
    )


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
    get = whats.add_parser("get", help="fetch one file, all files of a day, or all files")
    get.add_argument(
        "--date", type=argument_types.day, metavar="DATE", help="the day of the upload at Codat, such as 2026-08-01"
    )
    get.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="default: the working folder")
    for each in (listing, get):
        each.add_argument("mapping", metavar="MAPPING", help="the name of a mapping")
        each.add_argument("--company", metavar="ID", help="one of the mapping's companies at Codat")
    get.add_argument("name", nargs="?", metavar="NAME", help="the name of the file, as `remote ls` shows it")
    health = whats.add_parser("health", help="keys, companies, connections, buckets, and the remaining quota")
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
        more="Events are counted in the daemon: without one, or without metrics.listen, only states are shown.",
    )


def _ui(parser: Parser) -> None:
    parser.command(
        "ui",
        "a one-time link to the status page, or the ssh line for its socket",
        "",
        more="The link works once, within a minute. Write access to the state folder is needed to make one.",
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
        "conditions that need attention; a test message to each receiver; silences",
        "list",
        "test",
        "test ops",
        "silence held/scans/empty 8h",
        "silence 'folder/*' 2026-12-24T18:00",
        more="A condition's key is its event and labels; a pattern may stand for many. TIME is a duration or a date; "
        "0 ends a silence.",
    )
    whats = alerts.add_subparsers(dest="what", metavar="WHAT", required=True, parser_class=Parser)
    listing = whats.add_parser("list", help="lasting conditions, and ended ones that some receiver was not told of")
    listing.add_argument("--json", action="store_true", help="one object a line")
    test = whats.add_parser("test", help="send a test message to each receiver, or to one")
    test.add_argument("name", nargs="?", metavar="NAME", help="only this receiver")
    silence = whats.add_parser("silence", help="send no message about a condition until a time")
    silence.add_argument("key", metavar="KEY", help="its key as `docferry alerts list` shows it, or a pattern")
    silence.add_argument(
        "until", metavar="TIME", type=argument_types.moment, help='such as "8h" or "2026-12-24T18:00"; 0 ends it'
    )


def _hosts(parser: Parser) -> None:
    hosts = parser.command(
        "hosts", "the machines that share the queue, their heartbeats and their transfers", "", "--json"
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
    simulate.add_argument("--port", type=argument_types.port, default=0, metavar="N", help="default: any free port")
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


#: The commands in the order of the help, by name.
COMMANDS: Final[dict[str, Callable[[Parser], None]]] = {
    "run": _run,
    "sync": _sync,
    "status": _status,
    "list": _list,
    "show": _show,
    "retry": _retry,
    "put": _put,
    "remote": _remote,
    "check": _check,
    "health": _health,
    "metrics": _metrics,
    "ui": _ui,
    "config": _config,
    "alerts": _alerts,
    "hosts": _hosts,
    "queue": _queue,
    "verify": add_verify,
    "receipts": add_receipts,
    "simulate": _simulate,
    "demo": _demo,
}
