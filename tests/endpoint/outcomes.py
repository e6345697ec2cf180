"""From a request's body to what will be sent for it: OpenAI's checks and error bodies, faults, answers. No HTTP here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.endpoint.answers import Reply, compose, count_prompt_tokens, logprobs_of, token_limit
from tests.endpoint.behaviour import CONNECTION_FAULTS, Script, draw_fault
from tests.endpoint.book import last_message

JSON = "application/json"
_CONTENT = re.compile(rb'("content": ?")')
_REFUSAL = "I'm sorry, but I can't help with that."
_MESSAGES = {
    429: ("Rate limit reached for requests. Please try again later.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request. Sorry about that!", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later.", "server_error", None),
    529: ("Overloaded", "overloaded_error", None),
}


@dataclass(slots=True)
class Outcome:
    """What is sent: a status and a body, and the fault applied to them or to the connection."""

    status: int
    payload: bytes
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def error(status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> Outcome:
    """An error in OpenAI's wording."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Outcome(status, json.dumps(body).encode())


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> Outcome:
    """An error caused by the request."""
    return error(status, message, "invalid_request_error", param, code)


def plain_error(status: int) -> Outcome:
    """An error not caused by the request, such as 503."""
    message, kind, code = _MESSAGES.get(status, (f"Error {status}.", "invalid_request_error", None))
    return error(status, message, kind, None, code)


def outcome_of(script: Script, body: Mapping[str, Any], attempt: int, draw: str) -> Outcome:
    """The outcome of a chat request. ``draw`` keys its draws; ``attempt``: how often it was asked before."""
    refused = check_body(body) or check_model(script, body.get("model")) or _check_parameters(script, body)
    if refused is not None:
        return refused
    prompt = last_message(body)
    for part, status in script.poison.items():
        if part in prompt:
            outcome = plain_error(status)
            outcome.fault = "poison"
            return outcome
    fault = draw_fault(script.shares, script.seed, draw) or ""
    outcome = _error_of(script, fault, body) or _answer(script, body, attempt, fault)
    outcome.fault = fault
    return outcome


def check_body(body: Any) -> Outcome | None:
    """400 for an invalid chat request."""
    if not isinstance(body, dict):
        return invalid("We could not parse the JSON body of your request.")
    if not body.get("model"):
        return invalid("you must provide a model parameter")
    messages = body.get("messages")
    if messages is None:
        return invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        return invalid("Invalid type for 'messages': expected an array of objects.", "messages", "invalid_type")
    roles = {"system", "developer", "user", "assistant", "tool"}
    for i, message in enumerate(messages):
        if message.get("role") not in roles:
            return invalid(f"Invalid value: {message.get('role')!r}.", f"messages[{i}].role", "invalid_value")
    if body.get("n", 1) != 1 or body.get("stream"):
        name = "stream" if body.get("stream") else "n"
        return invalid(f"Unsupported parameter: '{name}' is not supported here.", name, "unsupported_parameter")
    return None


def check_model(script: Script, model: Any) -> Outcome | None:
    """404 for a model that is not served."""
    if model in script.models:
        return None
    message = f"The model `{model}` does not exist or you do not have access to it."
    return invalid(message, None, "model_not_found", status=404)


def too_long(script: Script, prompt_tokens: int) -> Outcome:
    """400 for more than the context holds."""
    message = (
        f"This model's maximum context length is {script.context_length} tokens. However, your messages resulted in "
        f"{prompt_tokens} tokens. Please reduce the length of the messages."
    )
    return invalid(message, "messages", "context_length_exceeded")


def _check_parameters(script: Script, body: Mapping[str, Any]) -> Outcome | None:
    for name in script.refused_parameters:
        if body.get(name) is not None:
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            return invalid(message, name, "unsupported_parameter")
    if not isinstance(body.get("temperature", 1), int | float | None):
        return invalid("Invalid type for 'temperature': expected a decimal.", "temperature", "invalid_type")
    if script.temperature == "refused" and body.get("temperature", 1) not in (1, None):
        message = f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the default (1) value is supported."
        return invalid(message, "temperature", "unsupported_value")
    if script.max_tokens == "refused" and body.get("max_tokens") is not None:
        message = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return invalid(message, "max_tokens", "unsupported_parameter")
    refused = _check_logprobs(script, body) or _check_format(script, body)
    if refused is not None:
        return refused
    limit, prompt_tokens = token_limit(body), count_prompt_tokens(body)
    if limit is not None and limit < 1:
        name = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        message = f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {limit} instead."
        return invalid(message, name, "integer_below_min_value")
    return too_long(script, prompt_tokens) if prompt_tokens + (limit or 0) > script.context_length else None


def _check_logprobs(script: Script, body: Mapping[str, Any]) -> Outcome | None:
    if script.logprobs == "refused" and (body.get("logprobs") or body.get("top_logprobs") is not None):
        message = "Unsupported parameter: 'logprobs' is not supported with this model."
        return invalid(message, "logprobs", "unsupported_parameter")
    top = body.get("top_logprobs")
    if top is None or script.logprobs == "ignored":
        return None
    if not body.get("logprobs"):
        return invalid("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
    if not isinstance(top, int) or not 0 <= top <= script.max_top_logprobs:
        message = f"Invalid value for 'top_logprobs': must be less than or equal to {script.max_top_logprobs}."
        return invalid(message, "top_logprobs")
    return None


def _check_format(script: Script, body: Mapping[str, Any]) -> Outcome | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_schema" and script.structured_output == "refused":
        message = "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model. Learn more about supported models at the Structured Outputs guide: https://platform.openai.com/docs/guides/structured-outputs"
        return invalid(message)
    if kind not in ("text", "json_object", "json_schema"):
        message = f"Invalid value: '{kind}'. Supported values are: 'json_object', 'json_schema', and 'text'."
        return invalid(message, "response_format.type", "invalid_value")
    if kind == "json_schema" and not isinstance((wanted.get("json_schema") or {}).get("schema"), dict):
        message = "Missing required parameter: 'response_format.json_schema.schema'."
        return invalid(message, "response_format.json_schema.schema", "missing_required_parameter")
    return None


def _error_of(script: Script, fault: str, body: Mapping[str, Any]) -> Outcome | None:
    """The outcome of an error fault; ``None`` for any other fault."""
    if fault.isdigit():
        return plain_error(int(fault))
    if fault == "insufficient_quota":
        message = "You exceeded your current quota, please check your plan and billing details."
        return error(429, message, "insufficient_quota", None, "insufficient_quota")
    if fault == "content_filter":
        message = "The response was filtered due to the prompt triggering our content management policy. Please modify your prompt and retry."
        return invalid(message, "prompt", "content_filter")
    if fault == "context_length":
        return too_long(script, max(count_prompt_tokens(body), script.context_length + 1))
    if fault in CONNECTION_FAULTS and fault != "reset_midway":
        return Outcome(200, b"")  # nothing of it will be sent
    return None


def _answer(script: Script, body: Mapping[str, Any], attempt: int, fault: str) -> Outcome:
    try:
        reply = compose(script, body, attempt)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as problem:
        message = f"Invalid schema for response_format: {type(problem).__name__}: {problem}"
        return invalid(message, "response_format", "invalid_json_schema")
    if fault == "length":
        reply = Reply(reply.tokens[: len(reply.tokens) // 2], "length", reply.hidden_tokens)
    prompt_tokens = count_prompt_tokens(body)
    completion = _completion(script, body, reply, prompt_tokens)
    choice = completion["choices"][0]
    if fault == "refusal":
        choice["message"] |= {"content": None, "refusal": _REFUSAL}
    elif fault == "null_content":
        choice["message"]["content"] = None
    elif fault == "no_choices":
        completion["choices"] = []
    elif fault == "no_usage":
        del completion["usage"]
    elif fault == "huge":
        choice["message"]["content"] = "huge " * (script.huge_bytes // 5)
    outcome = Outcome(200, json.dumps(completion, ensure_ascii=False).encode())
    if fault != "no_usage":
        outcome.prompt_tokens = prompt_tokens
        outcome.completion_tokens = completion["usage"]["completion_tokens"]
    spoil(outcome, fault)
    return outcome


def spoil(outcome: Outcome, fault: str) -> None:
    """Apply a fault to a body."""
    if fault == "truncated_json":
        outcome.payload = outcome.payload[: len(outcome.payload) // 2]
    elif fault == "empty_body":
        outcome.payload = b""
    elif fault in ("not_json", "html_page"):
        outcome.payload = b"<html><body><h1>It works!</h1></body></html>"
        outcome.content_type = JSON if fault == "not_json" else "text/html"
    elif fault == "wrong_type":
        outcome.content_type = "text/html"
    elif fault == "invalid_utf8":
        outcome.payload = _CONTENT.sub(lambda found: found[1] + b"\xff\xfe\xc3\x28", outcome.payload, count=1)


def _completion(script: Script, body: Mapping[str, Any], reply: Reply, prompt_tokens: int) -> dict[str, Any]:
    completion_tokens = len(reply.tokens) + reply.hidden_tokens
    wanted = body.get("logprobs") and script.logprobs == "served"
    return {
        "id": f"chatcmpl-{time.time_ns():x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": logprobs_of(reply, body.get("top_logprobs") or 0) if wanted else None,
                "finish_reason": reply.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": reply.hidden_tokens},
        },
    }
