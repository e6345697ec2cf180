"""The command line: ``potstill X`` and ``python -m jobs X`` are the same.

Heavy imports wait until a command needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import actors
import potstill
from jobs import STAGES as ALL_STAGES
from jobs import ledger_command
from jobs.runtime import interrupt
from potstill.config import Config, ConfigError, load
from potstill.errors import InputError, PotstillError, Problem
from potstill.search import points as search_points

if TYPE_CHECKING:
    from jobs.run.folder import Run
    from potstill.study.config import StudyConfig

app = typer.Typer(
    name="potstill",
    help="Distil a large language model into a small text classifier on a Ray cluster.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(ledger_command.app, name="ledger")

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML config, such as conf/demo.yaml")]
RunOrConfig = Annotated[
    str, typer.Argument(metavar="RUN|CONFIG", help="a run (its name or folder) or the config that it was started with")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="override a field of the config, such as augment.per_class=50; repeatable"
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="start without asking, whatever the plan says it costs")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Ray's and DeepSpeed's own logs, and tracebacks")]


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Show requests, tokens and cost, and what the ledger already holds: a job's, a search's or a study's. Nothing is spent."""
    from potstill.study.config import is_study

    if is_study(config):
        from jobs.study.run import show_plan

        show_plan(_load_study(config, overrides), verbose)
    else:
        from jobs import plan as distill_plan
        from jobs.search import plan as search_plan

        loaded = _load(config, overrides)
        (distill_plan if loaded.search is None else search_plan).show(loaded)


@app.command()
def distill(config: ConfigPath, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """The whole job: generate, relabel, fine-tune, evaluate, register."""
    from jobs.distill import distill as run

    run(_load(config, overrides, ALL_STAGES), verbose, yes)


@app.command()
def search(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="go on with a search that was stopped (it does so anyway), or say that there is none"
        ),
    ] = False,
    yes: Yes = False,
    verbose: Verbose = False,
) -> None:
    """Find the best settings: many trials that share the teacher's work, the winner tested once and registered."""
    from jobs.search.run import search as run

    run(_load(config, overrides, ALL_STAGES), verbose, yes, resume)


@app.command()
def generate(config: ConfigPath, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Stage 1: the teacher writes texts."""
    from jobs.distill import run_stages

    run_stages(_load(config, overrides, ["generate"]), ["generate"], verbose, yes=yes)


@app.command()
def relabel(run: RunOrConfig, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Stage 2: the teacher labels the texts of a run."""
    _stage("relabel", run, overrides, verbose, yes)


@app.command()
def finetune(run: RunOrConfig, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Stage 3: students are trained on the labelled texts of a run."""
    _stage("finetune", run, overrides, verbose)


@app.command()
def evaluate(run: RunOrConfig, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Stage 4: the students of a run are scored on the test split, the distilled one is registered."""
    _stage("evaluate", run, overrides, verbose)


@app.command()
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN|STUDY|CONFIG", help="a run or a study (its name or folder), or a run's config")
    ],
    overrides: Overrides = None,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="people's votes on the test texts: item, annotator, label (CSV, JSONL, Parquet)"
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="show the page in a browser")] = True,
) -> None:
    """Print the report of a finished run or study, write it as a page (report.html) and open that."""
    from jobs import show as shown

    if study_run := shown.find_study(run):
        given = {"--set": overrides, "--annotations": annotations}
        if wrong := [Problem(name, "can't be used with a study") for name, value in given.items() if value]:
            raise InputError(wrong)
        shown.show_study(study_run, open_it)
    else:
        shown.show(*_resolve(run, overrides), annotations, open_it)


@app.command()
def assess(
    config: ConfigPath,
    overrides: Overrides = None,
    texts: Annotated[
        int | None,
        typer.Option(metavar="N", help="texts that the teacher is asked about at most, 10 to 10,000; default: 300"),
    ] = None,
    yes: Yes = False,
    verbose: Verbose = False,
) -> None:
    """Ask the teacher about some texts, and say beforehand what can be known of a task: go, or label by hand."""
    from jobs.assess import assess as run
    from potstill.study.assessment import TEXTS

    run(_load(config, overrides, ["relabel"]), verbose, yes, TEXTS if texts is None else texts)


@app.command()
def study(config: ConfigPath, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Compare sources of training texts on several tasks: the two papers' tables, for your tasks and teachers."""
    from jobs.study.run import study as run

    run(_load_study(config, overrides), verbose, yes)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered model, such as trec6-student")],
    version: Annotated[int | None, typer.Option(help="the version to promote; default: the challenger")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="promote even if its score is worse or can't be compared")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="give the alias back to the champion before")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI; default as in a config")] = None,
    verbose: Verbose = False,
) -> None:
    """Make a registered model's challenger the champion, if it is no worse."""
    from jobs.tracking.promote import show

    show(name, version, force=force, rollback=rollback, tracking_uri=tracking_uri)


def _load(path: str, overrides: Sequence[str] | None, stages: Sequence[str] = ()) -> Config:
    """A config whose paths are absolute. Where it is broken, the rest of it is checked as well: all is told at once."""
    from jobs.runtime import paths

    try:
        config = load(path, overrides or ())
        if found := search_points.problems(config):
            raise ConfigError([Problem(f"{path}: {one.where}", one.message) for one in found], config)
        return paths.make_absolute(config)
    except ConfigError as error:
        from jobs import preflight

        more = preflight.problems(paths.make_absolute(error.rest), stages) if error.rest else []
        raise InputError([*error.problems, *more]) from error


def _load_study(path: str, overrides: Sequence[str] | None) -> StudyConfig:
    from jobs.runtime import paths
    from potstill.study.config import load as load_study

    return paths.make_study_absolute(load_study(path, overrides or ()))


def _stage(stage: str, reference: str, overrides: list[str] | None, verbose: bool, yes: bool = False) -> None:
    from jobs.distill import run_stages

    config, run = _resolve(reference, overrides, [stage])
    run_stages(config, [stage], verbose, run=run, yes=yes)


def _resolve(reference: str, overrides: list[str] | None, stages: Sequence[str] = ()) -> tuple[Config, Run | None]:
    """The config that is meant, and the run where one was named instead of a config."""
    if reference.endswith((".yaml", ".yml")):
        return _load(reference, overrides, stages), None
    from jobs.run.folder import Run
    from potstill.config import home

    found = Run.find(reference, str(home() / "runs"))
    if found is None:
        raise InputError([Problem(reference, "is neither a config (.yaml) nor a run's folder or name")])
    if overrides:
        raise InputError([Problem("--set", "changes a config, not a finished run; give the config instead of the run")])
    run, config = found
    return config, run


def _check_imports() -> list[str]:
    """`jobs` and `actors` are common names: say so when somebody else's is in front of ours."""
    here = Path(__file__).resolve().parent.parent
    return [
        f"the package {module.__name__!r} was imported from {Path(str(module.__file__)).parent}, not from {here}; "
        "run from the repository's root, or take the other one off PYTHONPATH"
        for module in (actors, potstill)
        if Path(str(module.__file__)).resolve().parent.parent != here
    ]


def main() -> None:
    """Entry point: errors of the user's making end with one line each and exit code 2, others with 1."""
    verbose = any(argument in ("--verbose", "-v") for argument in sys.argv)
    for line in _check_imports():
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    with interrupt.handled():
        try:
            app()
        except PotstillError as error:
            if verbose:
                raise
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
