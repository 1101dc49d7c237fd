"""Lifetime contributions and removal effects of benefits against the world's exact values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import tabular, transitions
from irl.config import InputError
from irl.counterfactual import attribution
from irl.counterfactual.attribution import Without, additive, attribute
from irl.counterfactual.solve import solve
from irl.crossings import Crossings
from irl.declared import Reward
from irl.networks import LinearTerms
from irl.refitted import Refitted

BENEFITS = ("place", "tier")


@pytest.fixture
def exactly(world, monkeypatch):
    """What follows is the world's own transitions, with their exact weights."""
    monkeypatch.setattr(attribution, "drawn", lambda *_, **__: world.transitions())
    monkeypatch.setattr(transitions, "RIDGE_ROWS", 1e-6)
    real = attribution.solve
    monkeypatch.setattr(attribution, "solve", lambda *args: real(*args, ridge_rows=1e-6))


def fitted(world, terms, benefits=BENEFITS, *, seed=0):
    """The world with a random reward, linear in ``terms``, the policy that is optimal for it, and a covariance."""
    config = world.model.config.model_copy(update={"reward": Reward(benefits=benefits)})
    model = replace(world.model, config=config, terms=terms, crossings=Crossings(world.schema))
    generator = torch.Generator().manual_seed(seed)
    refit = Refitted(0, 3, terms.width, model.basis(world.states()).shape[1])
    refit.theta.copy_(torch.randn(refit.theta.shape, generator=generator, dtype=torch.float64))
    refit.theta[0] = 0
    root = torch.randn(refit.covariance.shape, generator=generator, dtype=torch.float64)
    refit.covariance.copy_(root @ root.T / len(root))
    return optimal(world, replace(model, refit=refit))


def optimal(world, model):
    policy = solve(model, world.intervention(), world.transitions().of_segment, ridge_rows=1e-6, tolerance=1e-9)
    model.refit.weights.copy_(policy.weights[0])
    return model


def moved(world, model, step):
    """The optimal model at theta + step[A, Dx]."""
    refit = Refitted(0, 3, model.terms.width, model.refit.weights.shape[1])
    refit.load_state_dict(model.refit.state_dict())
    refit.theta += step
    return optimal(world, replace(model, refit=refit))


def reward(world, model):
    """r [5, 2, 3], nothing where there is no choice."""
    values = model.reward_of(world.states())
    values[6:] = 0
    return values.view(5, 2, 3)


def collected(world, model, r):
    """E sum gamma^t r by state [10], under the model's own policy."""
    menu = world.menu()
    pi = model.log_policy_of(world.states(), menu).exp()
    pi[6:] = menu[6:].double()  # no choice, and nothing learned
    return tabular.evaluate(world.mdp(reward=r), pi, entropy=False).value


def without(world, model, name):
    held = {f: getattr(model, f) for f in model.__dataclass_fields__}
    return reward(world, Without(**held, benefit=world.schema.index(name)))


def by_start(values, panel):
    """Mean of values[10] over members at their first choice, by segment."""
    free = panel.free.nonzero().squeeze(1)
    first = free[torch.cat([torch.ones(1, dtype=torch.bool), panel.member[free].diff() != 0])]
    own = values[(panel.state[first] @ torch.tensor([2.0, 1.0])).long()]
    found = {name: float(own[panel.segment[first] == s].mean()) for s, name in enumerate(panel.schema.segments)}
    return found | {"all": float(own.mean())}


def linear(world):
    return LinearTerms(world.schema, ())


def test_contributions_are_the_exact_values_and_add_up(world, panel_and_frame, exactly):
    panel, _ = panel_and_frame
    model = fitted(world, linear(world))
    found = attribute(model, panel)
    assert found["kind"] == "contribution" and found["kernel"]["converged"]
    whole = reward(world, model)
    for name in BENEFITS:
        expected = by_start(collected(world, model, whole - without(world, model, name)), panel)
        mine = {segment: cell["benefits"][name]["mean"] for segment, cell in found["start"].items()}
        assert mine == pytest.approx(expected, abs=1e-4) and abs(expected["all"]) > 0.1
    total = {segment: cell["total"]["mean"] for segment, cell in found["start"].items()}
    assert total == pytest.approx(by_start(collected(world, model, whole), panel), abs=1e-4)
    for cell in (*found["start"].values(), *found["visited"].values()):
        parts = sum(own["mean"] for own in cell["benefits"].values())
        assert parts + cell["rest"]["mean"] == pytest.approx(cell["total"]["mean"])
        assert all(own["low"] < own["mean"] < own["high"] for own in cell["benefits"].values())
        assert sum(own["of_benefits"] or 0 for own in cell["benefits"].values()) in (0, pytest.approx(1))
    assert found["visited"]["all"]["choices"] == int(panel.free.sum())


def test_standard_errors_hold_the_policy_s_own_dependence(world, panel_and_frame, exactly):
    """Derivatives along one direction of theta, the policy optimal at every point."""
    panel, _ = panel_and_frame
    model = fitted(world, linear(world))
    step = 1e-3 * torch.randn(model.refit.theta.shape, generator=torch.Generator().manual_seed(1)).double()
    step[0] = 0
    flat = step[1:].flatten()
    model.refit.covariance.copy_(torch.outer(flat, flat))
    found = attribute(model, panel)["start"]
    ends = []
    for sign in (1, -1):
        at = moved(world, model, sign * step)
        parts = [collected(world, at, reward(world, at) - without(world, at, name)) for name in BENEFITS]
        ends.append([by_start(part, panel) for part in (*parts, parts[0] - parts[1])])
    for segment, cell in found.items():
        expected = [abs(up[segment] - down[segment]) / 2 for up, down in zip(*ends, strict=True)]
        mine = [cell["benefits"][name]["se"] for name in BENEFITS] + [cell["gaps"][0]["se"]]
        assert mine == pytest.approx(expected, rel=0.02)


def test_with_interactions_a_benefit_is_removed_and_all_choose_anew(world, panel_and_frame, exactly):
    panel, _ = panel_and_frame
    model = fitted(world, Crossings(world.schema))
    assert not additive(model) and additive(fitted(world, linear(world)))
    step = 1e-3 * torch.randn(model.refit.theta.shape, generator=torch.Generator().manual_seed(1)).double()
    step[0] = 0
    model.refit.covariance.copy_(torch.outer(step[1:].flatten(), step[1:].flatten()))
    found = attribute(model, panel)
    assert found["kind"] == "removal" and found["kernel"]["converged"]

    def effects(at):
        whole = tabular.solve(world.mdp(reward=reward(world, at))).value
        parts = [whole - tabular.solve(world.mdp(reward=without(world, at, name))).value for name in BENEFITS]
        return [by_start(part, panel) for part in parts]

    exact, up, down = (effects(moved(world, model, sign * step)) for sign in (0, 1, -1))
    for segment, cell in found["start"].items():
        for i, name in enumerate(BENEFITS):
            assert cell["benefits"][name]["mean"] == pytest.approx(exact[i][segment], abs=1e-3)
            slope = abs(up[i][segment] - down[i][segment]) / 2
            assert cell["benefits"][name]["se"] == pytest.approx(slope, rel=0.02)
        assert "total" not in cell


def test_on_drawn_transitions_it_is_near(world, panel_and_frame):
    panel, _ = panel_and_frame
    model = fitted(world, linear(world))
    mine = attribute(model, panel)["start"]["all"]["total"]["mean"]
    assert mine == pytest.approx(by_start(collected(world, model, reward(world, model)), panel)["all"], rel=0.1)


def test_what_cannot_be_attributed_is_said(world, panel_and_frame):
    panel, _ = panel_and_frame
    model = fitted(world, linear(world))
    with pytest.raises(InputError, match="no benefits are declared"):
        attribute(replace(model, config=world.model.config), panel)
    with pytest.raises(InputError, match="no refit"):
        attribute(replace(model, refit=None), panel)
    model.refit.covariance.zero_()
    assert attribute(model, panel)["start"]["all"]["benefits"]["tier"]["low"] is None
