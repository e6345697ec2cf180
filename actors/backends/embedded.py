"""The embedded teacher: a causal language model in this process, without key or network.

    teacher: {kind: embedded}                                # SmolLM2-135M, from the packaged GGUF
    teacher: {kind: embedded, model: /models/some-gguf-or-transformers-folder}

Use one thread per process and big batches: two processes of two threads each on two cores drop to a tenth of the speed.
With the packaged model, one core and batches of 32, bfloat16 generates several hundred tokens a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.backends.weights import identify, prepare, quiet_transformers
from actors.precision import pick_precision
from potstill.config import EmbeddedTeacher
from potstill.draws import generator
from potstill.errors import TeacherError
from potstill.rows import Request, Response

__all__ = ["EmbeddedBackend", "identify"]


class EmbeddedBackend:
    """``potstill.teacher.TeacherBackend`` for a local model, without Ray.

    The constructor raises ``TeacherError`` if the model can't be loaded. A request that fails gets a response with
    ``error``.
    """

    def __init__(self, config: EmbeddedTeacher) -> None:
        self.identity = identify(config)
        self._batch_size = config.batch_size
        import torch

        torch.set_num_threads(config.threads)
        folder = prepare(config)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = pick_precision(config.precision, self._device)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with quiet_transformers():
                self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                self._model = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=getattr(torch, precision), trust_remote_code=False
                )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TeacherError(f"teacher.model = {config.model!r} can't be loaded: {first}") from error
        self._model.eval().to(self._device)
        from actors.backends.attention import use_grouped_attention

        use_grouped_attention(self._model)
        self._context = int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 30)
        self._end_tokens = self._find_end_tokens()

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        """Sampled replies; ``text`` excludes the stop string that ended it."""
        from actors.backends.decoding import TRIES, Row, decode, finish

        def answer(batch: Sequence[Request]) -> list[Response]:
            started = time.perf_counter()
            rows = [
                Row(
                    prompt=self._encode_prompt(request),
                    # One stream per request: its draws don't depend on the rest of the batch.
                    uniforms=generator(0, "decode", request.request_id).random((request.sampling.max_tokens, TRIES)),
                    temperature=request.sampling.temperature,
                    top_p=request.sampling.top_p,
                    stop=request.sampling.stop,
                )
                for request in batch
            ]
            decode(self._model, self._tokenizer, rows, self._end_tokens)
            share = (time.perf_counter() - started) / len(batch)
            return [
                Response(
                    request_id=request.request_id,
                    text=finish(row, self._tokenizer),
                    finish_reason=row.finish_reason,
                    prompt_tokens=len(row.prompt),
                    completion_tokens=len(row.tokens),
                    latency_s=share,
                    created_at=time.time(),
                )
                for request, row in zip(batch, rows, strict=True)
            ]

        return self._answer_all(requests, answer, batch_size=self._batch_size)

    def choose(self, requests: Sequence[Request]) -> list[Response]:
        """Log-probability of every choice as a continuation of its prompt, over the full vocabulary."""
        from actors.backends.scoring import Question, score

        def answer(batch: Sequence[Request]) -> list[Response]:
            started = time.perf_counter()
            questions = [Question(self._encode_prompt(request), self._encode_choices(request)) for request in batch]
            scores = score(self._model, questions, self._batch_size)
            share = (time.perf_counter() - started) / len(batch)
            return [
                Response(
                    request_id=request.request_id,
                    choice_logprobs=tuple(values),
                    finish_reason="choice",
                    prompt_tokens=len(question.prompt),
                    latency_s=share,
                    created_at=time.time(),
                )
                for request, question, values in zip(batch, questions, scores, strict=True)
            ]

        # Not split here: scoring first groups by common prefix.
        return self._answer_all(requests, answer, batch_size=max(len(requests), 1))

    def _answer_all(
        self, requests: Sequence[Request], answer: Callable[[Sequence[Request]], list[Response]], batch_size: int
    ) -> list[Response]:
        answers: dict[int, Response] = {}
        sound: list[int] = []
        for i, request in enumerate(requests):
            problem = self._check(request)
            if problem:
                answers[i] = _failed(request, problem)
            else:
                sound.append(i)
        # Prompts with a common prefix share a batch: the prefix is read once.
        order = sorted(sound, key=lambda i: ([message.content for message in requests[i].messages], i))
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [requests[i] for i in indices]
            try:
                answered = answer(batch)
            except (RuntimeError, IndexError, MemoryError) as error:
                answered = [_failed(request, f"{type(error).__name__}: {error}") for request in batch]
            answers.update(zip(indices, answered, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _check(self, request: Request) -> str | None:
        """What is wrong with a request; ``None`` if nothing."""
        if request.weights_digest != self.identity.weights_digest:
            # Its answer would be stored under the other model's name.
            return f"the weights of {self.identity.model} on this node differ from those that the job was planned with"
        try:
            length = len(self._encode_prompt(request))
            longest = max(
                (len(choice) for choice in self._encode_choices(request)), default=request.sampling.max_tokens
            )
        except (ValueError, TeacherError) as error:
            return str(error)
        if length + longest > self._context:
            return f"prompt of {length} tokens and reply of {longest} exceed the model's context of {self._context}"
        return None

    def _encode_prompt(self, request: Request) -> tuple[int, ...]:
        from jinja2 import TemplateError

        if any(message.role == "prompt" for message in request.messages):
            if len(request.messages) != 1:
                raise ValueError("a raw prompt must be the only message")
            ids = self._tokenizer(request.messages[0].content, verbose=False)["input_ids"]
        else:
            if not getattr(self._tokenizer, "chat_template", None):
                raise ValueError(f"model {self.identity.model} has no chat template; set teacher.renderer: list")
            continued = request.messages[-1].role == "assistant"
            try:
                text = self._tokenizer.apply_chat_template(
                    [{"role": message.role, "content": message.content} for message in request.messages],
                    tokenize=False,
                    add_generation_prompt=not continued,
                    continue_final_message=continued,
                )
            except TemplateError as error:
                # Some templates refuse a system message, or two turns of the same role.
                raise ValueError(f"the model's chat template refuses the messages: {error}") from error
            ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not ids:
            raise ValueError("the prompt is empty")
        return tuple(ids)

    def _encode_choices(self, request: Request) -> tuple[tuple[int, ...], ...]:
        content = request.messages[-1].content
        continues = request.messages[-1].role in ("prompt", "assistant")
        space = " " if continues and content and not content[-1].isspace() else ""
        encoded = []
        for choice in request.choices:
            text = choice if choice[:1].isspace() else space + choice
            ids = tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            if not ids:
                raise ValueError("a choice is empty")
            encoded.append(ids)
        return tuple(encoded)

    def _find_end_tokens(self) -> frozenset[int]:
        configured: Any = self._model.generation_config.eos_token_id
        found = set(configured) if isinstance(configured, list) else {configured}
        found.add(self._tokenizer.eos_token_id)
        return frozenset(token for token in found if token is not None)


def _failed(request: Request, error: str) -> Response:
    return Response(request_id=request.request_id, error=error, created_at=time.time())
