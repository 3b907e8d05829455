"""Write the results: an aligned table for people, JSON for programs, and a chart."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.programs import Run

#: A full run writes its table between these lines of docs/performance.md.
_OPEN, _CLOSE = "<!-- measured -->", "<!-- end of what was measured -->"


@dataclass(frozen=True, slots=True)
class Contender:
    """Describe one program in one workload."""

    workload: str
    name: str
    wall: float
    cpu: float
    peak: float
    files_per_second: float
    mb_per_second: float
    cpu_per_1000_files: float
    cpu_per_gb: float | None


@dataclass(frozen=True, slots=True)
class Goal:
    """Compare a figure with its goal: at least, or with `most` at most."""

    name: str
    value: float | None
    goal: float
    stretch: float
    most: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "no peer"
        if not self._meets(self.goal):
            return "MISSED"
        return "stretch" if self._meets(self.stretch) else "goal"

    def _meets(self, mark: float) -> bool:
        assert self.value is not None
        return self.value <= mark if self.most else self.value >= mark


@dataclass(slots=True)
class Table:
    """Everything that one run of the benchmark found."""

    quick: bool
    contenders: list[Contender] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[tuple[str, float, str]] = field(default_factory=list)

    def contender(self, workload: str, name: str, run: Run, files: int, size: int) -> None:
        gigabytes = size / 1e9
        self.contenders.append(
            Contender(
                workload,
                name,
                run.wall,
                run.cpu,
                run.peak,
                files / run.wall,
                size / 1e6 / run.wall,
                run.cpu / files * 1000,
                run.cpu / gigabytes if gigabytes else None,
            )
        )

    def goal(self, name: str, value: float | None, goal: float, stretch: float, *, most: bool = False) -> None:
        self.goals.append(Goal(name, value, goal, stretch, most))

    def note(self, name: str, value: float, unit: str) -> None:
        self.notes.append((name, value, unit))

    def text(self) -> str:
        parts = (
            ["A quick run: start-up weighs more in it than in the workloads that the goals are for."]
            if self.quick
            else []
        )
        if self.contenders:
            head = ("", "", "wall s", "CPU s", "files/s", "MB/s", "CPU s/1,000", "CPU s/GB", "PSS MB")
            parts.append(_aligned([head, *map(_row, self.contenders)], left=2))
        if self.goals:
            rows = [
                (each.name, "–" if each.value is None else _plain(each.value), _mark(each, each.goal),
                 _mark(each, each.stretch), each.verdict)
                for each in self.goals
            ]  # fmt: skip
            parts.append(_aligned([("against the goals", "measured", "goal", "stretch", ""), *rows], left=1))
        if self.notes:
            parts.append(_aligned([(name, _plain(value), unit) for name, value, unit in self.notes], left=1))
        return "\n\n".join(parts)

    def as_json(self) -> str:
        told: dict[str, Any] = {
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)),
            "quick": self.quick,
            "contenders": [asdict(each) for each in self.contenders],
            "goals": [asdict(each) | {"verdict": each.verdict} for each in self.goals],
            "notes": [{"name": name, "value": value, "unit": unit} for name, value, unit in self.notes],
        }
        return json.dumps(told, indent=1, ensure_ascii=False) + "\n"

    def write(self, folder: Path, docs: Path | None) -> None:
        """Write the results; with `docs`, also the table of performance.md and the chart."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "latest.json").write_text(self.as_json(), encoding="utf-8")
        (folder / "latest.txt").write_text(self.text() + "\n", encoding="utf-8")
        if docs is not None and self.contenders:
            (docs / "performance.svg").write_text(drawn(self.contenders), encoding="utf-8")
            page = docs / "performance.md"
            before, _, rest = page.read_text(encoding="utf-8").partition(_OPEN)
            after = rest.partition(_CLOSE)[2]
            page.write_text(f"{before}{_OPEN}\n```\n{self.text()}\n```\n{_CLOSE}{after}", encoding="utf-8")


def _row(each: Contender) -> tuple[str, ...]:
    sends = each.mb_per_second > 0
    return (
        each.workload,
        each.name,
        f"{each.wall:.2f}",
        f"{each.cpu:.2f}",
        f"{each.files_per_second:,.0f}",
        f"{each.mb_per_second:,.0f}" if sends else "",
        f"{each.cpu_per_1000_files:.3g}",
        f"{each.cpu_per_gb:.1f}" if sends and each.cpu_per_gb is not None else "",
        f"{each.peak:.0f}",
    )


def _mark(each: Goal, mark: float) -> str:
    return f"{'≤' if each.most else '≥'} {_plain(mark)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _aligned(rows: list[tuple[str, ...]], *, left: int) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


# -- the chart ---------------------------------------------------------------------------------------------------------

_WIDTH, _LABEL, _BAR, _GAP = 810, 300, 18, 6
_TITLES = {
    "W1 TLS": "W1 over TLS · small files, files a second",
    "W2 TLS": "W2 over TLS · 5 MB files, MB a second",
    "W1": "W1 · small files, files a second",
    "W2": "W2 · 5 MB files, MB a second",
    "W3": "W3 · one large file, MB a second",
    "W4": "W4 · nothing to do, files a second",
    "W5": "W5 · a million files, nothing to do, files a second",
}


def drawn(contenders: list[Contender]) -> str:
    """Bars, longest is best; ours are dark."""
    y, parts = 10, []
    for workload, title in _TITLES.items():
        rows = [each for each in contenders if each.workload == workload]
        if not rows:
            continue
        y += 24
        parts.append(f'<text x="10" y="{y}" class="title">{escape(title)}</text>')
        figures = [each.mb_per_second if workload in ("W2 TLS", "W2", "W3") else each.files_per_second for each in rows]
        for each, figure in sorted(zip(rows, figures, strict=True), key=lambda pair: -pair[1]):
            y += _BAR + _GAP
            length = max(2, round((_WIDTH - _LABEL - 90) * figure / max(figures)))
            kind = "ours" if each.name.startswith("docferry") else "theirs"
            parts.append(f'<text x="{_LABEL - 8}" y="{y}" class="name">{escape(each.name)}</text>')
            parts.append(f'<rect x="{_LABEL}" y="{y - 13}" width="{length}" height="{_BAR}" rx="2" class="{kind}"/>')
            parts.append(f'<text x="{_LABEL + length + 6}" y="{y}">{figure:,.0f}</text>')
        y += 14
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.name{text-anchor:end}"
        ".ours{fill:#1f6feb}.theirs{fill:#b6c2cf}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 10}" viewBox="0 0 {_WIDTH} {y + 10}" '
        f'role="img" aria-label="docferry beside its peers">\n<style>{style}</style>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
