"""Plan and answers side by side: against a dictionary."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from potstill.answered import iterate, join_answers

NAMES = st.sampled_from("abcdefgh")


@given(
    planned=st.lists(NAMES, max_size=12),
    answered=st.dictionaries(NAMES, st.tuples(st.none() | st.text(max_size=3), st.none() | st.just("timeout"))),
    cuts=st.integers(0, 12),
)
def test_the_join_is_a_look_up(
    planned: list[str], answered: dict[str, tuple[str | None, str | None]], cuts: int
) -> None:
    plan = pa.table({"request_id": pa.array(planned, pa.string()), "n": pa.array(range(len(planned)), pa.int64())})
    plan = pa.concat_tables([plan.slice(0, cuts), plan.slice(cuts)])
    responses = pa.table(
        {
            "request_id": pa.array(answered, pa.string()),
            "text": pa.array([text for text, _ in answered.values()], pa.string()),
            "error": pa.array([error for _, error in answered.values()], pa.string()),
        }
    )
    joined = join_answers(plan, responses)
    good = {name: text for name, (text, error) in answered.items() if error is None}
    assert list(iterate(joined, "n", "request_id", "text")) == [
        (n, name, good.get(name)) for n, name in enumerate(planned)
    ]
