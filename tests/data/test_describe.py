"""Counts of a panel and the estimate of memory."""

from __future__ import annotations

import pytest

from irl.config import Estimation, Refit
from irl.data import panel_from_frame, summary
from irl.data.panel import tensors_of


def test_counts_by_hand(study, frame):
    facts = summary(panel_from_frame(frame, study()), estimation=Estimation())
    assert (facts.rows, facts.members, facts.transitions, facts.gaps) == (8, 2, 5, 1)
    assert (facts.free, facts.forced, facts.terminal) == (5, 2, 1)
    assert facts.periods == (3, 5)
    assert facts.anchor_share == {"east": (3, pytest.approx(2 / 3)), "north": (1, 0.0), "south": (1, 1.0)}
    text = str(facts)
    for part in ("members 2", "forced rows 2", "periods per member 3 to 5", "east 66.7% of 3 rows"):
        assert part in " ".join(text.split()), text


def test_memory_by_hand(study, frame):
    panel = panel_from_frame(frame, study())
    step = {"hidden": [4], "batch_size": 2}
    estimation = Estimation.model_validate(dict.fromkeys(("policy", "anchor_q", "reward", "dynamics"), step))
    tensors = sum(v.numel() * v.element_size() for v in tensors_of(panel).values())
    width = 5 + 4 + 1 + 1  # 4 statuses and 3 levels, each with the reserved code; two numbers
    without = tensors + 2 * 8 * width * 4 + 3 * 4 * 2 * (width + 4)
    # actions × (9 inputs, the static one times the 8 others, and hidden + intercept of three networks)
    basis = 3 * (9 + 8 + 3 * 5)
    expected = without + 8 * (4 * basis**2 + 2 * 8 * basis)
    assert summary(panel, estimation=estimation).memory_mb == pytest.approx(expected / 1e6)
    plain = estimation.model_copy(update={"refit": Refit(rounds=0)})
    expected = without + 8 * (22**2 + 2 * 8 * 22)  # the Q step's alone: the same, and one network's
    assert summary(panel, estimation=plain).memory_mb == pytest.approx(expected / 1e6)


def test_a_segment_without_a_choice_is_said_to_have_none(study, frame):
    panel = panel_from_frame(frame.assign(region=[*"aaaabccc"]), study())  # b: the terminal row only
    facts = summary(panel, estimation=Estimation())
    assert facts.anchor_share["b"][0] == 0 and "no choice" in str(facts)
