"""The equations: numbers worked by hand, and agreement with the exact solver on a random problem with menus."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from irl import bellman, tabular

ANCHOR = 1
LOG = math.log


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_soft_value_by_hand():
    # alpha = 2: 2 log(e^(log 3) + e^(log 5)) = 2 log 8. The third action is off the menu, however good.
    q = tensor([[2 * LOG(3), 2 * LOG(5), 1000], [0.25, 7, -3]])
    menu = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(bellman.soft_value(q, menu, 2.0), tensor([2 * LOG(8), 0.25]))


def test_soft_value_of_large_numbers_does_not_overflow():
    q = tensor([[1e5, 1e5], [-1e5, -1e5]])
    value = bellman.soft_value(q, torch.ones(2, 2, dtype=torch.bool), 0.5)
    torch.testing.assert_close(value, tensor([1e5, -1e5]) + 0.5 * LOG(2), rtol=0, atol=1e-9)


def test_policy_by_hand():
    q = tensor([[2 * LOG(3), 2 * LOG(5), 1000]])
    log_pi = bellman.log_policy(q, torch.tensor([[True, True, False]]), 2.0)
    torch.testing.assert_close(log_pi.exp(), tensor([[3 / 8, 5 / 8, 0]]))
    assert log_pi[0, 2] == -math.inf


@pytest.mark.parametrize("junk", [0.0, 5.0, -math.inf])
def test_an_empty_menu_is_worth_nothing(junk: float):
    q = torch.full((1, 3), junk, dtype=torch.float64, requires_grad=True)
    menu = torch.zeros(1, 3, dtype=torch.bool)
    value = bellman.soft_value(q, menu, 1.0)
    assert value.item() == 0
    assert (bellman.log_policy(q, menu, 1.0) == -math.inf).all()
    value.sum().backward()
    assert q.grad is not None and (q.grad == 0).all()  # one such row must not spoil the gradient of a batch


def test_junk_off_the_menu_reaches_neither_value_nor_gradient():
    q = tensor([[1.0, 2.0, math.nan]]).requires_grad_()
    menu = torch.tensor([[True, True, False]])
    bellman.log_policy(q, menu, 1.0)[0, 0].backward()
    pi = 1 / (1 + math.e)
    torch.testing.assert_close(q.grad, tensor([[1 - pi, pi - 1, 0]]))


def test_entropy_by_hand():
    log_pi = tensor([[0.5, 0.25, 0.25], [1, 0, 0]]).log()
    torch.testing.assert_close(bellman.entropy(log_pi), tensor([1.5 * LOG(2), 0]))


def test_value_is_expected_q_plus_entropy():
    q = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    menu = torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    menu[:, 0] = True
    log_pi = bellman.log_policy(q, menu, 0.7)
    expected = (log_pi.exp() * q).sum(1) + 0.7 * bellman.entropy(log_pi)
    torch.testing.assert_close(bellman.soft_value(q, menu, 0.7), expected)


def test_the_bellman_equation_by_hand_with_durations():
    # gamma = 1/2; durations 1, 2 and 3 periods, then an end.
    discount = tensor([0.5, 0.25, 0.125, 0])
    reward, next_value = tensor([1, 2, -3, 4]), tensor([8, 8, 8, 8])
    q = bellman.q_from_reward(reward, next_value, discount)
    torch.testing.assert_close(q, tensor([5, 4, -2, 4]))
    torch.testing.assert_close(bellman.reward_from_q(q, next_value, discount), reward)


def test_reference_equations_by_hand():
    # pi = (1/4, 1/2, 1/4), the anchor second, W = Q(s,A) = 3, alpha = 2: V = 3 + 2 log 2, another Q is 3 - 2 log 2
    log_pi = tensor([[0.25, 0.5, 0.25]]).log()
    log_pi[:, 2] = -math.inf  # off the menu: the reference does not do it
    anchor = bellman.reference_log_policy(log_pi, tensor([[0, 1, 0]]))
    torch.testing.assert_close(anchor, tensor([-LOG(2)]))
    torch.testing.assert_close(bellman.reference_log_policy(log_pi, tensor([[0.5, 0.5, 0]])), tensor([-1.5 * LOG(2)]))
    value = bellman.value_from_reference(tensor([3]), anchor, 2.0)
    torch.testing.assert_close(value, tensor([3 + 2 * LOG(2)]))
    torch.testing.assert_close(bellman.q_from_value(value, log_pi, 2.0), tensor([[3 - 2 * LOG(2), 3, -math.inf]]))
    # gamma^k = 1/4, g' = 1, what follows that is worth 6, next pi(A) = 1/2: (1 + 6 + 2 log 2)/4; nothing after an end
    arguments = (tensor([1, 1]), tensor([6, 6]), tensor([0.5, 0.5]).log(), tensor([0.25, 0]), 2.0)
    torch.testing.assert_close(bellman.reference_target(*arguments), tensor([1.75 + 0.5 * LOG(2), 0]))


@pytest.mark.parametrize("discount", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_identities_hold_in_the_exact_solution(discount: float, alpha: float):
    generator = torch.Generator().manual_seed(3)
    transition = torch.rand(6, 3, 6, generator=generator, dtype=torch.float64) ** 3
    transition = transition / transition.sum(-1, keepdim=True)
    reward = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    menu = torch.rand(6, 3, generator=generator) < 0.6
    menu[:, ANCHOR] = True
    mdp = tabular.FiniteMDP(reward, menu, tabular.dense_expectation(transition), discount, alpha)
    exact = tabular.solve(mdp, tolerance=1e-12)
    tight = {"rtol": 1e-12, "atol": 1e-10}
    log_pi, next_value = exact.log_policy, transition @ exact.value

    torch.testing.assert_close(bellman.soft_value(exact.q, menu, alpha), exact.value, **tight)
    torch.testing.assert_close(bellman.log_policy(exact.q, menu, alpha), log_pi, **tight)
    torch.testing.assert_close(bellman.q_from_value(exact.value, log_pi, alpha), exact.q, **tight)
    q = bellman.q_from_reward(reward, next_value, discount)
    torch.testing.assert_close(q[menu], exact.q[menu], **tight)
    torch.testing.assert_close(bellman.reward_from_q(exact.q, next_value, discount)[menu], reward[menu], **tight)
    continuation = discount * next_value
    gamma = torch.full((6, 3, 6), discount, dtype=torch.float64)
    for reference in (
        torch.nn.functional.one_hot(torch.full((6,), ANCHOR), 3).double(),
        menu.double() / menu.double().sum(1, keepdim=True),
    ):
        expected = bellman.reference_log_policy(log_pi, reference)
        known = (reference * reward).sum(1)
        w = known + (reference * continuation).sum(1)
        torch.testing.assert_close(w, (reference * exact.q.masked_fill(~menu, 0)).sum(1), **tight)
        torch.testing.assert_close(bellman.value_from_reference(w, expected, alpha), exact.value, **tight)
        # the fixed point: its right-hand side, averaged over s', is c(s,a) itself
        goal = bellman.reference_target(known, (reference * continuation).sum(1), expected, gamma, alpha)
        torch.testing.assert_close((transition * goal).sum(2), continuation, **tight)


NESTED = bellman.Nests(of=(0, 1, 1, 2), dissimilarity=(1.0, 0.25, 1.0))


def test_two_copies_in_a_nest_by_hand():
    # I = alpha lambda log(2 e^(q/(alpha lambda))) = q + alpha lambda log 2: independent shocks would give alpha log 2
    q = tensor([[0.0, 2.0, 2.0, 1.0]])
    menu = torch.ones(1, 4, dtype=torch.bool)
    whole = 1 + math.exp(1.0) * 2**0.25 + math.exp(0.5)
    torch.testing.assert_close(bellman.soft_value(q, menu, 2.0, NESTED), tensor([2 * LOG(whole)]))
    copy = math.exp(1.0) * 2**0.25 / whole / 2
    pi = bellman.log_policy(q, menu, 2.0, NESTED).exp()
    torch.testing.assert_close(pi, tensor([[1 / whole, copy, copy, math.exp(0.5) / whole]]))


def random_choices(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(50, 4, generator=generator, dtype=torch.float64) * 3
    menu = torch.rand(50, 4, generator=generator) < 0.6
    menu[0] = False
    return q, menu


@pytest.mark.parametrize("nests", [None, NESTED])
def test_value_is_mean_q_and_shocks(nests: bellman.Nests | None):
    q, menu = random_choices()
    log_pi = bellman.log_policy(q, menu, 1.7, nests)
    torch.testing.assert_close(log_pi.exp().sum(1), menu.any(1).double())
    mean = (log_pi.exp() * q.masked_fill(~menu, 0.0)).sum(1) + 1.7 * bellman.entropy(log_pi, nests)
    torch.testing.assert_close(mean, bellman.soft_value(q, menu, 1.7, nests))


def test_independent_nests_change_nothing():
    q, menu = random_choices()
    nests = bellman.Nests(of=(0, 1, 1, 0), dissimilarity=(1.0, 1.0))
    torch.testing.assert_close(bellman.log_policy(q, menu, 1.7, nests), bellman.log_policy(q, menu, 1.7))
    torch.testing.assert_close(bellman.soft_value(q, menu, 1.7, nests), bellman.soft_value(q, menu, 1.7))


@pytest.mark.parametrize("nests", [None, NESTED])
def test_slope_of_the_log_policy_by_differences(nests: bellman.Nests | None):
    (q, menu), step = random_choices(), 1e-6
    moved = torch.randn(50, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = bellman.log_policy_slope(moved, bellman.log_policy(q, menu, 1.7, nests), 1.7, nests)
    for b in range(2):
        up, down = (bellman.log_policy(q + side * moved[..., b], menu, 1.7, nests) for side in (step, -step))
        torch.testing.assert_close(slope[..., b][menu], ((up - down) / (2 * step))[menu], rtol=1e-6, atol=1e-7)
