"""Translate requests to bodies of OpenAI's chat completions and replies to choices. No network.

Endpoints support different parameters: ``Abilities`` holds those that one supports, and ``give_up`` removes one after
a refusal. Everything in the body that decides the answer comes from the request.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from potstill.prompts.codes import code_names, resolve
from potstill.rows import Request

TOP = 20
"""Maximum number of alternatives per token for which endpoints return log-probabilities."""
_FIELD = "class"
# OpenAI's models that refuse max_tokens and bill reasoning tokens: o1, o3-mini, gpt-5-nano, but not gpt-5-chat-latest.
_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o\d(?:$|[-@])|gpt-[5-9](?!.*chat))", re.IGNORECASE)
_MOST_STOPS = 4  # endpoints accept at most four stop strings
REASONING_TOKENS = 2048  # extra tokens for a reasoning model
_JSON_TOKENS = 32  # extra tokens around a code: braces, indentation and, from llama.cpp, a Markdown fence


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an endpoint supports.

    ``schema``: structured output with an enum; ``logprobs``: token log-probabilities; ``temperature``: sampling settings;
    ``completion_tokens``: requires ``max_completion_tokens``, as reasoning models do; ``usage``: reports token usage.
    """

    schema: bool = True
    logprobs: bool = True
    temperature: bool = True
    completion_tokens: bool = False
    stop: bool = True
    usage: bool = True


def body(request: Request, model: str, abilities: Abilities) -> dict[str, Any]:
    """The JSON body of a chat completion."""
    content: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
    }
    sampling = request.sampling
    if abilities.temperature:
        content["temperature"] = sampling.temperature
        if not request.choices:
            content["top_p"] = sampling.top_p
    limit = "max_completion_tokens" if abilities.completion_tokens else "max_tokens"
    content[limit] = most_completion_tokens(request, abilities)
    if request.choices:
        codes = list(code_names(request.choices).values())
        if abilities.schema:
            content["response_format"] = _schema(codes)
        if abilities.logprobs:
            content |= {"logprobs": True, "top_logprobs": TOP}
    elif sampling.stop and abilities.stop:
        content["stop"] = list(sampling.stop[:_MOST_STOPS])
    return content


def most_completion_tokens(request: Request, abilities: Abilities) -> int:
    """Maximum number of tokens of a reply."""
    most = request.sampling.max_tokens + (REASONING_TOKENS if abilities.completion_tokens else 0)
    if request.choices and abilities.schema:
        # A class name used as its own code may need a token per byte; cut short, it could read as another class.
        most += _JSON_TOKENS + max(len(code.encode()) for code in code_names(request.choices).values())
    return most


def reasons(model: str) -> bool:
    """Whether the model's name is that of a known reasoning model, which needs more tokens."""
    return _REASONING_MODEL.match(model) is not None


def schema_of(request: Request) -> str:
    """The JSON schema of a request for a class, which servers count as prompt; empty for a request for text."""
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


# "'max_tokens' or 'max_completion_tokens' is too large: ... maximum context length": the request is too long; the
# parameter itself is supported.
_TOO_LONG = re.compile(r"context (?:length|window|size)|reduce the length|max_(?:completion_)?tokens\W+is too large")


def give_up(abilities: Abilities, param: str | None, message: str, prompts: Iterable[str] = ()) -> Abilities | None:
    """The abilities to try after a 400 that names a parameter; None if it names none that can be left out.

    ``param``: the parameter named in the error body. If None, the message is searched for parameter names that do not
    occur in the request's ``prompts``, since servers quote prompts.
    """
    said, prompt = (param or message).lower(), "" if param else " ".join(prompts).lower()
    if _TOO_LONG.search(message.lower()):
        return None
    for name, change in _NAMED:
        # Match whole words: "stopped by our policy" names no parameter.
        if re.search(rf"(?<![a-z_]){name}(?![a-z_])", said) and name not in prompt:
            changed = replace(abilities, **change)
            return changed if changed != abilities else None
    return None


@dataclass(frozen=True, slots=True)
class Choice:
    """``logprobs``: one per choice of the request, in order, None if the endpoint did not return it. ``residual``: the
    probability of everything else."""

    logprobs: tuple[float | None, ...]
    residual: float


def read_choice(request: Request, text: str, tokens: Sequence[Mapping[str, Any]] | None) -> Choice | None:
    """The distribution over the request's choices in a reply; None if the reply names none of them.

    ``tokens``: OpenAI's ``logprobs.content``. The distribution is read at the token that holds the code. Without
    log-probabilities, the named class gets probability 1.
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
    """The value in structured output; other text unchanged. Empty if the JSON was cut short."""
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
    """Log-probability per code at the token with the answer, summed over spellings of a code (" A", "A")."""
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
    """A token without the spaces and JSON quotes that tokenizers attach to it."""
    return token.strip(" \n\t\"'Ġ▁")
