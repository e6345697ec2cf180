"""Bespoke Curator: one LLM block on its online OpenAI backend (bare aiohttp). Runs in a separate virtual environment."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

from workload import MAX_TOKENS, MODEL, SYSTEM, options, prompt, serve


def main() -> None:
    """Run without cache, telemetry or viewer, and with limits too high to matter."""
    told = options()
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    # Curator would download its token encoding; litellm ships it.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    os.environ |= {
        "CURATOR_DISABLE_CACHE": "1",
        "TELEMETRY_ENABLED": "0",
        "CURATOR_VIEWER": "0",
        "OPENAI_API_KEY": "none",
    }
    os.environ |= {"CURATOR_CACHE_DIR": tempfile.mkdtemp(prefix="curator-"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    from bespokelabs import curator

    class Writer(curator.LLM):
        def prompt(self, row):
            return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}]

        def parse(self, row, response):
            return {"text": response}

    def work() -> dict[str, int]:
        llm = Writer(
            model_name=MODEL,
            backend="openai",
            backend_params={
                "base_url": told["base_url"],
                "max_requests_per_minute": 10_000_000,
                "max_tokens_per_minute": 10_000_000_000,
                "max_concurrent_requests": told["in_flight"],
                "max_retries": 3,
            },
            generation_params={"max_tokens": MAX_TOKENS, "temperature": 1.0, "top_p": 1.0},
        )
        answers = llm([{"prompt": prompt("curator", number)} for number in range(told["requests"])])
        answers = getattr(answers, "dataset", answers)
        return {"answered": sum(text is not None for text in answers["text"])}

    serve(work)


if __name__ == "__main__":
    main()
