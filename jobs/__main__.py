"""The command line: ``potstill X`` and ``python -m jobs X`` are the same.

Each command imports its own job, so that ``--help`` answers at once: Ray, PyArrow and SciPy take seconds to load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import actors
import potstill
from jobs import STAGES, ledger_command
from jobs.runtime import interrupt
from potstill.config import Config, ConfigError, home, load
from potstill.errors import InputError, PotstillError, Problem
from potstill.search.points import problems as space_problems

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
RunOrConfig = Annotated[str, typer.Argument(metavar="RUN|CONFIG", help="a run (its name or folder) or its config")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="override a config field, such as augment.per_class=50; repeatable"
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="start without asking for confirmation, regardless of the planned cost")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show tracebacks and the logs of Ray and DeepSpeed")]


@app.command()
def plan(config: ConfigPath, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Show the requests, tokens and cost of a job, search or study, and what the ledger already holds. Spends nothing."""
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
    """Run the whole job: generate, relabel, fine-tune, evaluate, register."""
    from jobs.distill import run_stages

    run_stages(_load(config, overrides, STAGES), STAGES, verbose, yes=yes)


@app.command()
def search(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="fail if there is no search to resume; a stopped search resumes either way"),
    ] = False,
    yes: Yes = False,
    verbose: Verbose = False,
) -> None:
    """Search for the best settings: trials share the teacher's answers; the winner is tested once and registered."""
    from jobs.search.run import search as run

    run(_load(config, overrides, STAGES), verbose, yes, resume)


@app.command()
def generate(config: ConfigPath, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Stage 1: the teacher writes texts."""
    from jobs.distill import run_stages

    run_stages(_load(config, overrides, ["generate"]), ["generate"], verbose, yes=yes)


@app.command()
def relabel(run: RunOrConfig, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Stage 2: the teacher relabels the texts of a run."""
    _stage("relabel", run, overrides, verbose, yes)


@app.command()
def finetune(run: RunOrConfig, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Stage 3: train students on the labelled texts of a run."""
    _stage("finetune", run, overrides, verbose)


@app.command()
def evaluate(run: RunOrConfig, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Stage 4: score the students of a run on the test split and register the distilled one."""
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
            metavar="FILE", help="human labels of the test texts: item, annotator, label (CSV, JSONL, Parquet)"
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="open the page in a browser")] = True,
) -> None:
    """Print the report of a finished run or study, write it to report.html and open that page."""
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
        typer.Option(metavar="N", help="maximum texts to ask the teacher about, 10 to 10,000; default: 300"),
    ] = None,
    yes: Yes = False,
    verbose: Verbose = False,
) -> None:
    """Assess a task before paying for it: the teacher votes on sample texts; the advice is to distil or to label by hand."""
    from jobs.assess import assess as run
    from potstill.study.assessment import TEXTS

    run(_load(config, overrides, ["relabel"]), verbose, yes, TEXTS if texts is None else texts)


@app.command()
def study(config: ConfigPath, overrides: Overrides = None, yes: Yes = False, verbose: Verbose = False) -> None:
    """Compare sources of training texts across tasks: the tables of the two papers for your tasks and teachers."""
    from jobs.study.run import study as run

    run(_load_study(config, overrides), verbose, yes)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a registered model, such as trec6-student")],
    version: Annotated[int | None, typer.Option(help="the version to promote; default: the challenger")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="promote even if the score is worse or not comparable")
    ] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="restore the previous champion")] = False,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow tracking URI; default: as in a config")] = None,
    verbose: Verbose = False,
) -> None:
    """Make a registered model's challenger the champion if its score is not worse."""
    from jobs.tracking.promote import promote as run

    run(name, version, force=force, rollback=rollback, tracking_uri=tracking_uri)


def _load(path: str, overrides: Sequence[str] | None, stages: Sequence[str] = ()) -> Config:
    """A config with absolute paths. If it is invalid, the rest is checked too, and all errors are reported at once."""
    from jobs.runtime import paths

    found: Sequence[Problem] = ()
    try:
        config: Config | None = load(path, overrides or ())
    except ConfigError as error:
        config, found = error.rest, error.problems
    if config is not None:
        config = paths.make_absolute(config)
        if not found and not space_problems(config):
            return config
        from jobs import preflight

        found = [*found, *preflight.problems(config, stages)]  # those of the search space among them
    raise InputError(found)


def _load_study(path: str, overrides: Sequence[str] | None) -> StudyConfig:
    from jobs.runtime import paths
    from potstill.study.config import load as load_study

    return paths.make_study_absolute(load_study(path, overrides or ()))


def _stage(stage: str, reference: str, overrides: list[str] | None, verbose: bool, yes: bool = False) -> None:
    from jobs.distill import run_stages

    config, run = _resolve(reference, overrides, [stage])
    run_stages(config, [stage], verbose, run=run, yes=yes)


def _resolve(reference: str, overrides: list[str] | None, stages: Sequence[str] = ()) -> tuple[Config, Run | None]:
    """A config and, if the reference names a run, that run."""
    if reference.endswith((".yaml", ".yml")):
        return _load(reference, overrides, stages), None
    from jobs.run.folder import Run

    found = Run.find(reference, str(home() / "runs"))
    if found is None:
        raise InputError([Problem(reference, "is neither a config (.yaml) nor a run's folder or name")])
    if overrides:
        raise InputError(
            [Problem("--set", "applies to a config, not to a finished run; give the config instead of the run")]
        )
    run, config = found
    return config, run


def _check_imports() -> list[str]:
    """Errors for packages of ours that another package of the same (common) name shadows."""
    here = Path(__file__).resolve().parent.parent
    return [
        f"the package {module.__name__!r} was imported from {Path(str(module.__file__)).parent}, not from {here}; "
        "run from the repository root, or remove the other package from PYTHONPATH"
        for module in (actors, potstill)
        if Path(str(module.__file__)).resolve().parent.parent != here
    ]


def main() -> None:
    """Entry point. Prints one line per error; exit code 2 for invalid input, 1 for other errors."""
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
