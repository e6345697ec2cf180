"""``Answered`` joins plan and answers; compared with a dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.labels import answered as module
from potstill.rows import Message, Request, Response, Sampling
from tests.support.made_up import answered

REQUESTS = [
    Request("s", "t", "s", "r", "p", "m", None, (Message("user", "a"),), Sampling(), occurrence=i) for i in range(9)
]
PLACES = st.integers(0, len(REQUESTS) - 1)


@given(
    planned=st.lists(PLACES, max_size=20),
    told=st.dictionaries(PLACES, st.tuples(st.text(max_size=3), st.none() | st.just("timeout"))),
    order=st.randoms(use_true_random=False),
    row_group=st.integers(1, 4),
    start=st.integers(0, 12),
    count=st.none() | st.integers(0, 12),
)
def test_rows_follow_the_plan(planned, told, order, row_group, start, count) -> None:  # type: ignore[no-untyped-def]
    responses = [Response(REQUESTS[i].request_id, text, error=error) for i, (text, error) in told.items()]
    order.shuffle(responses)
    by_id = {response.request_id: response for response in responses}
    whole = answered([REQUESTS[i] for i in planned], by_id, row_group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", 3)
        good = {name: response.text for name, response in by_id.items() if response.error is None}
        expected = [(good.get(REQUESTS[i].request_id), REQUESTS[i].request_id) for i in planned]
        assert list(whole.rows("text", "request_id")) == expected
        part = whole.slice(start, count)
        assert list(part.rows("text", "request_id")) == expected[start:][:count]
        assert part.plan.num_rows == len(expected[start:][:count])
