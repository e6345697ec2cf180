"""A teacher behind an OpenAI-compatible HTTP endpoint, for one asyncio process.

    backend = OpenAIBackend(config)
    await backend.probe()                      # checks key, model and address; finds out what the endpoint supports
    sent = await backend.send(request)         # one attempt: a response, or a failure and how to handle it

The client's own retries are off: the pool decides whether and when to retry (``actors/teachers/http.py``).
The transport is aiohttp, which sends twice as many requests a second as httpx.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from potstill.config.teacher import OpenAITeacher
from potstill.endpoint.chat import Abilities, body, give_up, read_choice
from potstill.endpoint.failures import Failure, FailureKind, classify
from potstill.errors import TeacherError
from potstill.rows import Message, Request, Response, Sampling
from potstill.teacher import TeacherIdentity

_CONNECT_S = 10.0
_MOST_CONNECTIONS = 100_000  # the limiter bounds the requests in flight
_PROBE_TRIES = 4

# Transport error of an endpoint that can't be reached -> what the user can do.
_FIXES = {
    "CERTIFICATE_VERIFY_FAILED": "if you trust the server, set the environment variable SSL_CERT_FILE to its certificate's "
    "file (PEM) on every node",
    "WRONG_VERSION_NUMBER": "it does not use TLS; change https:// to http://",
    "reset by peer": "it may need https:// instead of http://",
    "Name or service not known": "there is no such host; correct the name",
    "No address associated": "there is no such host; correct the name",
    "Name does not resolve": "there is no such host; correct the name",
    "name resolution": "the name can't be resolved; correct it, or check the network",
    "Connect call failed": "nothing listens there; start the server, or correct host and port",
    "no connection within": "correct host and port, or allow the connection in firewalls and proxies",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of one attempt: a ``response`` or a ``failure``.

    Tokens are those that the endpoint reported, also for an unreadable reply. ``counted`` is false if it may have used
    tokens without reporting them.
    """

    response: Response | None
    failure: Failure | None
    headers: Mapping[str, str]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True


def identify(config: OpenAITeacher) -> TeacherIdentity:
    """The endpoint as part of every request's hash."""
    return TeacherIdentity(config.provider, config.model)


def read_key(config: OpenAITeacher) -> str:
    """The key from its environment variable. Raises ``TeacherError`` naming the variable if it is missing."""
    if not config.api_key_env:
        return "none"  # the client requires one; servers without keys ignore it
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise TeacherError(
            f"teacher.api_key_env = {config.api_key_env!r}: no such environment variable, or it is empty; "
            "set it to the endpoint's key, or set api_key_env to '' for a server that needs none"
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise TeacherError(f"teacher.api_key_env = {config.api_key_env!r}: its value is not a key")
    return key


class OpenAIBackend:
    """Sends single requests. Create and ``close`` it inside the same event loop."""

    def __init__(self, config: OpenAITeacher, abilities: Abilities | None = None) -> None:
        import httpx2 as httpx
        import openai

        self.identity = identify(config)
        self.abilities = abilities or Abilities()
        self._config = config
        self._key = read_key(config)
        self.openai = openai
        # `post` with plain types: `chat.completions.create` checks the types of arguments and reply, which nearly
        # doubles the time (1.4 ms a request against 0.8).
        self._raw = httpx.Response
        # Not None, which would mean aiohttp's default of 100 connections.
        limits = httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=None)
        self.client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=config.base_url,
            max_retries=0,
            timeout=httpx.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s), pool=None),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()

    async def probe(self, choices: bool = True) -> Abilities:
        """Send a trial request for one of two codes (a word without ``choices``) and find out which settings work.

        Raises ``TeacherError``, one line that names the field, for a wrong key, model or address.
        """
        request = _trial(self.identity, choices)
        for attempt in itertools.count(1):
            sent = await self.send(request)
            failure = sent.failure
            # An empty reply (hidden reasoning, or the stop string) is fine: key, model and address are right.
            if (
                failure is None
                or failure.kind == "throttled"
                or (failure.kind == "final" and failure.status is None and not choices)
            ):
                break
            if failure.kind != "transient" or attempt == _PROBE_TRIES:
                raise TeacherError(self.explain(failure))
            await asyncio.sleep(0.2 * attempt)
        if not sent.counted:
            self.abilities = replace(self.abilities, usage=False)
        return self.abilities

    async def send(self, request: Request) -> Sent:
        """One attempt. If the endpoint refuses a setting, the request is sent again without it; refusals cost nothing."""
        while True:
            started = time.monotonic()
            abilities = self.abilities
            try:
                raw = await self.client.post(
                    "/chat/completions", cast_to=self._raw, body=body(request, self._config.model, abilities)
                )
                content = json.loads(raw.content)
                return self.read(request, content, dict(raw.headers), time.monotonic() - started)
            except self.openai.APIStatusError as error:
                headers = dict(error.response.headers)
                sent = self.refused(request, error.status_code, error.body, abilities, error.message, headers)
                if sent is not None:
                    return sent
            except self.openai.APIConnectionError as error:
                # The transport reports a refused connection as a timeout too.
                if isinstance(error, self.openai.APITimeoutError) and "Connect" not in type(error.__cause__).__name__:
                    return _unreadable(f"no reply within teacher.timeout_s = {self._config.timeout_s:g} s")
                return _unreadable(self.hide(root_cause(error)))
            except ValueError:  # not JSON, or not UTF-8
                return _unreadable("the reply is not JSON")

    def refused(
        self,
        request: Request,
        status: int,
        body: object,
        abilities: Abilities,
        message: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Sent | None:
        """The meaning of an error status for a request that was sent with ``abilities``.

        ``None`` if it refused a setting, which is left out from now on; the request can be sent again.
        """
        details = error_body(body)
        if status in (400, 422):
            # Another request may have found out the same.
            prompts = [one.content for one in request.messages]
            other = give_up(abilities, details.get("param"), str(details.get("message", message)), prompts)
            if other is not None or self.abilities != abilities:
                self.abilities = other if self.abilities == abilities and other else self.abilities
                return None
        return Sent(None, self.classify(status, body, message, headers or {}), headers or {})

    def classify(self, status: int, body: object, message: str, headers: Mapping[str, str]) -> Failure:
        """An error status as a failure. ``message`` is used if the body has none."""
        details = error_body(body)
        code = str(details.get("code") or details.get("type") or "") or None
        return classify(status, code, self.hide(str(details.get("message") or message)), seconds_to_wait(headers))

    def read(self, request: Request, content: Any, headers: Mapping[str, str], seconds: float) -> Sent:
        """A reply of status 200 as a response. An unreadable reply is a failure, with its tokens."""
        try:
            usage = content.get("usage") or {}
            used = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            choices = content.get("choices") or []
            first = choices[0] if choices else {}
            message = first.get("message") or {}
            text, refusal = self.hide(message.get("content") or ""), self.hide(message.get("refusal") or "")
            logprobs = (first.get("logprobs") or {}).get("content")
        except (AttributeError, LookupError, TypeError, ValueError):
            return replace(_unreadable("the reply is not a chat completion"), headers=headers)

        def failed(kind: FailureKind, message: str) -> Sent:
            return Sent(None, Failure(kind, message), headers, *used, counted=any(used))

        if not choices:
            return failed("transient", "the reply has no choices")
        finish_reason = first.get("finish_reason")
        if refusal or finish_reason == "content_filter":
            return failed("final", f"refused: {' '.join(str(refusal or finish_reason).split())[:200]}")
        response = Response(
            request_id=request.request_id,
            text=text,
            finish_reason=finish_reason,
            prompt_tokens=used[0],
            completion_tokens=used[1],
            latency_s=seconds,
            created_at=time.time(),
        )
        if request.choices:
            chosen = read_choice(request, text, logprobs)
            if chosen is None:
                return failed("final", f"the reply names no class: {text[:80]!r}")
            response = replace(response, choice_logprobs=chosen.logprobs, residual_mass=chosen.residual)
        elif not text.strip():
            return failed("final", f"the reply is empty (finish_reason {finish_reason})")
        return Sent(response, None, headers, *used, counted=any(used))

    def explain(self, failure: Failure) -> str:
        """One line that names the field to correct, for a failed trial request or a fatal failure of any request."""
        config, message = self._config, failure.message
        if failure.kind == "fatal" and failure.status in (402, 429):
            return f"teacher.api_key_env = {config.api_key_env!r}: its account has no credit at {config.base_url} ({message}); top it up, or raise its limit"
        if failure.status is None and failure.kind == "final":
            return f"teacher.model = {config.model!r}: its answer to a trial request can't be used ({message}); name a chat model that follows instructions"
        if failure.status in (401, 403):
            return f"teacher.api_key_env = {config.api_key_env!r}: {config.base_url} refuses its key ({message}); set it to a valid one"
        if failure.status == 404 and "model" in message.lower():
            return f"teacher.model = {config.model!r}: {config.base_url} does not know it ({message}); name one that it has"
        if failure.status == 404:
            hint = "" if config.base_url.endswith("/v1") else "; for most endpoints it ends in /v1"
            return f"teacher.base_url = {config.base_url!r}: it does not serve chat completions ({message}){hint}"
        fixes = [fix for text, fix in _FIXES.items() if text in message]
        return f"teacher.base_url = {config.base_url!r}: {message}" + (f"; {fixes[0]}" if fixes else "")

    def hide(self, text: str) -> str:
        """``text`` without the key, which some endpoints repeat in error messages."""
        return text.replace(self._key, "***") if len(self._key) > 4 else text


def _unreadable(message: str) -> Sent:
    return Sent(None, Failure("transient", message), {}, counted=False)


def _trial(identity: TeacherIdentity, choices: bool) -> Request:
    question = "Classes:\nA. no\nB. yes\n\nIs water wet? Answer with the code of one class and nothing else."
    return Request(
        stage="probe",
        task="probe",
        strategy="probe",
        renderer="codes",
        provider=identity.provider,
        model=identity.model,
        weights_digest=identity.weights_digest,
        messages=(Message("user", question if choices else "Is water wet? Answer with one word."),),
        sampling=Sampling(0.0, max_tokens=16) if choices else Sampling(0.5, 0.95, max_tokens=16, stop=("\n",)),
        choices=("no", "yes") if choices else (),
    )


def error_body(content: object) -> dict[str, Any]:
    """The inner object of OpenAI's error body. The client may have removed the outer one already."""
    if isinstance(content, dict):
        inner = content.get("error", content)
        return inner if isinstance(inner, dict) else {"message": str(inner)}
    return {"message": str(content)} if content else {}


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """The value of ``Retry-After``; ``None`` unless it is in seconds."""
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


def root_cause(error: BaseException) -> str:
    """The message of the innermost cause: the client's own is just "Connection error."."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if isinstance(error, (asyncio.CancelledError, TimeoutError)) and not getattr(error, "errno", None):
        return f"can't be reached: no connection within {_CONNECT_S:g} s or teacher.timeout_s"
    return f"can't be reached: {' '.join(str(error).split())[:200] or type(error).__name__}"
