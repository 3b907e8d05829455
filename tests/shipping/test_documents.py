"""Test README and docs: commands parse, configurations load, keys and reasons are explained, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from docferry import settings
from docferry.cli import argument_parser, parser
from docferry.model import Reason, State

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:sudo -u docferry |\S+/)?docferry (.+)")
#: Commands that are spoken of by their name alone, and need a word more to be typed.
_NAMED = ("show", "config", "put", "remote ls")


@pytest.fixture(scope="module")
def documents(root: Path) -> dict[str, str]:
    paths = [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def _blocks(text: str, *languages: str) -> Iterator[str]:
    for found in _BLOCK.finditer(text):
        if found[1] in languages:
            yield found[2]


def _commands(text: str) -> Iterator[str]:
    """Yield the commands of `docferry` in code blocks and inline code, without comments, pipes and redirections."""
    lines = [line for block in _blocks(text, "sh", "console") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    for line in lines:
        found = _COMMAND.match(re.split(r"(?:^|\s)#|\s[|>&]|;|\$\(|\)", line)[0])
        if found is not None:
            yield found[1]


def test_every_command_can_be_typed(documents: dict[str, str]) -> None:
    seen = set()
    for name, text in documents.items():
        for command in _commands(text):
            if command.removesuffix(" --json") in _NAMED:
                continue
            spelled = command.replace("…", "").replace(" NAME", " acme").replace(" CODE", " empty")
            spelled = spelled.replace(" ID", " 17").replace("[", "").replace("]", "")
            try:
                asked = parser.parse(shlex.split(spelled))
            except argument_parser.Misused as error:
                pytest.fail(f"{name}: docferry {command}: {error}")
            except SystemExit as ended:  # --help and --version end so
                if ended.code != 0:
                    pytest.fail(f"{name}: docferry {command}")
                continue
            seen.add(asked.command)
    assert {"demo", "run", "sync", "status", "list", "show", "retry", "check", "config", "simulate"} <= seen


def test_every_make_target_exists(root: Path, documents: dict[str, str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    for name, text in documents.items():
        code = "\n".join([*_blocks(text, "sh", "console"), *re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))])
        named = set(re.findall(r"(?:^|\s)make ([a-z-]+)", code, re.MULTILINE))
        assert named <= targets, f"{name}: {named - targets}"
    assert {"demo", "test", "lint", "check", "lock", "clean", "help"} <= targets


def test_help_lists_every_target(root: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^ +make ([a-z-]+)", done.stdout, re.MULTILINE)) == targets


def test_every_configuration_loads(documents: dict[str, str], tmp_path: Path) -> None:
    count = 0
    for name, text in documents.items():
        for number, block in enumerate(_blocks(text, "toml")):
            file = tmp_path / f"{Path(name).stem}-{number}.toml"
            file.write_text(block)
            loaded = settings.load(file, {"HOME": str(tmp_path)})
            assert not [each for each in loaded.warnings if "chmod" not in each and "nothing to do" not in each]
            count += 1
    assert count >= 2


def test_every_key_is_explained_with_its_default(documents: dict[str, str]) -> None:
    text = documents["docs/configuration.md"]
    for table, key in _keys(settings.Settings, ""):
        section = text.partition(f"\n## {table}\n")[2].partition("\n## ")[0]
        assert section, f"there is no section {table}"
        assert f"| `{key}` |" in section, f"{table} {key}"


def test_no_key_is_explained_that_does_not_exist(documents: dict[str, str]) -> None:
    text = documents["docs/configuration.md"]
    known = {key for _, key in _keys(settings.Settings, "")}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == known


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield every key with its heading."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        kinds: list[Any] = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            many = field.annotation is not inner[0]
            path = f"{prefix.strip('`[]')}.{key}" if prefix else key
            yield from _keys(inner[0], f"`[[{path}]]`" if many else f"`[{path}]`")
        else:
            yield prefix or "At the top", key


def test_every_state_and_reason_is_explained(documents: dict[str, str]) -> None:
    page = documents["docs/states.md"]
    for word in (*State, *Reason):
        assert f"\n| `{word.value}` |" in page, word


def test_every_link_leads_somewhere(root: Path, documents: dict[str, str]) -> None:
    for name, text in documents.items():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (root / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_documents_stand_on_their_own(documents: dict[str, str]) -> None:
    for name, text in documents.items():
        assert not re.search(r"\b(?:contract|design|protocols|faults)\.md", text), name


def test_the_index_of_docs_lists_every_page(root: Path, documents: dict[str, str]) -> None:
    pages = {path.name for path in (root / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", documents["docs/README.md"])) == pages
