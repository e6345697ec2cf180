"""What a user may say: one frozen pydantic model, read from YAML.

``job`` has the main sections, ``teacher``, ``student`` and ``search`` the longer ones; ``files`` reads YAML and
explains what is wrong; ``reference`` writes docs/config.md.
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
