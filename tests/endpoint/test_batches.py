"""Files and batches through the ``openai`` package."""

import asyncio
import json

import openai
import pytest

from tests.endpoint.asking import chat, post, with_client
from tests.endpoint.batches import CHAT_URL


def line(number, **changes):
    return {"custom_id": f"r{number}", "method": "POST", "url": CHAT_URL, "body": chat(f"Question {number}", **changes)}


def jsonl(lines):
    return "".join(json.dumps(content) + "\n" for content in lines).encode()


async def start(client, content, **fields):
    file = await client.files.create(file=("requests.jsonl", content), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h", metadata=fields or None
    )


async def finished(client, batch, states=("completed", "failed", "expired", "cancelled")):
    """The batch once it is in one of the states, and all states seen on the way."""
    seen = [batch.status]
    for _ in range(1500):
        batch = await client.batches.retrieve(batch.id)
        if batch.status != seen[-1]:
            seen.append(batch.status)
        if batch.status in states:
            return batch, seen
        await asyncio.sleep(0.02)
    raise AssertionError(seen)


async def results(client, file_id):
    content = await client.files.content(file_id)
    return {result["custom_id"]: result for result in map(json.loads, content.text.splitlines())}


def run(endpoint, content, **fields):
    async def use(client):
        batch, seen = await finished(client, await start(client, content, **fields))
        found = [await results(client, i) if i else {} for i in (batch.output_file_id, batch.error_file_id)]
        return batch, seen, *found

    return with_client(endpoint, use)


def test_a_batch_answers_as_single_requests_do(endpoint):
    batch, seen, output, errors = run(endpoint, jsonl(line(i) for i in range(120)), job="mine")
    assert seen[-1] == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (120, 120, 0)
    assert batch.metadata == {"job": "mine"}
    assert (errors, batch.error_file_id, batch.errors) == ({}, None, None)
    assert set(output) == {f"r{i}" for i in range(120)}
    assert list(output) != [f"r{i}" for i in range(120)]
    status, _, body = post(endpoint, line(7)["body"])
    single, batched = json.loads(body), output["r7"]["response"]
    assert batched["status_code"] == status == 200
    assert (batched["body"]["choices"], batched["body"]["usage"]) == (single["choices"], single["usage"])
    entries = [entry for entry in endpoint.book() if entry.route == "batch"]
    assert {entry.client_request_id for entry in entries} == set(output)
    assert all(entry.answered for entry in entries)


@pytest.mark.slow
def test_states_last_as_scripted_and_any_client_may_poll(endpoint):
    endpoint.script(batch_validating_s=0.8, batch_running_s=600)
    batch = with_client(endpoint, lambda client: start(client, jsonl([line(0)])))
    assert batch.status == "validating"
    running, _ = with_client(endpoint, lambda client: finished(client, batch, ("in_progress",)))
    assert running.request_counts.total == 1
    endpoint.script(batch_running_s=0)
    endpoint.hurry_batches()
    done, _ = with_client(endpoint, lambda client: finished(client, batch))
    assert done.status == "completed"
    assert done.created_at <= done.in_progress_at <= done.completed_at

    async def listed(client):
        return [found.id async for found in client.batches.list(limit=1)]

    other = with_client(endpoint, lambda client: start(client, jsonl([line(1)])))
    found = with_client(endpoint, listed)  # page after page
    assert found[:2] == [other.id, batch.id]
    with_client(endpoint, lambda client: finished(client, other))


def test_partial_failures_go_to_the_error_file(endpoint):
    endpoint.script(shares={"500": 0.2, "content_filter": 0.2, "hang": 0.2}, poison={"Question 3": 400})
    batch, _, output, errors = run(endpoint, jsonl([*(line(i) for i in range(60)), line(60, top_logprobs=2)]))
    assert batch.status == "completed"
    assert set(output) | set(errors) == {f"r{i}" for i in range(61)}
    assert not set(output) & set(errors)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (len(output), len(errors))
    statuses = {result["response"] and result["response"]["status_code"] for result in errors.values()}
    assert statuses == {None, 400, 500}
    assert {f"r{i}" for i in (3, *range(30, 40), 60)} <= set(errors)
    lost = [result for result in errors.values() if result["response"] is None]
    assert {result["error"]["code"] for result in lost} == {"server_error"}
    booked = {entry.client_request_id: entry for entry in endpoint.book() if entry.route == "batch"}
    assert {name for name, entry in booked.items() if entry.answered} == set(output)


def test_corrupt_bodies_stay_corrupt(endpoint):
    endpoint.script(shares={"truncated_json": 0.5, "no_choices": 0.5})
    _, _, output, _ = run(endpoint, jsonl(line(i) for i in range(20)))
    bodies = [result["response"]["body"] for result in output.values()]
    assert {type(body) for body in bodies} == {str, dict}


def test_a_batch_can_be_cancelled(endpoint):
    endpoint.script(batch_running_s=600)

    async def use(client):
        batch = await start(client, jsonl(line(i) for i in range(200)))
        await finished(client, batch, ("in_progress",))
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch, _ = await finished(client, batch)
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(batch.id)
        return batch, await results(client, batch.output_file_id) if batch.output_file_id else {}

    batch, output = with_client(endpoint, use)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed == len(output) < 200


def test_a_batch_can_be_cancelled_while_it_is_validated(endpoint):
    endpoint.script(batch_validating_s=600)

    async def use(client):
        batch = await start(client, jsonl([line(0)]))
        await client.batches.cancel(batch.id)
        return await finished(client, batch)

    batch, seen = with_client(endpoint, use)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)
    assert "in_progress" not in seen


def test_a_batch_can_expire(endpoint):
    endpoint.script(batch_expired_share=0.25)
    batch, _, output, errors = run(endpoint, jsonl(line(i) for i in range(40)))
    assert (batch.status, len(output), len(errors)) == ("expired", 30, 10)
    assert {result["error"]["code"] for result in errors.values()} == {"batch_expired"}
    assert sum(entry.route == "batch" for entry in endpoint.book()) == 30


@pytest.mark.parametrize(
    ("content", "script", "code", "at"),
    [
        (b"", {}, "empty_file", None),
        (jsonl([line(0)]) + b"{oops\n", {}, "invalid_json_line", 2),
        (jsonl([line(0), line(0)]), {}, "duplicate_custom_id", 2),
        (jsonl([{"method": "POST", "url": CHAT_URL, "body": chat()}]), {}, "missing_required_parameter", 1),
        (jsonl([line(0) | {"url": "/v1/embeddings"}]), {}, "invalid_url", 1),
        (jsonl(line(i) for i in range(4)), {"batch_max_lines": 3}, "max_requests_exceeded", None),
        (jsonl(line(i, max_tokens=99) for i in range(4)), {"batch_token_limit": 300}, "token_limit_exceeded", None),
    ],
)
def test_an_invalid_file_fails_the_batch(endpoint, content, script, code, at):
    endpoint.script(**script)
    batch, _, output, _ = run(endpoint, content)
    assert (batch.status, output) == ("failed", {})
    assert [(problem.code, problem.line) for problem in batch.errors.data] == [(code, at)]
    assert [entry for entry in endpoint.book() if entry.route == "batch"] == []


def test_files_are_returned_unchanged(endpoint):
    content = jsonl(line(i) for i in range(3))

    async def use(client):
        file = await client.files.create(file=("mine.jsonl", content), purpose="batch")
        assert (await client.files.retrieve(file.id)).filename == "mine.jsonl"
        assert (await client.files.content(file.id)).content == content
        assert file.id in [known.id async for known in client.files.list()]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h")
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_unknown")
        with pytest.raises(openai.BadRequestError):
            await client.files.create(file=("mine.jsonl", content), purpose="fine-tune")

    with_client(endpoint, use)


def test_the_batch_continues_when_polling_fails(endpoint):
    batch = with_client(endpoint, lambda client: start(client, jsonl([line(0)])))
    endpoint.script(api_shares={"502": 1})
    with pytest.raises(openai.InternalServerError):
        with_client(endpoint, lambda client: client.batches.retrieve(batch.id))
    endpoint.script(api_shares={})
    assert with_client(endpoint, lambda client: finished(client, batch))[0].status == "completed"
