"""What a run folder holds, as the report needs it: configuration, metrics, provenance, and the scenarios answered.

Only a finished run is read. A scenario that is unfinished or cannot be read is kept with a sentence saying so, since
one bad folder should not hide the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from irl import runs
from irl.config import Config, InputError, load_config
from irl.scenario import Scenario, load_scenario

ALL = "all"
"""Label of the rows over all segments together."""
COLUMNS = ("case", "segment", "period", "outcome", "baseline", "scenario", "change", "low", "high")


@dataclass(frozen=True)
class ScenarioRecord:
    """One scenario's folder. ``problem`` says why there are no outcomes; it is empty if there are."""

    folder: str
    scenario: Scenario | None = None
    outcomes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    metrics: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""

    @property
    def name(self) -> str:
        return self.scenario.name if self.scenario else self.folder

    @property
    def cases(self) -> list[str]:
        """Labels of the cases, in the order of a sweep's values."""
        present = [str(case) for case in self.outcomes["case"].unique()]
        solved = [case for case in at(self.metrics, "solved", default={}) if case in present]
        return [*solved, *(case for case in present if case not in solved)]

    def outcome(self, *, case: str, segment: str, name: str) -> pd.DataFrame:
        """The rows of one outcome, by period."""
        table = self.outcomes
        rows = (table["case"] == case) & (table["segment"] == segment) & (table["outcome"] == name)
        return table[rows].sort_values("period")

    @property
    def periods(self) -> list[int]:
        """The periods of the plan shares, in order."""
        shares = self.outcomes[self.outcomes["outcome"].astype(str).str.startswith("share_")]
        return sorted(int(p) for p in shares["period"].dropna().unique())


@dataclass(frozen=True)
class Record:
    """A finished run, its scenarios, and what scripts/sensitivity.py left (empty if it was not asked)."""

    folder: Path
    config: Config
    metrics: Mapping[str, Any]
    provenance: Mapping[str, Any]
    scenarios: tuple[ScenarioRecord, ...]
    sensitivity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paid(self) -> tuple[str, ...]:
        """The actions whose reward was estimated: all but an anchor action."""
        return tuple(a for a in self.config.data.actions if a != self.config.anchor.action)

    def numbers(self, actions: Sequence[str]) -> list[int]:
        """The colour of each action: 0 for the anchor, the others in the order of the menu."""
        return [self.paid.index(a) + 1 if a in self.paid else 0 for a in actions]

    @property
    def anchor(self) -> str:
        """The anchor in words: an action in quotes, an action by state, or a policy."""
        anchor = self.config.anchor
        if anchor.action is not None:
            return f"“{anchor.action}”"
        return f"the action in “{anchor.by_state}”" if anchor.by_state is not None else "the reference policy"

    @property
    def segments(self) -> list[str]:
        """Every segment in the order of the study, then ``all``."""
        named = [str(s) for s in at(self.metrics, "panel", "segments", default={})]
        for scenario in self.scenarios:
            named += [str(s) for s in scenario.outcomes["segment"].unique()]
        named += [str(s) for by in at(self.metrics, "reward_summary", default={}).values() for s in by]
        ordered = [s for s in dict.fromkeys(named) if s != ALL]
        return [*ordered, ALL] if ALL in named else ordered

    def _found(self, file: str) -> Mapping[str, Any]:
        """What a script left in the run's folder; empty if it was not asked."""
        path = self.folder / file
        found: Mapping[str, Any] = runs.read_json(path) if path.is_file() else {}
        return found

    @cached_property
    def bootstrap(self) -> Mapping[str, Any]:
        """What scripts/bootstrap.py found; empty if it was not asked."""
        return self._found("bootstrap.json")

    @cached_property
    def falsification(self) -> Mapping[str, Any]:
        """What scripts/falsify.py found, else training; empty if neither was asked."""
        return self._found("falsification.json") or at(self.metrics, "falsification", default={})

    @cached_property
    def attribution(self) -> Mapping[str, Any]:
        """What scripts/attribution.py found; empty if it was not asked."""
        return self._found("attribution.json")

    @cached_property
    def assumptions(self) -> Mapping[str, Any]:
        """What scripts/assumptions.py found: ``variants`` and ``answers``; empty if it was not asked."""
        return self._found("assumptions.json")

    @cached_property
    def backtest(self) -> Mapping[str, Any]:
        """What scripts/backtest.py found: ``backtest`` and ``experiment``; empty if it was not asked."""
        return self._found("backtest.json")


def at(content: Any, *keys: str, default: Any = None) -> Any:
    """The value under nested keys of a JSON document; ``default`` where any of them is missing or null."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return default if content is None else content


def load_record(run: str | Path) -> Record:
    """Read a run folder.

    Raises
    ------
    InputError
        If the run is missing or unfinished, or its configuration or metrics cannot be read.
    """
    folder = runs.complete_run(run)
    config = load_config(folder / "config.yaml")
    metrics = runs.read_json(folder / runs.LAST)
    if not isinstance(metrics, dict):
        raise InputError(f"{folder / runs.LAST}: not the metrics of a run; train it again with --overwrite")
    parent = folder / "scenarios"
    folders = sorted(p for p in parent.iterdir() if p.is_dir() and p.name[0] != ".") if parent.is_dir() else []
    scenarios = tuple(load_answer(p) for p in folders)
    about = folder / "sensitivity.json"
    sensitivity = runs.read_json(about) if about.is_file() else {}
    return Record(folder, config, metrics, runs.read_json(folder / runs.PROVENANCE), scenarios, sensitivity)


def load_answer(folder: Path) -> ScenarioRecord:
    """Read a scenario's folder; what cannot be read is said in ``problem``."""
    if not runs.is_complete(folder):
        return ScenarioRecord(folder.name, problem="It is not finished: run scripts/counterfactual.py again.")
    try:
        scenario = load_scenario(folder / "scenario.yaml")
        metrics = runs.read_json(folder / runs.LAST)
        outcomes = pd.read_parquet(folder / "outcomes.parquet")
    except (InputError, OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        return ScenarioRecord(folder.name, problem=f"It cannot be read: {' '.join(str(error).split())}")
    lost = [name for name in COLUMNS if name not in outcomes]
    if lost or outcomes.empty:
        why = f"outcomes.parquet lacks {', '.join(lost)}" if lost else "outcomes.parquet has no rows"
        return ScenarioRecord(folder.name, scenario, problem=f"It cannot be shown: {why}.")
    text = {name: outcomes[name].astype(str) for name in ("case", "segment", "outcome")}
    return ScenarioRecord(folder.name, scenario, outcomes.assign(**text), metrics)
