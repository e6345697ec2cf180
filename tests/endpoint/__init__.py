"""A misbehaving OpenAI-compatible server for tests: ``python -m tests.endpoint --port 0 --script '{"latency_s": 0.2}'``."""
