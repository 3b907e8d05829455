"""Define the options of `docferry receipts` and `docferry verify`, with the standard library alone."""

from __future__ import annotations

import argparse
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docferry.cli.argument_parser import Parser


def add_receipts(parser: Parser) -> None:
    """Add the parser of `docferry receipts WHAT`."""
    receipts = parser.command(
        "receipts",
        "verify, search, prove or export the tamper-evident log of sent documents",
        "verify --anchor /mnt/audit/heads.txt",
        "show 17",
        "find march.pdf",
        "prove 17 > proof.json",
        "export --company 8a210b68-6988-11ed-a1eb-0242ac120002 --since 2026-01-01 -o receipts.zip",
    )
    verify = receipts.subcommand(
        "verify", "rebuild the log and compare it with the queue and every head: exit 0 if all agree, 1 if not"
    )
    verify.add_argument(
        "--anchor",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="a file of heads kept elsewhere, in addition to [receipts] anchor; may be repeated",
    )
    show = receipts.subcommand("show", "show the receipts of a document")
    show.add_argument(
        "document", metavar="ID", help="the document's id in `docferry list`, or rN or rN@HOST for receipt N"
    )
    find = receipts.subcommand("find", "find the receipts of given bytes")
    find.add_argument("digest", metavar="SHA256|FILE", help="64 hexadecimal digits, or a file with the bytes")
    prove = receipts.subcommand("prove", "print a proof that the log contains a document's receipts, as JSON")
    prove.add_argument(
        "document", metavar="ID", help="the document's id in `docferry list`, or rN or rN@HOST for receipt N"
    )
    export = receipts.subcommand("export", "write a ZIP that an auditor can verify without docferry")
    export.add_argument("--company", metavar="ID", help="only receipts of this company")
    export.add_argument("--since", metavar="TIME", type=since, help="only receipts from this date or time on (UTC)")
    export.add_argument("--until", metavar="TIME", type=until, help="only receipts up to this date (included) or time")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the path of the ZIP")
    for each in (verify, show, find, export):
        each.add_argument("--json", action="store_true", help="print one JSON object a line")


def add_verify(parser: Parser) -> None:
    """Add the parser of `docferry verify`."""
    verify = parser.command(
        "verify",
        "check that the remotes have every sent document, and change nothing",
        "",
        "--mapping acme-bank --since 2026-01-01",
        "--bytes --json",
        more="Exits with 1 if documents are missing or changed, with 75 if some are unknown. A stopped verification\n"
        "continues later. `docferry retry --missing` sends missing documents again.",
    )
    verify.add_argument("--mapping", metavar="NAME", help="only documents of this mapping")
    verify.add_argument(
        "--since", metavar="TIME", type=since, help="only documents sent from this date or time on (UTC)"
    )
    verify.add_argument("--bytes", action="store_true", help="compare Codat's documents by digest, from its ZIPs")
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def since(written: str) -> str:
    """Return the time in the format of receipts."""
    return _text(_moment(written)[0])


def until(written: str) -> str:
    """Return the exclusive upper limit in the format of receipts; a date includes the whole day."""
    moment, is_date = _moment(written)
    return _text(moment + timedelta(days=1) if is_date else moment)


def _moment(written: str) -> tuple[datetime, bool]:
    try:
        if len(written) == len("2026-11-30"):
            day = date.fromisoformat(written)
            return datetime(day.year, day.month, day.day, tzinfo=UTC), True
        moment = datetime.fromisoformat(written)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC), False
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f'"{written}" is no time; write it like "2026-11-30" or "2026-11-30T14:00:00Z"'
        ) from None


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
