import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.endpoint.chat import TOP, Abilities, body, give_up, most_completion_tokens, read_choice, reasons
from potstill.prompts.codes import code_names
from potstill.rows import Message, Request, Sampling

ALL = Abilities()
CLASSES = ("refund", "billing", "app error")


def request(choices=(), **sampling):
    return Request(
        "generate",
        "t",
        "s",
        "codes",
        "host",
        "m",
        None,
        (Message("system", "be kind"), Message("user", "go")),
        Sampling(
            **{"temperature": 0.7, "top_p": 0.9, "max_tokens": 50, "stop": ("\n", "5.", "6.", "7.", "8."), **sampling}
        ),
        choices,
    )


def top(**masses):
    return [{"token": token, "logprob": math.log(mass)} for token, mass in masses.items()]


def test_a_request_for_text_as_a_body():
    assert body(request(), "gpt", ALL) == {
        "model": "gpt",
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "go"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 50,
        "stop": ["\n", "5.", "6.", "7."],
    }


def test_a_request_for_a_class_locks_the_answer_and_asks_for_probabilities():
    content = body(request(CLASSES), "gpt", ALL)
    schema = content["response_format"]["json_schema"]["schema"]
    assert sorted(schema["properties"]["class"]["enum"]) == ["A", "B", "C"]
    assert schema["additionalProperties"] is False
    assert (content["logprobs"], content["top_logprobs"]) == (True, TOP)
    assert "stop" not in content


def test_a_reasoning_model_gets_room_to_think_and_no_temperature():
    abilities = Abilities(temperature=False, completion_tokens=True)
    content = body(request(), "o9", abilities)
    assert not {"temperature", "top_p", "max_tokens"} & set(content)
    assert content["max_completion_tokens"] == most_completion_tokens(request(), abilities) > 1000


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("o1", True),
        ("o4-mini-2025-04-16", True),
        ("gpt-5", True),
        ("openai/gpt-5-mini", True),
        ("gpt-5-chat-latest", False),
        ("gpt-4o-mini", False),
        ("olmo-2", False),
        ("o100-large", False),
        ("my-o3", False),
    ],
)
def test_models_that_think_are_known_by_name(model, thinks):
    assert reasons(model) is thinks


@pytest.mark.parametrize(
    ("param", "message", "lost"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model.", "temperature"),
        (None, "Unsupported parameter: 'top_logprobs'", "logprobs"),
        (None, "response_format of type json_schema is not supported", "schema"),
        ("stop", "'stop' is not supported with this model", "stop"),
    ],
)
def test_a_refused_parameter_is_left_out(param, message, lost):
    assert getattr(give_up(ALL, param, message), lost) is False


def test_required_parameters_are_not_left_out():
    changed = give_up(ALL, "max_tokens", "use 'max_completion_tokens' instead")
    assert changed is not None
    assert changed.completion_tokens
    assert give_up(changed, "max_tokens", "too large") is None
    assert give_up(ALL, "messages", "context_length_exceeded") is None


@pytest.mark.parametrize(
    ("param", "message"),
    [
        (
            None,
            "'max_tokens' or 'max_completion_tokens' is too large: 96. This model's maximum context length is 4096 tokens "
            "and your request has 4040 input tokens (96 > 4096 - 4040). (parameter=max_tokens, value=96)",
        ),
        ("max_tokens", "'max_tokens' or 'max_completion_tokens' is too large: 96."),
        ("max_tokens", "max_tokens is too large: 99999. This model supports at most 16384 completion tokens."),
        (None, "This model's maximum context length is 4096 tokens. However, you requested 64 (max_tokens) more."),
    ],
)
def test_a_request_that_is_too_long_changes_no_ability(param, message):
    assert give_up(ALL, param, message) is None


def test_prompt_words_quoted_in_an_error_are_not_parameters():
    """Otherwise a prompt about temperature would switch the temperature off for all requests."""
    prompts = ("Write of the Temperature and a bus stop.",)
    message = "invalid request: 'Write of the temperature and a bus stop.'"
    assert give_up(ALL, None, message, prompts) is None
    assert give_up(ALL, None, "temperature is not supported", ["Write of the sun."]) == Abilities(temperature=False)
    assert give_up(ALL, "temperature", "is not supported", prompts) == Abilities(temperature=False)
    assert give_up(ALL, None, "The request was stopped by our policy.", ["Write of the sun."]) is None
    assert give_up(ALL, None, f"{message}: unknown field top_logprobs", prompts) == Abilities(logprobs=False)


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=70, unique=True), st.data())
def test_a_bare_code_is_a_vote_for_its_class(names, data):
    asked = request(tuple(names))
    name = data.draw(st.sampled_from(names))
    code = code_names(names)[name]
    if code.strip("\"'`*.:()[] ") != code or not code.strip():
        return  # a class named only by punctuation, without a code
    for text in (code, json.dumps({"class": code})):
        chosen = read_choice(asked, text, None)
        assert chosen is not None
        assert chosen.logprobs[names.index(name)] == 0.0
        assert sum(value is not None for value in chosen.logprobs) == 1


def test_the_distribution_is_read_at_the_token_of_the_code():
    """Structured output puts other tokens before the code; alternatives may start with a space or a quote."""
    tokens = [
        {"token": '{"', "top_logprobs": top(A=0.9)},
        {"token": "class", "top_logprobs": top(**{"class": 1.0})},
        {"token": '":"', "top_logprobs": []},
        {"token": "B", "top_logprobs": top(B=0.5, A=0.2, **{" A": 0.1, '"C': 0.05, "Hm": 0.1})},
        {"token": '"}', "top_logprobs": []},
    ]
    asked = request(CLASSES)
    codes = code_names(CLASSES)
    chosen = read_choice(asked, '{"class":"B"}', tokens)
    assert chosen is not None
    by_code = dict(zip(codes.values(), chosen.logprobs, strict=True))
    assert math.exp(by_code["A"]) == pytest.approx(0.3)
    assert math.exp(by_code["B"]) == pytest.approx(0.5)
    assert math.exp(by_code["C"]) == pytest.approx(0.05)
    assert chosen.residual == pytest.approx(0.15)


def test_a_class_outside_the_top_tokens_has_no_probability():
    chosen = read_choice(request(CLASSES), "A", [{"token": "A", "top_logprobs": top(A=0.8, B=0.15)}])
    assert chosen is not None
    assert sorted(value is None for value in chosen.logprobs) == [False, False, True]
    assert chosen.residual == pytest.approx(0.05)


@pytest.mark.parametrize("text", ["", "I can't say.", "[1, 2]", "refund or billing"])
def test_a_reply_that_names_no_class(text):
    assert read_choice(request(CLASSES), text, None) is None


def test_structured_output_has_room_beside_the_answer():
    """llama.cpp indents its JSON and opens it with a Markdown fence: 24 tokens around a letter."""
    names = tuple(f"card payment {i}" for i in range(77))
    for classes, more in ((CLASSES, 24), (names, 24 + len("card payment 10"))):
        asked = request(classes)
        assert body(asked, "m", ALL)["max_tokens"] >= asked.sampling.max_tokens + more
        assert body(asked, "m", ALL)["max_tokens"] == most_completion_tokens(asked, ALL)
        plain = Abilities(schema=False)
        assert body(asked, "m", plain)["max_tokens"] == asked.sampling.max_tokens


def test_a_truncated_name_does_not_match_a_shorter_one():
    names = tuple(f"card payment {i}" for i in range(77))
    assert read_choice(request(names), '{\n  "class": "card payment 1', None) is None
    fenced = read_choice(request(names), '```json\n{\n  "class": "card payment 1"\n}\n```', None)
    assert fenced is not None
    assert fenced.logprobs.index(0.0) == 1


def test_77_classes_that_begin_alike():
    names = tuple(f"card payment {i}" for i in range(77))
    chosen = read_choice(request(names), '{"class": "card payment 7"}', None)
    assert chosen is not None
    assert chosen.logprobs.index(0.0) == 7
