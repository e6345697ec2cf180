from dataclasses import replace

import pytest

from potstill.rows import (
    Example,
    Message,
    Prediction,
    Request,
    Response,
    Sampling,
    from_table,
    to_table,
)

REQUEST = Request(
    stage="generate",
    task="t",
    strategy="promptmix",
    renderer="list",
    provider="embedded",
    model="m",
    weights_digest="abc",
    messages=(Message("system", "Be brief."), Message("user", "Write.")),
    sampling=Sampling(0.7, 0.9, 32, ("\n",)),
    choices=("a", "b"),
    occurrence=2,
    target_label="a",
    alpha=0.85,
    exemplar_ids=("x",),
)


def test_requests_survive_their_table():
    assert from_table(to_table([REQUEST], Request), Request) == [REQUEST]
    assert from_table(to_table([REQUEST], Request), Request)[0].request_id == REQUEST.request_id


@pytest.mark.parametrize(
    "row",
    [
        Response("id", "text", "stop", (-0.5, None), 0.1, 3, 4, 0.0, 0.2, 1.0, None),
        Response("id", error="no"),
        Example("id", "text", "a", (0.25, 0.75), alpha=0.5, kept=False, dropped_because="duplicate"),
        Prediction("id", "a", (1.0, 0.0), "b"),
    ],
)
def test_other_rows_survive_their_table(row):
    assert from_table(to_table([row], type(row)), type(row)) == [row]


@pytest.mark.parametrize(
    "change",
    [
        {"provider": "openai"},
        {"model": "other"},
        {"weights_digest": None},
        {"messages": (Message("user", "Write."),)},
        {"sampling": Sampling(0.7, 0.9, 33, ("\n",))},
        {"choices": ("b", "a")},
        {"occurrence": 3},
        {"renderer": "chat"},
    ],
)
def test_fields_that_are_sent_change_the_id(change):
    assert replace(REQUEST, **change).request_id != REQUEST.request_id


@pytest.mark.parametrize(
    "change",
    [{"stage": "x"}, {"task": "x"}, {"strategy": "x"}, {"target_label": "b"}, {"alpha": None}, {"exemplar_ids": ()}],
)
def test_metadata_does_not_change_the_id(change):
    assert replace(REQUEST, **change).request_id == REQUEST.request_id


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_equal_numbers_give_the_same_id(zero):
    request = replace(REQUEST, sampling=Sampling(zero, 1, 32))
    assert request.request_id == replace(REQUEST, sampling=Sampling(0.0, 1.0, 32)).request_id
