"""The teacher behind an HTTP endpoint of OpenAI's kind, for one asyncio process.

    backend = OpenAIBackend(config)
    await backend.probe()                      # key, model and address are right; what the endpoint takes
    sent = await backend.send(request)         # one attempt: a response, or a failure and what to do about it

The client's own retries are off: when and whether to try again is the pool's decision (``actors/teachers/http.py``).
Its transport is aiohttp, which carries twice the requests of httpx a second.
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
_MOST_CONNECTIONS = 100_000  # what bounds the requests in flight is the limiter
_PROBE_TRIES = 4

# What the transport says of an endpoint that can't be reached, and what its reader can do.
_FIXES = {
    "CERTIFICATE_VERIFY_FAILED": "if the server is to be trusted, name its certificate's file (PEM) in the environment "
    "variable SSL_CERT_FILE, on every node",
    "WRONG_VERSION_NUMBER": "it speaks no TLS; write http:// for https://",
    "reset by peer": "does it want https:// for http://?",
    "Name or service not known": "there is no such host; mend the name",
    "No address associated": "there is no such host; mend the name",
    "Name does not resolve": "there is no such host; mend the name",
    "name resolution": "the name can't be looked up; mend it, or the network",
    "Connect call failed": "nothing listens there; start the server, or mend host and port",
    "no connection within": "mend host and port, or open the way through firewalls and proxies",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one attempt: a ``response``, or a ``failure``. ``headers``: the rate headers seen;
    tokens are those that the endpoint says it used, also where the reply could not be read; ``counted`` is false where
    it may have used some and does not say how many."""

    response: Response | None
    failure: Failure | None
    headers: Mapping[str, str]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True


def identify(config: OpenAITeacher) -> TeacherIdentity:
    """What of the endpoint is part of every request's hash."""
    return TeacherIdentity(config.provider, config.model)


def read_key(config: OpenAITeacher) -> str:
    """The key from its environment variable; raises ``TeacherError`` naming the variable where there is none."""
    if not config.api_key_env:
        return "none"  # the client insists on one; servers that want none don't look at it
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise TeacherError(
            f"teacher.api_key_env = {config.api_key_env!r}: no such environment variable, or it is empty; "
            "set it to the endpoint's key, or api_key_env to '' for a server that wants none"
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise TeacherError(f"teacher.api_key_env = {config.api_key_env!r}: what it holds is no key")
    return key


class OpenAIBackend:
    """Sends single requests. Make it inside a running event loop; ``close`` it there."""

    def __init__(self, config: OpenAITeacher, abilities: Abilities | None = None) -> None:
        import httpx2 as httpx
        import openai

        self.identity = identify(config)
        self.abilities = abilities or Abilities()
        self._config = config
        self._key = read_key(config)
        self.openai = openai
        # `post` with plain types: `chat.completions.create` walks through its arguments' and its answer's types,
        # which takes as much time as everything else (1.4 ms a request against 0.8).
        self._raw = httpx.Response
        # Not None: to the transport that means aiohttp's own limit, 100 connections.
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
        """Ask for one of two codes (without ``choices`` for a word), leaving out what the endpoint refuses, and keep
        what it takes.

        Raises ``TeacherError``, one line that names the field, for a wrong key, model or address.
        """
        request = _trial(self.identity, choices)
        for attempt in itertools.count(1):
            sent = await self.send(request)
            failure = sent.failure
            # A word that was not said, to think or for the stop string, is no reason to stop: key, model and address are right.
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
        """One attempt. Settings that the endpoint turns out to refuse are left out at once; they cost nothing."""
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
                # The transport calls a refused connection a timeout too.
                if isinstance(error, self.openai.APITimeoutError) and "Connect" not in type(error.__cause__).__name__:
                    message = f"no reply within teacher.timeout_s = {self._config.timeout_s:g} s"
                    return Sent(None, Failure("transient", message), {}, counted=False)
                return Sent(None, Failure("transient", self.hide(root_cause(error))), {}, counted=False)
            except ValueError:  # no JSON, or no UTF-8
                return Sent(None, Failure("transient", "the reply is no JSON"), {}, counted=False)

    def refused(
        self,
        request: Request,
        status: int,
        body: object,
        abilities: Abilities,
        message: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Sent | None:
        """What an error status means for a request that was put as ``abilities`` have it.

        ``None``: it named a setting, which is left out from now on; the request can be sent again.
        """
        said = error_body(body)
        if status in (400, 422):
            # Another request may have found the same out meanwhile.
            prompts = [one.content for one in request.messages]
            other = give_up(abilities, said.get("param"), str(said.get("message", message)), prompts)
            if other is not None or self.abilities != abilities:
                self.abilities = other if self.abilities == abilities and other else self.abilities
                return None
        failure = classify(
            status,
            str(said.get("code") or said.get("type") or "") or None,
            self.hide(str(said.get("message") or message)),
            seconds_to_wait(headers or {}),
        )
        return Sent(None, failure, headers or {})

    def read(self, request: Request, content: Any, headers: Mapping[str, str], seconds: float) -> Sent:
        """A reply of status 200 as a response; what can't be read as one is a failure, its tokens counted."""
        try:
            usage = content.get("usage") or {}
            used = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            choices = content.get("choices") or []
            first = choices[0] if choices else {}
            message = first.get("message") or {}
            text, refusal = self.hide(message.get("content") or ""), self.hide(message.get("refusal") or "")
            logprobs = (first.get("logprobs") or {}).get("content")
        except (AttributeError, LookupError, TypeError, ValueError):
            return Sent(None, Failure("transient", "the reply is no chat completion"), headers, counted=False)

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
        """A failure of the trial request, or a fatal one of any, as a line that names the field to mend."""
        config, message = self._config, failure.message
        if failure.kind == "fatal" and failure.status in (402, 429):
            return f"teacher.api_key_env = {config.api_key_env!r}: the account of its key has no credit at {config.base_url} ({message}); top it up, or raise its limit"
        if failure.status is None and failure.kind == "final":
            return f"teacher.model = {config.model!r}: its answer to a trial request is of no use ({message}); name a chat model that follows instructions"
        if failure.status in (401, 403):
            return f"teacher.api_key_env = {config.api_key_env!r}: {config.base_url} refuses its key ({message}); put a valid one there"
        if failure.status == 404 and "model" in message.lower():
            return f"teacher.model = {config.model!r}: {config.base_url} does not know it ({message}); name one that it has"
        if failure.status == 404:
            hint = "" if config.base_url.endswith("/v1") else "; most endpoints want it to end in /v1"
            return f"teacher.base_url = {config.base_url!r}: nothing answers chat completions there ({message}){hint}"
        fixes = [fix for said, fix in _FIXES.items() if said in message]
        return f"teacher.base_url = {config.base_url!r}: {message}" + (f"; {fixes[0]}" if fixes else "")

    def hide(self, text: str) -> str:
        """``text`` without the key: some endpoints repeat it in their complaints."""
        return text.replace(self._key, "***") if len(self._key) > 4 else text


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
    """The inner object of OpenAI's error body; the client has taken off the outer one where it could."""
    if isinstance(content, dict):
        inner = content.get("error", content)
        return inner if isinstance(inner, dict) else {"message": str(inner)}
    return {"message": str(content)} if content else {}


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` asks for, where it gives seconds."""
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


def root_cause(error: BaseException) -> str:
    """The last cause's own words: the client's are "Connection error."."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if isinstance(error, (asyncio.CancelledError, TimeoutError)) and not getattr(error, "errno", None):
        return f"can't be reached: no connection within {_CONNECT_S:g} s or teacher.timeout_s"
    return f"can't be reached: {' '.join(str(error).split())[:200] or type(error).__name__}"
