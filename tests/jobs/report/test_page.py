"""The HTML report: complete and safe for any texts, without errors in a real browser if one is installed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.report import figures, parts, run_page
from jobs.report.content import Chart, Examples, ExampleText, Page, PageSection, Paragraph, Table
from jobs.report.printed import write_page
from jobs.report.render import render
from jobs.report.result import RunReport
from jobs.report.svg import as_svg
from jobs.run.job import prepare
from jobs.runtime.terminal import Terminal
from jobs.show import find_study, show_study
from jobs.stages import evaluate
from jobs.study import page as study_page
from potstill.config import parse
from potstill.errors import InputError
from potstill.measures.annotations import read_annotations
from potstill.rows import Example, Prediction
from potstill.study.tables import TABLES, Study, StudySource, StudyTask
from tests.support import browser

MAILROOM = str(Path(__file__).parents[2] / "fixtures/tasks/mailroom")
EVIL = (
    "<script>document.title = 'broken'; console.error('ran')</script><img src=x onerror=alert(1)>\"'&amp; {{ 7 * 7 }}"
)


class Outline(HTMLParser):
    """Tags, ids, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)
            if name in ("src", "srcset", "data", "action", "poster"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def job(tmp_path):
    """A finished run without a cluster: tables and records as the stages write them, with hostile texts."""
    content = {
        "task": MAILROOM,
        "storage": str(tmp_path / "runs"),
        "ledger": {"uri": f"sqlite:///{tmp_path}/ledger.db"},
        "evaluate": {"resamples": 100},
    }
    job = prepare(parse(content), Terminal())
    first, second, *_ = job.labels
    fields = {"label_probs": (1.0,) + (0.0,) * (len(job.labels) - 1), "confidence": 0.9}
    job.run.write(
        Example,
        "relabelled",
        [
            Example(
                "1", EVIL, second, target_label=first, teacher_label=second, alpha=0.85, mix_label=second, **fields
            ),
            Example("2", "a plain text", first, target_label=first, alpha=0.95, **fields),
            Example("3", "gone", first, target_label=first, kept=False, dropped_because="duplicate"),
        ],
    )
    rng = np.random.default_rng(0)
    predictions = {}
    for name, right in {"seeds_only": 0.3, "seeds_regression": 0.3, "distilled": 0.95}.items():
        rows = []
        for text in job.data.test:
            guess = text.label if rng.random() < right else str(rng.choice(job.labels))
            probs = tuple(0.9 if label == guess else 0.1 / (len(job.labels) - 1) for label in job.labels)
            rows.append(Prediction(text.example_id, text.label, probs, guess))
        predictions[name] = rows
        job.run.write(Prediction, name, rows)
    usage = {
        "requests": 10, "new_requests": 4, "prompt_tokens": 1000, "completion_tokens": 200, "new_cost_usd": 0.01, "seconds": 3.0,
    }  # fmt: skip
    job.run.write_json("generate", {"usage": usage, "rounds": 1, "texts": 3, "kept": 2, "dropped": {"duplicate": 1}})
    checked = {
        "texts": 3, "kept": 2, "seed_accuracy": None, "dropped_because": EVIL, "share_changed": 0.5, "share_applied": 1.0,
        "changes": [[first, second, 1]], "kept_per_class": [[first, 1], [second, 1]],
    }  # fmt: skip
    job.run.write_json("relabel", {"usage": usage, "report": checked})
    job.run.write_json("finetune", {"distilled": {"anchor_weight": {}, "seconds": 4.0, "reused": False}})
    rows = [{"label": None, "texts": 3, "remote_clique": 0.6, "chamfer": 0.2}, {"label": first, "texts": 1, "remote_clique": None, "chamfer": None}]  # fmt: skip
    job.run.write_json("diversity", {"generated": rows, "distilled": rows})
    job.run.write_json("report", evaluate.summarise(job, predictions))
    return job


def page_of(job, votes=None) -> str:
    return write_page(job, RunReport.from_json(job.run.read_json("report")), votes)


def whole(html: str) -> Outline:
    """Check what must hold for every page."""
    outline = Outline(html)
    assert not {"script", "iframe", "object", "embed", "form", "img"} & set(outline.tags)
    assert not outline.handlers
    assert not outline.addresses
    assert not re.search(r"(?i)url\(|@import|https?://", html)
    assert len(set(outline.ids)) == len(outline.ids)
    internal = [link[1:] for link in outline.links if link.startswith("#")]
    assert set(internal) <= set(outline.ids)
    assert set(outline.links) - {f"#{name}" for name in internal} == {"data:,"}
    assert (outline.tags.count("h1"), outline.tags.count("main"), outline.tags.count("nav")) == (1, 1, 1)
    return outline


def test_a_runs_page_answers_first_and_shows_everything(job):
    html = page_of(job)
    outline = whole(html)
    assert outline.text.index("Distilling helped") < outline.text.index("Scores")
    for heading in ("Scores", "By class", "Confusions", "Texts and labels", "Diversity", "Cost", "Examples"):
        assert heading in outline.text
    assert outline.text.count(EVIL) == 2  # the text and the reason, verbatim
    assert "alpha 0.85 with" in outline.text
    assert Path(job.run.path, "report.html").read_text() == html


def test_the_answer_follows_the_interval(job):
    result = RunReport.from_json(job.run.read_json("report"))
    gain = result.difference.macro_f1
    assert gain.low > 0
    assert run_page.build(job, result).good is True
    worse = type(result.difference)(gain, type(gain)(-0.2, -0.3, -0.1), 0.01)
    assert run_page.answer(RunReport("r", result.scores, result.baseline, worse))[0].startswith("Distilling hurt")
    unsure = type(result.difference)(gain, type(gain)(0.1, -0.1, 0.3), 0.5)
    assert "No significant difference" in run_page.answer(RunReport("r", result.scores, result.baseline, unsure))[0]


def test_annotations_give_a_curve(job):
    labels = job.labels
    rows = [
        {"item": text.text if i % 2 else text.example_id, "annotator": who, "label": labels[(i + who * (i % 3 == 0)) % len(labels)]}
        for i, text in enumerate(job.data.test)
        for who in range(3)
    ]  # fmt: skip
    outline = whole(page_of(job, read_annotations(rows, labels)))
    assert "Krippendorff's alpha (95 % interval)" in outline.text
    assert "Spearman's rho over texts" in outline.text
    strangers = read_annotations([{**row, "item": f"no {row['item']}"} for row in rows], labels)
    with pytest.raises(InputError, match="holds no test text of this run"):
        page_of(job, strangers)


def test_a_run_of_an_older_version_has_no_diversity(job):
    Path(job.run.path, "diversity.json").unlink()
    assert "Remote Clique" not in whole(page_of(job)).text


def make_study():
    sources = tuple(StudySource(name, f"{name} <b>title</b>", EVIL) for name in ("real", "few_shot", "promptmix"))
    tasks = tuple(
        StudyTask(name, "d", ("a", "b"), 10, 10, i, "Li et al. 2023") for i, name in enumerate(("easy", "hard"), 1)
    )
    study = Study(
        "small", "abc", 1, tasks, sources, ("student",), ("teacher",), ("m",), 1, "real", True, 60.0, {}
    )  # fmt: skip
    tables = {name: [] for name in TABLES}
    for number, (task, source) in enumerate((t, s) for t in tasks for s in sources):
        which = {"teacher": "teacher", "task": task.name, "source": source.name, "student": "student"}
        f1 = 0.9 - 0.1 * (number % 3)
        tables["cells"].append({**which, "cell": str(number), "repeat": 0, "texts": 90, "seeds": 4, "accuracy": f1, "macro_f1": f1, "macro_f1_low": f1 - 0.05, "macro_f1_high": f1 + 0.05,
                                "requests": 100 * (number % 3), "prompt_tokens": 1000, "completion_tokens": 500, "cost_usd": 0.0})  # fmt: skip
        if source.name != "real":
            tables["differences"].append({**which, "reference": "real", "reference_student": "student", "repeats": 1,
                                          "macro_f1": f1 - 0.9, "macro_f1_low": f1 - 1.0, "macro_f1_high": f1 - 0.9 + 0.11 * (number == 1)})  # fmt: skip
        tables["confusions"] += [
            {"cell": str(number), "label": x, "predicted": y, "count": 5} for x in "ab" for y in "ab"
        ]
        tables["diversity"].append({**which, "repeat": 0, "texts": 9, "remote_clique": 0.5, "chamfer": 0.1})
        tables["examples"].append({**which, "repeat": 0, "text": EVIL, "label": "a", "target_label": "b", "kept": True})
    for rows in tables.values():
        for row in rows:
            row.pop("student", None) if "macro_f1" not in row else None
    return study, {name: pa.Table.from_pylist(rows, schema=TABLES[name]) for name, rows in tables.items()}


def test_a_studys_page_answers_first_and_shows_everything():
    study, tables = make_study()
    outline = whole(render(study_page.build(study, tables, [], "/runs/study-small")))
    assert "On 1 of 2 tasks the best other source does not differ significantly from real" in outline.text
    for heading in ("Results", "Gap and subjectivity", "Diversity", "Cost and accuracy", "Confusions", "Examples"):
        assert heading in outline.text
    assert outline.text.count(EVIL) >= 6


def test_an_empty_study_also_has_a_page():
    study, tables = make_study()
    empty = {name: table.slice(0, 0) for name, table in tables.items()}
    assert "No comparison yet" in whole(render(study_page.build(study, empty, [], "x"))).text


def test_a_studys_folder_gets_its_page_from_the_command(tmp_path, monkeypatch, capsys):
    study, tables = make_study()
    folder = tmp_path / "home/runs/study-small-abc"
    (folder / "study").mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(asdict(study)))
    for name, table in tables.items():
        pq.write_table(table, folder / f"study/{name}.parquet")
    monkeypatch.setenv("POTSTILL_HOME", str(tmp_path / "home"))
    for reference in (folder.name, str(folder)):
        found = find_study(reference)
        assert found is not None
        show_study(found, open_it=False)
        assert f"{folder}/report.html" in capsys.readouterr().out
    assert "Table 1" in whole((folder / "report.html").read_text()).text
    assert find_study("no-such-study") is None


def evil_page() -> Page:
    dots = [figures.Dot(0.5, 0.5, EVIL), figures.Dot(1.0, 0.9, EVIL)]
    blocks = [
        Paragraph(EVIL),
        Table(EVIL, (EVIL, EVIL), [(EVIL, EVIL)], shades=[[0.7]]),
        Table(EVIL, ("", ""), [(EVIL, EVIL)], folded=True),
        Chart(EVIL, figures.intervals([figures.Estimate(EVIL, 0.5, 0.4, 0.6)], EVIL)),
        Chart(EVIL, figures.bars([(EVIL, (0.1, None))], (EVIL, EVIL), EVIL)),
        Chart(EVIL, figures.changes([(EVIL, 0.1, 0.2)], (EVIL, EVIL), EVIL)),
        Chart(EVIL, figures.curves([figures.Curve(EVIL, dots, (0.0, 1.0)), figures.Curve(EVIL, dots)], EVIL, EVIL)),
        Chart(EVIL, figures.confusion([[1, 0], [2, 3]], [EVIL, "b"])),
        Examples(EVIL, 1, [ExampleText(EVIL, EVIL, EVIL + "x", [EVIL])], opened=True),
    ]
    return Page(EVIL, EVIL, EVIL, EVIL, None, [(EVIL, EVIL)], [PageSection("one", EVIL, blocks)], EVIL)


def test_no_input_becomes_markup():
    outline = whole(render(evil_page()))
    assert outline.text.count(EVIL) >= 20


@pytest.mark.parametrize("size", [2, 14, 15, 77, 150])
def test_confusions_of_any_size_are_drawn(size):
    block = parts.confusion(
        "x", np.eye(size, dtype=int).tolist(), [f"a class with a rather long name {i}" for i in range(size)]
    )
    assert isinstance(block, Chart if size > 14 else Table)
    assert len(render(Page("t", "k", "a", "", None, [], [PageSection("s", "S", [block])]))) < 400_000


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.0, 1e-12], [-3.0, 5e6], []])
def test_values_of_any_range_are_drawn(values):
    rows = [figures.Estimate(str(value), value) for value in values]
    dots = [figures.Dot(value, value) for value in values]
    for figure in (figures.intervals(rows, "x"), figures.curves([figures.Curve("x", dots)], "x", "y")):
        assert as_svg(figure, "x").count("<path") >= len(values)


@pytest.mark.slow
@pytest.mark.skipif(browser.NAME is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")
def test_a_real_browser_shows_it_without_errors(job, tmp_path):
    page_of(job)
    place = Path(job.run.path, "report.html")

    async def check(tab: browser.Tab) -> None:
        assert (await tab.tell("document.title")).startswith("mailroom")
        assert await tab.tell("document.scripts.length") == 0
        assert EVIL in await tab.tell("document.querySelector('blockquote').textContent")
        # Drawn, not collapsed; no overflow to the right, at desktop and phone widths.
        assert await tab.tell(
            "[...document.querySelectorAll('svg')].every(one => one.getBoundingClientRect().height > 40)"
        )
        for width in (1200, 400):
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
            )
            assert await tab.tell("document.documentElement.scrollWidth <= window.innerWidth")
        paper = {}
        for scheme in ("light", "dark"):
            await tab.colours(scheme)
            paper[scheme] = await tab.tell("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 24, 29)"}
        reached = []
        for _ in range(40):
            await tab.press_tab()
            reached.append(
                await tab.tell("document.activeElement.tagName + ' ' + document.activeElement.textContent.slice(0, 20)")
            )
        for wanted in ("A To the content", "A Scores", "A Examples", "SUMMARY Kept with", "SUMMARY Dropped"):
            assert any(one.startswith(wanted) for one in reached), (wanted, reached)
        printed = await tab.call("Page.printToPDF")
        assert len(printed["data"]) > 20_000
        assert tab.complaints == []
        assert {url.split(":")[0] for url in tab.asked} <= {"file", "data"}

    browser.look(place, tmp_path / "profile", check)
