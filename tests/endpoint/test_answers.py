"""Replies and their log-probabilities against brute-force references and JSON schemas."""

import json
import math

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.endpoint.answers import Fork, compose, distribution, logprobs_of, options_in
from tests.endpoint.asking import LABELS, ask, chat, enum_format
from tests.endpoint.behaviour import Script

NAMES = st.lists(st.from_regex(r"[a-z]{1,6}(_[a-z]{1,6}){0,2}", fullmatch=True), min_size=2, max_size=12, unique=True)
SEVENTY_SEVEN = [f"card_payment_{'abcdefghijk'[i % 11]}{'lmnopqr'[i // 11]}_fee" for i in range(77)]

SCHEMAS = st.recursive(
    st.one_of(
        st.builds(lambda values: {"type": "string", "enum": values}, NAMES),
        st.sampled_from([{"type": name} for name in ("string", "integer", "number", "boolean", "null")]),
        st.just({"const": "fixed"}),
        st.just({"enum": [1, 2, "three", None]}),
        st.just({"type": ["string", "null"]}),
        st.just({"$ref": "#/$defs/Colour"}),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda names, value: {
                "type": "object",
                "properties": dict.fromkeys(names, value),
                "required": names,
                "additionalProperties": False,
            },
            NAMES,
            inner,
        ),
        st.builds(lambda value, least: {"type": "array", "items": value, "minItems": least}, inner, st.integers(0, 3)),
        st.builds(lambda value: {"anyOf": [value, {"type": "null"}]}, inner),
    ),
    max_leaves=4,
)


def reply_to(script=None, **changes):
    return compose(script or Script(), chat(**changes), 0)


@settings(max_examples=60)
@given(schema=SCHEMAS)
def test_structured_replies_obey_their_schema(schema):
    schema = {**schema, "$defs": {"Colour": {"type": "string", "enum": ["red", "blue"]}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    jsonschema.validate(json.loads(reply_to(response_format=wanted).text), schema)


@settings(max_examples=40)
@given(
    names=NAMES, temperature=st.sampled_from([0, 1]), seed=st.integers(0, 5), stray=st.sampled_from([0.0, 0.02, 0.5])
)
def test_tokens_have_the_probability_of_the_option_they_spell(names, temperature, seed, stray):
    """Product over the tokens = P(option); the rest of each place is other options and stray tokens, and sums to 1."""
    changes = {"temperature": temperature, "seed": seed, "response_format": enum_format(names)}
    reply = reply_to(Script(stray_mass=stray), **changes)
    chosen = json.loads(reply.text)["label"]
    forks = [token for token in reply.tokens if isinstance(token, Fork)]
    likelihood = 1.0
    for fork in forks:
        alternatives = dict(fork.alternatives)
        assert len(alternatives) == len(fork.alternatives)
        assert sum(alternatives.values()) == pytest.approx(1)
        likelihood *= alternatives[fork.text] / (1 - stray)
    # The distribution is the same for every seed and temperature: ask for each option by name.
    total = {}
    for name in names:
        again = reply_to(Script(stray_mass=stray, answers={"Say": name}), **changes)
        assert json.loads(again.text)["label"] == name
        product = 1.0
        for token in again.tokens:
            if isinstance(token, Fork):
                product *= dict(token.alternatives)[token.text] / (1 - stray)
        total[name] = (product - 0.9) / 0.1  # a scripted answer has nine tenths of the mass, then its own share
    assert sum(total.values()) == pytest.approx(1)
    assert likelihood == pytest.approx(total[chosen], abs=1e-9)
    if temperature == 0:
        assert likelihood == pytest.approx(max(total.values()), abs=1e-9)


def test_options_are_drawn_by_their_probabilities():
    shares = dict.fromkeys(LABELS, 0)
    for seed in range(3000):
        shares[json.loads(reply_to(seed=seed, response_format=enum_format(LABELS)).text)["label"]] += 1 / 3000
    (fork,) = [t for t in reply_to(response_format=enum_format(LABELS)).tokens if isinstance(t, Fork)]
    for label, share in shares.items():
        assert share == pytest.approx(dict(fork.alternatives)[label] / 0.98, abs=0.03)


@pytest.mark.parametrize("count", [2, 6, 77])
def test_distributions_are_neither_flat_nor_certain(count):
    tops = []
    for i in range(200):
        probabilities = distribution([str(n) for n in range(count)], str(i))
        assert sum(probabilities) == pytest.approx(1)
        tops.append(max(probabilities))
    assert 0.3 < sum(tops) / len(tops) < 0.95


def test_a_short_code_is_one_token_and_a_long_name_several():
    (code,) = [t for t in reply_to(response_format=enum_format(LABELS)).tokens if isinstance(t, Fork)]
    assert code.text in LABELS
    forks = [t for t in reply_to(response_format=enum_format(SEVENTY_SEVEN)).tokens if isinstance(t, Fork)]
    assert len(forks) == 1  # they diverge only at the first token that differs
    assert forks[0].text not in SEVENTY_SEVEN


@given(words=st.text(min_size=1, max_size=300))
def test_tokens_spell_the_text(words):
    reply = reply_to(Script(answers={"Say": words}))
    assert reply.text == words
    entries = logprobs_of(reply, 3)["content"]
    assert "".join(entry["token"] for entry in entries) == words
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == words.encode()


def test_logprobs_as_openai_shapes_them(endpoint):
    reply = ask(endpoint, logprobs=True, top_logprobs=20, response_format=enum_format(LABELS))
    choice = reply.choices[0]
    label = json.loads(choice.message.content)["label"]
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    (place,) = [token for token in choice.logprobs.content if token.token == label]
    found = {top.token: math.exp(top.logprob) for top in place.top_logprobs}
    assert set(found) == {*LABELS, "\n\n", " I"}
    assert sum(found.values()) == pytest.approx(1)
    assert found[label] == pytest.approx(math.exp(place.logprob))
    assert place.bytes == list(label.encode())
    assert len(choice.logprobs.content) == reply.usage.completion_tokens


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_only_the_top_tokens_are_shown(endpoint, top):
    codes = [f"{i:02d}" for i in range(77)]
    changes = {"logprobs": True, "top_logprobs": top, "response_format": enum_format(codes)}
    logprobs = ask(endpoint, **changes).choices[0].logprobs
    (place,) = [token for token in logprobs.content if token.token in codes]
    shown = [token.logprob for token in place.top_logprobs]
    assert len(shown) == top
    assert shown == sorted(shown, reverse=True)
    assert sum(map(math.exp, shown)) < 1


def test_free_text_codes_have_logprobs_too(endpoint):
    prompt = "Which?\n\nCodes:\nA) rain\nB) sun\nC) snow\n\nText: it pours\nAnswer with one code."
    choice = ask(endpoint, prompt, logprobs=True, top_logprobs=5, max_tokens=1).choices[0]
    (place,) = choice.logprobs.content
    assert choice.message.content == place.token
    assert {"A", "B", "C"} <= {top.token for top in place.top_logprobs}


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Classes:\n- food: Eating.\n- work: Toil.\n\nText: x", ["food", "work"]),
        ("The codes are:\n(A) food\n(B) work\n", ["A", "B"]),
        ("Labels:\n1 = food\n2 = work", ["1", "2"]),
        ("Pick one of these classes:\n\n* top-up failed\n* card lost", ["top-up failed", "card lost"]),
        ("Classes:\nonly one: yes\n\n", []),
        ("No list here: none.", []),
    ],
)
def test_options_are_read_from_prompts(prompt, options):
    assert options_in(prompt) == options
