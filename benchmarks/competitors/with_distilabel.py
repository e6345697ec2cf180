"""distilabel: one TextGeneration step. Runs in a separate virtual environment.

It sends the requests of a batch together and waits for all of them, so the batch size is the number in flight. Several
replicas split it, each in its own process.
"""

from __future__ import annotations

from workload import MAX_TOKENS, MODEL, SYSTEM, options, prompt, serve


def main() -> None:
    """Build the pipeline; its processes start when it runs."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts, StepResources
    from distilabel.steps.tasks import TextGeneration

    told = options()
    batch = told["in_flight"] // told["replicas"]

    def work() -> dict[str, int]:
        rows = [
            {"instruction": prompt("distilabel", number), "system_prompt": SYSTEM} for number in range(told["requests"])
        ]
        llm = OpenAILLM(
            model=MODEL,
            base_url=told["base_url"],
            api_key="none",
            generation_kwargs={"max_new_tokens": MAX_TOKENS, "temperature": 1.0, "top_p": 1.0},
        )
        with Pipeline(name="fanout") as pipeline:
            load = LoadDataFromDicts(data=rows, batch_size=batch)
            write = TextGeneration(
                llm=llm,
                input_batch_size=batch,
                add_raw_output=False,
                add_raw_input=False,
                resources=StepResources(replicas=told["replicas"]),
            )
            load >> write
        answers = pipeline.run(use_cache=False)["default"]["train"]
        return {"answered": sum(text is not None for text in answers["generation"])}

    serve(work)


if __name__ == "__main__":
    main()
