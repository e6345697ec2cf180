"""The config of every kind of teacher: ``teacher: {kind: ...}``.

teacher: {kind: embedded}
teacher: {kind: openai, model: gpt-4o-mini, requests_per_minute: 5000, budget_usd: 5}
teacher: {kind: openai, model: my-model, base_url: http://gpu-box:8000/v1, api_key_env: ""}
teacher: {kind: openai, model: gpt-4o-mini, mode: batch}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from potstill.config.sections import Section

OPENAI_URL = "https://api.openai.com/v1"


class EmbeddedTeacher(Section):
    """A language model in the job's own processes: no key, no network."""

    kind: Literal["embedded"] = Field("embedded", description="a model in the job's own processes")
    model: str = Field(
        "smollm2-135m-instruct", description="the packaged model, or the path of a transformers folder or a GGUF file"
    )
    actors: int = Field(0, ge=0, description="teacher processes; 0 = one a CPU core or GPU of the cluster")
    threads: int = Field(1, ge=1, description="CPU threads a process; more than one a core is many times slower")
    batch_size: int = Field(64, ge=1, le=1024, description="texts written together")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where the processor computes in it, else float32"
    )
    renderer: Literal["auto", "list", "chat"] = Field(
        "auto", description="how prompts are put: list continuation for small models, chat for others"
    )


class PriceConfig(Section):
    """What an endpoint charges, in dollars per million tokens."""

    prompt: float = Field(ge=0.0, description="dollars per million tokens read")
    completion: float = Field(ge=0.0, description="dollars per million tokens written")


class OpenAITeacher(Section):
    """A model behind an HTTP endpoint that speaks OpenAI's chat completions: OpenAI, Azure, Together, Groq, vLLM, llama.cpp."""

    kind: Literal["openai"] = Field(description="a model behind an HTTP endpoint of OpenAI's kind")
    model: str = Field(min_length=1, description="name of the model, as the endpoint calls it")
    base_url: str = Field(OPENAI_URL, description="address of the endpoint, up to and with /v1")
    api_key_env: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; empty for a server that wants none"
    )
    provider: str = Field(
        "", description="name under which answers are kept in the ledger; default: base_url's host and port"
    )
    renderer: Literal["auto", "codes"] = Field(
        "auto", description="how prompts are put; both: chat, with a letter for each class where one is to be chosen"
    )
    mode: Literal["realtime", "batch"] = Field(
        "realtime", description="batch: OpenAI's Batch API, at half the price, answers within 24 hours"
    )
    batch_poll_s: float = Field(30.0, ge=0.1, le=3600.0, description="seconds between looks at a running batch")
    concurrency: int = Field(256, ge=1, le=100_000, description="requests in flight at once, over all processes")
    requests_per_minute: float | None = Field(None, gt=0, description="never send more; null: as the endpoint allows")
    tokens_per_minute: float | None = Field(None, gt=0, description="never use more; null: as the endpoint allows")
    budget_usd: float | None = Field(None, gt=0, description="never spend more on new requests of a job")
    ask_above_usd: float = Field(
        5.0, ge=0, description="ask before starting a job that may cost more (--yes: don't ask)"
    )
    price: PriceConfig | None = Field(
        None, description="dollars per million tokens, as the mode has them; null: from the published price list"
    )
    timeout_s: float = Field(120.0, gt=0, description="seconds to wait for a reply, not counting the time in the queue")
    max_attempts: int = Field(6, ge=1, le=100, description="times a request is sent before it counts as failed")
    max_error_rate: float = Field(0.1, ge=0.0, le=1.0, description="share of failed requests that stops the job")
    actors: int = Field(0, ge=0, le=1000, description="processes that send requests; 0 = one for every 512 in flight")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as https://host/v1 or http://host:8000/v1")
        if parts.password or parts.username:
            raise ValueError("must hold no key or password; name the key's environment variable in teacher.api_key_env")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _name(self) -> OpenAITeacher:
        # In every request's hash it stands for base_url, so that a server may move without losing its answers.
        if not self.provider:
            object.__setattr__(self, "provider", urlsplit(self.base_url).netloc)
        return self

    @model_validator(mode="after")
    def _pace(self) -> OpenAITeacher:
        if self.mode == "batch":
            fields = type(self).model_fields
            paced = [name for name in _PACE if getattr(self, name) != fields[name].default]
            if paced:
                raise ValueError(
                    f"{', '.join(paced)}: without effect under mode: batch, the endpoint sets the pace; "
                    "leave out, or set mode: realtime"
                )
        return self


def _kind(value: Any) -> str:
    """The tag of a teacher's config; without ``kind`` it is the embedded one."""
    kind = value.get("kind", "embedded") if isinstance(value, dict) else getattr(value, "kind", "embedded")
    return str(kind)


_PACE = ("concurrency", "requests_per_minute", "tokens_per_minute", "actors")

KINDS = ("embedded", "openai")
TeacherConfig = Annotated[
    Annotated[EmbeddedTeacher, Tag("embedded")] | Annotated[OpenAITeacher, Tag("openai")],
    Discriminator(
        _kind,
        custom_error_type="teacher_kind",
        custom_error_message=f"kind must be one of {', '.join(KINDS)}",
    ),
]

WITHOUT_EFFECT = (
    "actors",
    "threads",
    "batch_size",
    "api_key_env",
    "base_url",
    "mode",
    "batch_poll_s",
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "budget_usd",
    "ask_above_usd",
    "price",
    "timeout_s",
    "max_attempts",
    "max_error_rate",
)
"""Fields that change no answer. ``provider`` stands for ``base_url``."""
