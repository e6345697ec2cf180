"""The user's config: one frozen pydantic model, read from YAML.

``job`` holds the main sections; ``teacher``, ``student`` and ``search`` hold the longer ones. ``files`` applies overrides
and explains validation errors; ``reference`` writes docs/config.md.
"""

from potstill.config.job import (
    Alpha,
    AugmentConfig,
    Config,
    ConfigError,
    EvaluateConfig,
    LedgerConfig,
    RelabelConfig,
    TaskRef,
    TrackingConfig,
    load,
    parse,
)
from potstill.config.sections import Section, home
from potstill.config.student import StudentConfig
from potstill.config.teacher import EmbeddedTeacher, OpenAITeacher, TeacherConfig

__all__ = [
    "Alpha",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "EmbeddedTeacher",
    "EvaluateConfig",
    "LedgerConfig",
    "OpenAITeacher",
    "RelabelConfig",
    "Section",
    "StudentConfig",
    "TaskRef",
    "TeacherConfig",
    "TrackingConfig",
    "home",
    "load",
    "parse",
]
