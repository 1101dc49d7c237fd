"""What a scenario does to members inside contracts, where they have no choice.

A contract's reward is the lump that was estimated (:mod:`irl.contracts`). A scenario that changes what its periods
give, or how the state moves meanwhile, adds to it what the declared flows make of that,

    E'[ sum_j gamma^j flow'(s_j) ] - x E[ sum_j gamma^j flow(s_j) ] ,

the second under the programme as it is from the same state faced, on the same random numbers, times the factor x by
which the scenario scales the lump itself. Both are sums over paths (:class:`irl.transitions.Flow`), met exactly up to
the draws. What is stated (``add``) needs no declaration; without one, the lump stays as it is where the state moves
otherwise, and scaling what a period gives has no answer. Limits: members in a contract when a change comes have no
value of their own; a change for a time holds for contracts signed while it lasts, to their end; bands for the anchor's
reward hold the flows fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl.contracts import declared_flow, forced_action
from irl.counterfactual import conditions
from irl.counterfactual.counts import Counts
from irl.counterfactual.identification import lasting
from irl.counterfactual.intervention import Intervention
from irl.draws import Flow, drawn
from irl.dynamics import TransitionModel
from irl.fitted import FittedModel
from irl.scenario import RewardChange
from irl.transitions import DRAWS, States, Transitions


@dataclass(frozen=True)
class _AsItWas:
    """The programme before the changes, for rows of states faced after them, of the same menus and courses."""

    changed: Intervention

    @property
    def courses(self) -> tuple[int, ...]:
        return self.changed.courses

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        return state

    def follow(
        self, dynamics: TransitionModel, state: Tensor, faced: Tensor, action: Tensor, uniform: Tensor, segment: Tensor
    ) -> Tensor:
        return dynamics.sample(faced, action.new_tensor(self.changed.like)[action], uniform)

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        return self.changed.menu(faced, segment)


@torch.no_grad()
def followed(
    model: FittedModel,
    intervention: Intervention,
    rows: States,
    *,
    seed: int,
    draws: int = DRAWS,
    parameters: Tensor | None = None,
) -> Transitions:
    """What follows the rows under an intervention, and what that adds to contracts.

    ``draws`` of every row; ``parameters``: draws [B, A, Dx] of the reward's parameters whose effect on the flows is
    wanted too.
    """
    declared = bool(model.config.reward.same_flow_as)
    rewarded = any(change.reward is not None for change in intervention.changes)
    if not rewarded and not (declared and intervention.changes_dynamics):
        return drawn(model.dynamics, intervention, rows, seed=seed, draws=draws)

    discount = model.config.discount

    def as_it_was(faced: Tensor, action: Tensor, segment: Tensor) -> Tensor:
        return declared_flow(model, faced, action, parameters)

    def changed(faced: Tensor, action: Tensor, segment: Tensor) -> Tensor:
        scale, add = _moved(intervention, faced, action, segment)
        flow = scale * as_it_was(faced, action, segment)
        flow[:, :1] += add
        return flow

    found = drawn(model.dynamics, intervention, rows, seed=seed, draws=draws, flow=Flow(changed, discount))
    if not declared:
        return found
    start = replace(rows, state=intervention.state(rows.state, rows.segment)[:, : rows.state.shape[1]])
    plain = Flow(as_it_was, discount, spread=rows.state)
    before = drawn(model.dynamics, _AsItWas(intervention), start, seed=seed, draws=draws, flow=plain)
    assert found.flow is not None and before.flow is not None, "asked for"
    first = found.action.new_tensor([intervention.courses.index(c) for c in range(max(intervention.courses) + 1)])
    scale, _ = _moved(intervention, before.state, first[found.action], found.segment)
    return replace(found, flow=found.flow - scale * before.flow)


def _moved(intervention: Intervention, faced: Tensor, action: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    """By what the changes multiply the reward of the actions [N], and what they then add to it, [N, 1] each."""
    nothing = torch.zeros(len(faced), len(intervention.actions), dtype=torch.float64, device=faced.device)
    add, one = (intervention.reward(nothing + k, faced, segment).gather(1, action.unsqueeze(1)) for k in (0, 1))
    return one - add, add


def problems_of(model: FittedModel, intervention: Intervention, rows: States) -> list[str]:
    """What a scenario asks of contracts that nothing tells, one sentence each; ``rows``: the panel's."""
    faced = intervention.state(rows.state, rows.segment)
    inside = forced_action(model.schema, faced)
    found = []
    if bool((intervention.menu(faced, rows.segment)[inside >= 0].sum(1) > 1).any()):
        found.append(
            "an action is added inside a contract, and what staying gives there is known only as the lump of all its "
            "periods: leave these states out with `where`"
        )
    new, missing = _other_contracts(model, intervention, inside)
    if new and missing:
        found.append(
            f"{', '.join(new)} may lead to a contract of another length, of which the lump of {missing[0]} says "
            f"nothing: {_remedy(missing[0])}"
        )
    for i, part in _undeclared_scalings(model, intervention):
        a = model.schema.actions.index(part.action)
        here = conditions.holds(model.schema, part.where, faced, rows.segment)
        if not lasting(part.where, model.schema) and bool((here & (inside == a)).any()):
            found.append(
                f"change {i} scales the reward of {part.action!r} inside a contract, where only the lump of all its "
                f"periods is known: `add` to it, in reward units per period, or {_remedy(part.action)}"
            )
    return found


def cautions(model: FittedModel, intervention: Intervention, rows: States) -> list[str]:
    """What an answer supposes of contracts; ``rows``: the panel's."""
    schema, faced = model.schema, intervention.state(rows.state, rows.segment)
    inside = forced_action(schema, faced)
    new, _ = _other_contracts(model, intervention, inside)
    found = [
        f"what {name} gives is a lump less the flows of its contract and with those of another: it rests on the level "
        "of the flow that is declared, of which choices say nothing"
        for name in new
    ]
    for a, action in enumerate(schema.actions):
        share = float((inside == a).double().mean())
        if not share or action in model.config.reward.same_flow_as:
            continue
        if intervention.changes_dynamics:
            found.append(
                f"what a period inside a contract gives is not identified, only the lump of {action} ({share:.0%} of "
                "the rows are inside): the lump is taken to stay what it is in the same state, although the state then "
                f"moves otherwise, so that the answer leaves out what changes inside contracts; or {_remedy(action)}"
            )
        found += [
            f"change {i} scales the lump of {action}, what it gives inside the contract included"
            for i, part in _undeclared_scalings(model, intervention)
            if part.action == action
        ]
    return found


def left_out(counts: Counts, news: int) -> list[str]:
    """Who has no value when members learn of the changes, in period ``news``."""
    share = 1 - float(counts.valued.sum() / counts.present[:, news].sum().clamp_min(1))
    if share <= 0:
        return []
    return [
        f"{share:.0%} of the members are inside a contract when they learn of the changes: surplus, gainers and losers "
        "are those of the others, who have a choice then"
    ]


def _other_contracts(model: FittedModel, intervention: Intervention, inside: Tensor) -> tuple[list[str], list[str]]:
    """The added actions that lead elsewhere than what they are like, by a lump or perhaps to a contract; and the
    actions with a lump whose flow is not declared. ``inside``: the one action that there is in each row, or -1."""
    schema = model.schema
    lumps = [schema.actions[a] for a in inside[inside >= 0].unique().tolist()]
    rules = {name for _, condition in schema.available for name in condition}
    parts = [change.add for change in intervention.changes if change.add is not None and change.add.then and lumps]
    new = [part.action for part in parts if part.like in lumps or rules & set(part.then)]
    return new, [name for name in lumps if name not in model.config.reward.same_flow_as]


def _undeclared_scalings(model: FittedModel, intervention: Intervention) -> list[tuple[int, RewardChange]]:
    """(its number, the change) of every reward that is scaled and whose flow inside contracts is not declared."""
    parts = [(i, change.reward) for i, change in enumerate(intervention.changes, start=1)]
    known = {*model.config.reward.same_flow_as, *intervention.added}
    return [(i, p) for i, p in parts if p is not None and p.scale not in (None, 1) and p.action not in known]


def _remedy(action: str) -> str:
    return f"declare in the study what it gives, `reward: {{same_flow_as: {{{action}: ...}}}}`, and train again"
