"""Test that the glossary and the code use the same words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

#: Files that name retired words on purpose.
NAMED_IN = ("CHANGELOG.md", "docs/glossary.md", "tests/shipping/test_glossary.py")
#: Suffixes of the files with text of ours.
_TEXT = frozenset({".py", ".md", ".toml", ".yml", ".yaml", ".html", ".j2", ".css", ".js", ".sh", ".service", ".timer"})


def terms(glossary: str) -> list[str]:
    """Return the terms of the table."""
    return [found for found in re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE) if found not in ("term", "---")]


def retired(glossary: str) -> list[str]:
    """Return the words of the section of retired names."""
    return re.findall(r"`([a-z]+)`", glossary.partition("## Retired names")[2])


def words(text: str) -> str:
    """Return a text in lower case, with the words of its names parted by single spaces."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return " ".join(re.findall(r"[a-z0-9]+", parted.lower()))


@pytest.fixture(scope="module")
def glossary(root: Path) -> str:
    return (root / "docs" / "glossary.md").read_text()


def test_every_term_is_used_in_the_code(root: Path, glossary: str) -> None:
    used = words("\n".join(path.read_text() for path in (root / "daemon").rglob("*.py")))
    found = terms(glossary)
    assert len(found) > 30
    assert not [term for term in found if not re.search(rf"\b{re.escape(words(term))}s?\b", used)]


def test_each_term_is_explained_once_and_is_not_retired(glossary: str) -> None:
    found = terms(glossary)
    assert len(found) == len(set(found))
    assert not set(found) & set(retired(glossary))


def test_no_retired_name_is_used(root: Path, tracked: list[Path], glossary: str) -> None:
    names = retired(glossary)
    assert "storehouse" in names
    pattern = re.compile(rf"\b(?:{'|'.join(names)})\b")
    uses = []
    for path in tracked:
        name = str(path.relative_to(root))
        if name in NAMED_IN or (path.suffix not in _TEXT and name not in ("Makefile", ".ci/run")):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern.search(words(line)):
                uses.append(f"{name}:{number}: {line.strip()}")
    assert not uses, "\n".join(uses)
