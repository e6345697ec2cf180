"""Annotator agreement on a task's labels, and its relation to a classifier's accuracy.

    measure(votes)              # mean agreement and Krippendorff's alpha, with bootstrap intervals over items
    rank(judgements)            # tasks from least to most subjective, by majority
    accuracy_curve(...)         # accuracy on texts above a rising threshold of agreement

After Li et al. (EMNLP 2023), sections 3.1 and 5; ``docs/measures.md`` has the formulas. Agreement is 1 - subjectivity.
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
from potstill.measures.scores import Interval, Margins, accuracy, indices, interval, macro_f1, tally
from potstill.rows import Prediction

Floats = NDArray[np.float64]

MOST_POINTS = 12  # per curve


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement on the ``items`` with at least two votes; ``left_out`` items had fewer.

    ``mean``: mean instance agreement, at least 1 / classes. ``alpha``: Krippendorff's alpha, 1 for perfect agreement, 0
    for chance, negative for systematic disagreement; None if all votes are for one label, where alpha is undefined.
    """

    items: int
    left_out: int
    annotators: int
    votes: int
    mean: Interval
    alpha: Interval | None


@dataclass(frozen=True, slots=True)
class Edge:
    """``votes_for`` judges found ``more`` more subjective than ``less``; ``votes_against`` judges the opposite."""

    less: str
    more: str
    votes_for: int
    votes_against: int

    @property
    def margin(self) -> int:
        """The majority's lead in votes."""
        return self.votes_for - self.votes_against

    def __str__(self) -> str:
        return f"{self.less} < {self.more} ({self.votes_for} to {self.votes_against})"


@dataclass(frozen=True, slots=True)
class Ranking:
    """``tasks`` from least to most subjective. ``broken``: majorities ignored because they contradict stronger ones, each
    with its cycle. ``undecided``: neighbours in ``tasks`` that no chain of majorities orders."""

    tasks: tuple[str, ...]
    broken: tuple[tuple[Edge, tuple[str, ...]], ...]
    undecided: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """Least-squares line y = intercept + slope x, the share of y's variance it explains, and Spearman's ``rho`` with its
    two-sided p-value; rho and p-value are None if x or y is constant."""

    slope: float
    intercept: float
    r_squared: float
    rho: float | None
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """Scores on the ``texts`` with an agreement of at least ``gamma``."""

    gamma: float
    texts: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class AgreementCurve:
    """``points`` by increasing gamma, and the lines fitted to them (None for fewer than three points).

    The points share texts, so the lines' p-values are too optimistic. ``rho`` and ``p_value`` correlate agreement with
    correctness over single texts.
    """

    points: tuple[Point, ...]
    of_accuracy: Line | None
    of_macro_f1: Line | None
    rho: float | None
    p_value: float | None


def instance_agreement(counts: NDArray[np.int64]) -> Floats:
    """The majority's share of each item's votes, (items,); NaN without votes. ``counts``: (items, labels)."""
    votes = counts.sum(axis=1)
    return np.divide(counts.max(axis=1), votes, out=np.full(len(counts), np.nan), where=votes > 0)


def alpha(counts: NDArray[np.int64]) -> float | None:
    """Krippendorff's alpha for nominal labels; None if undefined. ``counts``: (items, labels)."""
    pairable = counts[counts.sum(axis=1) > 1]
    if np.count_nonzero(pairable.sum(axis=0)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, level_of_measurement="nominal"))


def measure(votes: Votes, seed: int = 0, resamples: int = 1000) -> Agreement | None:
    """Agreement over the items, with percentile bootstrap intervals; None if no item has two votes."""
    counts = votes.counts[votes.counts.sum(axis=1) > 1]
    if not len(counts):
        return None
    distinct, times = np.unique(counts, axis=0, return_counts=True)
    drawn = generator(seed, "items").multinomial(len(counts), times / len(counts), size=resamples)
    means = drawn @ instance_agreement(distinct) / len(counts)
    mean = interval(float(instance_agreement(counts).mean()), means)
    point, alphas = alpha(counts), resampled_alphas(distinct, drawn)
    whole = None if point is None else interval(point, alphas[np.isfinite(alphas)])
    left_out = len(votes.items) - len(counts)
    return Agreement(len(counts), left_out, votes.annotators, int(counts.sum()), mean, whole)


def resampled_alphas(distinct: NDArray[np.int64], drawn: NDArray[np.int64]) -> Floats:
    """Nominal alpha of each resample, (resamples,); NaN if a resample has only one label.

    ``drawn[r][i]``: how often resample r contains the votes ``distinct[i]``. This is Krippendorff's formula (2011, section
    D) as sums over items; the package would take milliseconds for each of a thousand resamples.
    """
    sizes = distinct.sum(axis=1)
    disagreeing = (sizes**2 - (distinct**2).sum(axis=1)) / np.maximum(sizes - 1, 1)
    observed, totals = drawn @ disagreeing, (drawn @ distinct).astype(float)
    n = totals.sum(axis=1)
    expected = (n**2 - (totals**2).sum(axis=1)) / np.maximum(n - 1, 1)
    return np.where(expected > 0, 1.0 - observed / np.where(expected > 0, expected, 1.0), np.nan)


def rank(judgements: Sequence[Judgement], tasks: Sequence[str]) -> Ranking:
    """Order ``tasks`` by pairwise majority: a topological sort of "less subjective than".

    Cycles are broken at the majority with the smallest margin (on ties, the first by name). Tied pairs are ignored. Tasks
    that remain unordered are sorted by the share of their judgements that called them more subjective.
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
    """One edge for each pair of tasks with a majority, sorted by name."""
    votes: Counter[tuple[str, str]] = Counter()
    for judgement in judgements:
        other = judgement.task_b if judgement.more_subjective == judgement.task_a else judgement.task_a
        votes[other, judgement.more_subjective] += 1
    edges = [Edge(less, more, count, votes[more, less]) for (less, more), count in sorted(votes.items())]
    return [edge for edge in edges if edge.margin > 0]


def _weakest_in_a_cycle(graph: networkx.DiGraph) -> tuple[Edge, tuple[str, ...]] | None:
    """The edge with the smallest margin on a cycle, and a shortest cycle through it; None if there is no cycle."""
    part = {task: number for number, some in enumerate(networkx.strongly_connected_components(graph)) for task in some}
    # An edge lies on a cycle if and only if both ends are in the same strongly connected component.
    edges = [data["edge"] for less, more, data in graph.edges(data=True) if part[less] == part[more]]
    if not edges:
        return None
    weakest = min(edges, key=lambda edge: (edge.margin, edge.less, edge.more))
    return weakest, tuple(networkx.shortest_path(graph, weakest.more, weakest.less))


def accuracy_curve(
    agreement: Mapping[str, float], predictions: Sequence[Prediction], labels: Sequence[str]
) -> AgreementCurve:
    """Accuracy and macro-F1 on the texts with an agreement of at least gamma, for increasing gamma.

    ``agreement``: by example id, 0 to 1; texts without it are left out. Gammas are the values that occur, or 12 evenly
    spaced ones if there are more. Raises ``ValueError`` if no text has an agreement.
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
    of_accuracy = fit_line(x, [point.accuracy for point in points])
    of_macro_f1 = fit_line(x, [point.macro_f1 for point in points])
    return AgreementCurve(tuple(points), of_accuracy, of_macro_f1, rho, p_value)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The least-squares line; None for fewer than three points or constant x."""
    if len(x) < 3 or len(set(x)) < 2:
        return None
    fit = stats.linregress(x, y)
    # With constant y there is no variance to explain.
    r_squared = float(fit.rvalue**2) if len(set(y)) > 1 else 0.0
    return Line(float(fit.slope), float(fit.intercept), r_squared, *spearman(x, y))


def spearman(x: Sequence[float] | NDArray, y: Sequence[float] | NDArray) -> tuple[float | None, float | None]:
    """Spearman's rho and its two-sided p-value; None for fewer than three points or a constant side."""
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None, None
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


def _macro_f1(margins: Margins) -> float:
    """Macro-F1 over the classes that occur; a high threshold may leave a class without texts."""
    occurs = (margins.support + margins.predicted)[0] > 0
    return float(macro_f1(Margins(*(part[:, occurs] for part in margins)))[0])
