"""What members get in a period inside a contract, where a single action is all there is to choose.

A contract enters as one choice: its reward, a *lump*, is what is earned from signing to the next choice,

    r(s,a) = flow(s,a) + E[ sum_j<k gamma^j flow(s_j) | s, a ],   s_1, s_2, ... the periods without a choice,

and choices say nothing about how a lump is spread over its periods. A study may declare it (``reward.same_flow_as``):
that the flow is what another action gives in the same state, some of its columns put to other values,

    flow(s_j) = r(s_j with the columns of ``at``, the other action) + ``add`` .

The rest of the lump is then what signing itself gives or costs. Without a declaration the flow counts as 0 here: only
changes of it can be answered for, and only if they are stated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl.data.schema import StateSchema
from irl.declared import Alike
from irl.fitted import FittedModel, free_rows


def forced_action(schema: StateSchema, state: Tensor) -> Tensor:
    """int64[N]: the one action that there is in state[N, F]; -1 where there is a choice, or nothing."""
    menu = schema.menu(state) & ~schema.is_terminal(state).unsqueeze(1)
    forced = menu.any(1) & ~free_rows(schema, state)
    return torch.where(forced, menu.long().argmax(1), -1)


def alike(schema: StateSchema, state: Tensor, like: Alike) -> Tensor:
    """state[N, F] with the columns of ``like.at`` put to its values, a copy."""
    seen = state.clone()
    for name, value in like.at.items():
        seen[:, schema.index(name)] = schema.columns[schema.index(name)].code(value)
    return seen


@torch.no_grad()
def declared_flow(model: FittedModel, state: Tensor, action: Tensor, draws: Tensor | None = None) -> Tensor:
    """flow[N, 1 + B] of the actions [N] in state[N, F], in reward units, float64; 0 where none is declared.

    The last B columns: what each of draws[B, A, Dx] of the reward's parameters, less their estimate, adds to it.
    """
    flow = torch.zeros(len(state), 1 + (0 if draws is None else len(draws)), dtype=torch.float64, device=state.device)
    for name, like in model.config.reward.same_flow_as.items():
        rows = (action == model.schema.actions.index(name)).nonzero().squeeze(1)
        if len(rows):
            seen, other = alike(model.schema, state[rows], like), model.schema.actions.index(like.action)
            flow[rows, 0] = model.reward_of(seen)[:, other].double() + like.add
            if draws is not None:
                weight = -model.schema.reference(seen, model.schema.menu(seen)).double()  # r = f - sum_b mu f + g
                weight[:, other] += 1
                flow[rows, 1:] = torch.einsum("na,nd,bad->nb", weight, model.terms(seen).double(), draws)
    return flow
