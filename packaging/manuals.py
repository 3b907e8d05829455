"""Write man pages and shell completions from the parser of the command line: manuals.py FOLDER (such as /usr/share)."""

from __future__ import annotations

import argparse
import gzip
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import shtab
from argparse_manpage.compat import get_reproducible_date
from argparse_manpage.manpage import Manpage
from markdown_it import MarkdownIt
from markdown_it.token import Token

from docferry import __version__
from docferry.cli.parser import build_parser

ROOT: Final = Path(__file__).resolve().parents[1]
#: Where each shell looks for completions of installed packages, below /usr/share.
COMPLETIONS: Final = {
    "bash": "bash-completion/completions/docferry",
    "zsh": "zsh/vendor-completions/_docferry",
    "fish": "fish/vendor_completions.d/docferry.fish",
}
#: Lists the names of all mappings, one a line, for options that take one.
MAPPING_NAMES: Final[dict[str, Any]] = dict(shtab.cmd("docferry config names 2>/dev/null"))
# In zsh shtab would call the command for each of these options at each press of Tab.
MAPPING_NAMES["zsh"] = "_docferry_mapping_names"
MAPPING_NAMES["preamble"]["zsh"] = """
_docferry_mapping_names() {
  local -a names=(${(f)"$(docferry config names 2>/dev/null)"})
  compadd -a names
}"""


def main(share: Path) -> None:
    """Write every page and completion below `share`."""
    parser = build_parser()
    for name, page in _command_pages(parser):
        _write_page(share / "man" / "man1" / f"{name}.1.gz", page)
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    _write_page(share / "man" / "man5" / "docferry.toml.5.gz", format_markdown(configuration, "docferry.toml", 5))
    _describe_values(parser)
    for shell, place in COMPLETIONS.items():
        (share / place).parent.mkdir(parents=True, exist_ok=True)
        (share / place).write_text(shtab.complete(parser, shell=shell))


def _write_page(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(page.encode(), mtime=0))


def _command_pages(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield name and text of docferry(1) and of a page for each command."""
    commands = _subcommands(parser)
    others = "\n".join(f".BR docferry\\-{name} (1)," for name in commands)
    yield (
        "docferry",
        _page(parser, "docferry", "uploads documents to Codat and Wootiv", f"{others}\n.BR docferry.toml (5)"),
    )
    for name, command in commands.items():
        summary = (command.description or name).splitlines()[0].rstrip(".")
        yield (
            f"docferry-{name}",
            _page(command, f"docferry-{name}", summary, ".BR docferry (1),\n.BR docferry.toml (5)"),
        )


def _page(parser: argparse.ArgumentParser, name: str, summary: str, see_also: str) -> str:
    examples, parser.epilog = parser.epilog, None
    data = {"project_name": "docferry", "version": __version__, "manual_title": "docferry", "description": summary}
    page = Manpage(parser, data, format="single-commands-section")
    page.prog = name
    if examples:
        shown = textwrap.dedent(examples.removeprefix("examples:\n")).strip()
        page.add_section("EXAMPLES", "=", f".nf\n{_escape(shown)}\n.fi")
    page.add_section("SEE ALSO", "=", see_also)
    text = str(page)
    parser.epilog = examples  # the page of docferry(1) and completions are made from the same parser
    return text


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by name; none for a parser without commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _describe_values(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which options take a file and which take the name of a mapping."""
    for action in parser._actions:
        if action.dest == "mapping":
            action.complete = MAPPING_NAMES  # type: ignore[attr-defined]  # shtab's documented interface
        elif action.type is Path or action.dest == "files":
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's documented interface
    for command in _subcommands(parser).values():
        _describe_values(command)


def format_markdown(text: str, name: str, section: int) -> str:
    """Return a page of the manual with the content of a Markdown document: headings, text, lists, tables and code."""
    title = f'.TH {name} "{section}" "{get_reproducible_date()}" "docferry {__version__}" "docferry"'
    lines = [title, ".SH NAME", f"{name} \\- configuration of docferry", ".SH DESCRIPTION"]
    open_blocks: list[Token] = []
    header: list[str] = []
    cells: list[str] = []
    for token in MarkdownIt().enable("table").parse(text):
        if token.nesting == 1:
            open_blocks.append(token)
        elif token.nesting == -1:
            open_blocks.pop()
        if token.type == "inline" and open_blocks[-1].type in {"td_open", "th_open"}:
            cells.append(_inline(token))
        elif token.type == "thead_close":
            header, cells = cells, []
        elif token.type == "tr_close" and len(open_blocks) and open_blocks[-1].type == "tbody_open":
            lines += _row(header, cells)
            cells = []
        else:
            lines += _block(token, open_blocks)
    return "\n".join(lines) + "\n"


def _row(header: list[str], cells: list[str]) -> list[str]:
    """Return a row of a table as an entry of a tagged list: the first cell, then the others with their headings."""
    tag, *rest = cells
    named = [f"{name}: {cell}." if name else cell for name, cell in zip(header[1:], rest, strict=True) if cell]
    return [".TP", tag, *named]


def _block(token: Token, open_blocks: list[Token]) -> list[str]:
    """Return the lines of a heading, a paragraph, an item of a list or code; none for what only frames these."""
    if token.type in {"fence", "code_block"}:
        return [".PP", ".RS 4", ".nf", _escape(token.content.rstrip("\n")), ".fi", ".RE"]
    if token.type != "inline":
        return []
    kinds = [each.type for each in open_blocks]
    if kinds[-1] == "heading_open":
        return {"h1": [], "h2": [f".SH {_inline(token)}"]}.get(open_blocks[-1].tag, [f".SS {_inline(token)}"])
    if "list_item_open" in kinds:
        return [".IP \\(bu 2", _inline(token)]
    return [".PP", _inline(token)] if kinds[-1] == "paragraph_open" else []


def _inline(token: Token) -> str:
    """Return the text of a block with code in bold and emphasis in italics; the addresses of links are left out."""
    marks = {"strong_open": "\\fB", "strong_close": "\\fR", "em_open": "\\fI", "em_close": "\\fR", "softbreak": "\n"}
    parts = []
    for child in token.children or []:
        if child.type == "code_inline":
            parts.append(f"\\fB{_escape(child.content)}\\fR")
        else:
            parts.append(marks.get(child.type, _escape(child.content)))
    return "".join(parts)


def _escape(text: str) -> str:
    """Return text that roff prints as it is: no line begins a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
