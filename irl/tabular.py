"""Exact solution of a soft Markov decision process on a finite state space: the oracle.

Solves, in float64 and to a proven sup-norm error,

    Q(s,a) = r(s,a) + gamma E[V(s')|s,a] ,   V(s) = alpha log sum_{a in C(s)} exp(Q(s,a)/alpha) .

Transitions enter only as an *expectation operator* V[S] -> E[V(s')|s,a][S, A], linear in V: a dense tensor for small
problems, one small matrix per axis and action for product spaces (:func:`factored_expectation`), or the caller's own
function. A cyclic clock (calendar month) is a leading axis of P phases: phase p is followed by p + 1 mod P. The phases
are swept backwards, each from the values just computed (Gauss-Seidel), so one sweep contracts by gamma^P.

Bounds are MacQueen's (1966; Puterman, *Markov Decision Processes*, 1994, section 6.6): if one sweep changes the
values by between ``low`` and ``high``, the solution lies between beta/(1-beta) low and beta/(1-beta) high above them,
beta = gamma^P. The iteration keeps *relative* values where no mass is lost, and adds the level only at the end: it
then converges as fast as the process mixes, not as gamma^P, and rounding does not grow as gamma -> 1.

Limits: the operator is the same in every phase; mass that leaves the state space (rows that sum to less than one) and
states with an empty menu (terminal) are worth 0, and problems that have either converge only as gamma^P; so do
problems made of parts that do not communicate, which are better solved one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl import bellman

Expectation = Callable[[Tensor], Tensor]
"""value[S] -> E[value(s')|s,a], shape [S, A]; linear and differentiable in ``value``."""

ROUNDING = 1e-14
"""Rows whose probabilities sum to one up to this count as losing nothing."""

WORTH_SHARING = 1_000_000
"""Numbers in a table of states and actions from which several threads are used."""


@dataclass(frozen=True)
class FiniteMDP:
    """A soft MDP with S states, A actions and, if ``reward`` has three axes, P phases of a cyclic clock.

    reward[S, A] or reward[P, S, A], float64, anything where not available; available[S, A], bool; a state without
    an available action is terminal and worth 0.
    """

    reward: Tensor
    available: Tensor
    expectation: Expectation
    discount: float
    temperature: float = 1.0
    nests: bellman.Nests | None = None
    """Which actions share part of their shocks; none: logit."""
    inertia: bellman.Inertia | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.discount < 1:
            problems.append(f"discount is {self.discount}; it must be at least 0 and below 1")
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature}; it must be positive")
        if self.reward.dtype != torch.float64:
            problems.append(f"reward is {self.reward.dtype}; give float64")
        if self.reward.dim() not in (2, 3) or self.reward.shape[-2:] != self.available.shape:
            shapes = f"reward {tuple(self.reward.shape)}, available {tuple(self.available.shape)}"
            problems.append(f"{shapes}; they must be [S, A] or [P, S, A], and [S, A]")
        elif not self.reward.masked_select(self.available).isfinite().all():
            problems.append("reward is not finite for some available action")
        if not problems:
            mass = self.expectation(torch.ones(self.states, dtype=torch.float64))
            if mass.shape != self.available.shape:
                problems.append(f"expectation returns {tuple(mass.shape)}, not {tuple(self.available.shape)}")
            elif not ((mass >= -1e-12) & (mass <= 1 + 1e-12))[self.available].all():
                problems.append("transition probabilities sum to more than one, or to less than zero")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def states(self) -> int:
        return int(self.available.shape[0])

    @property
    def phases(self) -> int:
        return int(self.reward.shape[0]) if self.reward.dim() == 3 else 1

    def value(self, q: Tensor) -> Tensor:
        """V of q[..., S, A]: soft where members decide, Q of the default where they do not."""
        decided = bellman.soft_value(q, self.available, self.temperature, self.nests)
        return bellman.ex_ante_value(decided, q, self.available, self.inertia)

    def log_policy(self, q: Tensor) -> Tensor:
        """log pi of q[..., S, A], what happens without a decision included; -inf where not available."""
        decided = bellman.log_policy(q, self.available, self.temperature, self.nests)
        return bellman.seen_policy(decided, self.inertia)

    def phased(self, tensor: Tensor) -> Tensor:
        """``tensor`` with its phase axis, which a problem without a clock leaves out."""
        return tensor if self.reward.dim() == 3 else tensor.unsqueeze(0)

    def unphased(self, tensor: Tensor) -> Tensor:
        return tensor if self.reward.dim() == 3 else tensor.squeeze(0)


@dataclass(frozen=True)
class Solution:
    """Values and choices of a soft MDP; the phase axis is there if the problem has it.

    value[(P,) S]; q and log_policy[(P,) S, A], -inf where not available. ``error`` bounds the sup-norm distance of
    ``value`` to the exact one (beside rounding: some 1e-16 / (1 - gamma) of the value); ``residual`` is the largest
    violation of the Bellman equation.
    """

    value: Tensor
    q: Tensor
    log_policy: Tensor
    iterations: int
    residual: float
    error: float
    converged: bool

    @property
    def policy(self) -> Tensor:
        return self.log_policy.exp()


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Work on small tensors without sharing it out, which would cost more than it saves: fifty times more than the work
    itself on a machine whose cores are busy."""
    threads = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def dense_expectation(transition: Tensor) -> Expectation:
    """The operator of transition[S, A, S'], for small problems."""
    return lambda value: transition @ value


def factored_expectation(kernels: Sequence[Sequence[Tensor]]) -> Expectation:
    """The operator of a product space whose axes move independently given the action.

    kernels[a][f] is the matrix [n_f, n_f] of axis f under action a: rows from, columns to. States are numbered with
    the last axis fastest. Costs S * sum_f n_f per action and allocates nothing larger than [S, A].
    """

    def expectation(value: Tensor) -> Tensor:
        columns = []
        for axes in kernels:
            expected = value
            for kernel in axes:  # the axis in front is averaged and becomes the last: after all axes, the old order
                expected = expected.reshape(kernel.shape[1], -1).T @ kernel.T
            columns.append(expected.reshape(-1))
        return torch.stack(columns, dim=-1)

    return expectation


def solve(mdp: FiniteMDP, *, tolerance: float = 1e-10, max_sweeps: int = 100_000) -> Solution:
    """The soft-optimal values and policy of ``mdp``, to within ``tolerance`` (sup norm) where ``converged``."""

    def backup(q: Tensor, phase: int) -> Tensor:
        return mdp.value(q)

    with one_thread(when=mdp.available.numel() < WORTH_SHARING):
        value, q, report = _fixed_point(mdp, backup, tolerance, max_sweeps)
    return Solution(mdp.unphased(value), mdp.unphased(q), mdp.unphased(mdp.log_policy(q)), *report)


def backwards(mdp: FiniteMDP, value: Tensor, *, periods: int) -> list[tuple[Tensor, Tensor]]:
    """(value[(P,) S], policy[(P,) S, A]) of each of ``periods`` periods, the first first, after which members are worth
    value[(P,) S]: backward induction, exact up to rounding."""
    found: list[tuple[Tensor, Tensor]] = []
    reward, terminal = mdp.phased(mdp.reward), ~mdp.available.any(-1)
    with one_thread(when=mdp.available.numel() < WORTH_SHARING):
        for _ in range(periods):
            later = mdp.phased(value).roll(-1, 0)  # phase p is followed by p + 1
            expected = torch.stack([mdp.expectation(torch.where(terminal, 0.0, v)) for v in later])
            q = bellman.q_from_reward(reward, expected, mdp.discount)
            value = mdp.unphased(mdp.value(q))
            found.append((value, mdp.unphased(mdp.log_policy(q).exp())))
    return found[::-1]


def policy_iteration(mdp: FiniteMDP, *, max_rounds: int = 100) -> tuple[Tensor, Tensor]:
    """(value[S], policy[S, A]) of a small problem without a clock, exact up to rounding: S equations are solved in
    every round, and the policy improved until the values rise no more (Newton's method; Howard 1960).

    Raises
    ------
    ValueError
        If the problem has a clock, or the values do not settle.
    """
    if mdp.reward.dim() != 2 or mdp.inertia is not None:
        raise ValueError("policy iteration is for problems without a clock or inertia: use `solve`")
    menu, one = mdp.available, torch.eye(mdp.states, dtype=torch.float64)
    transition = torch.stack([mdp.expectation(column) for column in one], dim=-1)  # [S, A, S']
    transition = transition * menu.any(-1)  # terminal states are worth 0
    reward = mdp.reward.masked_fill(~menu, 0.0)
    value, change = torch.zeros(mdp.states, dtype=torch.float64), math.inf
    for _ in range(max_rounds):
        q = bellman.q_from_reward(reward, transition @ value, mdp.discount)
        log_pi = bellman.log_policy(q, menu, mdp.temperature, mdp.nests)
        policy, now = log_pi.exp(), value
        flow = (policy * reward).sum(-1) + mdp.temperature * bellman.entropy(log_pi, mdp.nests)
        value = torch.linalg.solve(one - mdp.discount * torch.einsum("sa,sat->st", policy, transition), flow)
        last, change = change, float((value - now).abs().max())
        if change <= 1e-13 * (1 + float(value.abs().max())) or (change >= last and change < 1e-9):  # rounding is left
            return value, policy
    raise ValueError("the values do not settle: are the rewards finite and of a usual size?")


def evaluate(
    mdp: FiniteMDP, policy: Tensor, *, entropy: bool = True, tolerance: float = 1e-10, max_sweeps: int = 100_000
) -> Solution:
    """The values of following policy[(P,) S, A] for ever: discounted rewards plus, unless declined, the taste shocks
    of the options chosen (alpha times the policy's entropy).

    Raises
    ------
    ValueError
        If shocks are wanted of a problem with inertia, whose policy does not say what was decided.
    """
    if entropy and mdp.inertia is not None:
        raise ValueError("with inertia a policy does not say which shocks were received: `entropy=False`")
    probability = mdp.phased(policy)
    shocks = mdp.temperature * bellman.entropy(probability.log(), mdp.nests)

    def backup(q: Tensor, phase: int) -> Tensor:
        chosen = torch.where(probability[phase] > 0, probability[phase] * q, 0.0).sum(-1)
        return chosen + shocks[phase] if entropy else chosen

    with one_thread(when=mdp.available.numel() < WORTH_SHARING):
        value, q, report = _fixed_point(mdp, backup, tolerance, max_sweeps)
    return Solution(mdp.unphased(value), mdp.unphased(q), policy.log(), *report)


def propagate(mdp: FiniteMDP, policy: Tensor, start: Tensor, *, periods: int) -> Iterator[Tensor]:
    """The distribution over states, exactly, in each of ``periods`` periods under policy[(P,) S, A].

    Yields start[(P,) S] itself first. Masses may sum to anything (counts of members). Mass that leaves the state space,
    or that reaches a terminal state and moves on, is gone.
    """
    probability, mass = mdp.phased(policy), mdp.phased(start)
    for period in range(periods):
        yield mdp.unphased(mass)
        if period < periods - 1:
            moved = torch.zeros_like(mass)
            for phase in range(mdp.phases):
                if mass[phase].any():
                    moved[(phase + 1) % mdp.phases] = _moved(mdp, mass[phase].unsqueeze(-1) * probability[phase])
            mass = moved


def _moved(mdp: FiniteMDP, mass: Tensor) -> Tensor:
    """Next period's mass[S'] of mass[S, A]: the operator's transpose, which is its gradient since it is linear."""
    with torch.enable_grad():
        value = torch.zeros(mdp.states, dtype=mass.dtype, requires_grad=True)
        (moved,) = torch.autograd.grad(mdp.expectation(value), value, grad_outputs=mass)
    return moved


@dataclass(frozen=True)
class Likelihood:
    """A maximum of the likelihood of choices: theta[P], covariance[P, P] (inverse information), and the fixed point."""

    theta: Tensor
    covariance: Tensor
    log_likelihood: float
    iterations: int
    converged: bool
    solution: Solution


def nested_fixed_point(
    mdp_of: Callable[[Tensor], FiniteMDP],
    counts: Tensor,
    start: Tensor,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
) -> Likelihood:
    """theta[P] at which choices counted in counts[(Ph,) S, A] are likeliest, the problem solved anew at every theta.

    Fisher scoring with halved steps. theta enters the reward only; derivatives of the log policy are the exact ones,
    (dQ - sum_a pi dQ)/alpha with dQ the values of following pi for the derivative of the reward. ``tolerance`` is on
    the expected gain of log-likelihood of the next step. Source: Rust, *Econometrica* 55 (1987), the nested fixed
    point.
    """

    def likelihood(log_pi: Tensor) -> float:
        return float(torch.where(counts > 0, counts * log_pi, 0.0).sum())

    def slope_of(p: int, mdp: FiniteMDP, policy: Tensor) -> Tensor:
        step = torch.zeros_like(theta)
        step[p] = 1e-4 * max(1.0, abs(float(theta[p])))
        reward = (mdp_of(theta + step).reward - mdp_of(theta - step).reward) / (2 * step[p])
        reward = torch.where(mdp.available, reward, 0.0)
        q = evaluate(replace(mdp, reward=reward), policy, entropy=False, tolerance=1e-9).q
        q = torch.where(mdp.available, q, 0.0)
        return (q - (policy * q).sum(-1, keepdim=True)) / mdp.temperature

    theta, mass = start.double(), counts.sum(-1, keepdim=True)
    found = solve(mdp_of(theta), tolerance=1e-11)
    value = likelihood(found.log_policy)
    information, gain, iteration = torch.eye(len(theta), dtype=torch.float64), math.inf, 0
    while gain > tolerance and iteration < max_iterations:
        iteration += 1
        mdp, pi = mdp_of(theta), found.policy
        slope = torch.stack([slope_of(p, mdp, pi) for p in range(len(theta))])
        score = (counts * slope).flatten(1).sum(1)
        information = torch.einsum("p...,q...->pq", slope * (mass * pi), slope)
        move = torch.linalg.solve(information, score)
        gain, size = float(score @ move) / 2, 1.0
        while size > 1e-6:
            moved = solve(mdp_of(theta + size * move), tolerance=1e-11)
            if likelihood(moved.log_policy) >= value:
                break
            size /= 2
        else:
            break
        theta, found, value = theta + size * move, moved, likelihood(moved.log_policy)
    covariance = torch.linalg.inv(information)
    return Likelihood(theta, covariance, value, iteration, gain <= max(tolerance, 1e-6), found)


def _fixed_point(
    mdp: FiniteMDP, backup: Callable[[Tensor, int], Tensor], tolerance: float, max_sweeps: int
) -> tuple[Tensor, Tensor, tuple[int, float, float, bool]]:
    """value[P, S] and q[P, S, A] with value = backup(r + gamma E[value]), and (iterations, residual, error, converged).

    Only the values of phase 0 are iterated; one sweep derives the other phases' from them.
    """
    reward, terminal = mdp.phased(mdp.reward), ~mdp.available.any(-1)
    staying = mdp.expectation((~terminal).to(torch.float64))
    conserving = bool(((staying - 1).abs() <= ROUNDING)[mdp.available].all())
    log_beta = mdp.phases * math.log(mdp.discount) if mdp.discount > 0 else -math.inf
    horizon = math.exp(log_beta) / -math.expm1(log_beta)  # beta / (1 - beta)

    def look_ahead(value: Tensor, phase: int) -> Tensor:
        return bellman.masked(bellman.q_from_reward(reward[phase], mdp.expectation(value), mdp.discount), mdp.available)

    def sweep(value: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        values, qs = [], []
        for phase in reversed(range(mdp.phases)):
            qs.append(look_ahead(value, phase))
            value = torch.where(terminal, 0.0, backup(qs[-1], phase))
            values.append(value)
        return values[::-1], qs[::-1]

    new = torch.zeros(mdp.states, dtype=torch.float64)
    iterations, low, high, error = 0, 0.0, 0.0, math.inf
    while error > tolerance and iterations < max_sweeps:
        iterations += 1
        value = new - new[0] if conserving else new
        new = sweep(value)[0][0]
        change = (new - value)[~terminal]
        low, high = (float(change.min()), float(change.max())) if len(change) else (0.0, 0.0)
        if not conserving:  # a constant shift of the values is not carried in full
            low, high = min(low, 0.0), max(high, 0.0)
        error = horizon * (high - low) / 2
    values, qs = sweep(torch.where(terminal, 0.0, new + horizon * (low + high) / 2))
    last = backup(look_ahead(values[0], mdp.phases - 1), mdp.phases - 1)
    residual = float(torch.where(terminal, 0.0, last - values[-1]).abs().max())
    return torch.stack(values), torch.stack(qs), (iterations, residual, error, error <= tolerance)
