"""The method: pure functions and data types. No Ray, no MLflow, no network.

This package implements PromptMix and Li et al. (both EMNLP 2023). ``actors/`` runs models on a cluster; ``jobs/``
holds the commands that users submit.
"""

__version__ = "0.1.0"
