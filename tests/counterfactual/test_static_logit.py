"""The static logit against frequencies and a known truth."""

from __future__ import annotations

import pytest
import torch

from irl.counterfactual.static_logit import fit_static_logit


def test_a_constant_alone_gives_the_shares_of_every_segment():
    action = torch.tensor([0] * 500 + [1] * 300 + [2] * 200 + [1] * 900 + [2] * 100)
    segment = torch.tensor([0] * 1000 + [1] * 1000)
    x, menu = torch.ones(2000, 1), torch.ones(2000, 3, dtype=torch.bool)
    logit = fit_static_logit(x, action, menu, segment, torch.ones(2000), segments=3)
    pi = logit.log_policy(torch.ones(3, 1), menu[:3], torch.arange(3)).exp()
    assert pi[0].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.002)
    assert pi[1].tolist() == pytest.approx([0.0, 0.9, 0.1], abs=0.01)
    assert pi[2].tolist() == pytest.approx([1 / 3] * 3)  # nobody to learn from


def test_slopes_and_menus_are_recovered():
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(20_000, 1), torch.randn(20_000, 2, generator=generator)], 1)
    truth = torch.tensor([[0.0, 0, 0], [0.5, -1, 0.3], [-0.5, 0.7, 0]], dtype=torch.float64)
    menu = torch.ones(20_000, 3, dtype=torch.bool)
    menu[::3, 2] = False
    logits = (x.double() @ truth.T).masked_fill(~menu, -torch.inf)
    action = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    weight, segment = torch.ones(20_000), torch.zeros(20_000, dtype=torch.long)
    weight[1::2], twice = 2.0, action.clone()
    found = fit_static_logit(x, twice, menu, segment, weight, segments=1)
    assert torch.allclose(found.theta[0], truth, atol=0.1)
    pi = found.log_policy(x[:1], menu[:1], segment[:1]).exp()
    assert float(pi[0, 2]) == 0  # not on the menu
