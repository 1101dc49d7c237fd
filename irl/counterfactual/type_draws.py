"""Hidden types under draws of the parameters: what a member is probably like moves with what the types are like.

The posterior q_ik of member i is a function of the reward's parameters theta, through the probabilities of all that he
chose, and of the weights beta of the types' shares. Along a draw (dtheta, dbeta)

    d log q_ik = sum_t d log pi_k(a_it|s_it) + x_i.dbeta_k   less its mean over k by q_i ,

x_i the columns of his first state. Outcomes are means over members whose types are drawn by q, so this is where the
score of their histories starts (:mod:`irl.counterfactual.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from irl.counterfactual.rollout import Starts
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.data.panel import Panel, first_rows, of_type
from irl.fitted import FittedModel
from irl.refitted import normal_draws
from irl.transitions import CHUNK


def parameter_draws(model: FittedModel, number: int, *, seed: int) -> tuple[Tensor, Tensor | None]:
    """Draws [number, A, Dx] of the reward's parameters less their estimate and, with hidden types, [number, K, Ds] of
    the weights of their shares; both from one normal distribution."""
    assert model.refit is not None
    if model.shares is None:
        return model.refit.draws(number, seed=seed), None
    theta, both = model.refit.covariance, model.shares.covariance
    size = len(theta)
    joint = torch.cat([torch.cat([theta, both[:, :size].T], 1), both])
    drawn = normal_draws(joint, number, seed=seed)
    weights = drawn.new_zeros(number, *model.shares.weight.shape)
    weights[:, 1:] = drawn[:, size:].view(number, -1, weights.shape[2])
    return model.refit.shaped(drawn[:, :size]), weights


@torch.no_grad()
def posterior_slopes(
    policy: ScenarioPolicy, state: Tensor, panel: Panel | None, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """q[M, K] and d log q[M, K, B] of members first seen in state[M, F], who chose what the panel says (None: nothing).

    policy : of the programme under which they chose, with B draws of the parameters; ``shares`` [B, K, Ds]: their own.
    """
    model = policy.model
    assert model.shares is not None
    slopes = torch.einsum("md,bkd->mkb", model.shares.features(state), shares)
    if panel is None:
        q = model.log_shares(state).exp()
    else:
        q = model.posterior(panel)
        for k in range(q.shape[1]):
            for i in panel.free.nonzero().squeeze(1).split(CHUNK // 4):
                faced, segment = of_type(panel.state[i], k), panel.segment[i]
                log_pi = policy.log_policy(faced, panel.menu[i], segment)
                moved = policy.score_draws(faced, segment, log_pi, panel.action[i])
                slopes[:, k].index_add_(0, panel.member[i], moved.double())
    return q, slopes - torch.einsum("mk,mkb->mb", q, slopes).unsqueeze(1)


def start_scores(
    policy: ScenarioPolicy, starts: Starts, panel: Panel | None, shares: Tensor
) -> Callable[[Tensor], Tensor]:
    """d log q[n, B] of the types that n of the members simulated have, as a function of which; ``panel``: whose rows
    they start in, if it is one."""

    def of(which: Tensor) -> Tensor:
        state = starts.state[which]
        kind = state[:, -1].long()
        if panel is None:
            return posterior_slopes(policy, state, None, shares)[1][torch.arange(len(which), device=kind.device), kind]
        assert starts.row is not None
        members = panel.member[starts.row[which]]
        theirs, place = members.unique(return_inverse=True)
        keep = torch.zeros(panel.n_members, dtype=torch.bool, device=kind.device)
        keep[theirs] = True
        own = panel.take_members(keep)
        return posterior_slopes(policy, own.state[first_rows(own.member)], own, shares)[1][place, kind]

    return of
