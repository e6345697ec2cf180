"""Figures show their data with 2 and with 77 classes, as PNG and as SVG."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from jobs.report.figures import AlphaBin, Curve, Dot, alpha_bins, changes, confusion, curves, relabelling
from jobs.report.svg import as_svg

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
        confusion(rng.integers(0, 9, (size, size)), labels, "Confusion"),
        changes([(label, rng.random(), rng.random()) for label in labels], ("seeds only", "distilled"), "F1"),
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
    axes = confusion([[3, 1], [0, 0]], ["a", "b"]).axes[0]
    assert [patch.get_alpha() for patch in axes.patches] == [0.75 * 0.75, 0.75 * 0.25]
    assert [text.get_text() for text in axes.texts] == ["3", "1"]


def test_bars_are_labelled_with_counts(tmp_path: Path) -> None:
    figure = relabelling([AlphaBin(0.5, 0.75, 4, 1), AlphaBin(0.75, 1.0, 0, 0)])
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["0.50 to 0.75 (1 of 4)"]  # an empty bin has no share
    relabelling([]).savefig(tmp_path / "empty.png")


def test_counts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        confusion([[1, 2, 3]], ["a", "b"])


def test_svg_replaces_what_xml_forbids() -> None:
    svg = as_svg(confusion([[1, 0], [0, 1]], ["a\x01b", "c\ufffe"]), "t\x00")
    assert "a\ufffdb" in svg
    assert "t\ufffd" in svg
    ElementTree.fromstring(svg)


def test_svg_is_text_in_the_pages_colours_and_the_same_every_time() -> None:
    def draw() -> str:
        return as_svg(curves([Curve("<b>& $1", [Dot(0.0, 1.0, "tip <i>"), Dot(1.0, 2.0)])] * 2, "x", "y"), "a <title>")

    svg = draw()
    assert svg == draw()
    assert svg.startswith('<svg viewBox="0 0 ')
    assert "<title>a &lt;title&gt;</title>" in svg
    assert "<title>tip &lt;i&gt;</title>" in svg
    assert ">&lt;b&gt;&amp; $1</text>" in svg
    assert "var(--s0)" in svg
    assert not re.search(r"#[0-9a-f]{6}|\bid=|<style|<image|<metadata|https?:|url\(|font-family", svg)
    assert set(re.findall(r"<(\w+)", svg)) == {"svg", "g", "path", "text", "title"}
