"""requirements.lock: one version of every package that is needed, and nothing about where it comes from."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def lines(root: Path) -> list[str]:
    text = (root / "requirements.lock").read_text()
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@pytest.fixture(scope="module")
def locked(lines: list[str]) -> dict[str, str]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


@pytest.fixture(scope="module")
def project(root: Path) -> list[Requirement]:
    """Everything that pyproject.toml asks for, builders included; uv is asked for only when the lock is made."""
    written = tomllib.loads((root / "pyproject.toml").read_text())
    table = written["project"]
    extras = [each for name in ("test", "lint", "build") for each in table["optional-dependencies"][name]]
    return [Requirement(each) for each in (*written["build-system"]["requires"], *table["dependencies"], *extras)]


def test_every_line_pins_one_version_and_names_no_place(lines: list[str]) -> None:
    for line in lines:
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][^\s;]*( ; .+)?", line), line


def test_no_address_stands_in_it(root: Path) -> None:
    text = (root / "requirements.lock").read_text()
    assert "://" not in text
    assert "--" not in text


def test_it_satisfies_what_the_project_asks_for(project: list[Requirement], locked: dict[str, str]) -> None:
    for requirement in project:
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing; run: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is not {version}: make lock"


def test_it_satisfies_what_those_packages_ask_for(project: list[Requirement], locked: dict[str, str]) -> None:
    seen: set[str] = set()
    todo = list(project)
    while todo:
        requirement = todo.pop()
        key = str(requirement)
        if key in seen:
            continue
        seen.add(key)
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing; run: make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is not {version}"
        todo += _needed_by(requirement)
    assert len(seen) > len(project)


def _needed_by(requirement: Requirement) -> Iterator[Requirement]:
    try:
        asked = requires(requirement.name) or []
    except PackageNotFoundError:
        pytest.fail(f"{requirement.name} is not installed; this is not the environment that `make` makes")
    for each in map(Requirement, asked):
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        if each.marker is None or any(each.marker.evaluate(environment) for environment in environments):
            yield each
