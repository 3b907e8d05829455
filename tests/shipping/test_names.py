"""Test that no public class name has two meanings, and that no public constant has two values.

The simulator is a separate program, so its names may coincide with others.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield each module of the package with its syntax tree."""
    package = root / "daemon" / "docferry"
    for path in sorted(package.rglob("*.py")):
        name = str(path.relative_to(package))
        if not name.startswith("simulator/"):
            yield name, ast.parse(path.read_text())


def assigned(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield name and value of the constants that a statement of a module defines."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        pairs.append((statement.target, statement.value))
    elif isinstance(statement, ast.Assign):
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs += zip(target.elts, value.elts, strict=True)
        else:
            pairs.append((target, value))
    for target, value in pairs:
        if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
            yield target.id, ast.unparse(value)


def test_each_class_name_stands_for_one_thing(root: Path) -> None:
    places = defaultdict(list)
    for module, tree in modules(root):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module)
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_each_constant_has_one_value(root: Path) -> None:
    values: dict[str, dict[str, str]] = defaultdict(dict)
    for module, tree in modules(root):
        for statement in tree.body:
            for name, value in assigned(statement):
                values[name][value] = module
    assert len(values) > 100
    assert {name: found for name, found in values.items() if len(found) > 1} == {}
