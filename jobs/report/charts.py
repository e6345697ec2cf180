"""Charts as inline SVG. Colours come from the page's style sheet (``.s0`` ... ``.s5``), so they follow light and dark.

Labels may be anything a model or a user wrote: every value goes through ``markupsafe``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 880
_LEFT, _RIGHT = 262, 64  # room for labels and for numbers
_ROW = 30
_LONGEST = 36
SERIES = 6  # colours


@dataclass(frozen=True, slots=True)
class Bar:
    """A value in a row of a chart; ``low`` and ``high`` are the ends of its interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a curve or scatter plot; ``title`` shows where the pointer rests."""

    x: float
    y: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points under one name; ``line``: (intercept, slope) of a straight line drawn through them."""

    name: str
    dots: Sequence[Dot]
    line: tuple[float, float] | None = None
    joined: bool = True


def intervals(bars: Sequence[Bar], unit: str) -> Markup:
    """A dot and whiskers a row."""
    values = [v for bar in bars for v in (bar.value, bar.low, bar.high) if v is not None]
    axis = _Axis.over(values, _LEFT, WIDTH - _RIGHT)
    parts = []
    for row, bar in enumerate(bars):
        y = 14 + row * _ROW
        parts.append(_label(bar.label, y, bar.strong))
        if bar.low is not None and bar.high is not None:
            parts.append(_line(axis(bar.low), y, axis(bar.high), y, f"whisker {'s0' if bar.strong else 's5'}"))
        parts.append(
            Markup('<circle cx="{}" cy="{}" r="6" class="{}"/>').format(
                _n(axis(bar.value)), y, "s0" if bar.strong else "s5"
            )
        )
        parts.append(_number(f"{bar.value:.3f}", WIDTH - 8, y))
    return _drawing(parts, axis, len(bars) * _ROW + 4, unit)


def bars(groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], unit: str) -> Markup:
    """Horizontal bars from 0; each group has one for every name, or none where the value is ``None``."""
    axis = _Axis.over([0.0, *(v for _, values in groups for v in values if v is not None)], _LEFT, WIDTH - _RIGHT)
    thick = 13 if len(names) > 1 else 16
    parts, y = [_legend(names)] if len(names) > 1 else [], 28 if len(names) > 1 else 4
    for label, values in groups:
        parts.append(_label(label, y + thick * len(values) / 2, False))
        for series, value in enumerate(values):
            if value is not None:
                shape = Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="2" class="s{}"/>')
                parts.append(
                    shape.format(
                        _LEFT, _n(y), _n(max(axis(value) - _LEFT, 1)), thick - 2, 0 if len(names) == 1 else series
                    )
                )
                parts.append(_number(f"{value:.3f}", axis(value) + 6, y + thick / 2 - 1, "start"))
            y += thick
        y += 10
    return _drawing(parts, axis, y, unit)


def changes(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], unit: str) -> Markup:
    """A line a row from a first value to a second: up or down."""
    axis = _Axis.over([0.0, 1.0], _LEFT, WIDTH - _RIGHT)
    dense = len(rows) > 20
    step = 17 if dense else 26
    parts: list[Markup] = [_legend(names, hollow=0)]
    for row, (label, before, after) in enumerate(rows):
        y = 34 + row * step
        parts.append(_label(label, y, False))
        parts.append(_line(axis(before), y, axis(after), y, f"change {'up' if after >= before else 'down'}"))
        parts.append(Markup('<circle cx="{}" cy="{}" r="5" class="hollow"/>').format(_n(axis(before)), y))
        parts.append(Markup('<circle cx="{}" cy="{}" r="5" class="s0"/>').format(_n(axis(after)), y))
        parts.append(_number(f"{after - before:+.2f}", WIDTH - 8, y))
    return _drawing(parts, axis, 34 + len(rows) * step, unit)


def curves(
    series: Sequence[Curve], x_unit: str, y_unit: str, height: int = 320, names: Mapping[float, str] | None = None
) -> Markup:
    """Points, joined or not, over an x axis; straight lines where a curve has one. ``names``: what stands at places of the
    x axis instead of numbers."""
    dots = [dot for curve in series for dot in curve.dots]
    x_axis = _Axis.over([dot.x for dot in dots], 62, WIDTH - 24)
    top = 34
    y_axis = _Axis.over([dot.y for dot in dots], height - 44, top)
    parts = [_legend([curve.name for curve in series])] if len(series) > 1 else []
    for tick in y_axis.ticks:
        parts.append(_line(62, y_axis(tick), WIDTH - 24, y_axis(tick), "grid"))
        parts.append(_number(_short_number(tick), 56, y_axis(tick)))
    for number, curve in enumerate(series):
        colour = f"s{number % SERIES}"
        if curve.line is not None and curve.dots:
            ends = [min(dot.x for dot in curve.dots), max(dot.x for dot in curve.dots)]
            (x1, x2), (y1, y2) = ends, [curve.line[0] + curve.line[1] * x for x in ends]
            parts.append(_line(x_axis(x1), y_axis(y1), x_axis(x2), y_axis(y2), f"fit {colour}"))
        if curve.joined and len(curve.dots) > 1:
            path = " ".join(f"{_n(x_axis(dot.x))},{_n(y_axis(dot.y))}" for dot in curve.dots)
            parts.append(Markup('<polyline points="{}" class="joined {}"/>').format(path, colour))
        for dot in curve.dots:
            shape = Markup('<circle cx="{}" cy="{}" r="5" class="{}"><title>{}</title></circle>')
            parts.append(shape.format(_n(x_axis(dot.x)), _n(y_axis(dot.y)), colour, dot.title))
    parts.append(_number(y_unit, WIDTH - 24, 10))
    return _drawing(parts, x_axis, height - 44, x_unit, names)


def heat(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """A confusion matrix of many classes: rows are the true classes, colour the share of the row; the pointer tells."""
    size = len(labels)
    cell = max(6.0, min(24.0, (WIDTH - _LEFT - 10) / size))
    parts = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        if cell >= 9:
            parts.append(_label(labels[i], i * cell + cell / 2, False, small=True))
        for j, count in enumerate(row):
            if count:
                title = f"{labels[i]} taken for {labels[j]}: {count} of {total}"
                shape = Markup(
                    '<rect x="{}" y="{}" width="{}" height="{}" class="s0" opacity="{}"><title>{}</title></rect>'
                )
                opacity = f"{0.15 + 0.85 * math.sqrt(count / total):.2f}"
                parts.append(shape.format(_n(_LEFT + j * cell), _n(i * cell), _n(cell), _n(cell), opacity, title))
    side = size * cell
    frame = Markup('<rect x="{}" y="0" width="{}" height="{}" class="frame"/>').format(_LEFT, _n(side), _n(side))
    caption = Markup('<text x="{}" y="{}" class="unit" text-anchor="middle">predicted, in the same order</text>')
    return _svg([*parts, frame, caption.format(_n(_LEFT + side / 2), _n(side + 18))], side + 26)


class _Axis:
    """From values to places, and round numbers in between."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.ticks = _ticks(low, high)
        # The round numbers around the values are the ends.
        self._low, self._high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self._start, self._end = start, end

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> _Axis:
        found = list(values) or [0.0, 1.0]
        low, high = min(found), max(found)
        if high - low < 1e-9:
            low, high = low - 0.05, high + 0.05
        return cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, last + 1)]


def _drawing(
    parts: Sequence[Markup], axis: _Axis, height: float, unit: str, names: Mapping[float, str] | None = None
) -> Markup:
    """The parts over a grid of vertical lines, with the axis below."""
    marks = names or {tick: _short_number(tick) for tick in axis.ticks}
    grid = [_line(axis(tick), 22 if height > 200 else 0, axis(tick), height, "grid") for tick in marks]
    numbers = [_number(_cut(name), axis(tick), height + 14, "middle") for tick, name in marks.items()]
    text = Markup('<text x="{}" y="{}" class="unit" text-anchor="middle">{}</text>')
    middle = (axis(axis.ticks[0]) + axis(axis.ticks[-1])) / 2
    return _svg([*grid, *parts, *numbers, text.format(_n(middle), _n(height + 34), unit)], height + 40)


def _svg(parts: Sequence[Markup], height: float) -> Markup:
    frame = Markup('<svg viewBox="0 0 {} {}" width="{}" aria-hidden="true">{}</svg>')
    return frame.format(WIDTH, _n(height), WIDTH, Markup("").join(parts))


def _legend(names: Sequence[str], hollow: int | None = None) -> Markup:
    parts, x = [], 0.0 if len(names) > 3 else float(_LEFT)
    for i, name in enumerate(names):
        kind = "hollow" if i == hollow else f"s{0 if hollow is not None else i % SERIES}"
        shape = Markup('<circle cx="{}" cy="10" r="5" class="{}"/><text x="{}" y="14" class="legend">{}</text>')
        parts.append(shape.format(_n(x + 6), kind, _n(x + 16), _cut(name)))
        x += 34 + 7.2 * min(len(name), _LONGEST)
    return Markup("").join(parts)


def _label(text: str, y: float, strong: bool, small: bool = False) -> Markup:
    shape = Markup('<text x="{}" y="{}" class="label{}" text-anchor="end"><title>{}</title>{}</text>')
    kind = (" strong" if strong else "") + (" small" if small else "")
    return shape.format(_LEFT - 12, _n(y + (3 if small else 4.5)), kind, text, _cut(text))


def _number(text: str | Markup, x: float, y: float, anchor: str = "end") -> Markup:
    return Markup('<text x="{}" y="{}" class="number" text-anchor="{}">{}</text>').format(
        _n(x), _n(y + 4.5), anchor, text
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    shape = Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>')
    return shape.format(_n(x1), _n(y1), _n(x2), _n(y2), kind)


def _cut(text: str) -> Markup:
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _short_number(value: float) -> str:
    return f"{value:.10g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
