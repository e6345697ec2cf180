"""How far people agree on a task's labels, and what that has to do with a classifier's accuracy.

    measure(votes)              # mean agreement and Krippendorff's alpha, with bootstrap intervals over items
    rank(judgements)            # tasks from least to most subjective, by majority
    accuracy_curve(...)         # accuracy on the texts that people agree on, as the bar rises

After Li et al. (EMNLP 2023), sections 3.1 and 5; ``docs/measures.md`` has every formula. Agreement stands for what is
not subjective: 1 - subjectivity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import krippendorff
import networkx
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from potstill.draws import generator
from potstill.measures.annotations import Judgement, Votes
from potstill.measures.scores import Interval, Margins, accuracy, indices, macro_f1, tally
from potstill.rows import Prediction

Floats = NDArray[np.float64]

MOST_POINTS = 12  # of a curve
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the ``items`` with two votes or more; ``left_out`` had fewer, which says nothing of agreement.

    ``mean``: of the instances' agreement, 1 / classes at the lowest. ``alpha``: Krippendorff's, 1 for perfect agreement,
    0 for chance, less for systematic disagreement; ``None`` where all votes are for one label, since chance can't be told
    from knowledge there.
    """

    items: int
    left_out: int
    annotators: int
    votes: int
    mean: Interval
    alpha: Interval | None


@dataclass(frozen=True, slots=True)
class Edge:
    """``more`` was called more subjective than ``less`` by ``votes_for`` judges, the other way round by ``votes_against``."""

    less: str
    more: str
    votes_for: int
    votes_against: int

    @property
    def margin(self) -> int:
        """Votes that the majority is ahead."""
        return self.votes_for - self.votes_against

    def __str__(self) -> str:
        return f"{self.less} < {self.more} ({self.votes_for} to {self.votes_against})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """``tasks`` from least to most subjective. ``broken``: majorities that contradicted stronger ones, with the cycle that
    each was in; ``undecided``: neighbours in the order that no chain of majorities puts one before the other."""

    tasks: tuple[str, ...]
    broken: tuple[tuple[Edge, tuple[str, ...]], ...]
    undecided: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """Least-squares line y = intercept + slope x; ``r_squared``: share of y's variance on it. Spearman's ``rho`` and its
    two-sided p-value. ``None`` where x or y has one value only."""

    slope: float
    intercept: float
    r_squared: float
    rho: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """Scores on the ``texts`` whose agreement is ``gamma`` or more."""

    gamma: float
    texts: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class AgreementCurve:
    """``points`` with gamma rising; lines through them (``None`` for fewer than three points).

    The points share texts, so the lines' p-values say less than they seem to; ``rho`` and ``p_value`` are over single
    texts: agreement against right or wrong.
    """

    points: tuple[Point, ...]
    of_accuracy: Line | None
    of_macro_f1: Line | None
    rho: float | None
    p_value: float | None


def instance_agreement(counts: NDArray[np.int64]) -> Floats:
    """Share of each item's votes that its majority has, (items,); NaN without votes. ``counts``: (items, labels)."""
    votes = counts.sum(axis=1)
    return np.divide(counts.max(axis=1), votes, out=np.full(len(counts), np.nan), where=votes > 0)


def alpha(counts: NDArray[np.int64]) -> float | None:
    """Krippendorff's alpha of nominal labels; ``None`` where it is not defined. ``counts``: (items, labels)."""
    pairable = counts[counts.sum(axis=1) > 1]
    if np.count_nonzero(pairable.sum(axis=0)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, level_of_measurement="nominal"))


def measure(votes: Votes, seed: int = 0, resamples: int = 1000) -> Agreement | None:
    """Agreement over the items, with percentile bootstrap intervals; ``None`` where no item has two votes."""
    counts = votes.counts[votes.counts.sum(axis=1) > 1]
    if not len(counts):
        return None
    distinct, times = np.unique(counts, axis=0, return_counts=True)
    drawn = generator(seed, "items").multinomial(len(counts), times / len(counts), size=resamples)
    means = drawn @ instance_agreement(distinct) / len(counts)
    point = alpha(counts)
    alphas = resampled_alphas(distinct, drawn)
    return Agreement(
        len(counts),
        len(votes.items) - len(counts),
        votes.annotators,
        int(counts.sum()),
        _interval(float(instance_agreement(counts).mean()), means),
        None if point is None else _interval(point, alphas[np.isfinite(alphas)]),
    )


def resampled_alphas(distinct: NDArray[np.int64], drawn: NDArray[np.int64]) -> Floats:
    """Nominal alpha of each resample, (resamples,), NaN where a resample holds one label only.

    ``drawn[r][i]``: how often the item with the votes ``distinct[i]`` was drawn. Krippendorff's formula (2011, section D)
    by sums over items, since the package takes milliseconds a call and the bootstrap a thousand calls.
    """
    sizes = distinct.sum(axis=1)
    disagreeing = (sizes**2 - (distinct**2).sum(axis=1)) / np.maximum(sizes - 1, 1)
    observed, totals = drawn @ disagreeing, (drawn @ distinct).astype(float)
    n = totals.sum(axis=1)
    expected = (n**2 - (totals**2).sum(axis=1)) / np.maximum(n - 1, 1)
    return np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), np.nan)


def rank(judgements: Sequence[Judgement], tasks: Sequence[str]) -> Ranking:
    """Order ``tasks`` by the majorities of their pairs: a topological sort of "less subjective than".

    Where majorities contradict each other in a circle, the one with the smallest margin gives way (of equal ones the
    first by name), until no circle is left. Equal votes say nothing. What is left open goes by the share of its
    judgements that called a task the more subjective one.
    """
    graph = networkx.DiGraph()
    graph.add_nodes_from(tasks)
    for edge in majorities(judgements):
        graph.add_edge(edge.less, edge.more, edge=edge)
    broken = []
    while cycle := _weakest_in_a_cycle(graph):
        broken.append(cycle)
        graph.remove_edge(cycle[0].less, cycle[0].more)
    named = Counter(judgement.more_subjective for judgement in judgements)
    asked = Counter(task for judgement in judgements for task in (judgement.task_a, judgement.task_b))
    shares = {task: named[task] / asked[task] if asked[task] else 0.5 for task in tasks}
    order = list(networkx.lexicographical_topological_sort(graph, key=lambda task: (shares[task], task)))
    undecided = tuple(pair for pair in pairwise(order) if not networkx.has_path(graph, *pair))
    return Ranking(tuple(order), tuple(broken), undecided)


def majorities(judgements: Sequence[Judgement]) -> list[Edge]:
    """One edge for every pair of tasks that more judges order one way than the other, by name."""
    votes: Counter[tuple[str, str]] = Counter()
    for judgement in judgements:
        other = judgement.task_b if judgement.more_subjective == judgement.task_a else judgement.task_a
        votes[other, judgement.more_subjective] += 1
    edges = [Edge(less, more, count, votes[more, less]) for (less, more), count in sorted(votes.items())]
    return [edge for edge in edges if edge.margin > 0]


def _weakest_in_a_cycle(graph: networkx.DiGraph) -> tuple[Edge, tuple[str, ...]] | None:
    """The edge of the smallest margin that lies on a cycle, with a shortest cycle through it; ``None``: no cycle."""
    part = {task: number for number, some in enumerate(networkx.strongly_connected_components(graph)) for task in some}
    # An edge lies on a cycle exactly where both its ends are in one strongly connected component.
    edges = [data["edge"] for less, more, data in graph.edges(data=True) if part[less] == part[more]]
    if not edges:
        return None
    weakest = min(edges, key=lambda edge: (edge.margin, edge.less, edge.more))
    return weakest, tuple(networkx.shortest_path(graph, weakest.more, weakest.less))


def accuracy_curve(
    agreement: Mapping[str, float], predictions: Sequence[Prediction], labels: Sequence[str]
) -> AgreementCurve:
    """Accuracy and macro-F1 on the texts whose agreement is at least gamma, as gamma rises.

    ``agreement``: by example id, 0 to 1; texts without one are left out. Gammas are the values that occur; where there are
    more than 12, as many evenly spread ones. Raises ``ValueError`` where no text has an agreement.
    """
    known = [prediction for prediction in predictions if np.isfinite(agreement.get(prediction.example_id, np.nan))]
    truth, predicted = indices(known, labels)
    values = np.array([agreement[prediction.example_id] for prediction in known])
    gammas = np.unique(values)
    if len(gammas) > MOST_POINTS:
        gammas = np.linspace(gammas[0], gammas[-1], MOST_POINTS)
    points = []
    for gamma in gammas:
        kept = values >= gamma
        margins = tally(truth[kept], predicted[kept], len(labels))
        points.append(Point(float(gamma), int(kept.sum()), float(accuracy(margins)[0]), _macro_f1(margins)))
    rho, p_value = spearman(values, truth == predicted)
    x = [point.gamma for point in points]
    return AgreementCurve(
        tuple(points),
        fit_line(x, [point.accuracy for point in points]),
        fit_line(x, [point.macro_f1 for point in points]),
        rho,
        p_value,
    )


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Least squares through the points; ``None`` for fewer than three, or where all have one x."""
    if len(x) < 3 or len(set(x)) < 2:
        return None
    fit = stats.linregress(x, y)
    # A flat line through points of one y explains all there is to explain, which is nothing.
    r_squared = float(fit.rvalue**2) if len(set(y)) > 1 else 0.0
    return Line(float(fit.slope), float(fit.intercept), r_squared, *spearman(x, y))


def spearman(x: Sequence[float] | NDArray, y: Sequence[float] | NDArray) -> tuple[float | None, float | None]:
    """Spearman's rho and its two-sided p-value; ``None`` where a side has one value only, or for fewer than three."""
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None, None
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


def _macro_f1(margins: Margins) -> float:
    """Macro-F1 over the classes that occur: a high bar may leave a class without texts, which is not a mistake."""
    occurs = (margins.support + margins.predicted)[0] > 0
    return float(macro_f1(Margins(*(part[:, occurs] for part in margins)))[0])


def _interval(value: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high), _LEVEL)
