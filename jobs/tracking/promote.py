"""potstill promote NAME [--version N] [--force] [--rollback]: move alias ``champion`` in the model registry.

Shows both versions' scores side by side. Refuses a challenger whose macro-F1 on the same test texts is lower than the
champion's, one that was tested on other texts (the scores are not comparable), and a first champion worse than its own
seeds-only baseline; ``--force`` promotes it anyway. A tag of the registered model keeps the former champions, so each
``--rollback`` undoes one more promotion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.runtime.paths import absolute_uri
from jobs.tracking.registry import CHALLENGER, CHAMPION, list_versions
from jobs.tracking.server import (
    OFF,
    RefusedError,
    client,
    mlflow_errors,
    problems,
    redact,
    short_requests,
)
from potstill.config import TrackingConfig
from potstill.errors import InputError, PotstillError, Problem

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

HISTORY_TAG = "potstill.former_champions"
_HISTORY_LENGTH = 50


class PromotionRefusedError(PotstillError):
    """The challenger is worse than the champion or not comparable; ``--force`` overrides."""


@dataclass(frozen=True, slots=True)
class VersionScores:
    """A version's scores from its tags, fractions of 1; ``None`` if a tag is missing or unreadable."""

    version: str
    macro_f1: float | None
    macro_f1_low: float | None
    macro_f1_high: float | None
    baseline_macro_f1: float | None
    accuracy: float | None
    test_digest: str | None
    run_digest: str | None
    teacher: str | None
    created: str

    @classmethod
    def of(cls, version: ModelVersion) -> VersionScores:
        """Read a version's tags."""
        tags: Mapping[str, str] = version.tags
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        scores = ("macro_f1", "macro_f1_low", "macro_f1_high", "baseline_macro_f1", "accuracy")
        numbers: dict[str, Any] = {name: _number(tags.get(name)) for name in scores}
        texts: dict[str, Any] = {name: tags.get(name) for name in ("test_digest", "run_digest", "teacher")}
        return cls(
            version=str(version.version),
            **numbers,
            **texts,
            created=created.strftime("%Y-%m-%d %H:%M UTC"),
        )


@dataclass(frozen=True, slots=True)
class PromoteResult:
    """The outcome of ``promote``. ``champion``: the version with the alias now, ``None`` if there is none."""

    name: str
    champion: str | None
    previous: str | None
    message: str


def promote(
    name: str,
    version: int | None = None,
    *,
    force: bool = False,
    rollback: bool = False,
    tracking_uri: str | None = None,
) -> PromoteResult:
    """Make ``version`` (default: the challenger) of ``name`` the champion, or undo the last promotion.

    ``tracking_uri`` defaults to the config's default. Prints the table of scores before the decision, and the outcome. Raises ``InputError`` for a missing model, version or history and for an unreachable server,
    ``PromotionRefusedError`` for a challenger that is worse or not comparable.
    """
    tracking = TrackingConfig.model_validate({"uri": absolute_uri(tracking_uri)} if tracking_uri else {})
    if rollback and version is not None:
        raise InputError([Problem("--rollback", "takes no --version: it restores the champion before")])
    if tracking.uri == OFF:
        raise InputError([Problem("tracking.uri = 'none'", "there is no model registry without tracking")])
    if found := problems(tracking):
        raise InputError(found)
    console = Console(highlight=False)
    try:
        with short_requests(), mlflow_errors():
            registry = client(tracking.uri)
            model = _model(registry, name, tracking.uri)
            versions = list_versions(registry, name)
            if rollback:
                result = _roll_back(registry, model, versions, console)
            else:
                result = _promote(registry, model, versions, version, force, console)
    except RefusedError as error:
        raise InputError([Problem(f"model {name!r}", f"MLflow refused: {error}")]) from error
    console.print(result.message, markup=False, soft_wrap=True)
    return result


def comparison(
    champion: VersionScores | None, candidate: VersionScores | None, candidate_role: str = CHALLENGER
) -> Table:
    """The two versions side by side, for the terminal."""
    table = Table(title=None, show_lines=False)
    table.add_column("")
    columns = [(CHAMPION, champion), (candidate_role, candidate)]
    for role, scores in columns:
        table.add_column(f"{role} (version {scores.version})" if scores else f"{role} (none)", justify="right")
    if champion and candidate:
        table.add_column("difference", justify="right")
    for label, shown, value in (
        ("macro-F1", _macro_f1, lambda scores: scores.macro_f1),
        ("seeds only", lambda scores: _percent(scores.baseline_macro_f1), lambda scores: scores.baseline_macro_f1),
        ("accuracy", lambda scores: _percent(scores.accuracy), lambda scores: scores.accuracy),
        ("test texts", lambda scores: scores.test_digest or "-", None),
        ("run digest", lambda scores: scores.run_digest or "-", None),
        ("teacher", lambda scores: scores.teacher or "-", None),
        ("created", lambda scores: scores.created, None),
    ):
        cells = [shown(scores) if scores else "-" for _, scores in columns]
        if champion and candidate:
            cells.append(_difference(value(champion), value(candidate)) if value else "")
        table.add_row(label, *(Text(cell) for cell in cells))
    return table


def objection(champion: VersionScores | None, challenger: VersionScores) -> str | None:
    """Why ``challenger`` should not replace ``champion``, or be the first; ``None`` if it may."""
    if champion is None:
        own, baseline = challenger.macro_f1, challenger.baseline_macro_f1
        if own is None or baseline is None or own >= baseline:
            return None
        numbers = f"macro-F1 {_percent(own)} against {_percent(baseline)}"
        return f"version {challenger.version} is worse than its seeds-only baseline: {numbers}"
    if challenger.macro_f1 is None or champion.macro_f1 is None:
        missing = challenger if challenger.macro_f1 is None else champion
        return f"version {missing.version} has no macro_f1 tag, so the two can't be compared"
    if challenger.test_digest is None or challenger.test_digest != champion.test_digest:
        both = f"versions {champion.version} and {challenger.version}"
        return f"{both} were tested on different texts, so their scores can't be compared"
    if challenger.macro_f1 < champion.macro_f1:
        within = champion.macro_f1_low is not None and challenger.macro_f1 >= champion.macro_f1_low
        note = ", though within the champion's interval" if within else ""
        numbers = f"macro-F1 {_percent(challenger.macro_f1)} against {_percent(champion.macro_f1)}"
        return f"version {challenger.version} is worse: {numbers}{note}"
    return None


def _promote(
    registry: MlflowClient,
    model: RegisteredModel,
    versions: Mapping[str, ModelVersion],
    version: int | None,
    force: bool,
    console: Console,
) -> PromoteResult:
    name, challenger = str(model.name), str(model.aliases.get(CHALLENGER))
    new = challenger if version is None else str(version)
    if new not in versions:
        listing = f"it has {_listing(model, versions)}"
        if version is not None:
            raise InputError([Problem(f"--version {version}", f"{name} has no such version; {listing}")])
        raise InputError([Problem(f"model {name!r}", f"has no challenger; choose one with --version; {listing}")])
    before, after = _scores(versions, model.aliases.get(CHAMPION)), VersionScores.of(versions[new])
    console.print(comparison(before, after, CHALLENGER if new == challenger else "candidate"))
    if before and before.version == new:
        return PromoteResult(name, new, new, f"version {new} of {name} is the champion already")
    reason = objection(before, after)
    if reason and not force:
        raise PromotionRefusedError(f"{name} not promoted: {reason}; --force promotes it anyway")
    # History first: a crash in between leaves an entry that rollback skips.
    _remember(registry, name, [*_history(model), before.version if before else None])
    registry.set_registered_model_alias(name, CHAMPION, new)
    instead = f" instead of version {before.version}" if before else ""
    forced = f" (forced: {reason})" if reason else ""
    return PromoteResult(
        name, new, before.version if before else None, f"version {new} of {name} is now the champion{instead}{forced}"
    )


def _roll_back(
    registry: MlflowClient, model: RegisteredModel, versions: Mapping[str, ModelVersion], console: Console
) -> PromoteResult:
    name, champion = str(model.name), _scores(versions, model.aliases.get(CHAMPION))
    now = champion.version if champion else None
    history = _history(model)
    while history:
        target = history.pop()
        if target == now or (target is not None and target not in versions):
            continue  # an interrupted promotion, or a version deleted since
        console.print(comparison(champion, _scores(versions, target), "before"))
        if target is None:
            registry.delete_registered_model_alias(name, CHAMPION)
            message = f"{name} has no champion now: version {now} was the first"
        else:
            registry.set_registered_model_alias(name, CHAMPION, target)
            message = f"version {target} of {name} is the champion again" + (
                f" instead of version {now}" if now else ""
            )
        _remember(registry, name, history)
        return PromoteResult(name, target, now, message)
    raise InputError([Problem(f"model {name!r}", "there is no promotion left to roll back")])


def _model(registry: MlflowClient, name: str, uri: str) -> RegisteredModel:
    try:
        with mlflow_errors():
            return registry.get_registered_model(name)
    except RefusedError:
        known = ", ".join(sorted(model.name for model in registry.search_registered_models(max_results=20)))
        message = f"no such registered model at {redact(uri)}; registered: {known or 'none yet'}"
        raise InputError([Problem(f"model {name!r}", message)]) from None


def _scores(versions: Mapping[str, ModelVersion], number: object) -> VersionScores | None:
    """The scores of a version; ``None`` if it does not exist."""
    found = versions.get(str(number))
    return VersionScores.of(found) if found is not None else None


def _listing(model: RegisteredModel, versions: Mapping[str, ModelVersion]) -> str:
    aliases = {str(number): alias for alias, number in model.aliases.items()}
    shown = [f"{number} ({aliases[number]})" if number in aliases else number for number in versions]
    return f"versions {', '.join(shown[-20:])}" if shown else "no versions"


def _history(model: RegisteredModel) -> list[str | None]:
    try:
        history = json.loads(model.tags.get(HISTORY_TAG, "[]"))
    except ValueError:
        return []
    return history if isinstance(history, list) else []


def _remember(registry: MlflowClient, name: str, history: Sequence[str | None]) -> None:
    registry.set_registered_model_tag(name, HISTORY_TAG, json.dumps(list(history)[-_HISTORY_LENGTH:]))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _macro_f1(scores: VersionScores) -> str:
    if scores.macro_f1_low is None or scores.macro_f1_high is None:
        return _percent(scores.macro_f1)
    return f"{_percent(scores.macro_f1)} [{100 * scores.macro_f1_low:.1f}, {100 * scores.macro_f1_high:.1f}]"


def _difference(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{100 * (after - before):+.1f}"
