"""Standard errors of the refit, clustered by member.

The refit solves two sets of equations at once: the scores of the conditional logit in theta, and the kernel's equations
for the worth w of what follows. A member's share in both moves theta by

    (H + L)^-1 u_i ,   u_i = sum_t (1{a} - pi).d logit/d theta  -  J A^-1 sum_t psi_t delta_t

    H       information of the logit;  L the precisions of the prior (0 in a linear reward without selection)
    A, psi  matrix and features of the kernel on the observed transitions, under the fitted policy
    delta   gamma^k V(s') - c(s, a), the error of what the fitted model expects to follow
    J       sum of cov_pi(d logit/d theta, psi): how an error of what follows moves the scores

and cov(theta) = (H + L)^-1 (sum u u^T + L) (H + L)^-1. The scores alone are too optimistic: they take what follows as
known. That the worth was evaluated on draws from the fitted dynamics instead of the observed transitions does not
matter to first order (Newey 1994), nor do errors of the policy (Aguirregabiria & Mira 2002). With a prior the
covariance is the Bayesian one, which contains the bias of shrinkage on average (Nychka 1988; Wood 2006).

Conditional on: the discount, logit shocks, the anchor's reward, the features (the networks' included), and the
precisions of the prior as found.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.data.panel import Panel
from irl.estimation.logit import CHUNK, HESSIAN_ROWS, Choices, Logit
from irl.fitted import FittedModel
from irl.transitions import RIDGE_ROWS


@torch.no_grad()
def covariance(model: FittedModel, panel: Panel, logit: Logit, theta: Tensor, penalty: Tensor) -> Tensor:
    """Covariance [P, P] of theta[P]; ``model`` holds the refit at theta, ``penalty[P]`` are the prior's precisions."""
    choices = Choices(model, panel, panel.free.nonzero().squeeze(1), {})
    some = choices.some(HESSIAN_ROWS, seed=0)
    flat = logit.map.flatten(0, 1)  # [A D, P]
    curvature = choices.mass / some.mass * logit.curvature(theta, some) @ flat
    sums = evaluation.accumulate(_logged(model, panel), actions=len(panel.schema.actions))
    through = evaluation.adjoint(sums, curvature, ridge=RIDGE_ROWS / sums.rows)
    scores = _member_scores(model, panel, flat / logit.temperature, through)
    bread = torch.linalg.inv(flat.T @ curvature + torch.diag(penalty))
    clusters = len(scores)
    meat = scores.T @ scores * (clusters / max(clusters - 1, 1)) + torch.diag(penalty)
    found: Tensor = bread @ meat @ bread
    return found


def _member_scores(model: FittedModel, panel: Panel, own: Tensor, through: Tensor) -> Tensor:
    """u[M, P] of every member; own[A D, P] maps the logit's scores, through[A D, P] the kernel's errors."""
    assert model.refit is not None
    rows = panel.free.nonzero().squeeze(1)
    scores = own.new_zeros(panel.n_members, own.shape[1])
    gamma, actions = model.config.discount, len(panel.schema.actions)
    at = torch.arange(actions, device=rows.device)
    for i in rows.split(CHUNK // 2):
        phi = model.basis(panel.state[i]).double()
        chosen = (panel.action[i].unsqueeze(1) == at).double()
        weight = panel.weight[i].double().unsqueeze(1)
        error = chosen - model.log_policy_of(panel.state[i], panel.menu[i]).double().exp()
        following = panel.next_choice[i]
        known = following >= 0
        discount = (gamma ** panel.steps[i] * (known & ~panel.ends[i])).double()
        expected = (model.refit.continuation(phi) * chosen).sum(1)
        delta = (discount * _value(model, panel, following.clamp_min(0)) - expected) * known
        members, local = panel.member[i].unique_consecutive(return_inverse=True)
        for per_action, mapped in ((error, own), (chosen * delta.unsqueeze(1), -through)):
            by_row = ((per_action * weight).unsqueeze(2) * phi.unsqueeze(1)).flatten(1)
            by_member = by_row.new_zeros(len(members), by_row.shape[1]).index_add_(0, local, by_row)
            scores.index_add_(0, members, by_member @ mapped)
    return scores


def _logged(model: FittedModel, panel: Panel) -> Iterator[evaluation.Rows]:
    """The kernel's rows of the observed transitions under the fitted policy, without targets."""
    rows = (panel.free & (panel.next_choice >= 0)).nonzero().squeeze(1)
    gamma = model.config.discount
    for i in rows.split(CHUNK):
        following = panel.next_choice[i]
        menu = panel.menu[following] & ~panel.ends[i].unsqueeze(1)
        log_pi = model.log_policy_of(panel.state[following], menu)
        yield evaluation.Rows(
            phi=model.basis(panel.state[i]).double(),
            phi_next=model.basis(panel.state[following]).double(),
            discount=(gamma ** panel.steps[i] * ~panel.ends[i]).double(),
            target=panel.weight.new_zeros(len(i), 0, dtype=torch.float64),
            weight=panel.weight[i].double(),
            action=panel.action[i],
            next_policy=log_pi.double().exp(),
        )


def _value(model: FittedModel, panel: Panel, rows: Tensor) -> Tensor:
    """V[N] of the refit at the panel's rows."""
    assert model.refit is not None
    state = panel.state[rows]
    q = model.reward_of(state, panel.anchor_reward[rows]) + model.refit.continuation(model.basis(state))
    return bellman.soft_value(q, panel.menu[rows], model.config.temperature)
