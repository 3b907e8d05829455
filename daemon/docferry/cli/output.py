"""Print lines and tables: fitted and coloured on a terminal, aligned and plain in a pipe, always escaped.

A failed write never ends a command: `streams.lost` records it and decides the exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from msgspec import Struct, field

from docferry.cli import streams
from docferry.model import escaped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

GOOD, WARN, BAD, FAINT, STRONG = "green", "yellow", "red", "bright_black", "bold"


class Cell(Struct, frozen=True):
    """Hold a piece of text, with a colour for terminals."""

    text: str | bytes | int
    style: str = ""

    def __str__(self) -> str:
        return escaped(self.text if isinstance(self.text, bytes) else str(self.text))


Content = Cell | str | bytes | int


class Line(Struct, frozen=True):
    """Hold a line of cells."""

    cells: tuple[Content, ...]

    def __str__(self) -> str:
        return " ".join(str(cell(each)) for each in self.cells)


class Table(Struct):
    """Hold rows under headings; columns in `right` are numbers, columns in `folds` may wrap."""

    headings: Sequence[str]
    rows: list[Sequence[Content]] = field(default_factory=list)
    right: frozenset[int] = frozenset()
    folds: frozenset[int] = frozenset()

    def lines(self, widths: list[int] | None = None) -> list[str]:
        """Return the table as plain text; `widths` are the widths of the previous chunk, which printed the headings."""
        texts = [[str(cell(each)) for each in row] for row in self.rows]
        if any(self.headings) and not widths:
            texts.insert(0, list(self.headings))
        if not texts:
            return []
        found = [max(map(len, column)) for column in zip(*texts, strict=True)]
        if widths is not None:
            found = [max(pair) for pair in zip(found, widths or found, strict=True)]
            widths[:] = found
        return [self._line(row, found) for row in texts]

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            text.rjust(width) if at in self.right else text.ljust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()


Block = Line | Table


def cell(content: Content) -> Cell:
    """Return the content as a cell."""
    return content if isinstance(content, Cell) else Cell(content)


def line(*cells: Content) -> Line:
    """Return a line of these cells."""
    return Line(cells)


class Screen:
    """Write to standard output, as a terminal or as a pipe."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.tty = self._stream is not None and self._stream.isatty()

    def show(self, *blocks: Block) -> None:
        """Print lines and tables."""
        if not self.tty:
            self.write("".join(f"{text}\n" for block in blocks for text in _plain(block)))
            return
        console = self.console()
        for block in blocks:
            console.print(rendered(block), soft_wrap=isinstance(block, Line))

    def append(self, table: Table, widths: list[int]) -> None:
        """Print one more chunk of a long table; `widths` is empty before the first."""
        if self.tty:
            self.show(table)
        else:
            self.write("".join(f"{text}\n" for text in table.lines(widths)))

    def write(self, text: str) -> None:
        """Write text that needs no escaping: JSON, or the output of `show`."""
        if streams.lost.reader_left and self._stream is sys.stdout:
            raise SystemExit(141)  # like SIGPIPE: the reader of a long listing has left
        streams.write(self._stream, text)

    def console(self) -> Console:
        """Return the terminal for rich, which respects NO_COLOR."""
        from rich.console import Console

        return Console(file=self._stream, highlight=False, markup=False, emoji=False)


def complain(*sentences: str) -> None:
    """Print problems on stderr, one a line."""
    text = "".join(f"docferry: {escaped(part)}\n" for each in sentences for part in each.split("\n"))
    if text:
        streams.write(sys.stderr, text)


def rendered(block: Block) -> RenderableType:
    """Return a block for rich."""
    from rich.text import Text

    if isinstance(block, Table):
        return _rich_table(block)
    text = Text()
    for at, each in enumerate(block.cells):
        if at:
            text.append(" ")
        text.append(str(cell(each)), style=cell(each).style or None)
    return text


def size(octets: float) -> str:
    """Return a size in readable form: `1.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000 or unit == "GB":
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 100 else f"{octets:.1f} {unit}"
        octets /= 1000
    raise AssertionError


def span(seconds: float) -> str:
    """Return a rough duration: `0.4 s`, `40 min`, `3 h`, `2 d`."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    for limit, length, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 document`, `2 documents`."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _plain(block: Block) -> list[str]:
    return block.lines() if isinstance(block, Table) else [str(block).rstrip()]


def _rich_table(block: Table) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=None, show_header=any(block.headings), header_style=STRONG, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for at, heading in enumerate(block.headings):
        folds = at in block.folds
        table.add_column(
            heading,
            justify="right" if at in block.right else "left",
            overflow="fold" if folds else "ellipsis",
            no_wrap=not folds,
        )
    for row in block.rows:
        table.add_row(*(Text(str(cell(each)), style=cell(each).style) for each in row))
    return table
