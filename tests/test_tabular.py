"""The exact solver: hand-worked numbers, and agreement with linear algebra that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from irl import tabular
from irl.tabular import FiniteMDP, dense_expectation, factored_expectation, nested_fixed_point, solve


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_chain(*shape: int, seed: int) -> Tensor:
    """Transition probabilities [*shape, to]; every row sums to one."""
    weights = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    return weights / weights.sum(-1, keepdim=True)


def random_problem(discount: float, *, states: int = 7, actions: int = 3, seed: int = 0) -> tuple[FiniteMDP, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    transition = random_chain(states, actions, states, seed=seed)
    reward = 3 * torch.randn(states, actions, generator=generator, dtype=torch.float64)
    available = torch.rand(states, actions, generator=generator) < 0.7
    available[:, 0] = True
    return FiniteMDP(reward, available, dense_expectation(transition), discount, temperature=0.7), transition


def newton_values(mdp: FiniteMDP, transition: Tensor) -> np.ndarray:
    """Soft policy iteration with exact linear solves: quadratic convergence, no shared code."""
    reward, menu, p, alpha = mdp.reward.numpy(), mdp.available.numpy(), transition.numpy(), mdp.temperature
    value = np.zeros(len(reward))
    for _ in range(60):
        weight = np.where(menu, (reward + mdp.discount * p @ value) / alpha, -np.inf)
        policy = np.exp(weight - weight.max(1, keepdims=True))
        policy /= policy.sum(1, keepdims=True)
        entropy = -(policy * np.log(np.where(policy > 0, policy, 1))).sum(1)
        flow = np.where(menu, policy * reward, 0).sum(1) + alpha * entropy
        moves = np.einsum("sa,sat->st", policy, p)
        value = np.linalg.solve(np.eye(len(value)) - mdp.discount * moves, flow)
    return value


def test_two_states_by_hand():
    # State 1: reward 1 for ever, so V = 2 at gamma = 1/2. State 0: staying is worth V/2; going earns log 2 - 1 and then
    # V(1)/2 = 1, so log 2 in all. exp(V) = exp(V/2) + 2 has the root exp(V/2) = 2: both options are equally likely.
    transition = tensor([[[1, 0], [0, 1]], [[0, 1], [0, 1]]])
    reward = tensor([[0, math.log(2) - 1], [1, math.nan]])
    available = torch.tensor([[True, True], [True, False]])
    solution = tabular.solve(FiniteMDP(reward, available, dense_expectation(transition), 0.5))
    assert solution.converged and solution.error <= 1e-10
    torch.testing.assert_close(solution.value, tensor([2 * math.log(2), 2]), atol=1e-10, rtol=0)
    torch.testing.assert_close(solution.policy, tensor([[0.5, 0.5], [1, 0]]), atol=1e-10, rtol=0)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("seed", [0, 1])
def test_solution_agrees_with_linear_algebra(discount: float, seed: int):
    mdp, transition = random_problem(discount, seed=seed)
    solution = tabular.solve(mdp)
    assert solution.converged
    assert solution.residual <= 1e-10
    # rows of probabilities are rounded too: at gamma = .999 that alone moves values of 3,000 by some 1e-10
    np.testing.assert_allclose(solution.value.numpy(), newton_values(mdp, transition), atol=1e-10, rtol=2e-13)
    q = torch.where(mdp.available, mdp.reward + discount * transition @ solution.value, -math.inf)
    torch.testing.assert_close(solution.q, q, atol=1e-10, rtol=0)
    torch.testing.assert_close(solution.policy, torch.softmax(q / mdp.temperature, -1), atol=1e-9, rtol=0)


def test_patience_costs_no_sweeps_where_the_process_mixes():
    sweeps = [tabular.solve(random_problem(discount)[0]).iterations for discount in (0.9, 0.999)]
    assert sweeps[1] < 2 * sweeps[0] + 20  # plain value iteration: 220 and 30,000


def test_a_high_level_of_values_does_not_cost_precision():
    # Two sticky states with rewards 100.5 and 100: values near 100,000, whose rounding alone is 1e-11 per sweep and
    # would be multiplied by gamma / (1 - gamma) = 999 in the bound. They differ by .5 / (1 - gamma (1 - 2 p)).
    transition = tensor([[[0.99, 0.01]], [[0.01, 0.99]]])
    available = torch.ones(2, 1, dtype=torch.bool)
    solution = tabular.solve(FiniteMDP(tensor([[100.5], [100]]), available, dense_expectation(transition), 0.999))
    assert solution.converged and solution.iterations < 2000
    assert float(solution.value.mean()) == pytest.approx(100_250, abs=2e-10, rel=0)
    assert float(solution.value[0] - solution.value[1]) == pytest.approx(0.5 / (1 - 0.999 * 0.98), abs=2e-10, rel=0)


def test_parts_that_do_not_communicate():
    parts = [random_problem(0.95, seed=seed) for seed in (3, 4)]
    transition = torch.zeros(14, 3, 14, dtype=torch.float64)
    transition[:7, :, :7], transition[7:, :, 7:] = parts[0][1], parts[1][1]
    reward, available = (torch.cat([getattr(mdp, name) for mdp, _ in parts]) for name in ("reward", "available"))
    solution = tabular.solve(FiniteMDP(reward, available, dense_expectation(transition), 0.95, 0.7))
    expected = np.concatenate([newton_values(mdp, moves) for mdp, moves in parts])
    assert np.abs(solution.value.numpy() - expected).max() <= 1.5e-10


def test_factored_and_dense_agree():
    kernels = [[random_chain(n, n, seed=10 * a + n) for n in (2, 3, 4)] for a in range(3)]
    dense = torch.stack([torch.kron(torch.kron(k[0], k[1]), k[2]) for k in kernels], dim=1)
    value = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(factored_expectation(kernels)(value), dense @ value, atol=1e-14, rtol=0)


def phased_problem(phases: int = 3, states: int = 4, actions: int = 2) -> tuple[FiniteMDP, FiniteMDP]:
    """The same problem with a clock, and with (phase, state) as one dense state."""
    transition = random_chain(states, actions, states, seed=5)
    generator = torch.Generator().manual_seed(6)
    reward = torch.randn(phases, states, actions, generator=generator, dtype=torch.float64)
    available = torch.ones(states, actions, dtype=torch.bool)
    available[1, 1] = False
    flat = torch.zeros(phases, states, actions, phases, states, dtype=torch.float64)
    for phase in range(phases):
        flat[phase, :, :, (phase + 1) % phases] = transition
    size = phases * states
    return (
        FiniteMDP(reward, available, dense_expectation(transition), 0.97),
        FiniteMDP(
            reward.reshape(size, actions),
            available.repeat(phases, 1),
            dense_expectation(flat.reshape(size, actions, size)),
            0.97,
        ),
    )


def test_phases_agree_with_the_flattened_problem():
    clock, flat = phased_problem()
    solution, expected = tabular.solve(clock), tabular.solve(flat)
    assert solution.converged and expected.converged
    torch.testing.assert_close(solution.value.reshape(-1), expected.value, atol=2e-10, rtol=0)
    torch.testing.assert_close(solution.q.reshape(-1, 2), expected.q, atol=2e-10, rtol=0)


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e9])
def test_unavailable_rewards_are_never_used(junk: float):
    mdp, _ = random_problem(0.9)
    spoilt = FiniteMDP(torch.where(mdp.available, mdp.reward, junk), mdp.available, mdp.expectation, 0.9, 0.7)
    solution = tabular.solve(spoilt)
    torch.testing.assert_close(solution.value, tabular.solve(mdp).value, atol=0, rtol=0)
    assert (solution.policy[~mdp.available] == 0).all()
    evaluated = tabular.evaluate(spoilt, solution.policy)
    torch.testing.assert_close(evaluated.value, solution.value, atol=2e-10, rtol=0)


@pytest.mark.parametrize("explicit", [True, False])
def test_leaving_for_good_by_hand(explicit: bool):
    # Reward 1 each period, and the end with probability 1/4: V = 1 / (1 - 3/4 gamma) = 10/3 at gamma = 14/15.
    transition = tensor([[[0.75, 0.25]], [[0, 1]]]) if explicit else tensor([[[0.75]]])
    available = torch.tensor([[True], [False]]) if explicit else torch.tensor([[True]])
    reward = torch.ones(available.shape, dtype=torch.float64)
    solution = tabular.solve(FiniteMDP(reward, available, dense_expectation(transition), 14 / 15))
    assert solution.converged and abs(float(solution.value[0]) - 10 / 3) <= 1e-10
    if explicit:
        assert solution.value[1] == 0 and (solution.policy[1] == 0).all()


def test_unfinished_solution_says_so_and_its_bound_holds():
    mdp, transition = random_problem(0.999)
    solution = tabular.solve(mdp, max_sweeps=3)
    distance = np.abs(solution.value.numpy() - newton_values(mdp, transition)).max()
    assert not solution.converged and 1e-10 < distance <= solution.error
    assert solution.iterations == 3


@pytest.mark.parametrize("entropy", [True, False])
def test_evaluation_of_a_given_policy(entropy: bool):
    mdp, transition = random_problem(0.98)
    policy = mdp.available / mdp.available.sum(1, keepdim=True).double()
    options = mdp.available.sum(1).double()
    flow = (policy * mdp.reward).sum(1) + (0.7 * options.log() if entropy else 0)  # uniform: entropy log(options)
    moves = torch.einsum("sa,sat->st", policy, transition)
    expected = torch.linalg.solve(torch.eye(7, dtype=torch.float64) - 0.98 * moves, flow)
    evaluated = tabular.evaluate(mdp, policy, entropy=entropy)
    assert evaluated.converged
    torch.testing.assert_close(evaluated.value, expected, atol=1.5e-10, rtol=0)


def test_propagation_by_hand():
    # Two states that swap with probability 1/4 under action 0 and stay under action 1; actions equally likely.
    transition = tensor([[[0.75, 0.25], [1, 0]], [[0.25, 0.75], [0, 1]]])
    mdp = FiniteMDP(
        torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool), dense_expectation(transition), 0.9
    )
    seen = list(tabular.propagate(mdp, torch.full((2, 2), 0.5, dtype=torch.float64), tensor([8, 0]), periods=3))
    torch.testing.assert_close(torch.stack(seen), tensor([[8, 0], [7, 1], [6.25, 1.75]]))


def test_propagation_turns_the_clock():
    clock, flat = phased_problem()
    policy = tabular.solve(clock).policy
    start = random_chain(12, seed=8).reshape(3, 4)
    start[1] = 0
    for here, there in zip(
        tabular.propagate(clock, policy, start, periods=5),
        tabular.propagate(flat, policy.reshape(12, 2), start.reshape(12), periods=5),
        strict=True,
    ):
        torch.testing.assert_close(here.reshape(-1), there, atol=1e-15, rtol=0)


def test_problems_are_refused_together():
    reward, available = torch.zeros(2, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.bool)
    heavy = dense_expectation(tensor([[[1, 0]], [[0.5, 0.6]]]))
    with pytest.raises(ValueError, match="more than one"):
        FiniteMDP(reward, available, heavy, 0.9)
    with pytest.raises(ValueError, match=r"discount is 1.*temperature is 0.*float32.*\[P, S, A\]"):
        FiniteMDP(reward.float()[:1], available, heavy, 1.0, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        FiniteMDP(reward * math.nan, available, heavy, 0.9)


def test_the_nested_fixed_point_finds_the_likeliest_parameters():
    """Counts that are the exact probabilities of theta give theta back; the score vanishes there and nowhere else."""
    transition = torch.rand(4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transition = transition / transition.sum(-1, keepdim=True)
    x = torch.arange(4, dtype=torch.float64)

    def mdp_of(theta):
        reward = torch.stack([torch.zeros(4, dtype=torch.float64), theta[0] + theta[1] * x], 1)
        return FiniteMDP(reward, torch.ones(4, 2, dtype=torch.bool), dense_expectation(transition), 0.9)

    theta = torch.tensor([-0.7, 0.4], dtype=torch.float64)
    counts = 500 * solve(mdp_of(theta)).policy
    found = nested_fixed_point(mdp_of, counts, torch.zeros(2))
    assert found.converged and torch.allclose(found.theta, theta, atol=1e-5)
    step = 1e-3
    for p in range(2):  # the curvature of the likelihood is the inverse of the covariance
        moved = torch.zeros(2, dtype=torch.float64)
        moved[p] = step
        sides = [float((counts * solve(mdp_of(theta + s * moved)).log_policy).sum()) for s in (1, -1)]
        curvature = (2 * found.log_likelihood - sum(sides)) / step**2
        assert curvature == pytest.approx(float(torch.linalg.inv(found.covariance)[p, p]), rel=1e-3)
