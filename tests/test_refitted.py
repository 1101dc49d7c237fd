"""The refit's module on numbers worked by hand: rewards, standard errors and their sums, for each kind of reference."""

from __future__ import annotations

import pytest
import torch

from irl.refitted import Refitted

X = torch.tensor([[1.0, 2.0], [1.0, -1.0]])
THETA = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 2.0]], dtype=torch.float64)
UTILITY = torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.5, -3.0]], dtype=torch.float64)
G = torch.tensor([0.25, -2.0])
HALF = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])


def refitted(anchor: int | None) -> Refitted:
    refit = Refitted(anchor, 3, 2, 4)
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    refit.covariance.copy_(root @ root.T)
    refit.theta.copy_(THETA)
    return refit


def test_an_anchor_action_has_its_reward_and_leaves_the_others_theirs():
    mu = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    reward = refitted(0).reward(X, G, mu)
    assert torch.equal(reward[:, 0], G.double()) and torch.equal(reward[:, 1:], UTILITY[:, 1:])


def test_the_mean_under_a_policy_is_known():
    reward = refitted(None).reward(X, G, HALF)
    expected = [[0 - 1.5 + 0.25, 2 - 1.5 + 0.25, 3 - 1.5 + 0.25], [0 + 1.25 - 2, 0.5 + 1.25 - 2, -3 + 1.25 - 2]]
    torch.testing.assert_close(reward, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("mu", [HALF, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])])
def test_standard_errors_are_those_of_the_contrast(mu):
    refit = refitted(None)
    error = refit.standard_error(X, mu)
    for n in range(2):
        for a in range(3):
            weight = torch.eye(3)[a] - mu[n]
            contrast = torch.cat([weight[b] * X[n] for b in (1, 2)]).double()
            assert float(error[n, a]) == pytest.approx(float((contrast @ refit.covariance @ contrast).sqrt()))
            whole = (weight.unsqueeze(1) * X[n]).unsqueeze(0)
            assert float(refit.error_of(whole)) == pytest.approx(float(error[n, a]))


def test_what_is_known_has_no_error():
    by_state = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    error = refitted(None).standard_error(X, by_state)
    assert error[0, 1] == error[1, 0] == 0 and (error[0, [0, 2]] > 0).all() and (error[1, 1:] > 0).all()
