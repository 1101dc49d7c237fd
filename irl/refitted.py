"""What the refit leaves: a reward and a continuation, linear in features, and how uncertain the reward is.

    r(s,a) = f(s,a) - sum_b mu(b|s) f(s,b) + g(s),   f(s,a) = x(s).theta_a ,   c(s,a) = phi(s).w_a

mu is the reference policy, g the known reward. Only differences of f matter: one action's is fixed. Where the reference
is an anchor action A, that is f(s,A) = g(s), so that r(s,a) = x(s).theta_a for all others; else f = 0 for the first
action, and x(s).theta_a is by how much the reward of a exceeds that of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from irl import bellman


class Refitted(nn.Module):
    """The refit's reward and continuation.

    Attributes
    ----------
    theta : [A, Dx], the row of the fixed action 0.
    weights : [A, D], float64, of the continuation gamma^k E[V(s')|s, a].
    covariance : [P, P], float64, of theta's rows but the fixed action's, one after the other, P = (A - 1) Dx.
    """

    theta: Tensor
    weights: Tensor
    covariance: Tensor

    def __init__(self, anchor: int | None, actions: int, reward_features: int, features: int) -> None:
        super().__init__()
        self.anchor = anchor
        self.paid = [a for a in range(actions) if a != (anchor or 0)]
        self.register_buffer("theta", torch.zeros(actions, reward_features, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(actions, features, dtype=torch.float64))
        free = (actions - 1) * reward_features
        self.register_buffer("covariance", torch.zeros(free, free, dtype=torch.float64))

    def reward(self, x: Tensor, known: Tensor, reference: Tensor) -> Tensor:
        """r[N, A] of x[N, Dx], g[N] and mu[N, A], in reward units, float64."""
        return self.reward_of_utility(x.double() @ self.theta.T, known, reference)

    def reward_of_utility(self, utility: Tensor, known: Tensor, reference: Tensor) -> Tensor:
        """r[N, A] of x(s).theta_a [N, A], g[N] and mu[N, A], in the dtype of the first."""
        known = known.to(utility.dtype)
        if self.anchor is not None:
            is_anchor = torch.arange(len(self.theta), device=utility.device) == self.anchor
            utility = torch.where(is_anchor, known.unsqueeze(-1), utility)
        return bellman.reward_from_utility(utility, reference.to(utility.dtype), known)

    def continuation(self, phi: Tensor) -> Tensor:
        """c[N, A] in reward units, float64."""
        return phi.double() @ self.weights.T

    def standard_error(self, x: Tensor, reference: Tensor) -> Tensor:
        """Standard error [N, A] of the reward at x[N, Dx], mu[N, A], in reward units; 0 for an anchor action."""
        x, width = x.double(), self.theta.shape[1]
        covariance = x.new_zeros(len(x), len(self.paid), len(self.paid))  # of f(s,b), f(s,c)
        for b in range(len(self.paid)):
            for c in range(len(self.paid)):
                block = self.covariance[b * width : (b + 1) * width, c * width : (c + 1) * width]
                covariance[:, b, c] = ((x @ block) * x).sum(1)
        contrast = torch.eye(len(self.theta), dtype=x.dtype, device=x.device) - reference.double().unsqueeze(1)
        contrast = contrast[:, :, self.paid]
        return torch.einsum("nab,nbc,nac->na", contrast, covariance, contrast).clamp_min(0).sqrt()

    def error_of(self, contrast: Tensor) -> Tensor:
        """Standard error [K] of the sums of contrast[K, A, Dx] times theta."""
        flat = contrast[:, self.paid].flatten(1).double()
        return ((flat @ self.covariance) * flat).sum(1).clamp_min(0).sqrt()

    def draws(self, number: int, *, seed: int) -> Tensor:
        """Draws [number, A, Dx] of theta less its estimate, by :func:`normal_draws`; 0 for the fixed action."""
        return self.shaped(normal_draws(self.covariance, number, seed=seed))

    def shaped(self, free: Tensor) -> Tensor:
        """free[B, P], numbered as the covariance, as [B, A, Dx]; 0 for the fixed action."""
        out: Tensor = free.new_zeros(len(free), *self.theta.shape)
        out[:, self.paid] = free.view(len(free), -1, self.theta.shape[1])
        return out


def normal_draws(covariance: Tensor, number: int, *, seed: int) -> Tensor:
    """Draws [number, P] around 0; where there are no more parameters than draws, their second moments are the
    covariance exactly."""
    values, vectors = torch.linalg.eigh(covariance)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(number, len(values), generator=generator, dtype=torch.float64).to(values.device)
    if number >= len(values):
        normal = torch.linalg.qr(normal).Q * number**0.5
    drawn: Tensor = (normal * values.clamp_min(0).sqrt()) @ vectors.T
    return drawn
