"""Plot values as inline SVG on the server: without scripts and style attributes, with a text for screen readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from markupsafe import Markup
from msgspec import Struct

WIDTH: Final = 480
HEIGHT: Final = 120
_TOP: Final = 8


class Series(Struct, frozen=True):
    """Hold the values of one plot, the oldest first; `labels` are their tooltips, `shown` the values as text."""

    title: str
    values: Sequence[float]
    labels: Sequence[str]
    shown: Sequence[str]
    highest: str  # the largest value as text


def bars(series: Series) -> Markup:
    """Return one bar for each value."""
    step = WIDTH / max(len(series.values), 1)
    top = max(series.values, default=0.0) or 1.0
    parts = []
    for at, value in enumerate(series.values):
        height = 0.0 if value <= 0 else max(value / top * (HEIGHT - _TOP), 2.0)
        title = escape(f"{series.labels[at]}: {series.shown[at]}")
        parts.append(
            f'<g><rect class="hit" x="{at * step:.1f}" y="0" width="{step:.1f}" height="{HEIGHT}"/>'
            f'<rect class="bar" x="{at * step + 1:.1f}" y="{HEIGHT - height:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{height:.1f}" rx="1.5"/><title>{title}</title></g>'
        )
    return _svg(series, "".join(parts))


def line(series: Series) -> Markup:
    """Return one line through the values; a negative value is a gap."""
    step = WIDTH / max(len(series.values), 1)
    top = max(series.values, default=0.0) or 1.0
    parts: list[str] = []
    points: list[tuple[float, float]] = []
    for at, value in enumerate([*series.values, -1.0]):
        if value < 0:
            if points:
                parts.append(_stretch(points))
            points = []
            continue
        x, y = (at + 0.5) * step, HEIGHT - 1 - value / top * (HEIGHT - _TOP - 1)
        points.append((x, y))
        title = escape(f"{series.labels[at]}: {series.shown[at]}")
        parts.append(f'<g><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/><title>{title}</title></g>')
    return _svg(series, "".join(parts))


def _stretch(points: Sequence[tuple[float, float]]) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="line" points="{joined}"/>'


def _svg(series: Series, content: str) -> Markup:
    label = escape(f"{series.title}; at most {series.highest}")
    grid = "".join(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y}" y2="{y}"/>' for y in (_TOP, HEIGHT // 2, HEIGHT))
    # The output consists only of numbers and escaped text.
    return Markup(  # noqa: S704 - every value in it is escaped or a number
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT + 1}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{grid}{content}</svg>'
    )
