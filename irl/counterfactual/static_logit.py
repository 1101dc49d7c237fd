"""A static logit: choices explained by columns alone, with nothing about the future. What forecasts are compared with.

    pi(a|x) = exp(x.theta_a) / sum over the menu,   theta of the first action 0,

a set of weights of its own for every segment, by maximum likelihood with a ridge of one half |theta|^2 (against columns
that add up to the constant). Newton's method; source: McFadden (1974). Where a member's columns never change it is what
a price test is usually read by; where they do, it takes what the state says of the next choice as it was, whatever
becomes of the programme.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irl import bellman

PENALTY = 1.0
"""Precision of the weights' prior: as much as the information of a few choices."""
GAIN = 1e-4
"""Log-likelihood below which another Newton step is not worth making."""


@dataclass(frozen=True)
class StaticLogit:
    """theta [S, A, P], by segment."""

    theta: Tensor

    def log_policy(self, x: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """log pi[N, A] of x[N, P]."""
        logits = x.new_zeros(menu.shape, dtype=torch.float64)
        for s in range(len(self.theta)):
            mine = segment == s
            logits[mine] = x[mine].double() @ self.theta[s].T
        return bellman.log_policy(logits, menu, 1.0)


@torch.no_grad()
def fit_static_logit(
    x: Tensor, action: Tensor, menu: Tensor, segment: Tensor, weight: Tensor, *, segments: int
) -> StaticLogit:
    """Fitted to x[N, P], whose first column should be 1, action[N], menu[N, A], segment[N] and weight[N]."""
    theta = torch.zeros(segments, menu.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for s in range(segments):
        mine = segment == s
        if bool(mine.any()):
            theta[s] = _maximised(x[mine].double(), action[mine], menu[mine], weight[mine].double())
    return StaticLogit(theta)


def _maximised(x: Tensor, action: Tensor, menu: Tensor, weight: Tensor) -> Tensor:
    """theta [A, P]."""
    p, actions = x.shape[1], menu.shape[1]
    chosen = torch.nn.functional.one_hot(action, actions).double()

    def objective(theta: Tensor) -> tuple[float, Tensor]:
        log_pi = bellman.log_policy(x @ theta.T, menu, 1.0)
        fit = (weight * log_pi.gather(1, action.unsqueeze(1)).squeeze(1)).sum()
        return float(fit - 0.5 * PENALTY * theta.square().sum()), log_pi.exp()

    theta = x.new_zeros(actions, p)
    value, pi = objective(theta)
    for _ in range(50):
        slope = ((chosen - pi) * weight.unsqueeze(1)).T @ x - PENALTY * theta
        curvature = PENALTY * torch.eye(actions * p, dtype=x.dtype, device=x.device).view(actions, p, actions, p)
        for a in range(1, actions):
            for b in range(1, actions):
                w = weight * pi[:, a] * (float(a == b) - pi[:, b])
                curvature[a, :, b] += (x * w.unsqueeze(1)).T @ x
        slope[0] = 0
        step = torch.linalg.solve(curvature.reshape(actions * p, -1), slope.flatten()).view(actions, p)
        size, gain = 1.0, -1.0
        while gain <= 0 and size > 1e-3:
            following, moved = objective(theta + size * step)
            gain = following - value
            size = size if gain > 0 else size / 2
        if gain > 0:
            theta, value, pi = theta + size * step, value + gain, moved
        if gain < GAIN:
            break
    return theta
