"""The head of a student: the last linear layer of any sequence classifier, and the features that it reads.

The head is fitted as a logistic regression on those features before training goes on from there (linear probing, then
fine-tuning: Kumar et al., ICLR 2022, sec. 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRENGTH = 1.0  # inverse regularisation of the regression; MiniLM's features have length about 4
_BATCH = 64


def find_head(model: Any) -> Any:
    """The linear layer that gives the logits."""
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]


@contextmanager
def watch(model: Any) -> Iterator[list[Any]]:
    """A list of the features ``[rows, width]`` of every forward pass in the block."""
    seen: list[Any] = []
    hook = find_head(model).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        hook.remove()


def compute_features(encoder: Any, ids: Sequence[Sequence[int]], device: Any) -> NDArray[np.float32]:
    """The head's input for each text, without dropout, ``[rows, width]``."""
    import torch

    model = encoder.model.to(device)
    model.eval()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    features = np.zeros((len(ids), find_head(model).in_features), dtype=np.float32)
    with torch.no_grad(), watch(model) as seen:
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            model(**encoder.collate([ids[i] for i in chosen], device))
            features[chosen] = seen.pop().float().cpu().numpy()
    return features


def fit_head(
    encoder: Any, features: NDArray[np.float32], targets: NDArray[np.float32], weights: NDArray[np.float32]
) -> dict[str, Any]:
    """The head's parameters, by their names in the model: the logistic regression of ``targets`` [rows, classes] on
    ``features`` [rows, width]. Empty if all rows are of one class.

    A row with a distribution counts once per class, with its probability times its weight.
    """
    import torch
    from sklearn.linear_model import LogisticRegression

    classes = targets.shape[1]
    shares = (targets * weights[:, None]).astype(np.float64)
    rows, columns = np.nonzero(shares > 1e-3 * weights.max())
    if len(np.unique(columns)) < 2:
        return {}
    # Scale the mean weight to 1, so that the regularisation does not depend on the scale of the weights.
    share = shares[rows, columns] * len(features) / shares.sum()
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(features[rows], columns, sample_weight=share)
    coefficients, intercepts = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-1, 1]) * intercepts / 2
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, intercepts.min() - 1.0)
    weight[fitted.classes_], bias[fitted.classes_] = coefficients, intercepts
    head = find_head(encoder.model)
    name = next(name for name, module in encoder.model.named_modules() if module is head)
    return {f"{name}.weight": torch.from_numpy(weight).float(), f"{name}.bias": torch.from_numpy(bias).float()}
