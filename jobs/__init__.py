"""What is submitted: one thin module a job (config -> preflight -> stages -> tracking)."""

STAGES = ("generate", "relabel", "finetune", "evaluate")
"""Of a job, in order."""
