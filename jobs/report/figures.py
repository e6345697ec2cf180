"""The plots of a run, as matplotlib figures that ``stage.figure(name, figure)`` logs.

Figures are built without pyplot: nothing global is kept, no window system is asked for, and a figure is
free when its last reference is gone. Sizes follow the number of classes: 2 to 150 stay readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, GREEN, RED, GREY = "#2f6fab", "#2e8b57", "#c4483c", "#9aa5b1"
_MOST_CELLS_WITH_NUMBERS = 25
_LONGEST_LABEL = 42


@dataclass(frozen=True, slots=True)
class AlphaBin:
    """Texts whose mixup ratio alpha lies in ``[low, high]``: how many, and how many got another class."""

    low: float
    high: float
    texts: int
    relabelled: int

    @property
    def share(self) -> float:
        """Share relabelled, 0 to 1; 0 where there are no texts."""
        return self.relabelled / self.texts if self.texts else 0.0


def confusion_figure(
    counts: npt.ArrayLike, labels: Sequence[str], title: str = "Confusion on the test texts"
) -> Figure:
    """``counts[i][j]``: texts of class ``i`` that were taken for class ``j``, both in the order of ``labels``.

    Colour is the share of the true class (each row sums to 1, so rare classes are as visible as common
    ones); up to 25 classes the counts stand in the cells.
    """
    from matplotlib.colors import PowerNorm

    matrix = np.asarray(counts, dtype=float)
    size = len(labels)
    if matrix.shape != (size, size):
        raise ValueError(f"counts has shape {matrix.shape}, but there are {size} labels")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros_like(matrix), where=totals > 0)
    font = float(np.clip(11 - 0.09 * size, 6.5, 10.0))
    cell = float(np.clip(6.0 / size, 0.17, 0.75))
    margin = 0.0105 * font * max(len(_short(label)) for label in labels) + 0.6
    side = max(cell * size, 2.6)
    figure, axes = new_figure(side + margin + 1.1, side + margin + 0.6)
    # In many small cells without numbers a share of 10 % would vanish: there colour follows the square root.
    scale = PowerNorm(1.0 if size <= _MOST_CELLS_WITH_NUMBERS else 0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=scale, aspect="equal")
    _name_classes(axes, [_short(label) for label in labels], font)
    if size <= _MOST_CELLS_WITH_NUMBERS:
        for i, j in np.argwhere(matrix > 0):
            colour = "white" if shares[i, j] > 0.55 else INK
            axes.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=font, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.02, shrink=min(1.0, 4.0 / side))
    bar.set_label("share of the true class", color=MUTED, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    correct = float(np.trace(matrix) / matrix.sum()) if matrix.sum() else 0.0
    put_title(axes, title, f"{matrix.sum():.0f} texts, {100 * correct:.1f} % correct")
    return figure


def _name_classes(axes: Axes, names: Sequence[str], font: float) -> None:
    """The classes along both sides of a confusion matrix, and lines between its cells."""
    size = len(names)
    axes.set_xticks(
        range(size),
        names,
        rotation=90 if size > 8 else 45,
        ha="center" if size > 8 else "right",
        rotation_mode="default" if size > 8 else "anchor",
        fontsize=font,
    )
    axes.set_yticks(range(size), names, fontsize=font)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.set_xticks(np.arange(-0.5, size), minor=True)
    axes.set_yticks(np.arange(-0.5, size), minor=True)
    axes.grid(
        which="minor",
        color="white" if size <= _MOST_CELLS_WITH_NUMBERS else GRID,
        linewidth=1.5 if size <= _MOST_CELLS_WITH_NUMBERS else 0.3,
    )
    axes.tick_params(which="both", length=0)


def alpha_bins(alphas: Sequence[float | None], relabelled: Sequence[bool], most_bins: int = 10) -> list[AlphaBin]:
    """Count relabelled texts by alpha; texts without alpha (no mixing) are left out.

    Each of up to ``most_bins`` distinct values gets a bin of its own; more are put in equally wide bins.
    """
    pairs = [(alpha, changed) for alpha, changed in zip(alphas, relabelled, strict=True) if alpha is not None]
    if not pairs:
        return []
    values = np.array([alpha for alpha, _ in pairs])
    changes = np.array([changed for _, changed in pairs], dtype=bool)
    distinct = np.unique(values)
    if len(distinct) <= most_bins:
        return [
            AlphaBin(float(value), float(value), int((values == value).sum()), int(changes[values == value].sum()))
            for value in distinct
        ]
    edges = np.linspace(distinct[0], distinct[-1], most_bins + 1)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, most_bins - 1)
    return [
        AlphaBin(float(edges[i]), float(edges[i + 1]), int((place == i).sum()), int(changes[place == i].sum()))
        for i in range(most_bins)
    ]


def relabelling_figure(bins: Sequence[AlphaBin], title: str = "Relabelled texts by mixup ratio") -> Figure:
    """Bars: share of texts that relabelling gave another class, by alpha (1 = purely the target class)."""
    figure, axes = new_figure(max(5.5, 0.75 * len(bins) + 1.5), 4.0)
    heights = [100 * item.share for item in bins]
    top = max([*heights, 5.0])
    axes.bar(range(len(bins)), heights, color=BLUE, width=0.72)
    for position, item in enumerate(bins):
        axes.text(
            position,
            heights[position] + 0.02 * top,
            f"{item.relabelled}/{item.texts}",
            ha="center",
            va="bottom",
            fontsize=8,
            color=MUTED,
        )
    axes.set_xticks(
        range(len(bins)),
        [f"{item.low:.2f}" if item.low == item.high else f"{item.low:.2f}–\n{item.high:.2f}" for item in bins],
        fontsize=9,
    )
    axes.set_ylim(0, 1.15 * top)
    axes.set_xlim(-0.6, max(len(bins), 5) - 0.4)
    axes.set_xlabel("alpha: share of the target class in the prompt", color=MUTED)
    axes.set_ylabel("relabelled, %", color=MUTED)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    texts, changed = sum(item.texts for item in bins), sum(item.relabelled for item in bins)
    put_title(axes, title, f"{changed} of {texts} texts relabelled" if texts else "no texts were mixed")
    return figure


def class_scores_figure(
    labels: Sequence[str],
    baseline: Sequence[float],
    distilled: Sequence[float],
    baseline_name: str = "seeds only",
    title: str = "F1 by class",
) -> Figure:
    """A line a class from the baseline's F1 to the distilled student's (fractions of 1): green up, red down."""
    if not len(labels) == len(baseline) == len(distilled):
        raise ValueError(f"{len(labels)} labels, {len(baseline)} and {len(distilled)} scores")
    order = sorted(range(len(labels)), key=lambda i: distilled[i])
    size = len(labels)
    height = max(0.17 * size if size > 25 else 0.34 * size, 1.6) + 1.5
    figure, axes = new_figure(7.5, height)
    mark = 26 if size > 25 else 60
    for row, i in enumerate(order):
        axes.plot(
            [baseline[i], distilled[i]],
            [row, row],
            color=GREEN if distilled[i] >= baseline[i] else RED,
            linewidth=2.2,
            alpha=0.75,
            zorder=2,
        )
    rows = np.arange(size)
    axes.scatter(
        [baseline[i] for i in order],
        rows,
        s=mark,
        color="white",
        edgecolor=GREY,
        linewidth=1.6,
        zorder=3,
        label=baseline_name,
    )
    axes.scatter([distilled[i] for i in order], rows, s=mark, color=BLUE, zorder=4, label="distilled")
    axes.set_yticks(rows, [_short(labels[i]) for i in order], fontsize=7 if size > 25 else 9)
    axes.set_ylim(-0.8, size - 0.2)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("F1", color=MUTED)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    before, after = float(np.mean(baseline)), float(np.mean(distilled))
    better = sum(d > b for b, d in zip(baseline, distilled, strict=True))
    put_title(axes, title, f"macro-F1 {before:.3f} → {after:.3f}; {better} of {size} classes better")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0.0)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure (inches) and its axes, in the style of all plots here."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK)
    return figure, axes


def put_title(axes: Axes, title: str, subtitle: str) -> None:
    """Title and a line below it."""
    axes.set_title(f"{title}\n", loc="left", color=INK, fontsize=12, fontweight="bold")
    axes.annotate(
        subtitle, (0, 1), xytext=(0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=9
    )


def _short(label: str) -> str:
    """A label that fits beside an axis. ``$`` would start a formula."""
    text = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
    return text.replace("$", r"\$")
