"""Made-up trial results."""

from __future__ import annotations

from jobs.search.trial import RungResult

USAGE = {"requests": 10.0, "requests_new": 4.0, "cost_usd_new": 0.25, "tokens_new": 400.0}


def rung(macro_f1: float, per_class: int = 8, tokens: float = 100.0) -> RungResult:
    key = f"{macro_f1}-{per_class}-{tokens}"
    scores = {"macro_f1": macro_f1, "accuracy": macro_f1, "cost_usd": 0.5, "tokens": tokens, "training_s": 2.0}
    return RungResult(
        key, "run", per_class, 5, scores, 0.1, 0.9, (macro_f1,), USAGE, 40, {"train": 1.5, "generate": 2.0}, ("w",)
    )


def point(shots: int, beta: tuple[int, int] = (5, 2), rate: float = 1e-4) -> dict[str, object]:
    return {"augment.shots": shots, "augment.alpha.beta": beta, "student.learning_rate": rate}
