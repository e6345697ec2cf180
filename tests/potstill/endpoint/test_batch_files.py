"""Files of the Batch API: round trips, limits at any size, and invalid result lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.endpoint.batch_files import (
    BatchStatus,
    Result,
    Room,
    count_fitting,
    looks_whole,
    read_result,
    read_status,
    shrink,
    to_line,
)

sizes = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=30)
rooms = st.builds(Room, st.integers(1, 20), st.integers(1, 300), st.none() | st.integers(1, 300))


@given(st.text(max_size=20), st.text(max_size=50))
def test_a_line_is_one_line_of_json(name, text):
    line = to_line(name, {"messages": [{"content": text}]})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    content = json.loads(line.decode("utf-8", "surrogatepass"))
    assert content["custom_id"] == name
    assert content["body"] == {"messages": [{"content": text}]}


def fits(chosen, room):
    length, tokens = sum(size for size, _ in chosen), sum(size for _, size in chosen)
    return len(chosen) <= room.lines and length <= room.bytes and (room.tokens is None or tokens <= room.tokens)


@given(sizes, rooms)
def test_a_file_holds_as_many_lines_as_fit(sizes, room):
    best = max((count for count in range(len(sizes) + 1) if fits(sizes[:count], room)), default=0)
    assert count_fitting(sizes, room) == min(len(sizes), max(1, best))


@given(st.integers(2, 10**9), st.integers(1, 10**9))
def test_refused_files_get_smaller_every_time(tokens, limit):
    room = Room()
    for _ in range(3):
        smaller = shrink(room, tokens, [f"Enqueued token limit reached. Limit: {limit:,} enqueued tokens."]).tokens
        assert smaller is not None
        assert 1 <= smaller < tokens or tokens == 1
        assert smaller <= max(1, 0.9 * limit) or smaller <= tokens // 2
        room, tokens = Room(tokens=smaller), smaller
    assert shrink(Room(), 100, ["no figures"]).tokens == 50
    assert shrink(Room(), 100, ["Limit: 50 enqueued"]).tokens == 45


@pytest.mark.parametrize("line", [b"", b"oops", b"[]", b"{}", b'{"custom_id": 3}', b'"x"', b'{"custom_id": "a'])
def test_invalid_result_lines_give_none(line):
    assert read_result(line) is None


def test_results_and_errors_are_read():
    good = {"custom_id": "a", "response": {"status_code": 200, "body": {"x": 1}}, "error": None}
    late = {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "too\nlate"}}
    assert read_result(json.dumps(good).encode()) == Result("a", 200, {"x": 1})
    assert read_result(json.dumps(late).encode()) == Result("a", None, None, "batch_expired: too late")
    assert read_result(b'{"custom_id": "a", "response": {}}') == Result("a", None, None, "no reply and no error")


def test_a_truncated_file_is_detected():
    lines = [b'{"a": 1}\n', b'{"a": 2}\n']
    assert looks_whole(lines, 2)
    assert not looks_whole(lines, 3)
    assert not looks_whole([lines[0], b'{"a": '], 1)
    assert not looks_whole([b"<html>\n"], 0)
    assert looks_whole([], 0)


def test_a_status_is_read_or_refused():
    content = {
        "id": "batch_1",
        "status": "failed",
        "request_counts": None,
        "errors": {"data": [{"code": "token_limit_exceeded", "message": "too  many", "line": 3}]},
    }
    status = read_status(content)
    assert status == BatchStatus("batch_1", "failed", errors=("too many (line 3)",), codes=("token_limit_exceeded",))
    assert status.ended
    assert status.lacks_room
    assert not read_status({"id": "x", "status": "cancelling"}).ended
    for nonsense in ("<html>", {}, None, {"id": 1}):
        with pytest.raises(ValueError, match="not a batch"):
            read_status(nonsense)
