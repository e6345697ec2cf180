"""Requests as bodies of OpenAI's chat completions, and replies as responses: pure translation, no network.

What an endpoint takes differs: ``Abilities`` says what it was found to take, and ``give_up`` what to leave out
after a refusal. The body's content that decides the answer comes from the request alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from potstill.prompts.codes import code_names, resolve
from potstill.rows import Request

TOP = 20
"""Most alternatives of a token that endpoints tell the log-probabilities of."""
_FIELD = "class"
# OpenAI's own that refuse max_tokens and charge for what they think: o1, o3-mini, gpt-5-nano, but not gpt-5-chat-latest.
_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o\d(?:$|[-@])|gpt-[5-9](?!.*chat))", re.IGNORECASE)
_LONGEST_STOP = 4  # endpoints take at most four stop strings
REASONING_TOKENS = 2048  # room for a model that thinks before it answers
_JSON_TOKENS = 32  # room for what is around a code: braces, indentation and, from llama.cpp, a Markdown fence


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an endpoint takes. ``schema``: structured output with an enum; ``logprobs``: probabilities of tokens;
    ``temperature``: sampling settings; ``completion_tokens``: wants ``max_completion_tokens``, as reasoning models do;
    ``usage``: tells the tokens that a reply took."""

    schema: bool = True
    logprobs: bool = True
    temperature: bool = True
    completion_tokens: bool = False
    stop: bool = True
    usage: bool = True

    def as_dict(self) -> dict[str, bool]:
        """Plain data."""
        return asdict(self)


def body(request: Request, model: str, abilities: Abilities) -> dict[str, Any]:
    """The JSON body of one chat completion."""
    content: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
    }
    sampling = request.sampling
    if abilities.temperature:
        content["temperature"] = sampling.temperature
        if not request.choices:
            content["top_p"] = sampling.top_p
    content["max_completion_tokens" if abilities.completion_tokens else "max_tokens"] = most_completion_tokens(
        request, abilities
    )
    if request.choices:
        codes = list(code_names(request.choices).values())
        if abilities.schema:
            content["response_format"] = _schema(codes)
        if abilities.logprobs:
            content |= {"logprobs": True, "top_logprobs": TOP}
    elif sampling.stop and abilities.stop:
        content["stop"] = list(sampling.stop[:_LONGEST_STOP])
    return content


def most_completion_tokens(request: Request, abilities: Abilities) -> int:
    """Tokens that a reply can have at most."""
    most = request.sampling.max_tokens + (REASONING_TOKENS if abilities.completion_tokens else 0)
    if request.choices and abilities.schema:
        # A name that stands for itself may be as many tokens as it has bytes; cut short it may be another one's.
        most += _JSON_TOKENS + max(len(code.encode()) for code in code_names(request.choices).values())
    return most


def reasons(model: str) -> bool:
    """Whether a model is known by its name as one that thinks before it answers, and is asked for more tokens so."""
    return _REASONING_MODEL.match(model) is not None


def schema_of(request: Request) -> str:
    """The JSON schema that goes with a request for a class, since servers count it as prompt; empty for text."""
    return json.dumps(_schema(list(code_names(request.choices).values()))) if request.choices else ""


def _schema(codes: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "choice",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {_FIELD: {"type": "string", "enum": list(codes)}},
                "required": [_FIELD],
                "additionalProperties": False,
            },
        },
    }


_NAMED = (
    ("max_tokens", {"completion_tokens": True}),
    ("top_logprobs", {"logprobs": False}),
    ("logprobs", {"logprobs": False}),
    ("response_format", {"schema": False}),
    ("json_schema", {"schema": False}),
    ("structured", {"schema": False}),
    ("temperature", {"temperature": False}),
    ("top_p", {"temperature": False}),
    ("stop", {"stop": False}),
)


# "'max_tokens' or 'max_completion_tokens' is too large: ... maximum context length": the request is, not the setting.
_TOO_LONG = re.compile(r"context (?:length|window|size)|reduce the length|max_(?:completion_)?tokens\W+is too large")


def give_up(abilities: Abilities, param: str | None, message: str, prompts: Iterable[str] = ()) -> Abilities | None:
    """What to try after a 400 that names something of the body: ``None`` if it names nothing that could be left out.

    ``param``: the parameter that the error body names, where it does; otherwise the message is looked through, for
    words that are not in the request's own ``prompts``: servers quote those.
    """
    said, prompt = (param or message).lower(), "" if param else " ".join(prompts).lower()
    if _TOO_LONG.search(message.lower()):
        return None
    for name, change in _NAMED:
        # As a word: "stopped by our policy" names no setting.
        if re.search(rf"(?<![a-z_]){name}(?![a-z_])", said) and name not in prompt:
            changed = replace(abilities, **change)
            return changed if changed != abilities else None
    return None


@dataclass(frozen=True, slots=True)
class Choice:
    """``logprobs``: of each of the request's choices, in order, ``None`` where the endpoint did not name one;
    ``residual``: probability of everything else."""

    logprobs: tuple[float | None, ...]
    residual: float


def read_choice(request: Request, text: str, tokens: Sequence[Mapping[str, Any]] | None) -> Choice | None:
    """The distribution over the request's choices that a reply holds; ``None`` if it names none of them.

    ``tokens``: OpenAI's ``logprobs.content``. The code's token is looked for in the reply; what is said of its
    alternatives is the distribution. Without log-probabilities the class that was named has all of it.
    """
    codes = code_names(request.choices)
    name = resolve(_unwrap(text), codes)
    found = _distribution(tokens or (), codes, codes[name] if name is not None else None)
    if found is not None:
        logprobs = tuple(found.get(code) for code in codes.values())
        known = sum(math.exp(value) for value in logprobs if value is not None)
        return Choice(logprobs, max(0.0, 1.0 - known))
    if name is None:
        return None
    return Choice(tuple(0.0 if choice == name else None for choice in request.choices), 0.0)


def _unwrap(text: str) -> str:
    """The value of structured output; any other text as it is. A reply that was cut short in mid-JSON says nothing."""
    bare = text.strip().removeprefix("```json").removesuffix("```").strip()
    try:
        value = json.loads(bare)
    except ValueError:
        return "" if bare.startswith("{") and f'"{_FIELD}"' in bare and not bare.endswith("}") else text
    if isinstance(value, dict):
        value = value.get(_FIELD, next(iter(value.values()), ""))
    return value if isinstance(value, str) else text


def _distribution(
    tokens: Sequence[Mapping[str, Any]], codes: Mapping[str, str], said: str | None
) -> dict[str, float] | None:
    """Log-probability by code at the token that holds the answer; spellings of a code (" A", "A") are summed."""
    wanted = set(codes.values())
    for token in tokens:
        bare = _bare(str(token.get("token", "")))
        if bare not in wanted or (said is not None and bare != said):
            continue
        masses: dict[str, float] = {}
        for alternative in token.get("top_logprobs") or [token]:
            code = _bare(str(alternative.get("token", "")))
            if code in wanted:
                masses[code] = masses.get(code, 0.0) + math.exp(float(alternative["logprob"]))
        return {code: math.log(min(mass, 1.0)) for code, mass in masses.items() if mass > 0} or None
    return None


def _bare(token: str) -> str:
    """A token without what a tokenizer glues to it: spaces and JSON's quotes."""
    return token.strip(" \n\t\"'Ġ▁")
