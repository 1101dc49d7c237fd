"""The band under errors of the anchor's reward, against the world solved exactly at the shaped rewards."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from irl import tabular
from irl.counterfactual.anchor_errors import ANCHOR_ERROR, _by_error, anchor_errors, dependence, equivalents
from irl.counterfactual.rollout import Starts
from irl.counterfactual.solve import solve
from irl.scenario import Timing

RIDGE = 1e-6
FREE = slice(0, 6)  # out, in, deep at both tiers
LUMP = {"reward": {"action": "annual", "add": 0.5, "where": {"place": "out"}}}
REMOVED = {"remove": {"action": "annual"}}
TIER = {"feature": {"name": "tier", "set": 1}}
SCALED = {"reward": {"action": "annual", "scale": 1.5}}
PERIODS = 3


def rows(world):
    return world.transitions().of_segment


def solved(world, *changes, model=None):
    return solve(model or world.model, world.intervention(*changes), rows(world), ridge_rows=RIDGE)


def errors(world):
    return anchor_errors(world.model, world.transitions().state, seed=0)


def others(world):
    return equivalents(world.model, world.transitions(), errors(world), ridge_rows=RIDGE)


def starts(world, times=200):
    state = world.states()[FREE].repeat(times, 1)
    return Starts(state, torch.arange(len(state)) // 6 % 2)


def exact_level(world, error):
    """c[10] of error[6], of the anchor's reward where there is a choice: the locked wait, the gone have none."""
    policy = torch.zeros(10, 3, dtype=torch.float64)
    policy[FREE, 0], policy[6:8, 1] = 1, 1
    full = world.transition.reshape(10, 3, 5)
    step = torch.einsum("sa,saq->sq", policy, full)
    step = torch.einsum("sq,st->sqt", step, torch.eye(2, dtype=torch.float64).repeat(5, 1)).reshape(10, 10)
    delta = torch.cat([error.double(), torch.zeros(4, dtype=torch.float64)])
    return torch.linalg.solve(torch.eye(10, dtype=torch.float64) - world.model.config.discount * step, delta)


def error_by_state(world):
    """errors[K, 6] at the free states, in their order."""
    state, found = world.transitions().state, errors(world)
    return torch.stack([found[:, (state == free).all(1)][:, 0] for free in world.states()[FREE]], 1)


def test_errors_are_of_the_stated_size(world):
    found = errors(world)
    assert found.abs().amax(1).tolist() == pytest.approx([ANCHOR_ERROR * 0.8] * len(found))
    assert found[0].tolist() == [-ANCHOR_ERROR * 0.8] * found.shape[1] == (-found[1]).tolist()
    assert all(row.std() > 0.05 for row in found[2:])


def test_the_level_and_the_anchor_s_reward_are_as_they_should(world):
    for other, error in zip(others(world), error_by_state(world), strict=True):
        phi = world.model.basis(world.states()[FREE]).double()
        assert torch.allclose(phi @ other.level, exact_level(world, error)[FREE], atol=1e-4)
        moved = other.reward_of(world.states()[FREE]) - world.model.reward_of(world.states()[FREE])
        assert torch.allclose(moved[:, 0], error.double(), atol=1e-4)
        assert (moved[:, 1] - error).abs().max() > 0.01  # the other rewards move by another amount


@pytest.mark.parametrize("changes", [(), (LUMP,), (REMOVED,), (LUMP, REMOVED), (TIER,)])
def test_what_is_identified_does_not_move(world, changes):
    own, segment = solved(world, *changes), torch.zeros(6, dtype=torch.long)
    faced = own.intervention.state(world.states()[FREE], segment)
    menu = own.menu(faced, segment)
    expected = own.log_policy(faced, menu, segment).exp()
    for other in others(world):
        found = solved(world, *changes, model=other).log_policy(faced, menu, segment).exp()
        assert (found - expected).abs().max() < 2e-5  # the iteration stops at 1e-5


def test_scaled_rewards_move_as_the_exact_solution_does(world):
    own, segment = solved(world, SCALED), torch.zeros(6, dtype=torch.long)
    menu, mdp, spread = own.menu(world.states()[FREE], segment), world.mdp(), []
    for other, error in zip(others(world), error_by_state(world), strict=True):
        c = exact_level(world, error)
        c[8:] = 0
        reward = mdp.reward + c.unsqueeze(1) - mdp.discount * mdp.expectation(c)
        reward[:, 2] *= 1.5
        exact = tabular.solve(tabular.FiniteMDP(reward, mdp.available, mdp.expectation, mdp.discount, mdp.temperature))
        found = solved(world, SCALED, model=other).log_policy(world.states()[FREE], menu, segment).exp()
        assert torch.allclose(found, exact.policy[FREE], atol=1e-4)
        spread.append(found)
    assert (torch.stack(spread).amax(0) - torch.stack(spread).amin(0)).max() > 0.05


def rests(world, *changes, members=None):
    own, members = solved(world, *changes), members or starts(world)
    about = {"periods": PERIODS, "seed": 0}
    return dependence(solved(world), own, Timing(), rows(world), again(world, *changes), members, **about)


def again(world, *changes):
    return lambda baseline: solved(world, *changes, model=baseline.model)


def band(world, *changes):
    return rests(world, *changes).band


def test_the_band_of_a_scaled_reward(world):
    found = band(world, SCALED)
    assert found.error == pytest.approx(0.4)
    assert set(found.outcomes) == {"share_none", "share_monthly", "share_annual", "surplus"}
    for name, by in found.outcomes.items():
        assert set(by) == {"north", "south"} | ({"all"} if name != "surplus" else set())
        assert all(low <= change <= high for change, low, high in by.values())
    _, low, high = found.outcomes["share_annual"]["all"]
    assert high - low > 0.01


def test_only_the_surplus_has_a_band_where_choices_are_identified(world):
    found = band(world, TIER)
    assert set(found.outcomes) == {"surplus"}
    _, low, high = found.outcomes["surplus"]["north"]
    lowest, highest = (f(by[k] for by in found.outcomes["surplus"].values()) for f, k in ((min, 1), (max, 2)))
    shown = f"surplus {lowest:+.3f} to {highest:+.3f} reward units per period".replace("-", "−")
    assert found.sentence().endswith(shown)
    assert high - low > 0.01


def test_what_does_not_depend_has_no_band(world):
    found = rests(world, LUMP, REMOVED)
    assert found.plain()["identification"]["welfare"] and found.plain()["anchor_band"] is None
    assert found.warnings("x") == []


def test_what_depends_is_never_said_without_its_band(world):
    (text,) = rests(world, SCALED).warnings("dearer")
    assert text.startswith("dearer: choices and surplus depend on the anchor's reward: the rewards of some actions")
    assert "off by up to 0.4 reward units, the change is: none " in text and "surplus " in text


@pytest.mark.parametrize("change", [SCALED, TIER])
def test_a_segment_of_which_nobody_starts_has_no_band(world, change):
    everybody = starts(world)
    south = Starts(everybody.state[everybody.segment == 1], everybody.segment[everybody.segment == 1])
    found = rests(world, change, members=south)
    assert {name: list(by) for name, by in found.band.outcomes.items()} == {
        name: ["south", "all"] if name != "surplus" else ["south"] for name in band(world, change).outcomes
    }
    json.dumps(found.plain(), allow_nan=False)
    assert "nan" not in found.warnings("x")[0]


def test_where_nobody_has_a_choice_at_the_start_there_is_no_band(world):
    locked = Starts(world.states()[6:8].repeat(5, 1), torch.arange(10) % 2)
    found = rests(world, TIER, members=locked)
    assert found.plain()["anchor_band"] is None and found.warnings("x") == []


def test_without_solving_again_the_surplus_is_the_same(world):
    """What the short way finds for a static feature, and for identified changes the long way finds no band."""
    own, baseline = solved(world, TIER), solved(world)
    long = _by_error(own, baseline, others(world), again(world, TIER), starts(world), periods=2, seed=0)
    short = band(world, TIER).outcomes["surplus"]
    surplus = long["surplus"]
    for s, name in enumerate(("north", "south")):
        assert np.allclose(short[name], [surplus[0, s], surplus[:, s].min(), surplus[:, s].max()], atol=2e-3)
    lump = _by_error(solved(world, LUMP), baseline, others(world), again(world, LUMP), starts(world), periods=2, seed=0)
    for outcome, moved in lump.items():
        assert (moved - moved[0]).abs().max() < 2e-3, outcome
        assert moved[0].abs().max() > 0.005
