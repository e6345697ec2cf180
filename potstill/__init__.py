"""The method: pure functions and data types. No Ray, no MLflow, no network.

A reader who knows PromptMix and Li et al. (both EMNLP 2023) finds them whole in this package;
``actors/`` keeps models alive on a cluster, ``jobs/`` is what a user submits.
"""

__version__ = "0.1.0"
