"""The anchor's support against sums by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from irl.estimation.diagnostics import support


def panel(segments=("north", "south")):
    return SimpleNamespace(
        schema=SimpleNamespace(anchor=0, segments=segments),
        free=torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.bool),
        action=torch.tensor([0, 0, 1, 1, 1, 0]),
        segment=torch.tensor([0, 0, 0, 0, 1, 1]) * (len(segments) - 1),
    )


PI = torch.tensor([0.8, 0.2, 0.5, 0.005, 0.3, 0.1])


def test_figures_by_hand():
    found = support(panel(), torch.stack([PI, 1 - PI], 1).log())
    north = found["north"]
    assert north["decisions"] == 4 and north["anchor_share"] == 0.5
    assert north["effective_sample"] == pytest.approx((1.25 + 5) ** 2 / (1.25**2 + 5**2))
    assert north["smallest_probability"] == pytest.approx(0.005) and north["floored_share"] == 0.25
    assert north["overlap"] == pytest.approx((0.4 + 0.4 + 1.0 + 0.01) / 4)
    south = found["south"]
    assert south["decisions"] == 1 and south["anchor_share"] == 0 and south["effective_sample"] == 0
    assert found["all"]["decisions"] == 5


def test_one_segment_is_not_shown_twice():
    assert set(support(panel(("all",)), torch.stack([PI, 1 - PI], 1).log())) == {"all"}


def test_an_anchor_chosen_alike_everywhere_has_all_it_could():
    alike = torch.full((6, 2), 0.5).log()
    north = support(panel(), alike)["north"]
    assert north["effective_sample"] == pytest.approx(2) and north["overlap"] == pytest.approx(1)
