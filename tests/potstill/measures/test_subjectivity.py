"""Agreement against published worked examples, rankings and curves against hand-worked cases."""

import csv

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from potstill.errors import InputError
from potstill.measures import subjectivity
from potstill.measures.annotations import Judgement, Votes, read_annotations, read_judgements, read_rows
from potstill.rows import Prediction

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: one line per annotator, dots are missing votes.
SECTION_C = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}


def votes_of(lines):
    """Votes from a line of labels for each annotator; a dot is a missing vote."""
    rows = [
        {"item": str(item), "annotator": name, "label": label}
        for name, line in lines.items()
        for item, label in enumerate(line.split())
        if label != "."
    ]
    return read_annotations(rows)


def test_krippendorff_2011_section_a_binary_two_observers():
    votes = votes_of({"Meg": "0 1 0 0 0 0 0 0 1 0", "Owen": "1 1 1 0 0 1 0 0 0 0"})
    assert subjectivity.alpha(votes.counts) == pytest.approx(0.095, abs=5e-4)


def test_krippendorff_2011_section_b_nominal_two_observers():
    votes = votes_of({"Ben": "a a b b d c c c e d d a", "Gerry": "b a b b b c c c e d d d"})
    assert subjectivity.alpha(votes.counts) == pytest.approx(0.692, abs=5e-4)


def test_krippendorff_2011_section_c_missing_votes():
    votes = votes_of(SECTION_C)
    assert subjectivity.alpha(votes.counts) == pytest.approx(0.743, abs=5e-4)
    measured = subjectivity.measure(votes)
    # Item 12 has one vote, which pairs with none: 40 of the 41 votes count.
    assert (measured.items, measured.left_out, measured.votes, measured.annotators) == (11, 1, 40, 4)
    by_hand = [1, 3 / 4, 1, 1, 1, 1 / 4, 1, 3 / 4, 1, 1, 1]
    assert subjectivity.instance_agreement(votes.counts)[:11] == pytest.approx(by_hand)
    assert measured.mean.value == pytest.approx(np.mean(by_hand))
    assert measured.alpha.low < 0.743 < measured.alpha.high <= 1.0


def test_a_hand_worked_case_with_missing_votes():
    # Items: xx, xy, y. -> pairs: item 1 agrees, item 2 does not, item 3 pairs with nothing.
    votes = votes_of({"p": "x x y", "q": "x y ."})
    # n = 4 pairable values, x 3, y 1. Observed disagreement 2/4, expected 2*3*1/(4*3) = 1/2.
    assert subjectivity.alpha(votes.counts) == pytest.approx(0.0)
    assert subjectivity.measure(votes).mean.value == pytest.approx((1 + 0.5) / 2)


def test_one_label_for_all_has_no_alpha():
    measured = subjectivity.measure(votes_of({"p": "x x x", "q": "x x x"}))
    assert measured.alpha is None
    assert measured.mean.value == 1.0


def test_no_item_with_two_votes_measures_nothing():
    assert subjectivity.measure(votes_of({"p": "x .", "q": ". y"})) is None


COUNTS = arrays(np.int64, st.tuples(st.integers(2, 12), st.integers(2, 4)), elements=st.integers(0, 4))


@given(COUNTS)
def test_the_bootstraps_formula_is_the_packages(counts):
    counts = counts[counts.sum(axis=1) > 1]
    found = subjectivity.resampled_alphas(counts, np.ones((1, len(counts)), dtype=np.int64))
    if np.count_nonzero(counts.sum(axis=0)) > 1:
        expected = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
        assert found[0] == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(found[0])


@given(COUNTS)
def test_permuting_items_and_labels_changes_nothing(counts):
    alpha = subjectivity.alpha(counts)
    assert subjectivity.alpha(counts[::-1, ::-1]) == (None if alpha is None else pytest.approx(alpha))


def test_the_interval_covers_the_truth_at_its_nominal_rate():
    """Two annotators who copy a coin with probability 0.6: alpha is 0.36; a 95 % interval sometimes misses it."""
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        coin = rng.integers(2, size=(300, 1))
        labels = np.where(rng.random((300, 2)) < 0.6, coin, rng.integers(2, size=(300, 2)))
        counts = np.stack([(labels == c).sum(axis=1) for c in (0, 1)], axis=1)
        votes = Votes(tuple(map(str, range(300))), ("0", "1"), counts, 2)
        interval = subjectivity.measure(votes, seed=trial, resamples=300).alpha
        inside += interval.low <= 0.36 <= interval.high
    assert 50 <= inside <= 60


def test_all_problems_of_an_annotation_file_are_reported_at_once(tmp_path):
    place = tmp_path / "votes.csv"
    with place.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["item", "annotator", "label"],
                ["1", "ann", "spam"],
                ["1", "ann", "ham"],
                ["2", "ann", "eggs"],
                ["", "ann", "ham"],
                ["3", "ann", ""],
            ]
        )
    with pytest.raises(InputError) as caught:
        read_annotations(read_rows(place), ["spam", "ham"], "votes.csv")
    lines = str(caught.value).splitlines()
    assert lines == [
        "votes.csv: column 'item' is empty in row 4; fill it or drop the row",
        "votes.csv: column 'label' is empty in row 5; fill it or drop the row",
        "votes.csv: label = 'eggs': is not a class (row 3); classes: 'spam', 'ham'",
        "votes.csv: only one vote per annotator and item is allowed, but '1' by 'ann' in rows 1 and 2; keep one of each",
        "votes.csv: all votes are by 'ann'; agreement needs at least two annotators",
    ]


def test_files_without_annotations_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no column 'label'; its columns: 'item', 'annotator', 'vote'"):
        read_annotations([{"item": "1", "annotator": "a", "vote": "x"}])
    with pytest.raises(InputError, match="there are no votes"):
        read_annotations([])
    with pytest.raises(InputError, match=r"known: \.csv, \.jsonl, \.parquet"):
        read_rows(tmp_path / "votes.xlsx")
    with pytest.raises(InputError, match="can't be read"):
        read_rows(tmp_path / "missing.csv")


def test_csv_cells_stay_text_and_jsonl_is_read_too(tmp_path):
    (tmp_path / "v.csv").write_text("item,annotator,label\n007,1,yes\n007,2,no\n")
    votes = read_annotations(read_rows(tmp_path / "v.csv"))
    assert (votes.items, votes.labels, votes.counts.tolist()) == (("007",), ("no", "yes"), [[1, 1]])
    (tmp_path / "v.jsonl").write_text(
        '{"item": 7, "annotator": "a", "label": "x"}\n{"item": 7, "annotator": "b", "label": "x"}\n'
    )
    assert read_annotations(read_rows(tmp_path / "v.jsonl")).items == ("7",)


def judged(*pairs):
    """Judgements from "less < more" strings, one judge each."""
    rows = []
    for number, pair in enumerate(pairs):
        less, more = pair.split(" < ")
        rows.append(Judgement(f"judge {number}", less, more, more))
    return rows


def test_majorities_and_topological_order():
    ranking = subjectivity.rank(
        judged("news < tweets", "news < tweets", "tweets < news", "tweets < humour", "news < humour"),
        ["humour", "news", "tweets"],
    )
    assert ranking.tasks == ("news", "tweets", "humour")
    assert ranking.broken == ()
    assert ranking.undecided == ()


def test_a_cycle_is_broken_at_its_weakest_majority_and_reported():
    ranking = subjectivity.rank(
        judged(*["a < b"] * 3, *["b < c"] * 2, *["c < a"] * 4, "a < c", "a < c", "a < c"), ["a", "b", "c"]
    )
    # c < a wins 4 to 3, the weakest margin of the cycle a < b < c < a.
    assert ranking.tasks == ("a", "b", "c")
    ((edge, cycle),) = ranking.broken
    assert str(edge) == "c < a (4 to 3)"
    assert set(cycle) == {"a", "b", "c"}


def test_pairs_without_a_judgement_are_undecided():
    ranking = subjectivity.rank(judged("a < b"), ["b", "a", "lonely"])
    assert ranking.tasks == ("a", "lonely", "b")
    assert ranking.undecided == (("a", "lonely"), ("lonely", "b"))


TASKS = list("abcde")
EDGES = st.lists(st.tuples(st.sampled_from(TASKS), st.sampled_from(TASKS)).filter(lambda p: p[0] != p[1]), max_size=40)


@given(EDGES)
def test_the_order_keeps_every_majority_that_was_not_reported(pairs):
    judgements = judged(*(f"{less} < {more}" for less, more in pairs))
    ranking = subjectivity.rank(judgements, TASKS)
    assert sorted(ranking.tasks) == TASKS
    place = {task: i for i, task in enumerate(ranking.tasks)}
    broken = {edge for edge, _ in ranking.broken}
    for edge in subjectivity.majorities(judgements):
        assert edge in broken or place[edge.less] < place[edge.more]
    for edge, cycle in ranking.broken:  # each reported one did lie on a cycle
        assert (cycle[0], cycle[-1]) == (edge.more, edge.less)


def test_all_problems_of_judgements_are_reported_at_once():
    rows = [
        {"judge": "j", "task_a": "a", "task_b": "b", "more_subjective": "a"},
        {"judge": "j", "task_a": "b", "task_b": "a", "more_subjective": "b"},
        {"judge": "j", "task_a": "a", "task_b": "z", "more_subjective": "a"},
        {"judge": "k", "task_a": "a", "task_b": "a", "more_subjective": "a"},
        {"judge": "k", "task_a": "a", "task_b": "b", "more_subjective": "c"},
        {"judge": "k", "task_a": "a", "task_b": None, "more_subjective": "a"},
    ]
    with pytest.raises(InputError) as caught:
        read_judgements(rows, ["a", "b"], "pairs.csv")
    assert str(caught.value).splitlines() == [
        "pairs.csv: column 'task_b' is empty in row 6; fill it or drop the row",
        "pairs.csv: row 2: 'j' already judged 'b' and 'a' in row 1; keep one",
        "pairs.csv: row 3: no task 'z'; tasks: a, b",
        "pairs.csv: row 4: 'a' is compared with itself",
        "pairs.csv: row 5: more_subjective = 'c' is neither 'a' nor 'b'",
    ]


def predictions(right):
    return [Prediction(str(i), "x", (1.0, 0.0), "x" if one else "y") for i, one in enumerate(right)]


def test_an_accuracy_curve_by_hand():
    # Agreement 0.6, 0.8, 1.0; half, then two of three, then all right among those at or above it.
    agreement = {"0": 0.6, "1": 0.6, "2": 0.8, "3": 0.8, "4": 1.0, "5": 1.0}
    curve = subjectivity.accuracy_curve(agreement, predictions([0, 0, 0, 1, 1, 1, 0]), ["x", "y"])
    assert [(p.gamma, p.texts, p.accuracy) for p in curve.points] == [
        (0.6, 6, 0.5),
        (0.8, 4, 0.75),
        (1.0, 2, 1.0),
    ]
    assert curve.of_accuracy.slope == pytest.approx(1.25)
    assert curve.of_accuracy.intercept == pytest.approx(-0.25)
    assert curve.of_accuracy.r_squared == pytest.approx(1.0)
    assert curve.of_accuracy.rho == pytest.approx(1.0)
    expected = stats.spearmanr([0.6, 0.6, 0.8, 0.8, 1.0, 1.0], [0, 0, 0, 1, 1, 1])
    assert (curve.rho, curve.p_value) == pytest.approx((expected.statistic, expected.pvalue))


def test_a_curve_of_many_values_has_few_points_and_a_flat_one_no_rho():
    agreement = {str(i): i / 99 for i in range(100)}
    curve = subjectivity.accuracy_curve(agreement, predictions([1] * 100), ["x", "y"])
    assert len(curve.points) == subjectivity.MOST_POINTS
    assert curve.points[-1].accuracy == 1.0
    assert (curve.rho, curve.of_accuracy.rho, curve.of_accuracy.r_squared) == (None, None, 0.0)
    with pytest.raises(ValueError, match="no predictions"):
        subjectivity.accuracy_curve({}, predictions([1]), ["x", "y"])
