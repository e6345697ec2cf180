import re
from pathlib import Path

from potstill.config import Config
from potstill.config.reference import EVERYDAY, as_markdown
from potstill.config.sections import fields


def rows_by_section() -> dict[str, dict[str, str]]:
    """Heading -> the rows of its table by field name, with the kind of teacher in brackets."""
    found: dict[str, dict[str, str]] = {}
    for line in as_markdown().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif row := re.match(r"\| `([\w.]+)`( \(\w+\))? \|", line):
            kind = row[2] or (f" ({heading.partition(': ')[2]})" if ": " in heading else "")
            found.setdefault(heading, {})[row[1] + kind] = line
    return found


def test_the_reference_is_up_to_date():
    written = (Path(__file__).parents[3] / "docs/config.md").read_text()
    assert written == as_markdown(), "run: python -m potstill.config.reference > docs/config.md"


def test_every_field_appears_once():
    names = [name for rows in rows_by_section().values() for name in rows]
    assert sorted(names) == sorted(name for name, _ in fields(Config))
    rows = [line for line in as_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(names)


def test_everyday_fields_exist_and_come_first():
    assert len(set(EVERYDAY)) == len(EVERYDAY)
    assert {name.partition(" ")[0] for name in rows_by_section()["Config"]} == set(EVERYDAY)


def test_rows_are_grouped_by_section():
    sections = rows_by_section()
    assert list(sections)[1:5] == ["task", "ledger", "teacher: embedded", "teacher: openai"]
    for heading, rows in sections.items():
        assert heading == "Config" or {name.partition(".")[0] for name in rows} == {heading.partition(":")[0]}


def test_rows_name_what_is_allowed():
    rows = {name: line for section in rows_by_section().values() for name, line in section.items()}
    assert rows["augment.per_class"].endswith("(at least 1, at most 100000) |")
    assert "`promptmix` or `few_shot` or `zero_shot`" in rows["augment.strategy"]
    assert rows["student.second_opinion"].endswith("(`auto`; at least 0.0, at most 1.0) |")
