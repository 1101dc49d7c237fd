"""Every option of a study, as frozen sections that refuse what they do not know.

A study is one YAML file (no inheritance, no class paths). ``load_config`` reads it, applies
``key.path=value`` overrides and returns a :class:`Config`; every problem of the file is reported in one
:class:`InputError`, each with the place where it stands and, for a misspelt key, the nearest name.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from irl.sections import InputError, Section, Types, nearest, unknown, validated

__all__ = ["Config", "InputError", "Section", "load_config", "nearest", "read_yaml", "unknown", "validated"]


Scalar = bool | int | float | str


class Between(Section):
    """A closed range of a numeric feature, in its declared units; an open side is left out."""

    min: float | None = None
    max: float | None = None


def _listed(value: Any) -> Any:
    if isinstance(value, (Mapping, Between)):
        return value
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    listed = [v.isoformat() if isinstance(v, datetime.date) else v for v in listed]  # YAML reads dates as such
    if not listed or not all(isinstance(v, (str, int, float)) for v in listed):
        raise ValueError("give an allowed value, a list of them, or a range {min: ..., max: ...}")
    return listed


Values = Annotated[tuple[Scalar, ...] | Between, BeforeValidator(_listed)]
Condition = dict[str, Values]
"""Column name -> allowed values (or a range). All columns must hold at once."""


def _period(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value  # YAML reads dates as such


Period = Annotated[int | str, BeforeValidator(_period)]
"""A period, written as the period column has it."""


Weight = Annotated[float, Field(ge=0)] | str
"""A number, or a column that holds it."""


class Feature(Section):
    """One column of the state."""

    kind: Literal["category", "ordinal", "count", "numeric"]
    dynamics: Literal["static", "table", "clock", "learned"]
    levels: int | tuple[Scalar, ...] | None = Field(
        None, description="ordinal: number of levels (values 0..levels-1) or the values in order"
    )
    parents: tuple[str, ...] = Field((), description="table: state columns that, with the action, move this one")
    assigned: Literal["observed", "randomised"] = Field(
        "observed", description="randomised: varies for reasons unrelated to taste (a price test)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Feature:
        if self.kind == "ordinal" and self.levels is None:
            raise ValueError("an ordinal needs `levels`: their number, or the values in order")
        if self.kind != "ordinal" and self.levels is not None:
            raise ValueError(f"`levels` is for ordinals; this is a {self.kind}")
        if isinstance(self.levels, int) and self.levels < 2:
            raise ValueError("`levels` must be at least 2")
        if isinstance(self.levels, tuple) and (len(self.levels) < 2 or len(set(self.levels)) < len(self.levels)):
            raise ValueError("`levels` must list at least two different values")
        if self.dynamics == "table" and self.kind in ("count", "numeric"):
            raise ValueError("`dynamics: table` counts levels: it is for categories and ordinals; use learned")
        if self.parents and self.dynamics != "table":
            raise ValueError(f"`parents` is for `dynamics: table`; this is {self.dynamics}")
        return self


class Data(Section):
    """Where the panel is and what its columns mean: one tidy row per member and period."""

    path: str = Field(description="Parquet or CSV: a file, a folder or a glob")
    member: str
    period: str = Field(description="column of integers or dates")
    action: str
    actions: tuple[str, ...] = Field(min_length=2, description="the whole menu, in the order of the outputs")
    available: dict[str, Condition] = Field(
        default_factory=dict, description="action -> condition on the state; an action not named is always available"
    )
    segment: tuple[str, ...] = Field((), description="one column or a list; need not be a state feature")
    terminal: Condition = Field(default_factory=dict, description="states after which there is nothing")
    weight: str | None = Field(None, description="column of positive row weights")
    cluster: str | None = Field(
        None,
        description="column of the groups of members within which errors may go together (a regional test); "
        "default: every member by itself",
    )
    duration: str | None = Field(None, description="column of periods until the member's next row (default 1)")
    until: Period | None = Field(
        None, description="last period to fit on; scripts/backtest.py forecasts the later ones"
    )
    held_out: Condition = Field(
        default_factory=dict, description="condition on any columns: members for whom it holds are fitted on nowhere"
    )
    state: dict[str, Feature] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_segment(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("segment"), str):
            return {**values, "segment": [values["segment"]]}
        return values

    @model_validator(mode="after")
    def _known_names(self) -> Data:
        problems = []
        if len(set(self.actions)) < len(self.actions):
            problems.append("`actions` lists an action twice")
        for action in self.available:
            problems += unknown(action, self.actions, "available", "action")
        named = [(f"available.{a}", c) for a, c in self.available.items()] + [("terminal", self.terminal)]
        for place, condition in named:
            for column in condition:
                problems += unknown(column, self.state, place, "state column")
        if self.action in self.state:
            problems.append(f"state.{self.action}: the action to be explained cannot be state; its past can")
        for name, feature in self.state.items():
            for parent in feature.parents:
                problems += unknown(parent, self.state, f"state.{name}.parents", "state column")
                if parent in self.state and self.state[parent].kind in ("count", "numeric"):
                    problems.append(f"state.{name}.parents: {parent!r} is not a category or ordinal")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Anchor(Section):
    """Whose reward is known: an action's, an action's that depends on the state, or a reference policy's on average.

    Exactly one of ``action``, ``by_state`` (a category of the state whose labels are actions) and ``policy``:
    ``uniform`` over the menu, or weights by action, numbers or state columns, which are restricted to the menu and
    normalised (an action left out has weight 0).
    """

    action: str | None = None
    by_state: str | None = None
    policy: Literal["uniform"] | dict[str, Weight] | None = None
    reward: float | str = Field(0.0, description="a number in reward units, or a column that holds it")

    @model_validator(mode="after")
    def _one_form(self) -> Anchor:
        if sum(form is not None for form in (self.action, self.by_state, self.policy)) != 1:
            raise ValueError("give exactly one of `action`, `by_state`, `policy`")
        weights = self.policy.values() if isinstance(self.policy, dict) else ()
        if isinstance(self.policy, dict) and not any(isinstance(w, str) or w > 0 for w in weights):
            raise ValueError("`policy` needs an action with a positive weight")
        return self

    def weights(self, actions: tuple[str, ...]) -> tuple[float | str, ...]:
        """The weights of the reference policy by action; empty for the other forms."""
        if self.policy == "uniform":
            return (1.0,) * len(actions)
        return tuple(self.policy.get(a, 0.0) for a in actions) if isinstance(self.policy, dict) else ()

    def problems(self, data: Data) -> list[str]:
        """Names that the data section does not have, and columns of the wrong kind."""
        found = [] if self.action is None else unknown(self.action, data.actions, "anchor.action", "action")
        if self.by_state is not None:
            found += unknown(self.by_state, data.state, "anchor.by_state", "state column")
            if self.by_state in data.state and data.state[self.by_state].kind != "category":
                found.append(f"anchor.by_state: {self.by_state!r} is not a category: its labels have to be actions")
        for action, weight in self.policy.items() if isinstance(self.policy, dict) else ():
            found += unknown(action, data.actions, "anchor.policy", "action")
            if isinstance(weight, str):
                found += unknown(weight, data.state, f"anchor.policy.{action}", "state column")
                if weight in data.state and data.state[weight].kind not in ("count", "numeric"):
                    found.append(f"anchor.policy.{action}: {weight!r} is not numeric: it has to hold weights")
        return found


class Reward(Section):
    """The form of the reward of every action but the anchor.

    ``full``: main effects and interactions, shrunk by evidence. ``additive``: the same, but every benefit has a term of
    its own (which may differ by what never changes about a member), so that the reward splits into benefits exactly.
    ``linear``: a coefficient for every column, by maximum likelihood; with ``select``, shrunk by evidence, which
    removes columns that explain nothing.
    """

    structure: Literal["full", "additive", "linear"] = "full"
    columns: tuple[str, ...] = Field((), description="state columns that the reward may depend on; empty: all")
    benefits: tuple[str, ...] = Field((), description="state columns whose contributions to the reward are reported")
    intercept: bool = Field(True, description="linear: whether an action has a constant of its own")
    select: bool = Field(False, description="linear: shrink every column by evidence (the others always do)")

    @model_validator(mode="after")
    def _consistent(self) -> Reward:
        problems = []
        if self.structure == "additive" and not self.benefits:
            problems.append("`structure: additive` needs `benefits`, the columns with a term of their own")
        if self.structure != "linear" and (self.select or not self.intercept):
            problems.append("`select` and `intercept` are for `structure: linear`")
        if self.columns:
            problems += [
                p for name in self.benefits for p in unknown(name, self.columns, "benefits", "one of `columns`:")
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Flow(Section):
    """Money per period: an amount, and ``per`` unit of state columns, where a condition of the state holds."""

    amount: float | str = Field(0.0, description="a number, or a numeric state column")
    per: dict[str, float] = Field(
        default_factory=dict, description="state column -> money per unit (an ordinal's levels count as their numbers)"
    )
    where: Condition = Field(default_factory=dict)

    def problems(self, data: Data, place: str) -> list[str]:
        """Names that the data section does not have, and columns that are not numbers."""
        found = unknown(self.amount, data.state, place, "state column") if isinstance(self.amount, str) else []
        if isinstance(self.amount, str) and self.amount in data.state:
            numeric = data.state[self.amount].kind in ("count", "numeric")
            found += [] if numeric else [f"{place}: {self.amount!r} is not numeric: it has to hold amounts"]
        found += [p for name in self.where for p in unknown(name, data.state, f"{place}.where", "state column")]
        for name in self.per:
            found += unknown(name, data.state, f"{place}.per", "state column")
            if name in data.state and data.state[name].kind == "category":
                found.append(f"{place}.per: {name!r} is a category: it has no units")
        return found


def _flow(value: Any) -> Any:
    return value if isinstance(value, (Mapping, Flow)) else {"amount": value}


Flows = dict[str, Annotated[Flow, BeforeValidator(_flow)]]
"""Action -> money per period in which it is chosen; a number or a column stands for a flow of that amount."""


class Money(Section):
    """What members pay and what serving them costs, by action; an action not named pays, or costs, nothing."""

    currency: str = Field(pattern=r"\S")
    price: Flows = Field(min_length=1)
    cost: Flows = Field(default_factory=dict)

    def problems(self, data: Data, place: str = "money") -> list[str]:
        """Names that the data section does not have, and columns that are not numbers."""
        found = []
        for kind, flows in (("price", self.price), ("cost", self.cost)):
            for action, flow in flows.items():
                found += unknown(action, data.actions, f"{place}.{kind}", "action")
                found += flow.problems(data, f"{place}.{kind}.{action}")
        return found


class Step(Section):
    """How one network is trained."""

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.3, ge=0, description="decoupled (AdamW): a share of learning_rate per step")
    batch_size: int = Field(2048, gt=0)
    max_epochs: int = Field(30, gt=0)
    patience: int = Field(8, gt=0, description="epochs without a better held-out loss before stopping")


class AnchorQStep(Step):
    """The Q step: trunk by gradient, last layer by the kernel, alternately (`lstd`), or both by gradient (`fqi`)."""

    solver: Literal["lstd", "fqi"] = "lstd"
    rounds: int = Field(2, gt=0, description="trunk refreshes (lstd) or fitted iterations (fqi)")
    max_epochs: int = Field(8, gt=0, description="epochs per round")
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="per row, on standardised features; auto: chosen by held-out members"
    )


class Refit(Section):
    """The likelihood refit of the reward: rounds of evaluating its features under the policy, then maximising."""

    rounds: int = Field(2, ge=0, description="policy evaluations; 0: no refit, the reward is the R step's")
    rows: int = Field(10_000, gt=0, description="states from which what follows is drawn, at most")
    standard_errors: bool = Field(True, description="whether the covariance of the reward is estimated")


class Estimation(Section):
    """The fits of a study, and the share of members held out to stop those by gradient."""

    validation: float = Field(0.2, gt=0, lt=0.9, description="share of members held out")
    folds: int = Field(
        2, ge=1, description="parts of the members for the Q step's orthogonal correction; 1: no correction"
    )
    policy: Step = Step()
    anchor_q: AnchorQStep = AnchorQStep()
    reward: Step = Step()
    dynamics: Step = Step()
    refit: Refit = Refit()


class Market(Section):
    """The simulated market (`scripts/simulate.py`): how many members, how long, and how unlike the model they are."""

    members: int = Field(4000, gt=0)
    periods: int = Field(36, gt=1)
    types: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1.0,),
        min_length=1,
        description="hidden types, equally many: each values every benefit this many times as much",
    )
    commitment: bool = Field(False, description="an annual contract cannot be left")
    attention: float = Field(1.0, gt=0, le=1, description="probability that a member decides in a month; else renewal")
    reminded: float = Field(0.0, ge=0, le=1, description="probability of a reminder (column `reminded`)")
    attention_reminded: float = Field(1.0, gt=0, le=1, description="probability that a reminded member decides")
    nest: float = Field(0.0, ge=0, lt=1, description="part of the taste shocks that the two plans share")


class Config(Section):
    """One study."""

    data: Data
    anchor: Anchor
    reward: Reward = Reward()
    money: Money | None = Field(None, description="prices and costs, for revenue, margin and surplus in money")
    discount: float = Field(gt=0, lt=1, description="per period")
    temperature: float = Field(1.0, gt=0, description="scale of the logit shocks, in reward units")
    types: Annotated[Types, BeforeValidator(lambda n: {"number": n} if isinstance(n, int) else n)] = Types()
    seed: int = Field(0, ge=0)
    estimation: Estimation = Estimation()
    market: Market | None = Field(None, description="only for studies on the simulated market")

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        problems = self.anchor.problems(self.data) + (self.money.problems(self.data) if self.money else [])
        for place, names in (("reward.columns", self.reward.columns), ("reward.benefits", self.reward.benefits)):
            problems += [p for name in names for p in unknown(name, self.data.state, place, "state column")]
        if self.reward != Reward(benefits=self.reward.benefits) and not self.estimation.refit.rounds:
            problems.append("reward: its form is the refit's: `estimation.refit.rounds` must be at least 1")
        rounds, structure = self.estimation.refit.rounds, self.reward.structure
        problems += self.types.problems(
            state=self.data.state, refitted=rounds > 0, structure=structure, duration=self.data.duration
        )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a study's YAML file and apply ``key.path=value`` overrides (values are YAML).

    Raises
    ------
    InputError
        If the file is missing or not YAML, an override is malformed, or any option is unknown or invalid.
    """
    return validated(Config, read_yaml(path, overrides), str(path))


def read_yaml(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, with overrides applied; InputError if there is none."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of options at the top level")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"override {override!r}: write it as key.path=value")
        *parents, last = key.split(".")
        place = content
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InputError(f"override {override!r}: {name!r} is not a section")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"override {override!r}: the value is not valid YAML") from None
    return content
