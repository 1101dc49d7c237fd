"""The answers of a study's scenarios again, by models that assume something else.

A variant is another fitted model of the same members and actions: the refits that :mod:`irl.estimation.sensitivity`
leaves at other discounts, or another run, with hidden types, say, or another anchor. What it assumes is told from the
two configurations: the options that differ. Every model answers every scenario for the same number of members,
without intervals, and of each case is kept, by segment, how plan shares and membership change in the last period, and
the surplus (in reward units, each model's own).

``RUN/assumptions.json`` is written after each answer, whole; answers that are there are not made again, those of a
model or scenario that has changed are replaced, and those of variants not asked for now are kept.

Limits: a change beyond the variants that were asked for is not seen; two variants together may move more than each.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from irl import runs
from irl.config import Config, InputError
from irl.counterfactual.outcomes import Question, ask
from irl.fitted import FittedModel
from irl.scenario import Scenario

RESULT = "assumptions.json"
MEMBERS = 10_000
"""Members simulated for each answer, at most: they are compared on common random numbers."""
TECHNICAL = ("seed", "estimation", "market", "money", "data.path")
"""Options that say nothing about members."""


@dataclass(frozen=True)
class Variant:
    """A model, how it is called, and the options by which it differs: place -> (the study's, its own)."""

    label: str
    model: FittedModel
    differs: Mapping[str, tuple[Any, Any]]


def differences(study: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The options that differ, technical ones left out, as plain values."""
    ours, theirs = (dict(_flat(config.model_dump(mode="json"))) for config in (study, other))
    places = [p for p in (ours | theirs) if ours.get(p) != theirs.get(p)]
    return {p: (ours.get(p), theirs.get(p)) for p in places if not _technical(p)}


def variant(study: FittedModel, label: str, model: FittedModel) -> Variant:
    """``model`` beside the study.

    Raises
    ------
    InputError
        If its actions or segments are others, or it assumes the same.
    """
    for what in ("actions", "segments"):
        ours, theirs = getattr(study.schema, what), getattr(model.schema, what)
        if ours != theirs:
            raise InputError(f"{label}: its {what} are {', '.join(theirs)}; the run's are {', '.join(ours)}")
    differs = differences(study.config, model.config)
    if not differs:
        raise InputError(f"{label}: it assumes what the run does; give a run of other options")
    return Variant(label, model, differs)


def relax(
    path: Path,
    study: FittedModel,
    variants: Sequence[Variant],
    scenarios: Mapping[str, Scenario],
    frame: pd.DataFrame,
    *,
    overwrite: bool = False,
    tick: Callable[[str, int, int], None] = lambda label, done, of: None,
) -> float:
    """The answers of the study and of its variants into ``path``; how many seconds the new ones took.

    ``tick`` is called with what is being answered, answers done, and their number.

    Raises
    ------
    InputError
        If a scenario does not fit a model; nothing is written then that is not there already.
    """
    started = time.perf_counter()
    before = {} if overwrite or not path.is_file() else runs.read_json(path)
    kept = {(a["scenario"], a["variant"]): a for a in before.get("answers", [])}
    asked = [("", study, {}), *((v.label, v.model, v.differs) for v in variants)]
    told = before.get("variants", {}) | {label: differs for label, _, differs in asked if label}
    questions: list[tuple[tuple[str, str], str, Question]] = []
    for label, model, _ in asked:
        for name, scenario in scenarios.items():
            fewer = scenario.model_copy(update={"members": _members(scenario)})
            about = _about(fewer, model)
            if kept.get((name, label), {}).get("about") != about:
                questions.append(((name, label), about, ask(_without_errors(model), fewer, frame)))
    for done, (key, about, question) in enumerate(questions):
        tick(f"{key[0]}, {key[1] or 'as estimated'}", done, len(questions))
        rows = question.withheld.left(headline(question.answer(bands=False).outcomes))
        kept[key] = {"scenario": key[0], "variant": key[1], "about": about, "rows": rows}
        runs.write_json(path, {"variants": told, "answers": list(kept.values())})
    tick("all answers", len(questions), len(questions))
    return time.perf_counter() - started


def headline(outcomes: pd.DataFrame) -> list[dict[str, Any]]:
    """Case, segment, outcome and change of the last period's shares and membership, and of the surplus."""
    shares = outcomes["outcome"].str.startswith("share_") | (outcomes["outcome"] == "membership")
    last = outcomes[shares & (outcomes["period"] == outcomes["period"].max())]
    rows = pd.concat([last, outcomes[outcomes["outcome"] == "surplus"]]).dropna(subset=["change"])
    found: list[dict[str, Any]] = rows[["case", "segment", "outcome", "change"]].to_dict("records")
    return found


def _members(scenario: Scenario) -> int | str:
    return scenario.members if scenario.members == "all" else min(int(scenario.members), MEMBERS)


def _about(scenario: Scenario, model: FittedModel) -> str:
    weights = model.reward_network.state_dict().values() if model.refit is None else (model.refit.theta,)
    return runs.fingerprint(scenario.model_dump_json(), model.config.model_dump_json(), *weights)


def _without_errors(model: FittedModel) -> FittedModel:
    """The model without standard errors, so that no intervals are made."""
    model = replace(model, refit=copy.deepcopy(model.refit))
    if model.refit is not None:
        model.refit.covariance.zero_()
    return model


def _flat(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, content


def _technical(place: str) -> bool:
    return any(place == name or place.startswith(f"{name}.") for name in TECHNICAL)
