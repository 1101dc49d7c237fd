"""What was found of contracts: the lump of each, and how it falls apart where the flow inside is declared.

    lump = flow at signing + E[ sum_j<k gamma^j flow(s_j) ] + what signing itself gives or costs

(:mod:`irl.contracts`). The flow is a mean over the rows inside the contract, the others over states in which it can be
signed, whatever was chosen there, on draws from the fitted dynamics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irl import processes
from irl.contracts import alike, declared_flow, forced_action
from irl.data.panel import Panel
from irl.draws import Flow, drawn
from irl.estimation.logit import CHUNK
from irl.fitted import FittedModel, Z
from irl.transitions import Transitions, Unchanged, free_states

STATES, DRAWS = 2_000, 8
"""States in which contracts can be signed that are looked at, at most, and draws of what follows each."""


def contracts(model: FittedModel, panel: Panel) -> dict[str, Any]:
    """{action that is somewhere all there is: {share, like, segments}}; empty where there is always a choice.

    ``share`` of the rows inside, ``like``: the action whose flow it has (None if none is declared); if it is,
    ``segments``: {segment or "all": {flow: {mean, se, low, high}, lump, flows, signing, periods}}, the flow in reward
    units per period, the others by contract: ``flows`` the discounted sum of all its periods, ``signing`` the rest.
    """
    inside = forced_action(model.schema, panel.state)
    weight = panel.weight.double()
    found: dict[str, Any] = {}
    for a, action in enumerate(model.schema.actions):
        rows = inside == a
        if processes.anywhere(rows.any()):
            like = model.config.reward.same_flow_as.get(action)
            share = float(processes.mean(rows, weight))
            found[action] = {"share": share, "like": None if like is None else like.action, "segments": {}}
    if not any(one["like"] for one in found.values()):
        return found
    seed = model.config.seed
    states = free_states(panel, STATES, seed=seed)
    flow = Flow(lambda faced, action, segment: declared_flow(model, faced, action), model.config.discount)
    own = processes.own_seed(seed)
    signed = drawn(model.dynamics, Unchanged(model.schema), states, seed=own, draws=DRAWS, flow=flow)
    for action, one in found.items():
        if one["like"] is not None:
            one["segments"] = _by_segment(model, panel, inside == model.schema.actions.index(action), signed, action)
    return found


def _by_segment(
    model: FittedModel, panel: Panel, inside: Tensor, signed: Transitions, action: str
) -> dict[str, dict[str, Any]]:
    assert signed.flow is not None, "asked for"
    a = model.schema.actions.index(action)
    at = (signed.action == a).nonzero().squeeze(1)
    state, segment, weight = signed.state[at], signed.segment[at], signed.weight[at].double()
    first = declared_flow(model, state, signed.action[at])[:, 0]
    parts = {"lump": model.reward_of(state)[:, a].double(), "flows": first + signed.flow[at, 0]}
    parts |= {"signing": parts["lump"] - parts["flows"], "periods": signed.steps[at].double().mean(1)}
    groups: dict[str, tuple[Tensor, Tensor]] = {
        name: (inside & (panel.segment == s), segment == s) for s, name in enumerate(panel.schema.segments)
    }
    if len(groups) > 1:
        groups["all"] = inside, torch.ones_like(segment, dtype=torch.bool)
    found = {}
    for name, (rows, own) in groups.items():
        if processes.anywhere(rows.any()) and processes.anywhere(own.any()):
            means = {part: float(processes.mean(values[own], weight[own])) for part, values in parts.items()}
            found[name] = {"flow": _flow(model, panel, rows.nonzero().squeeze(1), action), **means}
    return found


def _flow(model: FittedModel, panel: Panel, rows: Tensor, action: str) -> dict[str, float | None]:
    """The mean flow of the rows inside a contract, with its standard error and 95 % interval."""
    like, schema = model.config.reward.same_flow_as[action], model.schema
    other, weight = schema.actions.index(like.action), panel.weight[rows].double()
    total, contrast = 0.0, torch.zeros(len(schema.actions), model.terms.width, dtype=torch.float64).to(weight.device)
    for i, w in zip(rows.split(CHUNK), weight.split(CHUNK), strict=True):
        seen = alike(schema, panel.state[i], like)
        total += float(model.reward_of(seen)[:, other].double() @ w)
        loading = -schema.reference(seen, schema.menu(seen)).double()
        loading[:, other] += 1
        contrast += (loading * w.unsqueeze(1)).T @ model.terms(seen).double()
    mass = processes.total(weight.sum())
    mean, se = processes.total(total) / mass + like.add, None
    if model.refit is not None and model.has_standard_errors:
        se = float(model.refit.error_of((processes.summed(contrast) / mass).unsqueeze(0)))
    low, high = (None, None) if se is None else (mean - Z * se, mean + Z * se)
    return {"mean": mean, "se": se, "low": low, "high": high}
