"""What not knowing the members' types costs: the information of a mixture, and its scores.

With theta of the reward and beta of the types' shares, z_ik = e_k (x) x(first state of i) for all types but the first,
c_ik the score of member i's choices, were he of type k, in the features of every action, and q_ik his posterior, the
log-likelihood of the choices has (Louis 1982)

    scores           theta: sum_k q_ik c_ik map        beta: sum_k (q_ik - share_ik) z_ik
    information      of known types, less the variance of their scores given the choices, sum_i var_q(c_ik map, z_ik)

``map`` as in :mod:`irl.estimation.logit`: what follows is held fixed. An error of what follows moves the scores by the
same second derivatives, with psi in place of theta's features: through the posterior, the shares' too.

Limits: asymptotic. Over 14 panels of 700 members x 16 periods, a third of them of a second type, without shrinkage,
rewards varied 1.1 times their mean standard error for the first type and 1.3 to 1.4 times for the second, which is
seldom seen where it varied most; were the types taken as known, standard errors of the second would be half as large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irl.data.panel import of_type
from irl.estimation.logit import CHUNK, Choices, Logit
from irl.estimation.mixture import Mixture, spread_of_types
from irl.estimation.types import share_precision

MEMBERS = 20_000
"""Members (at random) from whom what is missing is taken."""
AT_ONCE = 250
"""Members whose scores by type are held at once."""


@dataclass(frozen=True)
class Missing:
    """Of P weights of features by action (A D) and B weights of shares.

    lost : [A D, A D], by how much the curvature in the features of every action is less than with known types.
    crossed : [A D, B], minus the second derivative in these and the shares' weights.
    information : [B, B], of the shares' weights; penalty : [B], the prior's precisions.
    scores : [G, B], of every cluster.
    """

    lost: Tensor
    crossed: Tensor
    information: Tensor
    penalty: Tensor
    scores: Tensor


@torch.no_grad()
def missing(mixture: Mixture, logit: Logit, theta: Tensor, choices: Choices) -> Missing:
    """What is missing at theta[P] and the posteriors there."""
    panel, shares = mixture.panel, mixture.shares
    posterior = mixture.joint(logit, theta, choices)[0].softmax(1)
    x, share = shares.features(mixture.first), shares(mixture.first).exp()
    types, width = posterior.shape[1] - 1, x.shape[1]
    error = (posterior - share)[:, 1:]
    by_member = (error.unsqueeze(2) * x.unsqueeze(1)).flatten(1) * mixture.weight.unsqueeze(1)
    scores = x.new_zeros(int(panel.cluster.max()) + 1, types * width)
    scores.index_add_(0, panel.cluster[mixture.is_first], by_member)

    information = spread_of_types(share, x, mixture.weight) - spread_of_types(posterior, x, mixture.weight)
    penalty = share_precision(shares.weight[1:]).flatten()
    size = logit.offset.numel()
    lost, crossed = x.new_zeros(size, size), x.new_zeros(size, types * width)
    some = torch.randperm(panel.n_members, generator=torch.Generator().manual_seed(0))[:MEMBERS].sort().values
    more = panel.n_members / len(some)
    rows = panel.free.nonzero().squeeze(1)
    for members in some.to(rows.device).split(AT_ONCE):
        place = torch.full((panel.n_members,), -1, dtype=torch.long, device=rows.device)
        place[members] = torch.arange(len(members), device=rows.device)
        mine = rows[place[panel.member[rows]] >= 0]
        c = torch.stack([
            _scores(logit, theta, choices, mixture, mine, place, len(members), k) for k in range(types + 1)
        ])  # fmt: skip
        own = posterior[members].T.unsqueeze(2)  # [K, m, 1]
        c = c - (own * c).sum(0)
        weight = more * mixture.weight[members].unsqueeze(1)
        half = (c * (own * weight).sqrt()).flatten(0, 1)
        lost += half.T @ half
        for k in range(types):
            crossed[:, k * width : (k + 1) * width] -= (c[k + 1] * own[k + 1] * weight).T @ x[members]
    return Missing(lost, crossed, information, penalty, scores)


def _scores(
    logit: Logit, theta: Tensor, choices: Choices, mixture: Mixture, rows: Tensor, place: Tensor, members: int, k: int
) -> Tensor:
    """c[m, A D]: score of the choices in ``rows``, all of type ``k``, by the place[M] of their member."""
    panel, model = mixture.panel, choices.model
    actions, d = logit.offset.shape
    total = logit.offset.new_zeros(members, actions * d)
    for i in rows.split(CHUNK):
        bare = torch.cat([panel.state[i], panel.state.new_zeros(len(i), 1)], 1)
        phi = model.basis(of_type(bare, k))
        score = -logit.log_policy(theta, phi, panel.anchor_reward[i], panel.menu[i]).double().exp()
        score[torch.arange(len(i), device=i.device), panel.action[i]] += 1
        for a in range(actions):
            own = phi.double() * (score[:, a : a + 1] / logit.temperature)
            total[:, a * d : (a + 1) * d].index_add_(0, place[panel.member[i]], own)
    return total
