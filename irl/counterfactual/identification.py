"""What the anchor does and does not identify: a verdict on every change, and the same found numerically.

Choices alone fit every reward r + c - gamma P c, c any function of the state (0 where it is terminal): the policy is
the same, values are higher by c. The anchor's reward g picks one of them, so an answer is *identified* if all of them
give it. By kind of change, given gamma and logit shocks:

    change                                                   behaviour   welfare change
    a lump sum added to rewards, in reward units             yes         yes
    an action removed                                        yes         yes
    every action's reward scaled by one factor               yes         no
    a static feature set for good to another observed value  yes         no
    an action added that is another at the same reward, or
        at the reward it has at another price, of which the
        anchor's reward is taken to be independent           yes         yes
    some actions' rewards scaled                             no          no
    dynamics; a feature that moves, or changed for a while;
        an action added that leads elsewhere                 no          no

A scenario is identified if all its changes are. Where it ends again, or is announced, so is only what is free of the
anchor in both columns: elsewhere values shift by different amounts before and after. Changes of discount or dynamics,
new actions at a stated reward and rewards swapped across segments are not identified; :func:`spread` shows it for any
change of a finite problem.

Sources: Aguirregabiria & Suzuki (2014), Norets & Tang (2014), Kalouptsidi, Scott, Souza-Rodrigues (2021). Limit: a
verdict is about the anchor's value only; whether a value was observed is :mod:`irl.counterfactual.support`'s question,
and several changes that are not identified might cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from irl.data.schema import StateSchema
from irl.declared import Condition
from irl.scenario import AddChange, Change, FeatureChange, RemoveChange, RewardChange, Timing
from irl.tabular import FiniteMDP, policy_iteration


class Verdict(NamedTuple):
    """Whether the behaviour and the welfare change under a change are free of the anchor's value, and the rule."""

    behaviour: bool
    welfare: bool
    rule: str


LUMP_SUM = Verdict(True, True, "a lump sum is added to rewards, in reward units")
REMOVAL = Verdict(True, True, "an action is removed")
SCALES_ALL = Verdict(True, False, "every action's reward is scaled by the same factor")
STATIC = Verdict(True, False, "a static feature is set for good to another value")
SCALES_SOME = Verdict(False, False, "the rewards of some actions are scaled, and not those of others")
WHILE = Verdict(False, False, "a static feature is changed only while the state says so, which makes it move")
MOVING = Verdict(False, False, "a feature that moves by itself is held, which changes the dynamics")
COPY = Verdict(True, True, "an action is added that gives what another gives, or would give at another price")
OTHER = Verdict(False, False, "an action is added at the reward that another has where a column is different")
ELSEWHERE = Verdict(False, False, "an action is added that leads to other states than the one it is like")
FOR_A_TIME = Verdict(False, False, "something other than a lump sum or the menu changes for a time, or is announced")
DYNAMICS = Verdict(False, False, "how the state moves is changed")


@dataclass(frozen=True)
class Identification:
    """The verdicts on a scenario's changes, in their order. No change at all (the baseline) is identified."""

    changes: tuple[Verdict, ...]

    @property
    def behaviour(self) -> bool:
        return all(verdict.behaviour for verdict in self.changes)

    @property
    def welfare(self) -> bool:
        return all(verdict.welfare for verdict in self.changes)

    def sentence(self) -> str:
        """What follows for the answer, and why."""
        why = [v.rule for v in self.changes if not (v.behaviour if not self.behaviour else v.welfare)]
        because = f": {'; '.join(dict.fromkeys(why))}" if why else ""
        if self.welfare:
            return "neither choices nor the surplus depend on the anchor's reward"
        if self.behaviour:
            return f"choices do not depend on the anchor's reward, but the surplus does{because}"
        return f"choices and surplus depend on the anchor's reward{because}"

    def plain(self) -> dict[str, Any]:
        """The verdicts as plain values, for JSON."""
        changes = [verdict._asdict() for verdict in self.changes]
        return {"behaviour": self.behaviour, "welfare": self.welfare, "why": self.sentence(), "changes": changes}


def classify(changes: Sequence[Change], schema: StateSchema, timing: Timing | None = None) -> Identification:
    """The verdict on each change of a scenario that fits the study; ``timing``: by default from the start, for good."""
    scaled = [change.reward for change in changes if change.reward is not None and _scales(change.reward)]
    together = _scales_all(scaled, schema)
    verdicts = [_verdict(change, schema, together) for change in changes]
    if timing is not None and (timing.length is not None or (timing.announced and timing.start)):
        verdicts = [FOR_A_TIME if v.behaviour and not v.welfare else v for v in verdicts]
    return Identification(tuple(verdicts))


def _verdict(change: Change, schema: StateSchema, scales_all: bool) -> Verdict:
    part = change.part
    if isinstance(part, RemoveChange):
        return REMOVAL
    if isinstance(part, AddChange):
        columns = [schema.columns[schema.index(name)] for name in part.facing]
        tested = all(c.dynamics == "static" and c.assigned == "randomised" for c in columns)
        return ELSEWHERE if part.then else COPY if tested else OTHER
    if isinstance(part, RewardChange):
        return LUMP_SUM if not _scales(part) else SCALES_ALL if scales_all else SCALES_SOME
    if not isinstance(part, FeatureChange):
        return DYNAMICS
    if schema.columns[schema.index(part.name)].dynamics != "static":
        return MOVING
    return STATIC if lasting(part.where, schema) else WHILE


def _scales(part: RewardChange) -> bool:
    return part.scale is not None and part.scale != 1


def _scales_all(parts: Sequence[RewardChange], schema: StateSchema) -> bool:
    """Each action, once, by one factor, for members chosen for good. (An anchor action is never scaled.)"""
    alike = len({(part.scale, str(part.where)) for part in parts}) == 1
    return alike and sorted(p.action for p in parts) == sorted(schema.actions) and lasting(parts[0].where, schema)


def lasting(condition: Condition, schema: StateSchema) -> bool:
    """The condition asks only what never changes for a member: static columns, and segments."""
    asked = [schema.columns[schema.index(name)] for name in condition if name in schema.names]
    return all(column.dynamics == "static" for column in asked)


class Spread(NamedTuple):
    """By how much an answer differs between rewards that fit the same choices: the largest difference over states of
    choice probabilities (behaviour), of V - V before the change (welfare), and of V itself (level)."""

    behaviour: float
    welfare: float
    level: float


def spread(mdp: FiniteMDP, change: Callable[[FiniteMDP], FiniteMDP], potentials: Tensor) -> Spread:
    """How far the answer to ``change`` depends on which reward is taken: exactly, by policy iteration.

    Parameters
    ----------
    mdp : the problem as it is, without a clock.
    change : makes the changed problem of a problem; over the same states, with any actions.
    potentials : c[K, S]; the rewards r + c - gamma P c are compared with r and with each other.
    """
    answers = []
    for c in [torch.zeros_like(potentials[0]), *potentials]:
        equivalent = shaped(mdp, c)
        before, (value, policy) = policy_iteration(equivalent)[0], policy_iteration(change(equivalent))
        answers.append((policy, value - before, value))
    return Spread(*(_range(torch.stack(each)) for each in zip(*answers, strict=True)))


def _range(values: Tensor) -> float:
    """The largest difference, over all else, along the first axis of values[K, ...]."""
    low, high = values.aminmax(dim=0)
    return float((high - low).max())


def shaped(mdp: FiniteMDP, c: Tensor) -> FiniteMDP:
    """The problem at the reward r + c - gamma P c, under which the same is chosen; c[S], taken as 0 where terminal."""
    c = torch.where(mdp.available.any(-1), c, 0.0)
    reward = mdp.reward + c.unsqueeze(-1) - mdp.discount * mdp.expectation(c)
    return replace(mdp, reward=reward)
