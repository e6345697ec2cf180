"""The HTTP server: routes, keys, limits and storms, and the ways in which a connection fails.

One process, one event loop. Beside the API under ``/v1`` there are ``/_book`` (JSON lines; ``?since=N``; DELETE
empties it), ``/_batches`` (DELETE ends and forgets them, with all files; POST to ``/_batches/hurry`` has them done), ``/_book/summary`` and ``/_script`` (GET; PUT with the fields to change).
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import ClientError, ClientSession, web

from tests.endpoint.answers import count_prompt_tokens, token_limit
from tests.endpoint.batches import Batches
from tests.endpoint.behaviour import (
    ERROR_FAULTS,
    SPOILT_BODIES,
    Script,
    change_script,
    draw_fault,
    draw_key,
    draw_latency_s,
    write_script,
)
from tests.endpoint.book import Book, Entry
from tests.endpoint.limits import Excess, Limits, format_duration, retry_headers
from tests.endpoint.outcomes import Outcome, check_model, error, invalid, outcome_of, plain_error, spoil

_MOMENT_S = 0.05  # in which a client reads what came before a reset
_UPLOAD_BYTES = 512 * 2**20
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_RST = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close with a reset


class Service:
    """The endpoint's state and its handlers."""

    def __init__(self, script: Script) -> None:
        self.book = Book()
        self._in_flight = 0
        self._upstream: ClientSession | None = None
        self._batches = Batches(lambda: self.script, self._answer_line)
        self._lost_answers = 0
        self._use(script, {"requests_per_minute", "storm_s", "batch_lost_answers"})

    def application(self) -> web.Application:
        """An aiohttp application of all routes."""
        app = web.Application(client_max_size=_UPLOAD_BYTES)
        files, batches = self._batches, self._batches
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._api("models", self._models)),
                web.get("/v1/models/{id}", self._api("models", self._model)),
                web.post("/v1/files", self._api("files", self._upload)),
                web.get("/v1/files", self._api("files", lambda _: files.list_files())),
                web.get("/v1/files/{id}", self._api("files", lambda r: files.describe_file(r.match_info["id"]))),
                web.delete("/v1/files/{id}", self._api("files", lambda r: files.delete_file(r.match_info["id"]))),
                web.get("/v1/files/{id}/content", self._api("files", lambda r: files.read_file(r.match_info["id"]))),
                web.post("/v1/batches", self._api("batches", self._create_batch)),
                web.get("/v1/batches", self._api("batches", self._list_batches)),
                web.get("/v1/batches/{id}", self._api("batches", lambda r: batches.describe(r.match_info["id"]))),
                web.post("/v1/batches/{id}/cancel", self._api("batches", lambda r: batches.cancel(r.match_info["id"]))),
                web.get("/_book", self._show_book),
                web.delete("/_book", self._clear_book),
                web.delete("/_batches", self._forget_batches),
                web.post("/_batches/hurry", self._hurry_batches),
                web.get("/_book/summary", self._show_summary),
                web.get("/_script", self._show_script),
                web.put("/_script", self._change_script),
                web.route("*", "/{rest:.*}", self._api("other", self._nowhere)),
            ]
        )
        app.on_cleanup.append(self._close)
        return app

    def _use(self, script: Script, changed: set[str]) -> None:
        """Use this script; changed limits and storms restart."""
        self.script = script
        if changed & {"requests_per_minute", "tokens_per_minute", "burst_s"} or not hasattr(self, "_limits"):
            self._limits = Limits(script)
        else:
            self._limits.script = script
        if "batch_lost_answers" in changed:
            self._lost_answers = script.batch_lost_answers
        if changed & {"storm_requests", "storm_s"}:
            self._storm_left = script.storm_requests
            self._storm_until = time.monotonic() + script.storm_s

    # -- chat

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        entry = self.book.open("chat", time.time())
        self._in_flight += 1
        try:
            text = await request.read()
            try:
                body = json.loads(text)
            except ValueError:  # includes UnicodeDecodeError
                body = None
            if isinstance(body, dict):
                self.book.describe(
                    entry, body, request.headers.get("X-Client-Request-Id", ""), self.script.book_characters
                )
            outcome = self._turned_away(request, body)
            if outcome is None:
                outcome = await self._serve(body, entry, request.headers.get("Authorization", ""))
            outcome.headers |= self._limits.headers()
            return await self._send(request, entry, outcome)
        except Exception:
            entry.status, entry.fault = 500, "crash"  # a real one of this server, not scripted
            raise
        finally:
            self._in_flight -= 1
            entry.ended = time.time()

    def _turned_away(self, request: web.Request, body: Any) -> Outcome | None:
        """The answer to a request that does not reach the model: 401, 429, or 400 if it is not a JSON object."""
        refused = self._check_key(request)
        if refused is not None:
            return refused
        if not isinstance(body, dict):
            return invalid("We could not parse the JSON body of your request.")
        script = self.script
        if self._storm_left > 0 or time.monotonic() < self._storm_until:
            self._storm_left -= self._storm_left > 0
            outcome = plain_error(429)
            outcome.headers, outcome.fault = retry_headers(script, script.storm_retry_after_s), "storm"
            return outcome
        if script.max_in_flight is not None and self._in_flight > script.max_in_flight:
            outcome = error(429, "Too many concurrent requests.", "requests", None, "concurrency_limit_exceeded")
            outcome.fault = "in_flight"
            return outcome
        excess = self._limits.admit(count_prompt_tokens(body) + (token_limit(body) or 0))
        return None if excess is None else _too_much(script, excess, str(body.get("model")))

    async def _serve(self, body: Mapping[str, Any], entry: Entry, authorization: str) -> Outcome:
        script = self.script
        key = draw_key(script, entry.digest, entry.attempt, entry.number)
        outcome = outcome_of(script, body, entry.attempt, key)
        if outcome.fault in ERROR_FAULTS:
            outcome.headers |= retry_headers(script, script.fault_retry_after_s)
        if (
            script.upstream is not None
            and outcome.status == 200
            and outcome.fault in ("", "reset_midway", *SPOILT_BODIES)
        ):
            await self._ask_upstream(script.upstream, body, authorization, outcome)
        if outcome.status == 200 or outcome.fault:
            delay_s = draw_latency_s(script, key)
            if delay_s:
                await asyncio.sleep(delay_s)
        return outcome

    async def _ask_upstream(self, url: str, body: Mapping[str, Any], authorization: str, outcome: Outcome) -> None:
        """Put the upstream's answer into the outcome, with its fault applied; 502 without an answer."""
        if self._upstream is None:
            self._upstream = ClientSession()
        try:
            headers = {"Authorization": authorization}
            async with self._upstream.post(f"{url}/chat/completions", json=body, headers=headers) as response:
                outcome.payload, outcome.status = await response.read(), response.status
                usage = (json.loads(outcome.payload).get("usage") or {}) if response.status == 200 else {}
        except (ClientError, ValueError):
            outcome.payload, outcome.status, usage = plain_error(502).payload, 502, {}
        outcome.prompt_tokens = usage.get("prompt_tokens", 0)
        outcome.completion_tokens = usage.get("completion_tokens", 0)
        spoil(outcome, outcome.fault)

    async def _close(self, _: web.Application) -> None:
        await self._batches.close()
        if self._upstream is not None:
            await self._upstream.close()

    def _answer_line(self, body: Mapping[str, Any], custom_id: str) -> Outcome:
        """A line of a batch, in the book like any request."""
        entry = self.book.open("batch", time.time())
        self.book.describe(entry, body, custom_id, self.script.book_characters)
        key = draw_key(self.script, entry.digest, entry.attempt, entry.number)
        outcome = outcome_of(self.script, body, entry.attempt, key)
        _note(entry, outcome)
        entry.status, entry.whole, entry.ended = outcome.status, True, time.time()
        if outcome.fault in ("hang", "reset_before", "reset_midway"):
            entry.status, entry.whole = None, False
        return outcome

    # -- the other APIs

    def _api(self, route: str, answer: Callable[[web.Request], Outcome | Awaitable[Outcome]]) -> _Handler:
        """A handler that keeps the book, checks the key and draws from ``api_shares``."""

        async def handle(request: web.Request) -> web.StreamResponse:
            entry = self.book.open(route, time.time())
            try:
                fault = draw_fault(self.script.api_shares, self.script.seed, f"api/{entry.number}") or ""
                outcome = self._check_key(request)
                if outcome is None and route in ("files", "batches") and self.script.batches == "refused":
                    outcome = self._nowhere(request)
                if outcome is None and fault in ERROR_FAULTS:
                    outcome = plain_error(int(fault))
                if outcome is None:
                    found = answer(request)
                    outcome = found if isinstance(found, Outcome) else await found
                    spoil(outcome, fault)
                outcome.fault = outcome.fault or fault
                return await self._send(request, entry, outcome)
            finally:
                entry.ended = time.time()

        return handle

    def _check_key(self, request: web.Request) -> Outcome | None:
        script = self.script
        if not script.keys:
            return None
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if given in script.keys:
            return None
        if not given:
            return invalid("You didn't provide an API key.", status=401)
        shown = given if script.echo_key or len(given) < 12 else f"{given[:3]}{'*' * 8}{given[-4:]}"
        message = f"Incorrect API key provided: {shown}."
        return invalid(message, None, "invalid_api_key", status=401)

    def _models(self, _: web.Request) -> Outcome:
        listed = {"object": "list", "data": [_model_card(name) for name in self.script.models]}
        return Outcome(200, json.dumps(listed).encode())

    def _model(self, request: web.Request) -> Outcome:
        name = request.match_info["id"]
        return check_model(self.script, name) or Outcome(200, json.dumps(_model_card(name)).encode())

    def _nowhere(self, request: web.Request) -> Outcome:
        return invalid(f"Invalid URL ({request.method} {request.path})", status=404)

    async def _upload(self, request: web.Request) -> Outcome:
        form = await request.post()
        file = form.get("file")
        if not isinstance(file, web.FileField):
            return invalid("'file' is a required property", "file")
        return self._batches.add_file(file.file.read(), file.filename, str(form.get("purpose")))

    async def _create_batch(self, request: web.Request) -> Outcome:
        outcome = self._batches.create(await request.json())
        if self._lost_answers > 0:
            self._lost_answers -= 1
            outcome.fault = "reset_before"
        return outcome

    def _list_batches(self, request: web.Request) -> Outcome:
        return self._batches.list_batches(int(request.query.get("limit", "20")), request.query.get("after"))

    # -- sending

    async def _send(self, request: web.Request, entry: Entry, outcome: Outcome) -> web.StreamResponse:
        """Send the outcome or apply its fault to the connection; record in the book how much was sent."""
        _note(entry, outcome)
        if outcome.fault == "hang":
            return await _silence()
        if outcome.fault == "reset_before":
            return await _reset(request)
        if outcome.fault == "reset_midway":
            part = web.StreamResponse(status=outcome.status, headers=outcome.headers)
            part.content_type, part.content_length = outcome.content_type, len(outcome.payload)
            await part.prepare(request)
            entry.status = outcome.status
            await part.write(outcome.payload[: len(outcome.payload) // 2])
            await asyncio.sleep(_MOMENT_S)
            return await _reset(request)
        response = web.Response(
            body=outcome.payload, status=outcome.status, headers=outcome.headers, content_type=outcome.content_type
        )
        await response.prepare(request)
        entry.status = outcome.status
        await response.write_eof()
        transport = request.transport
        while transport is not None and transport.get_write_buffer_size() and not transport.is_closing():
            await asyncio.sleep(0.005)
        entry.whole = transport is not None and not transport.is_closing()
        return response

    # -- the test's side

    async def _show_book(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for lines in self.book.lines(int(request.query.get("since", "0"))):
            await response.write(lines)
        await response.write_eof()
        return response

    async def _clear_book(self, _: web.Request) -> web.Response:
        self.book.clear()
        return web.Response(status=204)

    async def _forget_batches(self, _: web.Request) -> web.Response:
        await self._batches.close()
        self._batches.forget()
        return web.Response(status=204)

    async def _hurry_batches(self, _: web.Request) -> web.Response:
        self._batches.hurry()
        return web.Response(status=204)

    async def _show_summary(self, _: web.Request) -> web.Response:
        return web.json_response(self.book.summary())

    async def _show_script(self, _: web.Request) -> web.Response:
        return web.json_response(text=write_script(self.script))

    async def _change_script(self, request: web.Request) -> web.Response:
        changes = await request.json()
        try:
            script = change_script(self.script, changes)
        except ValueError as problem:
            return web.json_response({"error": str(problem)}, status=422)
        self._use(script, set(changes))
        return web.json_response(text=write_script(script))


def _note(entry: Entry, outcome: Outcome) -> None:
    entry.fault = outcome.fault
    entry.prompt_tokens, entry.completion_tokens = outcome.prompt_tokens, outcome.completion_tokens


def _too_much(script: Script, excess: Excess, model: str) -> Outcome:
    kind = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}[excess.kind]
    message = (
        f"Rate limit reached for {model} on {kind}: Limit {excess.limit:.0f}, Requested {excess.asked:.0f}. "
        f"Please try again in {format_duration(excess.wait_s)}."
    )
    outcome = error(429, message, excess.kind, None, "rate_limit_exceeded")
    outcome.headers, outcome.fault = retry_headers(script, excess.wait_s), "limit"
    return outcome


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "tests"}


async def _silence() -> web.StreamResponse:
    await asyncio.Event().wait()  # until the client hangs up, which cancels the handler
    raise AssertionError("nobody sets this event")


async def _reset(request: web.Request) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        transport.abort()
    return await _silence()
