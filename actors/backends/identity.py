"""The identity of a config's teacher, without loading or calling it."""

from __future__ import annotations

from actors.backends import openai, weights
from potstill.config.teacher import OpenAITeacher, TeacherConfig
from potstill.teacher import TeacherIdentity


def identify(config: TeacherConfig) -> TeacherIdentity:
    """The teacher as part of every request's hash. Raises ``TeacherError`` if a local model is missing."""
    return openai.identify(config) if isinstance(config, OpenAITeacher) else weights.identify(config)
