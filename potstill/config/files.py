"""Read YAML, apply overrides to a config's content, and turn pydantic's errors into readable problems."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from potstill.config.teacher import KINDS
from potstill.errors import InputError, Problem


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises ``InputError`` if it can't be read."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError([Problem(str(path), "no such file; ready-made configs are in conf/")]) from None
    except OSError as error:
        raise InputError([Problem(str(path), f"can't be read: {error.strerror}")]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError([Problem(str(path), f"is not valid YAML: {' '.join(str(error).split())}")]) from error


def override(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``content`` with ``a.b=c`` overrides applied, values read as YAML. Raises ``InputError``."""
    content = copy.deepcopy(content)
    problems: list[Problem] = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name:
            problems.append(Problem(f"--set {text}", "must look like field.name=value"))
            continue
        try:
            set_field(content, name, yaml.safe_load(value))
        except yaml.YAMLError:
            set_field(content, name, value)
    if problems:
        raise InputError(problems)
    return content


def set_field(content: dict[str, Any], name: str, value: Any) -> None:
    """Set the field ``a.b`` of nested mappings in place. Anything but a mapping on the way is replaced by one."""
    *parents, last = name.split(".")
    for parent in parents:
        below = content.get(parent)
        if isinstance(below, str) and parent == "task":
            below = {"preset": below}
        content[parent] = below if isinstance(below, dict) else {}
        content = content[parent]
    content[last] = value


def place_of(item: Any) -> tuple[int | str, ...]:
    """The field a pydantic error refers to, without the union tag pydantic inserts after ``teacher``."""
    place = tuple(item["loc"])
    return place[:1] + place[2:] if place[:1] == ("teacher",) and place[1:2] and place[1] in KINDS else place


def explain(error: ValidationError, where: str) -> list[Problem]:
    """Pydantic's errors as problems: field = value, and what is allowed."""
    items = error.errors()
    # Pydantic reports one error per member of a union such as float | Literal["auto"]; merge them into one line.
    either = {place_of(item)[:-1] for item in items if item["loc"] and str(item["loc"][-1]).startswith("literal[")}
    found: dict[tuple[Any, ...], Problem] = {}
    for item in items:
        place = place_of(item)
        place = place[:-1] if place[:-1] in either else place
        location = ".".join(str(part) for part in place)
        if item["type"] == "extra_forbidden":
            message = "no such field"
        elif item["type"] == "missing":
            message = "is required"
        else:
            shown = "" if isinstance(item["input"], dict) else f" = {item['input']!r}"
            message = item["msg"].removeprefix("Value error, ")
            location += shown
        if place in either:
            message = message.partition(", unable to parse")[0]
            if place in found:
                message = f"{found[place].message} or {message.removeprefix('Input should be ')}"
        # Different errors about one field keep a line each; so do several about the whole config.
        for line in message.splitlines():
            key = place if place in either else (*place, line)
            found[key] = Problem(f"{where}: {location}" if location else where, line)
    return list(found.values())
