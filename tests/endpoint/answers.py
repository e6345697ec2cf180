"""What the endpoint answers: lists, classes and JSON that are a function of the prompt, with log-probabilities to match.

Tokens are made here, not by a model's tokenizer: a short word or code is one token, a longer one several, so that class
names that begin alike share their first token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, shake_128
from typing import Any

from tests.endpoint.behaviour import Script, uniform
from tests.endpoint.book import last_message

_PIECE = re.compile(r" ?[^\W\d_]{1,8}|\d{1,3}|[{}\[\]\":,]{1,3}|\s|.", re.DOTALL)
_LIST = re.compile(r"numbered list of (?:(?:the|all|exactly) )*(\d+)")
_HEADING = re.compile(
    r"^.*\b(?:class|classes|codes|labels|categories|options)\b.*:[ \t]*$", re.IGNORECASE | re.MULTILINE
)
_OPTION = re.compile(r"^\s*(?:[-*]\s+)?[(\[]?(.{1,80}?)[)\]]?\s*(?:[:=)]|\s[-–—]|$)")
_CERTAIN = 0.999
_END = "<|end|>"
_SHORT = 3  # characters; an option of that length is one token

_VOCABULARY = """the a my this our that some every old new small late early green quiet loud train river office
letter garden window doctor market teacher ticket morning evening winter summer street engine paper coffee phone order
price city music number answer story was is has makes takes finds loses brings keeps sends about before after without
near under again never always today soon tomorrow"""
WORDS = tuple(_VOCABULARY.split())  # 64: a byte's six low bits choose one


@dataclass(frozen=True, slots=True)
class Fork:
    """A token and its alternatives, itself included, with their probabilities."""

    text: str
    alternatives: tuple[tuple[str, float], ...]


Token = str | Fork  # a plain string is nearly certain


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's tokens and how it ended: "stop" or "length". ``hidden_tokens`` were spent on reasoning."""

    tokens: Sequence[Token]
    finish_reason: str
    hidden_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(map(_text, self.tokens))


def compose(script: Script, body: Mapping[str, Any], attempt: int) -> Reply:
    """The reply to a valid chat request: the same for the same prompt, unless the script sets ``vary``."""
    prompt = json.dumps([body.get("model"), body["messages"]], sort_keys=True)
    key = blake2b(f"{script.seed}/{prompt}".encode(), digest_size=16).hexdigest()
    draw = f"{body.get('seed')}/{attempt if script.vary else 0}"
    writer = _Writer(script, last_message(body), key, draw, float(body.get("temperature", 1) or 0))
    schema = _schema(script, body)
    tokens = writer.free_text() if schema is None else writer.json_value(schema, schema, "")
    return _cut(script, body, tokens)


def count_prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of a request's messages: a fourth of their characters, and four for each message."""
    messages = body.get("messages") or []
    return sum(4 + (len(str(message.get("content", ""))) + 3) // 4 for message in messages if isinstance(message, dict))


def token_limit(body: Mapping[str, Any]) -> int | None:
    """The most completion tokens a request allows, by either name."""
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return limit if isinstance(limit, int) else None


def logprobs_of(reply: Reply, top: int) -> dict[str, Any]:
    """``choices[0].logprobs`` as OpenAI shapes it, with at most ``top`` alternatives a token."""
    content = []
    for token in reply.tokens:
        alternatives = token.alternatives if isinstance(token, Fork) else ((token, _CERTAIN),)
        shown = sorted(alternatives, key=lambda pair: -pair[1])
        own = next(probability for text, probability in shown if text == _text(token))
        content.append({**_logprob(_text(token), own), "top_logprobs": [_logprob(*pair) for pair in shown[:top]]})
    return {"content": content, "refusal": None}


def distribution(options: Sequence[str], key: str) -> list[float]:
    """Probabilities of the options, keyed; heavy-tailed, so a few get most of the mass even with 77 options."""
    # Exponential draws to the power -2: the largest gets about half on average, regardless of the number of options.
    weights = [(-math.log(uniform(key, option))) ** -2 for option in options]
    total = sum(weights)
    return [weight / total for weight in weights]


def options_in(prompt: str) -> list[str]:
    """The options that a prompt lists, a line each, under a heading such as "Classes:"; empty without such a list."""
    heading = _HEADING.search(prompt)
    if heading is None:
        return []
    found = []
    for line in prompt[heading.end() :].lstrip("\n").split("\n"):
        match = _OPTION.match(line)
        if not line.strip() or match is None:
            break
        found.append(match[1].strip().strip("'\"`*"))
    return list(dict.fromkeys(found)) if len(set(found)) > 1 else []


class _Writer:
    """Writes one reply, token after token."""

    def __init__(self, script: Script, prompt: str, key: str, draw: str, temperature: float) -> None:
        self._script = script
        self._prompt = prompt
        self._key = key
        self._draw = draw
        self._temperature = temperature
        self._fixed = next((answer for part, answer in script.answers.items() if part in prompt), None)

    def free_text(self) -> list[Token]:
        """A list where one is asked for, an option where there are some, else a sentence."""
        wanted = _LIST.search(self._prompt)
        options = [] if wanted else list(self._script.options) or options_in(self._prompt)
        if options and (self._fixed is None or self._fixed in options):
            before, after = self._script.option_format.split("{}")
            return [*_plain(before), *self._option(options, "", ""), *_plain(after)]
        if self._fixed is not None:
            return _plain(self._fixed)
        if wanted:
            return _plain("\n".join(f"{i}. {self._sentence(str(i))}" for i in range(1, int(wanted[1]) + 1)))
        return _plain(self._sentence(""))

    def json_value(self, schema: Mapping[str, Any], root: Mapping[str, Any], path: str) -> list[Token]:
        """A value that obeys the schema: enums, const, objects, arrays, strings, numbers, local references."""
        schema = _resolve(schema, root)
        if "enum" in schema:
            return self._enum(schema["enum"], path)
        if "const" in schema:
            return _plain(json.dumps(schema["const"]))
        kind = schema.get("type", "object")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return self._json_object(schema, root, path)
        if kind == "array":
            return self._json_array(schema, root, path)
        if kind == "string":
            return _plain(json.dumps(self._sentence(path) if self._fixed is None else self._fixed))
        number = int(uniform(self._key, self._draw, path) * 10)
        return _plain({"boolean": "false" if number < 5 else "true", "null": "null"}.get(kind, str(number)))

    def _json_object(self, schema: Mapping[str, Any], root: Mapping[str, Any], path: str) -> list[Token]:
        tokens: list[Token] = []
        for i, (name, inner) in enumerate(schema.get("properties", {}).items()):
            tokens += _plain(("," if i else "{") + json.dumps(name) + ":")
            tokens += self.json_value(inner, root, f"{path}.{name}")
        return [*tokens, *_plain("}" if tokens else "{}")]

    def _json_array(self, schema: Mapping[str, Any], root: Mapping[str, Any], path: str) -> list[Token]:
        wanted = _LIST.search(self._prompt)
        count = schema.get("minItems", int(wanted[1]) if wanted else 3)
        tokens = _plain("[")
        for i in range(count):
            tokens += _plain(",") if i else []
            tokens += self.json_value(schema.get("items", {"type": "string"}), root, f"{path}[{i}]")
        return [*tokens, *_plain("]")]

    def _enum(self, values: Sequence[Any], path: str) -> list[Token]:
        if not all(isinstance(value, str) for value in values):
            return _plain(json.dumps(values[int(uniform(self._key, self._draw, path) * len(values))]))
        bare = [json.dumps(value)[1:-1] for value in values]
        return ['"', *self._option(bare, path, '"')]

    def _option(self, options: Sequence[str], path: str, closing: str) -> list[Token]:
        """One of the options, token by token, each with its alternatives given the tokens before it.

        ``closing`` is the token that ends an option, if any; it has alternatives where another option continues.
        """
        probabilities = distribution(options, f"{self._key}{path}")
        if self._fixed in options:
            probabilities = [
                0.9 + 0.1 * p if option == self._fixed else 0.1 * p
                for option, p in zip(options, probabilities, strict=True)
            ]
        chosen = options.index(self._fixed) if self._fixed in options else self._choose(probabilities, path)
        left = [(_pieces(option, closing), p) for option, p in zip(options, probabilities, strict=True)]
        tokens: list[Token] = []
        for place, piece in enumerate(_pieces(options[chosen], closing)):
            here: dict[str, float] = {}
            for pieces, p in left:
                text = pieces[place] if place < len(pieces) else _END
                here[text] = here.get(text, 0.0) + p
            tokens.append(self._fork(piece, here))
            left = [(pieces, p) for pieces, p in left if place < len(pieces) and pieces[place] == piece]
        return tokens

    def _fork(self, piece: str, here: Mapping[str, float]) -> Token:
        if len(here) == 1:
            return piece
        stray, total = self._script.stray_mass, sum(here.values())
        alternatives = [(text, p * (1 - stray) / total) for text, p in here.items()]
        if stray:
            alternatives += [("\n\n", stray * 0.75), (" I", stray * 0.25)]
        return Fork(piece, tuple(alternatives))

    def _choose(self, probabilities: Sequence[float], path: str) -> int:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        if self._temperature == 0:
            return best
        position = uniform(self._key, self._draw, "option", path)
        for i, probability in enumerate(probabilities):
            position -= probability
            if position < 0:
                return i
        return best

    def _sentence(self, path: str) -> str:
        picked = shake_128(f"{self._key}/{self._draw}/{path}".encode()).digest(10)
        words = " ".join([WORDS[byte & 63] for byte in picked[: 6 + (picked[9] & 3)]])
        return f"{words[0].upper()}{words[1:]}."


def _text(token: Token) -> str:
    return token if isinstance(token, str) else token.text


def _plain(text: str) -> list[Token]:
    return _PIECE.findall(text)


def _pieces(option: str, closing: str) -> list[str]:
    pieces = [option] if len(option) <= _SHORT else _PIECE.findall(option)
    return [*pieces, closing] if closing else pieces


def _logprob(text: str, probability: float) -> dict[str, Any]:
    logprob = max(math.log(probability), -9999.0) if probability > 0 else -9999.0
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _schema(script: Script, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = body.get("response_format") or {}
    if script.structured_output != "served" or wanted.get("type") != "json_schema":
        return None
    schema: Mapping[str, Any] = wanted["json_schema"]["schema"]
    return schema


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(20):  # endless self-references are invalid
        if "$ref" in schema:
            target: Any = root
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = target
        elif "anyOf" in schema:
            schema = schema["anyOf"][0]
        else:
            break
    return schema


def _cut(script: Script, body: Mapping[str, Any], tokens: list[Token]) -> Reply:
    """The tokens up to a stop string and within the limit."""
    stop = body.get("stop") or []
    for end in [stop] if isinstance(stop, str) else stop:
        tokens = _before(tokens, end)
    limit = token_limit(body)
    if limit is None:
        return Reply(tokens, "stop", script.reasoning_tokens)
    hidden = min(limit, script.reasoning_tokens)
    over = len(tokens) > limit - hidden
    return Reply(tokens[: limit - hidden], "length" if over else "stop", hidden)


def _before(tokens: list[Token], end: str) -> list[Token]:
    cut = "".join(map(_text, tokens)).find(end)
    if cut < 0:
        return tokens
    kept: list[Token] = []
    for token in tokens:
        text = _text(token)
        if cut <= 0:
            break
        kept.append(token if len(text) <= cut else text[:cut])
        cut -= len(text)
    return kept
