"""The equations of the model, each once, as pure functions of tensors.

A member in state s picks an action a from the menu C(s) and maximises discounted reward plus i.i.d. logit shocks
with mean zero, temperature alpha:

    V(s)   = alpha log sum_{a in C(s)} exp(Q(s,a)/alpha)          soft_value
    pi(a|s)= exp((Q(s,a) - V(s))/alpha)                           log_policy
    Q(s,a) = r(s,a) + gamma^k E[V(s')|s,a]                        q_from_reward, reward_from_q
    V(s)   = W(s) - alpha l(s)                                    value_from_reference
    Q(s,a) = V(s) + alpha log pi(a|s)                             q_from_value
    c(s,a) = gamma^k E[g(s') + sum_b mu(b|s') c(s',b) - alpha l(s') | s,a]
                                                                  reference_target (its right-hand side)

where mu(a|s) is the reference policy, whose reward g(s) = sum_a mu(a|s) r(s,a) is known (an anchor action A: mu(A|s) =
1), l(s) = sum_a mu(a|s) log pi(a|s) reference_log_policy, c(s,a) = gamma^k E[V(s')|s,a] the continuation, and
W(s) = sum_a mu(a|s) Q(s,a) = g(s) + sum_a mu(a|s) c(s,a).

Source: Geng, Nassif, Manzanares, Reppen, Sircar, *Deep PQR*, ICML 2020, equations (3)-(9), for an anchor
action; van der Laan, Kallus, Bibaut 2026 (arXiv 2509.21172) for a reference policy. Axes: N rows, A actions;
``available[N, A]`` is the menu. An unavailable action has log-probability -inf and does not enter any value; a row with
an empty menu has value 0 (there is nothing left to choose). The identities of the reference hold where what it does is
available; elsewhere they give no finite number. Departure from the papers: durations k and menus.
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


def reference_log_policy(log_pi: Tensor, reference: Tensor) -> Tensor:
    """l[N] = sum_a mu(a|s) log pi(a|s) of log_pi[N, A], mu[N, A]; what mu never does does not enter."""
    return (reference * log_pi.masked_fill(reference == 0, 0.0)).sum(-1)


def value_from_reference(w: Tensor, log_pi_reference: Tensor, temperature: float) -> Tensor:
    """V[N] = W(s) - alpha l(s)."""
    return w - temperature * log_pi_reference


def q_from_value(value: Tensor, log_pi: Tensor, temperature: float) -> Tensor:
    """Q[N, A] = V(s)[N] + alpha log pi[N, A]; -inf where unavailable."""
    return value.unsqueeze(-1) + temperature * log_pi


def reference_target(
    next_reward: Tensor,
    next_continuation: Tensor | float,
    next_log_pi_reference: Tensor,
    discount: Tensor,
    temperature: float,
) -> Tensor:
    """gamma^k (g(s') + sum_b mu(b|s') c(s',b) - alpha l(s')), shape [N]: the fixed point of c(s,a), one sampled s'.

    With ``next_continuation = 0`` this is the kernel's target y of the Q step.
    """
    return discount * (next_reward + next_continuation - temperature * next_log_pi_reference)
