"""The information of a mixture against second derivatives of its likelihood, taken numerically."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl.estimation.inference import _no_less_than_nothing
from irl.estimation.logit import Logit
from irl.estimation.missing_information import missing
from irl.estimation.mixture import Mixture
from irl.estimation.types import INTERCEPT, RIDGE

TYPES, PARAMETERS, STEP, MEMBERS = 3, 4, 1e-3, 40


@pytest.fixture(scope="module")
def mixture(three_types):
    """A mixture of three types, and a likelihood that is somewhere, not at its maximum."""
    plain, model = three_types(MEMBERS)
    plain = replace(plain, weight=plain.weight * (1 + plain.member % 3))
    model.shares.standardise(plain.state)
    model.shares.weight[1:] = 0.5 * torch.randn(TYPES - 1, model.shares.weight.shape[1])
    moves = 0.3 * torch.randn(plain.n_members, TYPES).double()
    found = Mixture(plain, model.shares, torch.full((plain.n_members, TYPES), 1 / TYPES).double(), moves)
    choices = found.choices(model, plain.free)
    choices.cache[0] = model.basis(choices.panel.state).double()  # exact enough for numerical derivatives
    phi = choices.cache[0]
    logit = Logit(
        0.3 * torch.randn(2, phi.shape[1], PARAMETERS).double(), torch.zeros(2, phi.shape[1]).double(), 0, 0.8
    )
    return found, logit, 0.5 * torch.randn(PARAMETERS).double(), choices


def log_likelihood(mixture, logit, choices, at):
    """Of (theta, beta) in one vector."""
    shares, before = mixture.shares, mixture.shares.weight.clone()
    shares.weight[1:] = at[PARAMETERS:].view(TYPES - 1, -1)
    value = mixture.weight @ mixture.joint(logit, at[:PARAMETERS], choices)[0].logsumexp(1)
    shares.weight.copy_(before)
    return float(value)


def test_information_is_minus_the_second_derivative_of_the_mixture(mixture):
    found, logit, theta, choices = mixture
    point = torch.cat([theta, found.shares.weight[1:].flatten()])
    steps = STEP * torch.eye(len(point)).double()
    numerical = torch.zeros(len(point), len(point)).double()
    for i, one in enumerate(steps):
        for j, two in enumerate(steps[: i + 1]):
            corners = [
                log_likelihood(found, logit, choices, point + s * one + t * two) for s in (1, -1) for t in (1, -1)
            ]
            numerical[i, j] = numerical[j, i] = -(corners[0] - corners[1] - corners[2] + corners[3]) / (4 * STEP**2)
    posterior = found.joint(logit, theta, choices)[0].softmax(1)
    weighted = choices.weighted(posterior)
    lacking, flat = missing(found, logit, theta, weighted), logit.map.flatten(0, 1)
    own = flat.T @ (logit.curvature(theta, weighted) - lacking.lost) @ flat
    across = flat.T @ lacking.crossed
    whole = torch.cat([torch.cat([own, across], 1), torch.cat([across.T, lacking.information], 1)])
    torch.testing.assert_close(whole, numerical, rtol=2e-3, atol=2e-3 * float(numerical.abs().max()))
    assert float(lacking.lost.abs().max()) > 0.05 * float(logit.curvature(theta, weighted).abs().max())


def test_scores_of_the_shares_add_up_to_the_slope(mixture):
    found, logit, theta, choices = mixture
    lacking = missing(found, logit, theta, choices)
    point = torch.cat([theta, found.shares.weight[1:].flatten()])
    for b in range(len(point) - PARAMETERS):
        step = torch.zeros_like(point)
        step[PARAMETERS + b] = STEP
        up, down = (log_likelihood(found, logit, choices, point + s * step) for s in (1, -1))
        assert float(lacking.scores[:, b].sum()) == pytest.approx((up - down) / (2 * STEP), rel=1e-3, abs=1e-4)
    assert lacking.penalty.view(TYPES - 1, -1)[:, 0].tolist() == [INTERCEPT] * (TYPES - 1)
    assert set(lacking.penalty.view(TYPES - 1, -1)[:, 1:].flatten().tolist()) == {RIDGE}


def test_negative_information_counts_as_none():
    penalty = torch.tensor([4.0, 0.25]).double()
    turned = torch.tensor([[3.0, 1.0], [1.0, 2.0]]).double()
    torch.testing.assert_close(_no_less_than_nothing(turned, penalty), turned)
    one = _no_less_than_nothing(torch.diag(torch.tensor([5.0, -1.0]).double()), penalty)
    torch.testing.assert_close(one, torch.diag(torch.tensor([5.0, 0.0]).double()))
