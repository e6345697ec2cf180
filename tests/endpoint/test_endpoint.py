"""What clients see of the endpoint: its process, good answers, refusals of invalid requests, its book."""

import json
import os
import signal
import subprocess
import sys
import time

import openai
import psutil
import pytest

from potstill.prompts.contents import ChoosePrompt, ClassCard, WritePrompt
from potstill.prompts.render import render
from potstill.texts.parsing import read_reply
from tests.endpoint.asking import KEY, LABELS, ask, ask_all, chat, enum_format, post, with_client
from tests.endpoint.behaviour import Script
from tests.endpoint.book import content_digest
from tests.endpoint.client import ROOT, Endpoint

CARDS = tuple(ClassCard(name, f"The text is about {name}.", ("one", "two")) for name in ("weather", "food", "work"))


def messages(prompt):
    rendered, _ = render(prompt, "chat")
    return [{"role": message.role, "content": message.content} for message in rendered]


def write_prompt(count):
    return WritePrompt("A task.", "text", "texts", CARDS, count=count)


# -- the process


def start(*arguments):
    command = [sys.executable, "-m", "tests.endpoint", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_prints_its_address_and_ends_on_sigterm():
    process = start("--port", "0", "--script", '{"shares": {"hang": 1}}')
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        assert line.endswith("/v1\n")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ('{"latency_s": -1}', "latency_s"),
        ('{"latncy_s": 1}', "latncy_s"),
        ('{"shares": {"explode": 0.1}}', "explode"),
        ('{"shares": {"500": 0.6, "hang": 0.6}}', "1.2"),
        ("{", "JSON"),
    ],
)
def test_an_invalid_script_is_refused_by_field(script, named):
    process = start("--script", script)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert output == ""
    assert named in errors


@pytest.mark.slow
def test_it_ends_with_the_process_that_started_it():
    code = "from tests.endpoint.client import Endpoint; import time; print(Endpoint().pid, flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        server = psutil.Process(int(parent.stdout.readline()))
        assert server.is_running()
        os.kill(parent.pid, signal.SIGKILL)
        server.wait(300)
    finally:
        parent.kill()
        parent.communicate()


def test_script_changes_apply_to_later_requests(endpoint):
    assert endpoint.script() == Script()
    assert endpoint.script(latency_s=0.01, models=["other"]) == Script(latency_s=0.01, models=("other",))
    with pytest.raises(ValueError, match="shares"):
        endpoint.script(latency_s=5, shares={"explode": 1})
    assert endpoint.script().latency_s == 0.01
    with pytest.raises(openai.NotFoundError):
        ask(endpoint)


# -- good answers


@pytest.mark.slow
def test_two_runs_give_the_same_replies():
    prompts = [f"Question {i}" for i in range(5)]
    replies = []
    for seed in (0, 0, 1):
        with Endpoint(seed=seed) as endpoint:
            replies.append([reply.choices[0].message.content for reply in ask_all(endpoint, prompts)])
    assert replies[0] == replies[1]
    assert not set(replies[0]) & set(replies[2])
    assert len(set(replies[0])) == len(prompts)


def test_replies_vary_when_they_should(endpoint):
    endpoint.script(vary=True)
    assert len({ask(endpoint).choices[0].message.content for _ in range(4)}) == 4
    endpoint.script(vary=False)
    assert ask(endpoint, seed=1).choices[0].message.content != ask(endpoint, seed=2).choices[0].message.content


@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_list_has_as_many_lines_as_were_asked_for(endpoint, count):
    body = chat() | {"messages": messages(write_prompt(count)), "max_tokens": 2000}
    reply = with_client(endpoint, lambda client: client.chat.completions.create(**body))
    assert reply.choices[0].finish_reason == "stop"
    assert len(set(read_reply(reply.choices[0].message.content).texts)) == count


def test_a_choice_in_words_is_one_of_the_classes_shown(endpoint):
    prompt = ChoosePrompt("A task.", "text", "texts", CARDS, (("Soup.", "food"),), "It rains.")
    body = chat() | {"messages": messages(prompt)}
    answers = set()
    for seed in range(6):
        reply = with_client(endpoint, lambda client, s=seed: client.chat.completions.create(**body, seed=s))
        answers.add(reply.choices[0].message.content)
    assert answers <= {"weather", "food", "work"}


def test_scripted_options_and_answers(endpoint):
    endpoint.script(options=["yes", "no"], option_format="I'd say {}.")
    assert ask(endpoint).choices[0].message.content in ("I'd say yes.", "I'd say no.")
    endpoint.script(answers={"Faust": "Goethe"}, options=[])
    assert ask(endpoint, "Who wrote Faust?").choices[0].message.content == "Goethe"
    endpoint.script(answers={"rain": "C"})
    label = json.loads(ask(endpoint, "rain?", response_format=enum_format(LABELS)).choices[0].message.content)
    assert label == {"label": "C"}


@pytest.mark.slow
def test_an_upstream_server_can_answer(endpoint):
    with Endpoint(seed=5, keys=[KEY]) as behind:
        theirs = ask(behind).choices[0].message.content
        assert theirs != ask(endpoint).choices[0].message.content
        endpoint.script(upstream=behind.base_url)
        reply = ask(endpoint)
        assert reply.choices[0].message.content == theirs
        assert (
            endpoint.book()[-1].completion_tokens
            == reply.usage.completion_tokens
            == behind.book()[-1].completion_tokens
        )
        with pytest.raises(openai.AuthenticationError):
            ask(endpoint, key="sk-wrongwrongwrong")
        endpoint.script(shares={"truncated_json": 1})
        with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
            json.loads(post(endpoint, chat(), Authorization=f"Bearer {KEY}")[2])
        endpoint.script(shares={"500": 1})
        before = len(behind.book())
        with pytest.raises(openai.InternalServerError):
            ask(endpoint)
        assert len(behind.book()) == before
    endpoint.script(shares={})
    with pytest.raises(openai.InternalServerError) as gone:
        ask(endpoint)
    assert gone.value.status_code == 502


def test_usage_counts_the_tokens_of_the_answer(endpoint):
    short, long = ask(endpoint, "x" * 40).usage, ask(endpoint, "x" * 4000).usage
    assert (short.prompt_tokens, long.prompt_tokens) == (14, 1004)
    assert short.total_tokens == short.prompt_tokens + short.completion_tokens
    assert short.completion_tokens > 3
    entry = endpoint.book()[0]
    assert (entry.prompt_tokens, entry.completion_tokens) == (short.prompt_tokens, short.completion_tokens)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_cuts(endpoint, name):
    reply = ask(endpoint, **{name: 3})
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 3)
    assert ask(endpoint).choices[0].message.content.startswith(reply.choices[0].message.content)


def test_stop_strings_stop(endpoint):
    whole = ask(endpoint).choices[0].message.content
    end = whole[10:13]
    assert ask(endpoint, stop=[end, "never said"]).choices[0].message.content == whole[: whole.index(end)]


def test_reasoning_is_charged_and_can_use_up_the_whole_limit(endpoint):
    endpoint.script(reasoning_tokens=50)
    plain, cut = ask(endpoint), ask(endpoint, max_completion_tokens=40)
    assert plain.usage.completion_tokens > 50
    assert plain.usage.completion_tokens_details.reasoning_tokens == 50
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.usage.completion_tokens == 40


# -- who may ask what


def test_keys(endpoint):
    endpoint.script(keys=[KEY])
    ask(endpoint)
    with pytest.raises(openai.AuthenticationError) as wrong:
        ask(endpoint, key="sk-wrongwrongwrong")
    assert wrong.value.code == "invalid_api_key"
    assert "sk-wrongwrongwrong" not in str(wrong.value)
    status, _, body = post(endpoint, chat())
    assert status == 401
    assert b"didn't provide an API key" in body
    with pytest.raises(openai.AuthenticationError):
        with_client(endpoint, lambda client: client.models.retrieve("scripted-1"), key="sk-other")
    endpoint.script(echo_key=True)
    with pytest.raises(openai.AuthenticationError, match="sk-wrongwrongwrong"):
        ask(endpoint, key="sk-wrongwrongwrong")


def test_models(endpoint):
    endpoint.script(models=["small", "large"])

    async def names(client):
        return [model.id async for model in client.models.list()]

    assert with_client(endpoint, names) == ["small", "large"]
    assert with_client(endpoint, lambda client: client.models.retrieve("small")).id == "small"
    with pytest.raises(openai.NotFoundError):
        with_client(endpoint, lambda client: client.models.retrieve("huge"))
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(endpoint)
    assert unknown.value.code == "model_not_found"


def test_an_address_without_v1_is_an_error(endpoint):
    status, _, body = post(endpoint, chat(), path="/../chat/completions")
    assert status == 404
    assert json.loads(body)["error"]["message"] == "Invalid URL (POST /chat/completions)"


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"\xff\xfe",
        [1],
        {"messages": []},
        chat(n=2),
        chat(stream=True),
        chat() | {"messages": "hello"},
        chat() | {"messages": [{"role": "prompt", "content": "hello"}]},
        chat(max_tokens=0),
        chat(response_format={"type": "yaml"}),
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}),
        chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": []}}}),
        chat(temperature="hot"),
    ],
)
def test_an_invalid_request_is_a_400(endpoint, body):
    status, headers, answer = post(endpoint, body)
    assert (status, headers["Content-Type"].split(";")[0]) == (400, "application/json")
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    assert [(entry.status, entry.whole, entry.answered) for entry in endpoint.book()] == [(400, True, False)]


@pytest.mark.parametrize(
    ("script", "request_", "code", "param"),
    [
        ({"temperature": "refused"}, {"temperature": 0.7}, "unsupported_value", "temperature"),
        ({"max_tokens": "refused"}, {"max_tokens": 9}, "unsupported_parameter", "max_tokens"),
        ({"logprobs": "refused"}, {"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"structured_output": "refused"}, {"response_format": enum_format(LABELS)}, None, None),
        ({"refused_parameters": ["top_p"]}, {"top_p": 0.5}, "unsupported_parameter", "top_p"),
        ({}, {"logprobs": True, "top_logprobs": 21}, None, "top_logprobs"),
        ({"max_top_logprobs": 5}, {"logprobs": True, "top_logprobs": 6}, None, "top_logprobs"),
        ({}, {"top_logprobs": 2}, None, "top_logprobs"),
        ({"context_length": 50}, {"max_tokens": 60}, "context_length_exceeded", "messages"),
    ],
)
def test_unsupported_parameters_are_refused(endpoint, script, request_, code, param):
    ask(endpoint)
    endpoint.script(**script)
    ask(endpoint)  # still accepted
    with pytest.raises(openai.BadRequestError) as refused:
        ask(endpoint, **request_)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_a_reasoning_model_accepts_its_own_parameters(endpoint):
    endpoint.script(temperature="refused", max_tokens="refused")
    assert ask(endpoint, temperature=1, max_completion_tokens=50).choices[0].message.content


def test_capabilities_can_be_silently_ignored(endpoint):
    endpoint.script(logprobs="ignored", structured_output="ignored")
    choice = ask(endpoint, logprobs=True, top_logprobs=20, response_format=enum_format(LABELS)).choices[0]
    assert choice.logprobs is None
    assert not choice.message.content.startswith("{")


# -- the book


def test_the_book_records_what_was_asked(endpoint):
    before = time.time()
    first, second = chat("One"), chat("Two", temperature=0.5, max_tokens=20)
    post(endpoint, first, **{"X-Client-Request-Id": "mine"})
    post(endpoint, second)
    post(endpoint, chat("Two", temperature=0.5, max_completion_tokens=20))
    entries = endpoint.book()
    assert [entry.prompt for entry in entries] == ["One", "Two", "Two"]
    assert [entry.digest for entry in entries] == [content_digest(body) for body in (first, second, second)]
    assert [entry.attempt for entry in entries] == [0, 0, 1]
    assert [entry.client_request_id for entry in entries] == ["mine", "", ""]
    assert before <= entries[0].arrived <= entries[1].arrived <= time.time()
    assert all(entry.answered for entry in entries)
    assert endpoint.book(since=2) == entries[2:]
    summary = endpoint.summary()
    assert (summary["asked"], summary["contents"], summary["answered"]) == (3, 2, 3)
    assert summary["by_status"] == {"200": 3}


def test_the_digest_covers_only_what_is_asked():
    body = chat("One", temperature=0.5)
    assert content_digest(body) == content_digest(dict(reversed(body.items()))) == content_digest(body | {"user": "me"})
    others = [body | change for change in ({"model": "x"}, {"temperature": 1}, {"top_p": 0.5}, {"max_tokens": 5})]
    others += [chat("Two", temperature=0.5), body | {"stop": ["\n"]}, body | {"seed": 1}, body | {"logprobs": True}]
    assert len({content_digest(other) for other in [body, *others]}) == len(others) + 1
