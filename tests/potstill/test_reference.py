from pathlib import Path

from potstill.reference import as_markdown


def test_the_reference_is_up_to_date():
    written = (Path(__file__).parents[2] / "docs/config.md").read_text()
    assert written == as_markdown(), "run: python -m potstill.reference > docs/config.md"


def test_it_names_bounds():
    assert "| `augment.per_class` |" in as_markdown()
    assert "(at least 1" in as_markdown()
