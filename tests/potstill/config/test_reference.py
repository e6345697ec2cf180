from pathlib import Path

from potstill.config.reference import as_markdown


def test_the_reference_is_up_to_date():
    written = (Path(__file__).parents[3] / "docs/config.md").read_text()
    assert written == as_markdown(), "run: python -m potstill.config.reference > docs/config.md"


def test_it_names_what_is_allowed():
    lines = {line.split("`")[1]: line for line in as_markdown().splitlines() if line.startswith("| `")}
    assert lines["augment.per_class"].endswith("(at least 1, at most 100000) |")
    assert "`promptmix` or `few_shot` or `zero_shot`" in lines["augment.strategy"]
    assert lines["student.second_opinion"].endswith("(`auto`, at least 0.0, at most 1.0) |")
