"""The charts of runs and studies, drawn once with matplotlib: PNG for MLflow, inline SVG for the page (``jobs.report.svg``).

Figures are built without pyplot: no global state and no window system; a figure is freed with its last reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The light values of the variables in style.css. ``jobs.report.svg`` puts the variables in their place.
COLOURS = {
    "--card": "#ffffff",
    "--ink": "#1d2530",
    "--muted": "#5d6875",
    "--rule": "#e3e1dc",
    "--s0": "#2068a8",
    "--s1": "#d27a1c",
    "--s2": "#2f8a5b",
    "--s3": "#8a55b5",
    "--s4": "#b83f5a",
    "--s5": "#8b95a1",
}
CARD, INK, MUTED, RULE, BLUE, _, GREEN, _, RED, GREY = COLOURS.values()
SERIES = list(COLOURS.values())[4:]
TIP = "tip: "  # an artist with such a gid gets the rest as a tooltip on the page
WIDTH = 9.2  # inches of a chart that fills the page
_SMALL, _NORMAL = 8.0, 9.5  # font sizes in points
_MOST_NUMBERED_CLASSES = 25
_LONGEST_LABEL = 42


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the ends of its interval, as a row of a chart. ``strong``: highlighted."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of a curve or scatter plot, with its tooltip."""

    x: float
    y: float
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Dots under one name. ``line``: intercept and slope of a straight line through them."""

    name: str
    dots: Sequence[Dot]
    line: tuple[float, float] | None = None
    joined: bool = True


@dataclass(frozen=True, slots=True)
class AlphaBin:
    """Relabelling of the texts whose mixup ratio alpha lies in ``[low, high]``."""

    low: float
    high: float
    texts: int
    relabelled: int

    @property
    def share(self) -> float:
        """Share relabelled, 0 to 1; 0 where there are no texts."""
        return self.relabelled / self.texts if self.texts else 0.0


def intervals(rows: Sequence[Estimate], unit: str) -> Figure:
    """A dot with whiskers for each row."""
    figure, axes = _rows([row.label for row in rows], 0.32)
    for y, row in enumerate(rows):
        colour = BLUE if row.strong else GREY
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([row.value], [y], "o", color=colour, markersize=8)
        _at_right(axes, y, f"{row.value:.3f}")
    axes.set_xlabel(unit)
    return figure


def bars(
    groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], unit: str, title: str = ""
) -> Figure:
    """Horizontal bars from 0. Each group has one value for each name; ``None`` leaves a gap."""
    figure, axes = _rows([label for label, _ in groups], 0.16 + 0.18 * len(names), title)
    thick = 0.8 / len(names)
    for series, name in enumerate(names):
        at = [y + thick * (series - (len(names) - 1) / 2) for y in range(len(groups))]
        values = [group[series] for _, group in groups]
        axes.barh(at, [value or 0.0 for value in values], 0.88 * thick, color=SERIES[series], label=_short(name))
        for y, value in zip(at, values, strict=True):
            if value is not None:
                annotate(axes, f"{value:.3f}", (value, y), (4, 0))
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel(unit)
    if len(names) > 1:
        _legend(axes, len(names))
    return figure


def changes(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], unit: str, title: str = "") -> Figure:
    """For each row a line from a first value to a second, both from 0 to 1: green up, red down."""
    dense = len(rows) > 25
    figure, axes = _rows([label for label, _, _ in rows], 0.2 if dense else 0.3, title)
    for y, (_, before, after) in enumerate(rows):
        axes.plot([before, after], [y, y], color=GREEN if after >= before else RED, linewidth=2)
        _at_right(axes, y, f"{after - before:+.2f}")
    size = 5 if dense else 7
    hollow: dict[str, Any] = {"markerfacecolor": CARD, "markeredgecolor": GREY, "markeredgewidth": 1.5}
    axes.plot([row[1] for row in rows], range(len(rows)), "o", markersize=size, label=_short(names[0]), **hollow)
    axes.plot([row[2] for row in rows], range(len(rows)), "o", markersize=size, label=_short(names[1]), color=BLUE)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(unit)
    _legend(axes, 2)
    return figure


def curves(series: Sequence[Curve], x_unit: str, y_unit: str, names: Mapping[float, str] | None = None) -> Figure:
    """Dots over an x axis, joined or with a straight line through them. ``names``: tick labels of the x axis by place."""
    figure, axes = new_figure(WIDTH, 3.6)
    for number, curve in enumerate(series):
        colour = SERIES[number % len(SERIES)]
        for dot in curve.dots:
            (mark,) = axes.plot([dot.x], [dot.y], "o", color=colour, markersize=6)
            _tip(mark, dot.tip)
        xs = [dot.x for dot in curve.dots]
        if curve.joined:
            axes.plot(xs, [dot.y for dot in curve.dots], color=colour, linewidth=1.5)
        if curve.line is not None and xs:
            ends = np.array([min(xs), max(xs)])
            axes.plot(ends, curve.line[0] + curve.line[1] * ends, color=colour, linewidth=1.2, linestyle=(0, (4, 4)))
        axes.plot([], [], "o", color=colour, markersize=6, label=_short(curve.name))
    if names is not None:
        axes.set_xticks(list(names), [_short(name) for name in names.values()])
    axes.grid(color=RULE)
    axes.set_xlabel(x_unit)
    axes.set_ylabel(y_unit)
    if len(series) > 1:
        _legend(axes, 3)
    return figure


def confusion(counts: npt.ArrayLike, labels: Sequence[str], title: str = "") -> Figure:
    """A confusion matrix; ``counts[i][j]``: texts of class ``i`` predicted as class ``j``, in the order of ``labels``.

    Colour is the share of the row, so rare classes show as well as common ones. Up to 25 classes the cells hold the
    counts. Raises ``ValueError`` for counts of another shape.
    """
    from matplotlib.patches import Rectangle

    matrix = np.asarray(counts, dtype=float)
    size = len(labels)
    if matrix.shape != (size, size):
        raise ValueError(f"counts has shape {matrix.shape}, but there are {size} labels")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    numbered = size <= _MOST_NUMBERED_CLASSES
    font = float(np.clip(11 - 0.09 * size, 6.5, _NORMAL))
    names = [_short(label) for label in labels]
    side = max(size * float(np.clip(6.0 / size, 0.17, 0.75)), 2.6)
    margin = 0.0105 * font * max(map(len, names)) + 0.6
    figure, axes = new_figure(side + margin, side + margin, title)
    for i, j in np.argwhere(matrix > 0):
        # In many small cells without numbers a share of 10 % would vanish: there colour follows the square root.
        strength = shares[i, j] if numbered else 0.1 + 0.9 * shares[i, j] ** 0.5
        cell = axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=BLUE, alpha=0.75 * strength, linewidth=0))
        _tip(cell, f"{labels[i]} predicted as {labels[j]}: {matrix[i, j]:.0f} of {matrix[i].sum():.0f}")
        if numbered:
            axes.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=font, color=INK)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", xlabel="predicted", ylabel="true")
    axes.set_xticks(range(size), names, rotation=90, fontsize=font)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(which="minor", color=RULE, linewidth=0.8 if numbered else 0.3)
    axes.tick_params(which="both", length=0)
    return figure


def alpha_bins(alphas: Sequence[float | None], relabelled: Sequence[bool], most_bins: int = 10) -> list[AlphaBin]:
    """Count relabelled texts by alpha; texts without alpha (no mixing) are left out.

    Up to ``most_bins`` distinct values get a bin each; more share bins of equal width.
    """
    pairs = [(alpha, changed) for alpha, changed in zip(alphas, relabelled, strict=True) if alpha is not None]
    if not pairs:
        return []
    values = np.array([alpha for alpha, _ in pairs])
    changed = np.array([changed for _, changed in pairs], dtype=bool)
    distinct, place = np.unique(values, return_inverse=True)
    edges = [(value, value) for value in distinct]
    if len(distinct) > most_bins:
        bounds = np.linspace(distinct[0], distinct[-1], most_bins + 1)
        place = np.clip(np.searchsorted(bounds, values, side="right") - 1, 0, most_bins - 1)
        edges = list(pairwise(bounds))
    return [
        AlphaBin(float(low), float(high), int((place == i).sum()), int(changed[place == i].sum()))
        for i, (low, high) in enumerate(edges)
    ]


def relabelling(bins: Sequence[AlphaBin], title: str = "") -> Figure:
    """Bars: share of texts that relabelling gave another class, by alpha (1: purely the target class)."""
    rows = []
    for one in filter(lambda one: one.texts, bins):
        alpha = f"{one.low:.2f}" if one.low == one.high else f"{one.low:.2f} to {one.high:.2f}"
        rows.append((f"{alpha} ({one.relabelled} of {one.texts})", [one.share]))
    return bars(rows, ["relabelled"], "share relabelled", title)


def new_figure(width: float, height: float, title: str = "") -> tuple[Figure, Axes]:
    """An empty figure (inches) and its axes, in the style of all charts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED, labelsize=_SMALL)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=MUTED, fontsize=_SMALL)
    if title:
        figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12, fontweight="bold")
    return figure, axes


def _rows(labels: Sequence[str], inches: float, title: str = "") -> tuple[Figure, Axes]:
    """A chart with a labelled row of that height for each label, the first at the top."""
    figure, axes = new_figure(WIDTH, inches * max(len(labels), 1) + 0.9, title)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=_NORMAL, color=INK)
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        _tip(tick, label)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", color=RULE)
    return figure, axes


def _at_right(axes: Axes, y: float, text: str) -> None:
    axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=_SMALL)


def annotate(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float]) -> None:
    """Write ``text`` beside a point, ``offset`` in points."""
    axes.annotate(text, place, xytext=offset, textcoords="offset points", va="center", color=MUTED, fontsize=_SMALL)


def _legend(axes: Axes, columns: int) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(**place, ncols=columns, frameon=False, fontsize=_NORMAL, labelcolor=INK)


def _tip(artist: Artist, text: str) -> None:
    artist.set_gid(TIP + text)


def _short(label: str) -> str:
    """A label that fits beside an axis. ``$`` would start a formula."""
    text = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
    return text.replace("$", r"\$")
