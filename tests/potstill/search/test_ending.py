"""Early end of a search."""

import pytest

from potstill.search.ending import Ending, gist


def test_the_first_three_trials_with_one_error_end_it():
    ending = Ending()
    ending.failed("no such model")
    ending.failed("no such model")
    assert ending.reason is None
    ending.failed("no such model")
    assert ending.error == "no such model"
    assert "first 3 trials failed with the same error" in ending.reason


def test_errors_that_differ_only_in_counts_are_equal():
    ending = Ending()
    for count in (12, 12, 18):
        ending.failed(f"{count} of {count} requests failed: HTTP 400")
    assert ending.error == "18 of 18 requests failed: HTTP 400"
    assert gist("HTTP 400: 3 times") == gist("HTTP 400: 4 times") != gist("HTTP 401: 4 times")


@pytest.mark.parametrize("between", ["another error", None])
def test_errors_among_other_outcomes_do_not(between):
    ending = Ending()
    if between is None:
        ending.succeeded(0.0)
    else:
        ending.failed(between)
    for _ in range(5):
        ending.failed("no usable text for class 'a'")
    assert ending.reason is None


def test_budget_and_deadline():
    ending = Ending(budget_usd=1.0, deadline=100.0)
    ending.succeeded(0.99)
    ending.passed(99.9)
    assert ending.reason is None
    ending.succeeded(1.0)
    assert "search.budget_usd" in ending.reason
    late = Ending(deadline=100.0)
    late.passed(100.0)
    assert "budget_hours" in late.reason


def test_an_exhausted_teacher_budget_ends_it_at_once():
    ending = Ending()
    ending.failed("the teacher broke off: budget_usd = 1 reached: $0.9998 spent")
    assert "budget_usd = 1 reached" in ending.reason
    assert ending.error is None
