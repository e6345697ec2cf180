"""MLflow's transformers flavor with our own prediction function: ``Model.log`` calls ``save_model`` here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(path: str, mlflow_model: Any, **kwargs: Any) -> None:
    """Call ``mlflow.transformers.save_model``, then make ``served_student`` the loader of the python function.

    ``mlflow.transformers.load_model`` still loads a plain pipeline. Raises MLflow's errors.
    """
    import mlflow.transformers

    mlflow.transformers.save_model(path=path, mlflow_model=mlflow_model, **kwargs)
    mlflow_model.flavors["python_function"]["loader_module"] = "served_student"
    mlflow_model.save(str(Path(path) / "MLmodel"))
