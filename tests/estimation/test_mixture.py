"""The mixture's choices, each distinct pair once, against all rows; and the steps that climb."""

from __future__ import annotations

import pytest
import torch

from irl.estimation.logit import Choices, Logit
from irl.estimation.mixture import Mixture, quasi_newton_step, spread_of_types

MEMBERS, TYPES = 50, 3


@pytest.fixture(scope="module")
def parts(three_types):
    plain, model = three_types(MEMBERS)
    posterior = torch.rand(MEMBERS, TYPES).double().softmax(1)
    mixture = Mixture(plain, model.shares, posterior, torch.zeros_like(posterior))
    width = model.basis(torch.zeros(1, 2)).shape[1]
    logit = Logit(torch.randn(2, width, 5).double(), torch.zeros(2, width).double(), 0, 1.0)
    return model, mixture, logit, torch.randn(5).double()


def test_distinct_pairs_stand_for_all_rows(parts):
    model, mixture, logit, theta = parts
    every, few = mixture.expanded(model), mixture.choices(model, mixture.panel.free)
    rows = Choices(model, every, every.free.nonzero().squeeze(1), {})
    assert len(few.rows) == TYPES * 3 * 2 < len(rows.rows)
    assert few.mass == pytest.approx(rows.mass, rel=1e-6)
    assert logit.log_likelihood(theta, few) == pytest.approx(logit.log_likelihood(theta, rows), rel=1e-5)
    torch.testing.assert_close(logit.gradient(theta, few), logit.gradient(theta, rows), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(logit.information(theta, few), logit.information(theta, rows), rtol=1e-4, atol=1e-3)
    of_member = torch.zeros(TYPES * MEMBERS).double()
    log_pi = logit.log_likelihoods(theta, rows) / every.weight[rows.rows].double()
    of_member.index_add_(0, every.member[rows.rows], log_pi)
    after, before = mixture.joint(logit, theta, few)
    torch.testing.assert_close(after - before, of_member.view(TYPES, MEMBERS).T, rtol=1e-4, atol=1e-4)


def test_some_of_the_pairs_are_drawn_by_weight(parts):
    model, mixture, logit, theta = parts
    few = mixture.choices(model, mixture.panel.free)
    found = few.some(10, seed=0)
    assert found.mass == 10 and found.rows.unique().equal(found.rows)
    many = [few.some(10, seed=s) for s in range(400)]
    mean = sum(logit.gradient(theta, some) for some in many) / 4000 * few.mass
    exact = logit.gradient(theta, few)
    assert (mean - exact).abs().max() < 0.1 * exact.abs().max()


def test_quasi_newton_steps_learn_the_curvature():
    torch.manual_seed(1)
    root, top = torch.randn(6, 6).double(), torch.randn(6).double()
    curvature = root @ root.T + torch.eye(6)
    metric = torch.linalg.lu_factor(curvature + 4 * torch.eye(6))
    point, moves = torch.zeros(6).double(), []
    torch.testing.assert_close(
        quasi_newton_step(curvature @ top, [], metric),
        torch.linalg.solve(curvature + 4 * torch.eye(6).double(), curvature @ top),
    )
    for _ in range(12):
        slope = curvature @ (top - point)
        moved = point + quasi_newton_step(slope, moves, metric)
        moves.append((moved - point, slope - curvature @ (top - moved)))
        point = moved
    assert (point - top).abs().max() < 1e-3
    plain = torch.zeros(6).double()
    for _ in range(12):
        plain = plain + quasi_newton_step(curvature @ (top - plain), [], metric)
    assert (plain - top).abs().max() > 10 * (point - top).abs().max()


def test_spread_of_types_by_hand():
    p, x = torch.tensor([[0.2, 0.3, 0.5]]).double(), torch.tensor([[1.0, 2.0]]).double()
    found = spread_of_types(p, x, torch.tensor([4.0]).double())
    variance = torch.tensor([[0.21, -0.15], [-0.15, 0.25]]).double()
    torch.testing.assert_close(found, 4 * torch.kron(variance, x.T @ x))
