"""What is submitted: one thin module a job (config -> preflight -> stages -> tracking)."""
