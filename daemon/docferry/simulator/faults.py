"""Define fault rules: which requests fail, and how. Rules are read from TOML or JSON."""

from __future__ import annotations

import fnmatch
import json
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from docferry.errors import ConfigError
from docferry.simulator.options import SimulatorOptions

#: Every kind of fault, with its parameters.
KINDS: Mapping[str, frozenset[str]] = {
    # the socket
    "refuse": frozenset({"seconds", "mode", "all"}),
    "reset_before": frozenset(),
    "reset_inside": frozenset({"after"}),
    "reset_after": frozenset(),
    "lost_answer": frozenset({"how", "late"}),
    "stall": frozenset({"stored", "seconds", "late"}),
    "slow_read": frozenset({"rate"}),
    "slow_answer": frozenset({"rate"}),
    "truncated_answer": frozenset({"extra", "at"}),
    "stale_keepalive": frozenset(),
    # a server between the client and the service responds
    "html_200": frozenset({"stored", "late"}),
    "html_502": frozenset({"stored", "late"}),
    "page": frozenset({"status", "type", "text", "stored", "late"}),
    "gzip_bomb": frozenset({"stored", "size"}),
    "endless_json": frozenset({"stored", "size"}),
    "redirect": frozenset({"location", "status"}),
    "early_413": frozenset(),
    "early_401": frozenset(),
    # the service itself
    "status": frozenset({"status", "stored", "late", "code", "headers"}),
    "too_many": frozenset({"retry_after", "seconds"}),
    "swallow": frozenset(),
    "late": frozenset({"late"}),
}


@dataclass(frozen=True)
class Fault:
    """Define one rule.

    `match` selects requests by a route's name ("codat.upload", "s3.*", "*"), or by method and path ("POST */files").
    After "re:", it is a regular expression for them. Of the matching requests, `nth` selects one by number, and `first`
    selects the first ones. `rate` selects each with this probability.
    """

    kind: str
    match: str = "*"
    rate: float = 1.0
    first: int | None = None
    nth: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := list(_problems_of(self)):
            raise ConfigError(problems)

    def matches(self, route: str, line: str) -> bool:
        """Return whether the rule matches a request of this route, with this method and path."""
        if self.match == "*":
            return True
        if self.match.startswith("re:"):
            return re.search(self.match[3:], line) is not None
        return fnmatch.fnmatchcase(line if "/" in self.match else route, self.match)


class Rules:
    """Hold the active rules. The first applicable rule wins; every matching rule counts the request."""

    def __init__(self, faults: Sequence[Fault], jitter: random.Random) -> None:
        self._random = jitter
        self.faults: list[Fault] = []
        self._seen: list[int] = []
        self._applied: list[int] = []
        self.replace(faults)

    def replace(self, faults: Sequence[Fault]) -> None:
        """Replace all rules and reset their counts."""
        self.faults = list(faults)
        self._seen = [0] * len(self.faults)
        self._applied = [0] * len(self.faults)

    def select(self, route: str, line: str, *, reused: bool) -> Fault | None:
        """Return the fault that applies to a request, or None. `reused`: its connection served a request before."""
        selected = None
        for index, fault in enumerate(self.faults):
            if fault.kind == "stale_keepalive" and not reused:
                continue  # only a reused connection can be stale
            if not fault.matches(route, line):
                continue
            self._seen[index] += 1
            if selected is None and self._applies(index, fault):
                self._applied[index] += 1
                selected = fault
        return selected

    def _applies(self, index: int, fault: Fault) -> bool:
        if fault.nth is not None and self._seen[index] != fault.nth:
            return False
        if fault.first is not None and self._applied[index] >= fault.first:
            return False
        return fault.rate >= 1 or self._random.random() < fault.rate


def load_faults(path: Path) -> list[Fault]:
    """Return the rules of a file: `[[fault]]` tables in TOML, or in JSON a list or `{"fault": […]}`.

    Parameters may be next to `kind`, or under `params`. Raises ConfigError with every problem.
    """
    return faults_from(_read(path).get("fault", []))


def load_switches(path: Path) -> SimulatorOptions:
    """Return the options of the `[switches]` table of the same file, or the defaults."""
    options = SimulatorOptions()
    values = _read(path).get("switches", {})
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: switches must be a table"])
    options.change(values)
    return options


def faults_from(rows: object) -> list[Fault]:
    """Return the rules of decoded TOML or JSON. Raises ConfigError with every problem."""
    if not isinstance(rows, list):
        raise ConfigError(["fault must be a list of tables, each with a kind"])
    faults: list[Fault] = []
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        try:
            faults.append(_fault(row))
        except ConfigError as error:
            problems += [f"fault {number}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return faults


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{path} is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"]) from None
    table = {"fault": found} if isinstance(found, list) else found
    if not isinstance(table, dict):
        raise ConfigError([f"{path} must hold a table or a list of faults"])
    if unknown := table.keys() - {"fault", "switches"}:
        raise ConfigError([f"{path}: unknown key {name!r}; known are fault and switches" for name in sorted(unknown)])
    return table


def _fault(row: object) -> Fault:
    if not isinstance(row, dict):
        raise ConfigError(["must be a table with a kind"])
    if "kind" not in row:
        raise ConfigError([f"has no kind; known are {', '.join(KINDS)}"])
    own = {each.name for each in fields(Fault)}
    params = row.get("params", {})
    if not isinstance(params, dict):
        raise ConfigError(["params must be a table"])
    beside = {name: value for name, value in row.items() if name not in own}
    return Fault(**{name: row[name] for name in own & row.keys()} | {"params": {**params, **beside}})


def _problems_of(fault: Fault) -> list[str]:
    if fault.kind not in KINDS:
        near = get_close_matches(str(fault.kind), KINDS, 1)
        cure = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(KINDS)}"
        return [f"unknown kind {fault.kind!r}; {cure}"]
    problems = [
        f"{fault.kind} has no parameter {name!r}; it knows {', '.join(sorted(KINDS[fault.kind])) or 'none'}"
        for name in fault.params
        if name not in KINDS[fault.kind]
    ]
    if not isinstance(fault.match, str):
        problems.append("match must be a string")
    elif fault.match.startswith("re:"):
        problems += _expression_problems(fault.match[3:])
    if isinstance(fault.rate, bool) or not isinstance(fault.rate, int | float) or not 0 <= fault.rate <= 1:
        problems.append(f"rate must be between 0 and 1, not {fault.rate!r}")
    for name, count in (("first", fault.first), ("nth", fault.nth)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            problems.append(f"{name} must be a whole number from 1 on, not {count!r}")
    return problems + _param_problems(fault.params)


def _expression_problems(expression: str) -> list[str]:
    try:
        re.compile(expression)
    except re.error as error:
        return [f"match is no regular expression: {error}"]
    return []


def _param_problems(params: Mapping[str, Any]) -> list[str]:
    """Return problems of parameter types, which would otherwise raise during a request."""
    problems = []
    for name, value in params.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if name in {"seconds", "late", "rate", "after", "at", "extra", "size", "status"} and not number:
            problems.append(f"{name} must be a number, not {value!r}")
        if name == "rate" and number and not value:
            problems.append("rate must be above 0")
        if name in {"stored", "all"} and not isinstance(value, bool):
            problems.append(f"{name} must be true or false, not {value!r}")
    return problems
