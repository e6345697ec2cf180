"""The ``teacher`` section of a config, one class per kind.

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
    """A language model that runs inside the job: no key, no network."""

    kind: Literal["embedded"] = Field("embedded", description="a model that runs inside the job")
    model: str = Field("smollm2-135m-instruct", description="packaged model, transformers folder or GGUF file")
    actors: int = Field(0, ge=0, description="teacher processes; 0: one per CPU core or GPU of the cluster")
    threads: int = Field(1, ge=1, description="CPU threads per process; more than one per core is many times slower")
    batch_size: int = Field(64, ge=1, le=1024, description="texts generated in one batch")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 if supported, else float32"
    )
    renderer: Literal["auto", "list", "chat"] = Field(
        "auto", description="prompt format; auto: list continuation for small models, chat for others"
    )


class PriceConfig(Section):
    """An endpoint's prices, in dollars per million tokens."""

    prompt: float = Field(ge=0.0, description="dollars per million prompt tokens in the chosen mode")
    completion: float = Field(ge=0.0, description="dollars per million completion tokens in the chosen mode")


class OpenAITeacher(Section):
    """A model behind an OpenAI-compatible chat completions endpoint: OpenAI, Azure, Together, Groq, vLLM, llama.cpp."""

    kind: Literal["openai"] = Field(description="a model behind an OpenAI-compatible HTTP endpoint")
    model: str = Field(min_length=1, description="the endpoint's name for the model")
    base_url: str = Field(OPENAI_URL, description="URL of the endpoint, including /v1")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable with the API key; empty for no key")
    provider: str = Field("", description="provider's name in the ledger; default: base_url's host and port")
    renderer: Literal["auto", "codes"] = Field(
        "auto", description="prompt format; both values mean chat, with classes to choose from coded as letters"
    )
    mode: Literal["realtime", "batch"] = Field(
        "realtime", description="batch: OpenAI's Batch API, half the price, answers within 24 hours"
    )
    batch_poll_s: float = Field(30.0, ge=0.1, le=3600.0, description="seconds between status checks of a batch")
    concurrency: int = Field(256, ge=1, le=100_000, description="maximum requests in flight, over all processes")
    requests_per_minute: float | None = Field(
        None, gt=0, description="maximum requests per minute; null: the endpoint's limit"
    )
    tokens_per_minute: float | None = Field(
        None, gt=0, description="maximum tokens per minute; null: the endpoint's limit"
    )
    budget_usd: float | None = Field(None, gt=0, description="maximum cost of a job's new requests")
    ask_above_usd: float = Field(5.0, ge=0, description="ask before a job that may cost more; --yes skips the question")
    price: PriceConfig | None = Field(None, description="the endpoint's price; null: the published price list")
    timeout_s: float = Field(120.0, gt=0, description="seconds to wait for a reply, not counting time in the queue")
    max_attempts: int = Field(6, ge=1, le=100, description="attempts per request before it counts as failed")
    max_error_rate: float = Field(0.1, ge=0.0, le=1.0, description="stop the job above this share of failed requests")
    actors: int = Field(0, ge=0, le=1000, description="processes that send requests; 0: one per 512 in flight")

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as https://host/v1 or http://host:8000/v1")
        if parts.password or parts.username:
            raise ValueError("must not contain a key or password; name its variable in teacher.api_key_env")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _name(self) -> OpenAITeacher:
        # Request ids contain the provider instead of base_url, so that answers survive a move of the server.
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
                    f"{', '.join(paced)}: no effect in mode: batch, where the endpoint sets the pace; "
                    "remove, or set mode: realtime"
                )
        return self


def _kind(value: Any) -> str:
    """The tag of a teacher's config; embedded by default."""
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
"""Fields that do not affect the answers. ``provider`` represents ``base_url``."""
