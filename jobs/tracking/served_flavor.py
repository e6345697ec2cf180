"""MLflow's transformers flavor with our own prediction function: ``Model.log`` calls ``save_model`` here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_model(path: str, mlflow_model: Any, **kwargs: Any) -> None:
    """``mlflow.transformers.save_model``, then ``served_student`` as the python function.

    ``mlflow.transformers.load_model`` still finds a plain pipeline. Raises what MLflow raises.
    """
    import mlflow.transformers

    mlflow.transformers.save_model(path=path, mlflow_model=mlflow_model, **kwargs)
    mlflow_model.flavors["python_function"]["loader_module"] = "served_student"
    mlflow_model.save(str(Path(path) / "MLmodel"))
