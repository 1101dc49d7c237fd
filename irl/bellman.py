"""The equations of the model, each once, as pure functions of tensors.

A member in state s picks an action a from the menu C(s) and maximises discounted reward plus i.i.d. logit shocks
with mean zero, temperature alpha:

    V(s)   = alpha log sum_{a in C(s)} exp(Q(s,a)/alpha)          soft_value
    pi(a|s)= exp((Q(s,a) - V(s))/alpha)                           log_policy
    Q(s,a) = r(s,a) + gamma^k E[V(s')|s,a]                        q_from_reward, reward_from_q
    V(s)   = Q(s,A) - alpha log pi(A|s)                           value_from_anchor
    Q(s,a) = Q(s,A) + alpha (log pi(a|s) - log pi(A|s))           q_from_anchor
    Q(s,A) = g(s) + gamma^k E[Q(s',A') - alpha log pi(A'|s')]     anchor_target (its right-hand side)

Source: Geng, Nassif, Manzanares, Reppen, Sircar, *Deep PQR*, ICML 2020, equations (3)-(9). Axes: N rows, A actions;
``available[N, A]`` is the menu. An unavailable action has log-probability -inf and does not enter any value; a row with
an empty menu has value 0 (there is nothing left to choose). The anchor's identities hold where the anchor is available;
elsewhere they give no finite number. Departure from the paper: durations k and menus.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked(q: Tensor, available: Tensor) -> Tensor:
    """``q[N, A]`` with -inf where the action is not on the menu."""
    return q.masked_fill(~available, -torch.inf)


def soft_value(q: Tensor, available: Tensor, temperature: float) -> Tensor:
    """V[N] in reward units: alpha log sum over the menu of exp(q[N, A]/alpha); 0 where the menu is empty."""
    value = temperature * torch.logsumexp(masked(q, available) / temperature, dim=-1)
    return torch.where(available.any(-1), value, torch.zeros_like(value))


def log_policy(q: Tensor, available: Tensor, temperature: float) -> Tensor:
    """log pi[N, A] = (q - V)/alpha; -inf where unavailable (and everywhere if the menu is empty)."""
    return masked((q - soft_value(q, available, temperature).unsqueeze(-1)) / temperature, available)


def entropy(log_pi: Tensor) -> Tensor:
    """H[N] = -sum_a pi log pi in nats, with 0 log 0 = 0."""
    return -(log_pi.exp() * log_pi.masked_fill(log_pi.isneginf(), 0.0)).sum(-1)


def reward_from_utility(utility: Tensor, reference: Tensor, known: Tensor) -> Tensor:
    """r[N, A] = f(s,a) - sum_b mu(b|s) f(s,b) + g(s) of utilities f[N, A], which are rewards up to a shift by state:
    the one shift for which the mean reward under the reference policy mu[N, A] is g[N]."""
    return utility + (known - (reference * utility).sum(-1)).unsqueeze(-1)


def q_from_reward(reward: Tensor, next_value: Tensor, discount: Tensor | float) -> Tensor:
    """Q = r + gamma^k E[V(s')|s,a], any common shape; ``discount`` is gamma^k, 0 at an end."""
    return reward + discount * next_value


def reward_from_q(q: Tensor, next_value: Tensor, discount: Tensor | float) -> Tensor:
    """r = Q - gamma^k E[V(s')|s,a]: the R step, the Bellman equation read from right to left."""
    return q - discount * next_value


def value_from_anchor(q_anchor: Tensor, log_pi_anchor: Tensor, temperature: float) -> Tensor:
    """V[N] = Q(s,A) - alpha log pi(A|s)."""
    return q_anchor - temperature * log_pi_anchor


def q_from_anchor(q_anchor: Tensor, log_pi: Tensor, anchor: int, temperature: float) -> Tensor:
    """Q[N, A] from Q(s,A)[N] and log pi[N, A]; -inf where unavailable."""
    return q_anchor.unsqueeze(-1) + temperature * (log_pi - log_pi[:, anchor : anchor + 1])


def anchor_target(
    anchor_reward: Tensor,
    next_q_anchor: Tensor | float,
    next_log_pi_anchor: Tensor,
    discount: Tensor,
    temperature: float,
) -> Tensor:
    """g(s) + gamma^k (Q(s',A') - alpha log pi(A'|s')), shape [N]: the anchor's fixed point, one sampled s'.

    With ``next_q_anchor = 0`` this is the kernel's target y of the Q step.
    """
    return anchor_reward + discount * (next_q_anchor - temperature * next_log_pi_anchor)
