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

and, where actions of a nest g share part of their shocks (dissimilarity lambda_g; 1: independent logit shocks),

    I_g(s) = alpha lambda_g log sum_{a in g} exp(Q(s,a)/(alpha lambda_g)) ,  V(s) = alpha log sum_g exp(I_g(s)/alpha)
    pi(a|s) = exp((I_g - V)/alpha) exp((Q(s,a) - I_g)/(alpha lambda_g))

and, where a period may pass without a decision (attention lambda(s); otherwise the default d(s) happens),

    pi~(a|s) = lambda pi(a|s) + (1 - lambda) 1{a = d}             seen_policy
    W(s) = lambda V(s) + (1 - lambda) Q(s,d) = sum_a pi~ Q(s,a) + lambda alpha H(pi)
                                                                  ex_ante_value; takes the place of V(s')
    V(s) - (1 - lambda) (V(s) - Q(s,d)) = W(s): l with nu = mu - (1 - lambda) 1{a = d} in the place of mu
                                                                  reference_of_value

where mu(a|s) is the reference policy, whose reward g(s) = sum_a mu(a|s) r(s,a) is known (an anchor action A: mu(A|s) =
1), l(s) = sum_a mu(a|s) log pi(a|s) reference_log_policy, c(s,a) = gamma^k E[V(s')|s,a] the continuation, and
W(s) = sum_a mu(a|s) Q(s,a) = g(s) + sum_a mu(a|s) c(s,a).

Source: Geng, Nassif, Manzanares, Reppen, Sircar, *Deep PQR*, ICML 2020, equations (3)-(9), for an anchor
action; van der Laan, Kallus, Bibaut 2026 (arXiv 2509.21172) for a reference policy; McFadden 1978 for nests. Axes:
N rows, A actions; ``available[N, A]`` is the menu. An unavailable action has log-probability -inf and does not enter
any value; a row with an empty menu has value 0 (there is nothing left to choose). The identities of the reference hold
where what it does is available; elsewhere they give no finite number. Departure from the papers: durations k and menus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def masked(q: Tensor, available: Tensor) -> Tensor:
    """``q[N, A]`` with -inf where the action is not on the menu."""
    return q.masked_fill(~available, -torch.inf)


@dataclass(frozen=True)
class Nests:
    """Which actions share part of their taste shocks.

    of : the nest of each of the A actions, numbered from 0.
    dissimilarity : lambda of each nest, in (0, 1]; 1 - lambda is the part that is shared (roughly its correlation).
    """

    of: tuple[int, ...]
    dissimilarity: tuple[float, ...]

    def members(self, nest: int) -> list[int]:
        return [a for a, g in enumerate(self.of) if g == nest]


@dataclass(frozen=True)
class Inertia:
    """Periods that pass without a decision: with probability 1 - attention[N] the action default[N] (-1: none) happens,
    whatever the taste shocks. Members know it of their future. Where the default is not on the menu all is decided."""

    attention: Tensor
    default: Tensor

    def at(self, rows: Tensor) -> Inertia:
        """Of some rows."""
        return Inertia(self.attention[rows], self.default[rows])

    def within(self, menu: Tensor) -> Tensor:
        """attention[..., N] where the default is on menu[..., N, A], else 1."""
        at = self.default.clamp_min(0).expand(menu.shape[:-1]).unsqueeze(-1)
        there = menu.gather(-1, at).squeeze(-1) & (self.default >= 0)
        return torch.where(there, self.attention, torch.ones_like(self.attention))

    def passive(self, actions: int) -> Tensor:
        """1{a = d} [N, A]; 0 where there is no default."""
        return (self.default.unsqueeze(-1) == torch.arange(actions, device=self.default.device)).to(self.attention)


def soft_value(q: Tensor, available: Tensor, temperature: float, nests: Nests | None = None) -> Tensor:
    """V[N] in reward units: alpha log sum over the menu of exp(q[N, A]/alpha); 0 where the menu is empty."""
    whole = masked(q, available) if nests is None else _inclusive_values(q, available, temperature, nests)
    value = temperature * torch.logsumexp(whole / temperature, dim=-1)
    return torch.where(available.any(-1), value, torch.zeros_like(value))


def log_policy(q: Tensor, available: Tensor, temperature: float, nests: Nests | None = None) -> Tensor:
    """log pi[N, A], without nests (q - V)/alpha; -inf where unavailable (and everywhere if the menu is empty)."""
    if nests is None:
        return masked((q - soft_value(q, available, temperature).unsqueeze(-1)) / temperature, available)
    inclusive = _inclusive_values(q, available, temperature, nests)
    nest = log_policy(inclusive, inclusive > -torch.inf, temperature)[..., list(nests.of)]
    scale = temperature * q.new_tensor(nests.dissimilarity)[list(nests.of)]
    return masked((q - inclusive[..., list(nests.of)]) / scale + nest, available)


def seen_policy(log_pi: Tensor, inertia: Inertia | None) -> Tensor:
    """log pi~[..., N, A], what happens where members decide by log pi; the same without inertia."""
    if inertia is None:
        return log_pi
    menu = log_pi > -torch.inf
    attention = inertia.within(menu).to(log_pi).unsqueeze(-1)
    passed = torch.log1p(-attention) + inertia.passive(log_pi.shape[-1]).to(log_pi).log()
    seen = torch.logaddexp(attention.log() + log_pi.masked_fill(~menu, 0.0), passed)  # of -inf twice: no derivative
    return torch.where((attention < 1) & menu, seen, log_pi)


def ex_ante_value(value: Tensor, q: Tensor, available: Tensor, inertia: Inertia | None) -> Tensor:
    """W[..., N], before it is known whether there is a decision, of V[..., N] and q[..., N, A]; V without inertia."""
    if inertia is None:
        return value
    attention = inertia.within(available).to(value)
    at = inertia.default.clamp_min(0).expand(q.shape[:-1]).unsqueeze(-1)
    passed = torch.where(attention < 1, q.gather(-1, at).squeeze(-1), value)
    return attention * value + (1 - attention) * passed


def decided_share(log_pi: Tensor, inertia: Inertia | None) -> Tensor:
    """P(decided | a happened)[..., N, A] where members decide by log pi; 1 without inertia."""
    if inertia is None:
        return torch.ones_like(log_pi)
    attention = inertia.within(log_pi > -torch.inf).to(log_pi).unsqueeze(-1)
    return (attention.log() + log_pi - seen_policy(log_pi, inertia)).exp().masked_fill(log_pi.isneginf(), 1.0)


def received_entropy(log_pi: Tensor, nests: Nests | None = None, inertia: Inertia | None = None) -> Tensor:
    """lambda H[N], the mean of the shocks of what happens, over alpha: a default brings none."""
    whole = entropy(log_pi, nests)
    return whole if inertia is None else inertia.within(log_pi > -torch.inf).to(whole) * whole


def entropy(log_pi: Tensor, nests: Nests | None = None) -> Tensor:
    """H[N] = -sum_a pi log pi in nats, with 0 log 0 = 0: the mean of the shocks of what is chosen, over alpha.

    With nests, -sum_a pi (lambda_g log pi + (1 - lambda_g) log sum_{b in g} pi(b)).
    """
    pi, log_pi = log_pi.exp(), log_pi.masked_fill(log_pi.isneginf(), 0.0)
    if nests is None:
        return -(pi * log_pi).sum(-1)
    total = torch.zeros_like(pi[..., 0])
    for g, width in enumerate(nests.dissimilarity):
        mine = nests.members(g)
        whole = pi[..., mine].sum(-1)
        total += width * (pi[..., mine] * log_pi[..., mine]).sum(-1) + (1 - width) * torch.special.xlogy(whole, whole)
    return -total


def log_policy_slope(
    q_slope: Tensor, log_pi: Tensor, temperature: float, nests: Nests | None = None, inertia: Inertia | None = None
) -> Tensor:
    """How log pi[N, A] (log pi~ with inertia) moves where Q moves by q_slope[N, A, B]: [N, A, B], of no meaning where
    unavailable.

    Without nests, dQ less its mean under pi, over alpha.
    """
    if inertia is not None:
        decided = decided_share(log_pi, inertia).unsqueeze(-1)
        return decided * log_policy_slope(q_slope, log_pi, temperature, nests)
    pi = log_pi.exp().unsqueeze(-1)
    mean = (pi * q_slope).sum(1, keepdim=True)
    if nests is None:
        return (q_slope - mean) / temperature
    moved = torch.empty_like(q_slope)
    for g, width in enumerate(nests.dissimilarity):
        mine = nests.members(g)
        whole = pi[:, mine].sum(1, keepdim=True).clamp_min(torch.finfo(pi.dtype).tiny)
        own = (pi[:, mine] * q_slope[:, mine]).sum(1, keepdim=True) / whole
        moved[:, mine] = (q_slope[:, mine] - own) / (width * temperature) + (own - mean) / temperature
    return moved


def _inclusive_values(q: Tensor, available: Tensor, temperature: float, nests: Nests) -> Tensor:
    """I[N, G]; -inf where nothing of the nest is on the menu."""
    q = masked(q, available)
    scale = [temperature * width for width in nests.dissimilarity]
    return torch.stack([s * torch.logsumexp(q[..., nests.members(g)] / s, -1) for g, s in enumerate(scale)], -1)


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


def reference_of_value(reference: Tensor, menu: Tensor, inertia: Inertia | None) -> Tensor:
    """nu[N, A] with which sum_a mu Q - alpha sum_a nu log pi is what a state is worth before it is known whether there
    is a decision: mu[N, A] itself without inertia."""
    if inertia is None:
        return reference
    passed = 1 - inertia.within(menu).to(reference)
    return reference - passed.unsqueeze(-1) * inertia.passive(menu.shape[-1]).to(reference)


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
