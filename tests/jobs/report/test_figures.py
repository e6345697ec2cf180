"""The figures hold what they were given, at two classes and at seventy-seven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.report.figures import AlphaBin, alpha_bins, class_scores_figure, confusion_figure, relabelling_figure

MANY = [f"{'card_payment_fee_charged' if i % 2 else 'wrong_exchange_rate_for_cash_withdrawal'}_{i}" for i in range(77)]


def test_alpha_is_counted_by_value_where_values_are_few() -> None:
    bins = alpha_bins([0.6, None, 0.9, 0.6], [True, True, False, False])
    assert bins == [AlphaBin(0.6, 0.6, 2, 1), AlphaBin(0.9, 0.9, 1, 0)]
    assert bins[0].share == 0.5


def test_alpha_is_counted_in_equal_bins_where_values_are_many() -> None:
    alphas = np.linspace(0.5, 1.0, 101)
    bins = alpha_bins(alphas.tolist(), [alpha < 0.75 for alpha in alphas], most_bins=5)
    assert [item.texts for item in bins] == [20, 20, 20, 20, 21]
    assert sum(item.relabelled for item in bins) == sum(alphas < 0.75)
    assert bins[0].low == 0.5
    assert bins[-1].high == 1.0


def test_no_mixed_texts_give_no_bins() -> None:
    assert alpha_bins([None, None], [True, False]) == []


@pytest.mark.parametrize("labels", [["subjective", "objective"], ["costs $5", "costs $10", "x" * 80], MANY])
def test_figures_are_drawn_at_any_number_of_classes(labels: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = len(labels)
    figures = [
        confusion_figure(rng.integers(0, 9, (size, size)), labels),
        class_scores_figure(labels, rng.random(size).tolist(), rng.random(size).tolist()),
    ]
    for figure in figures:
        figure.savefig(tmp_path / "figure.png", dpi=60)
        assert (tmp_path / "figure.png").stat().st_size > 1000
        width, height = figure.get_size_inches()
        assert max(width, height) < 24
    axes = figures[0].axes[0]
    drawn = [text.get_text() for text in axes.get_yticklabels()]
    assert len(drawn) == size


def test_cells_hold_the_counts_and_colours_the_shares() -> None:
    axes = confusion_figure([[3, 1], [0, 0]], ["a", "b"]).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3", "4 texts, 75.0 % correct"]


def test_bars_are_labelled_with_counts(tmp_path: Path) -> None:
    figure = relabelling_figure([AlphaBin(0.5, 0.75, 4, 1), AlphaBin(0.75, 1.0, 0, 0)])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1/4", "0/0", "1 of 4 texts relabelled"]
    relabelling_figure([]).savefig(tmp_path / "empty.png")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        confusion_figure([[1, 2, 3]], ["a", "b"])
    with pytest.raises(ValueError, match="2 labels"):
        class_scores_figure(["a", "b"], [0.5], [0.5])
