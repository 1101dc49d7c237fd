"""What a study declares of the world: its columns, the anchor, the form of the reward, money, who the members are."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from irl.sections import Section, unknown

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


def _where_true(value: Any) -> Any:
    return {value: [True, 1]} if isinstance(value, str) else value


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
    alike: bool = Field(
        False,
        description="table: moves are counted alike at all levels (mileage, months since): by how many levels it went "
        "up or down or, where that explains an action's rows better, the level that it went to",
    )
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
        if self.alike and (self.dynamics != "table" or self.kind != "ordinal"):
            raise ValueError("`alike` is for ordinals with `dynamics: table`")
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
    active: str | None = Field(
        None, description="column that is 1 where a decision was made, 0 where the period passed without (`attention`)"
    )
    entry: Literal["flow", "stock"] | None = Field(
        None,
        description="flow: a member's rows begin when it comes (a cohort of newcomers); stock: whoever was there when "
        "observation began, in the middle of its membership (of hidden types, the shares depend on the first state)",
    )
    exit: Annotated[Condition, BeforeValidator(_where_true)] = Field(
        default_factory=dict,
        description="condition on any columns, or a column of trues: rows after which the member is observed no more, "
        "whatever it does (attrition, not a choice)",
    )
    duration: str | None = Field(None, description="column of periods until the member's next row (default 1)")
    memory_rows: int = Field(
        10_000_000,
        ge=0,
        description="rows up to which a panel store is held in memory; a larger one is read through a scratch folder",
    )
    until: Period | None = Field(
        None, description="last period to fit on; scripts/backtest.py forecasts the later ones"
    )
    min_cell: int = Field(
        20, ge=1, description="members of a segment below which its figures are neither written nor shown; 1: all are"
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
            raise ValueError("\n".join(problems))
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


class Alike(Section):
    """The reward of ``action`` in the same state, its columns of ``at`` put to these values, and ``add`` more (reward
    units per period)."""

    action: str
    at: dict[str, bool | float | str] = Field(default_factory=dict)
    add: float = 0.0


def _alike(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


class Reward(Section):
    """The form of the reward of every action but the anchor.

    ``full``: main effects and interactions, shrunk by evidence. ``additive``: the same, but every benefit has a term of
    its own (which may differ by what never changes about a member, and by the season: by columns that tell the time),
    so that the reward splits into benefits exactly.
    ``linear``: a coefficient for every column, by maximum likelihood; with ``select``, shrunk by evidence, which
    removes columns that explain nothing.
    """

    structure: Literal["full", "additive", "linear"] = "full"
    columns: tuple[str, ...] = Field((), description="state columns that the reward may depend on; empty: all")
    benefits: tuple[str, ...] = Field((), description="state columns whose contributions to the reward are reported")
    intercept: bool = Field(True, description="linear: whether an action has a constant of its own")
    select: bool = Field(False, description="linear: shrink every column by evidence (the others always do)")
    same_flow_as: dict[str, Annotated[Alike, BeforeValidator(_alike)]] = Field(
        default_factory=dict,
        description="action -> another, which gives in a period what it gives where it is all there is to choose, "
        "inside a contract: {annual: monthly}, or {annual: {action: monthly, at: {status: monthly}}}",
    )

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
            raise ValueError("\n".join(problems))
        return self

    @property
    def shaped(self) -> bool:
        """Whether something is said of its form, which is the refit's."""
        return self != Reward(benefits=self.benefits, same_flow_as=self.same_flow_as)

    def problems(self, data: Data) -> list[str]:
        """Names that the data section does not have, and flows that are their own."""
        named = (("columns", self.columns), ("benefits", self.benefits))
        found = [p for place, names in named for n in names for p in unknown(n, data.state, place, "state column")]
        for action, flow in self.same_flow_as.items():
            place = f"same_flow_as.{action}"
            found += unknown(action, data.actions, "same_flow_as", "action")
            found += unknown(flow.action, data.actions, place, "action")
            found += [p for name in flow.at for p in unknown(name, data.state, f"{place}.at", "state column")]
            alone = action == flow.action and not flow.at
            found += [f"{place}: give another action, or `at` which state its own is meant"] if alone else []
        return [f"reward.{problem}" for problem in found]


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
    one_coefficient: bool = Field(
        True,
        description="a unit of money counts the same for whatever it is paid, as far as prices are tested columns; "
        "false: every price has effects of its own",
    )

    def problems(self, data: Data, place: str = "money") -> list[str]:
        """Names that the data section does not have, and columns that are not numbers."""
        found = []
        for kind, flows in (("price", self.price), ("cost", self.cost)):
            for action, flow in flows.items():
                found += unknown(action, data.actions, f"{place}.{kind}", "action")
                found += flow.problems(data, f"{place}.{kind}.{action}")
        return found


TYPE = "type"
"""The state column of a member's hidden type, beside those declared; its labels are 1, 2, ..."""


class Types(Section):
    """Hidden types: members who differ in tastes that no column shows. One type: nobody does.

    With a ``linear`` reward they differ in how much every action is worth, and not in what a column is worth.
    """

    number: int = Field(1, ge=1, le=9)
    dynamics: bool = Field(False, description="whether what moves the state differs by type too")

    def problems(self, *, state: Iterable[str], refitted: bool, duration: str | None) -> list[str]:
        """Why a study cannot have them."""
        if self.number == 1:
            return []
        wrong = {
            f"a state column is called {TYPE!r}, which is what theirs is called; rename it": TYPE in state,
            "they are told apart by the refit: `estimation.refit.rounds` must be at least 1": not refitted,
            "rows that last several periods (`data.duration`) cannot have them": duration is not None,
        }
        return [f"types: {what}" for what, holds in wrong.items() if holds]


class Attention(Section):
    """Periods may pass without a decision: with probability 1 - lambda the default action happens."""

    default: dict[str, Condition] = Field(
        min_length=1,
        description="action -> condition on the state in which it is what happens without a decision (the first that "
        "holds); in other states everything is decided",
    )
    by: tuple[str, ...] = Field((), description="categories or ordinals of the state that have levels of lambda")
    shifters: tuple[str, ...] = Field((), description="state columns that move lambda, and are kept out of the reward")

    @property
    def columns(self) -> tuple[str, ...]:
        """The state columns that lambda depends on."""
        return (*self.by, *self.shifters)

    def problems(self, data: Data, reward: Reward, types: int, *, refitted: bool) -> list[str]:
        """Names that the data section does not have, and why a study cannot have inattention."""
        found = []
        for action, condition in self.default.items():
            found += unknown(action, data.actions, "attention.default", "action")
            place = f"attention.default.{action}"
            found += [problem for name in condition for problem in unknown(name, data.state, place, "state column")]
        for name in self.by:
            found += unknown(name, data.state, "attention.by", "state column")
            if name in data.state and data.state[name].kind not in ("category", "ordinal"):
                found.append(f"attention.by: {name!r} has no levels: it takes categories and ordinals")
        for name in self.shifters:
            found += unknown(name, data.state, "attention.shifters", "state column")
            if name in (*reward.columns, *reward.benefits):
                found.append(f"attention.shifters: {name!r} is in the reward: a shifter moves attention alone")
            if name in self.by:
                found.append(f"attention.shifters: {name!r} is in `attention.by` too: leave it out of one")
        wrong = {
            "not together with hidden types yet: set `types: 1`, or leave out `attention`": types > 1,
            "it is told from the reward by the refit: `estimation.refit.rounds` must be at least 1": not refitted,
            "rows that last several periods (`data.duration`) cannot have it": data.duration is not None,
        }
        return found + [f"attention: {what}" for what, holds in wrong.items() if holds]
