"""Which teacher a config means, without loading or asking it."""

from __future__ import annotations

from actors.backends import openai, weights
from potstill.config.teacher import OpenAITeacher, TeacherConfig
from potstill.teacher import TeacherIdentity


def identify(config: TeacherConfig) -> TeacherIdentity:
    """What of the teacher is part of every request's hash. Raises ``TeacherError`` where a local model is not there."""
    return openai.identify(config) if isinstance(config, OpenAITeacher) else weights.identify(config)
