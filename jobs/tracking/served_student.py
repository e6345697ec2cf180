"""How a registered student predicts. This file is copied into every model and runs without potstill.

MLflow's own function for text classification parses texts as Python literals if all of a call look like literals
(``predict(["4711"])`` fails with a type error), requires a column named ``text``, predicts texts one by one and fails on
texts longer than the model's positions. This one takes a list of texts, one text, an array, a series, or a data frame (its
``text`` column, or its only one). It returns a data frame with one row per text in the same order and the columns
``label`` (class name) and ``score`` (its probability, 0 to 1).
"""

from __future__ import annotations

from typing import Any


class ServedStudent:
    """The loaded pipeline behind ``mlflow.pyfunc``."""

    def __init__(self, pipeline: Any, max_length: int, batch_size: int) -> None:
        self.pipeline = pipeline
        positions = getattr(pipeline.model.config, "max_position_embeddings", None) or max_length
        self.max_length = min(max_length, positions, pipeline.tokenizer.model_max_length)
        self.batch_size = batch_size

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Class name and probability of every text. Raises ``TypeError`` for anything but text."""
        import pandas as pd

        texts = _texts(data)
        options = {"max_length": self.max_length, "batch_size": self.batch_size, **(params or {})}
        answers = self.pipeline(texts, truncation=True, **options) if texts else []
        return pd.DataFrame(answers, columns=["label", "score"])

    def get_raw_model(self) -> Any:
        """The transformers pipeline."""
        return self.pipeline


def _texts(data: Any) -> list[str]:
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        if "text" in data.columns:
            data = data["text"]
        elif data.shape[1] == 1:
            data = data.iloc[:, 0]
        else:
            raise TypeError(f"needs a column `text` or a single column, not {list(data.columns)}")
    texts = [data] if isinstance(data, str) else list(data)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {position} is {type(text).__name__}, not a string")
    return [str(text) for text in texts]


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ServedStudent:
    """Called by ``mlflow.pyfunc.load_model`` with the model's folder."""
    import mlflow.transformers

    config = model_config or {}
    pipeline = mlflow.transformers.load_model(path)
    return ServedStudent(pipeline, int(config.get("max_length", 128)), int(config.get("batch_size", 32)))
