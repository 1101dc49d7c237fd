"""Hidden types against a small market of two types solved exactly: who is who, their rewards, shares, and answers."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config, InputError
from irl.counterfactual import ask
from irl.data.panel import panel_from_frame
from irl.estimation import types as types_module
from irl.estimation.mixture import Mixture
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.estimation.types import newton_step, started
from irl.fitted import load_model, new_networks
from irl.networks import TypeShares

LEVELS, GAMMA, MEMBERS, PERIODS = 4, 0.8, 700, 16
WORTH = torch.tensor([[-1.6, -1.1, -0.6, -0.1], [-0.6, 0.2, 0.9, 1.6]], dtype=torch.float64)
"""Reward of `member` by hidden type and level of use."""
TINY = {"hidden": [8], "max_epochs": 8, "batch_size": 1024, "weight_decay": 0.1}
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "state": {"use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"}},
    },
    "anchor": {"action": "none"},
    "reward": {"benefits": ["use"]},
    "discount": GAMMA,
    "types": 2,
    "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY},
}  # fmt: skip


def market() -> tuple[torch.Tensor, np.ndarray]:
    """The exact policy [type, level, action] and transition[level, action, level]: use rises with membership."""
    up, down = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
    up[-1, -1] = down[0, 0] = 1
    moves = np.stack([0.6 * np.eye(LEVELS) + 0.4 * down, 0.5 * np.eye(LEVELS) + 0.5 * up], axis=1)
    policies = []
    for worth in WORTH:
        reward = torch.stack([torch.zeros_like(worth), worth], 1)
        expectation = tabular.dense_expectation(torch.from_numpy(moves))
        mdp = tabular.FiniteMDP(reward, torch.ones(LEVELS, 2, dtype=torch.bool), expectation, GAMMA, 1.0)
        policies.append(tabular.solve(mdp).policy)
    return torch.stack(policies), moves


def panel(seed: int, burn_in: int = 12) -> tuple[pd.DataFrame, np.ndarray]:
    """A panel, and who is of the second type: a third, seen only after ``burn_in`` months, when use tells of it."""
    policy, moves = market()
    rng = np.random.default_rng(seed)
    kind, use, rows = (np.arange(MEMBERS) % 3 == 0).astype(int), np.zeros(MEMBERS, dtype=int), []
    for month in range(-burn_in, PERIODS):
        action = (rng.random(MEMBERS) < policy[kind, use, 1].numpy()).astype(int)
        if month >= 0:
            plan = np.array(["none", "member"])[action]
            rows.append(pd.DataFrame({"id": np.arange(MEMBERS), "month": month, "use": use, "plan": plan}))
        use = (rng.random(MEMBERS)[:, None] > moves[use, action].cumsum(1)).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows, ignore_index=True), kind


def fitted(frame, **options):
    config = Config.model_validate(STUDY | options)
    return estimate(config, panel_from_frame(frame, config), bench=Workbench(device=torch.device("cpu"), seed=0))


@pytest.fixture(scope="module")
def study():
    frame, kind = panel(seed=0)
    return frame, kind, *fitted(frame)


@pytest.fixture(scope="module")
def single(study):
    return fitted(study[0], types=1)


def test_a_newton_step_finds_log_odds_and_never_goes_down():
    x, target = torch.ones(4, 1).double(), torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]]).double()
    coef, none = torch.zeros(2, 1).double(), torch.zeros(4, 2).double()
    for _ in range(20):
        coef = newton_step(x, target, torch.ones(4).double(), none, coef, 0)
    assert coef[0, 0] == 0 and coef[1, 0] == pytest.approx(np.log(3), abs=2e-3)  # the ridge of intercepts: .001
    for far in (-6.0, 4.0, 30.0):  # where a full step would overshoot
        before = torch.tensor([[0.0], [far]]).double()
        after = newton_step(x, target, torch.ones(4).double(), none, before, 0)
        low, high = (float((target * (x @ at.T).log_softmax(1)).sum()) for at in (before, after))
        assert high > low


def test_the_two_types_are_told_apart(study):
    frame, kind, model, metrics = study
    probabilities = model.type_probabilities(frame)
    assert np.allclose(probabilities.sum(axis=1), 1)
    second = probabilities["2"].to_numpy()[:MEMBERS]  # month 0 comes first
    assert (second[kind == 1][:, None] > second[kind == 0]).mean() > 0.9
    assert metrics["types"]["share"]["2"] == pytest.approx(1 / 3, abs=0.08)


def test_rewards_of_the_types(study, single):
    frame, kind, model, _ = study
    use = pd.DataFrame({"use": range(LEVELS)})
    for k in (0, 1):
        visits = np.bincount(frame["use"][kind[frame["id"]] == k], minlength=LEVELS)
        error = model.reward(use.assign(type=k + 1))["member"].to_numpy() - WORTH[k].numpy()
        assert np.sqrt(np.average(error**2, weights=visits)) < 0.25  # the second type is hardly ever seen at low use
    truth = WORTH.numpy()[kind[frame["id"]], frame["use"]]
    one, two = (np.sqrt(((m.reward(frame)["member"] - truth) ** 2).mean()) for m in (single[0], model))
    assert two < 0.6 * one


def test_the_likelihood_climbs_and_beats_one_type(study, single):
    _, _, _, metrics = study
    report = metrics["refit"]
    assert report["monotone"] and len(report["climbs"]) >= 2 and metrics["types_start"]["monotone"]
    assert all(b >= a for climb in report["climbs"] for a, b in itertools.pairwise(climb))
    assert report["held_out_log_likelihood"] > single[1]["refit"]["held_out_log_likelihood"] + 0.01
    one, two, three = metrics["types_start"]["by_number"]
    assert two["bic"] < min(one["bic"], three["bic"])
    assert two["held_out_log_likelihood"] > one["held_out_log_likelihood"] + 0.01


def test_types_of_a_linear_reward_differ_by_a_constant():
    """Maximum likelihood of a reward with a trend in use, and an intercept by type."""
    frame, kind = panel(seed=5)
    frame = frame[frame["id"] < 300]
    model, metrics = fitted(frame, reward={"structure": "linear"})
    use = pd.DataFrame({"use": range(LEVELS)})
    one, two = (model.reward(use.assign(type=k))["member"].to_numpy() for k in (1, 2))
    assert np.ptp(two - one) < 1e-4 and 0.8 < (two - one)[0] < 2 and np.ptp(np.diff(one)) < 1e-4
    assert model.standard_error(use.assign(type=2))["member"].between(0.01, 0.5).all()
    second = model.type_probabilities(frame)["2"].to_numpy()[:300]
    assert (second[kind[:300] == 1][:, None] > second[kind[:300] == 0]).mean() > 0.85
    assert metrics["refit"]["monotone"]


def test_shares_depend_on_the_first_state(study):
    _, _, model, _ = study
    share = model.type_probabilities(pd.DataFrame({"use": [0, LEVELS - 1]}))["2"]
    assert share[0] < 0.25 and share[1] > 0.5


def test_without_a_type_answers_are_means_over_types(study):
    frame, _, model, _ = study
    some = frame[frame["id"] < 5]
    weight = model.type_probabilities(some)
    for name in ("reward", "policy"):
        parts = [getattr(model, name)(some.assign(type=k)).mul(weight[str(k)], axis=0) for k in (1, 2)]
        pd.testing.assert_frame_equal(getattr(model, name)(some), parts[0] + parts[1])
    values = [model.value(some.assign(type=k)) * weight[str(k)] for k in (1, 2)]
    assert model.value(some).name == "value"
    pd.testing.assert_series_equal(model.value(some), values[0] + values[1], check_names=False)
    shuffled = some.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(model.policy(shuffled), model.policy(some).loc[shuffled.index])


def test_types_are_drawn_by_the_posterior(study):
    frame, _, model, _ = study
    drawn = model.with_types(frame, seed=0)
    assert drawn.groupby("id")["type"].nunique().max() == 1
    assert model.with_types(drawn, seed=1) is drawn
    by_member = drawn.drop_duplicates("id")["type"].to_numpy() == 2
    second = model.type_probabilities(frame)["2"].to_numpy()[:MEMBERS]
    assert by_member.mean() == pytest.approx(second.mean(), abs=0.03)
    assert by_member[second > 0.99].mean() > 0.95


def test_saved_and_loaded(study, tmp_path):
    frame, _, model, _ = study
    model.save(tmp_path / "model")
    again, some = load_model(tmp_path / "model"), frame[frame["id"] < 20]
    pd.testing.assert_frame_equal(again.type_probabilities(some), model.type_probabilities(some))
    pd.testing.assert_frame_equal(again.reward(some), model.reward(some))


def test_a_scenario_is_answered_and_may_ask_for_a_type(study):
    frame, _, model, _ = study
    changes = [{"reward": {"action": "member", "add": -0.5, "where": {"type": 2}}}]
    scenario = {"name": "dearer", "periods": 6, "members": "all", "changes": changes}
    found = ask(model, scenario, frame).answer().outcomes
    rows = found[(found["outcome"] == "membership") & (found["segment"] == "all")]
    observed = (frame["plan"] == "member").groupby(frame["month"]).mean()
    assert np.abs(rows["baseline"].to_numpy() - observed[:6].to_numpy()).max() < 0.05
    assert (rows["change"] < -0.02).all()


def test_dynamics_differ_by_type_only_where_declared():
    frame, _ = panel(seed=1)
    config = Config.model_validate(STUDY)
    states = {"use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "learned"}}
    config = config.model_copy(update={"data": config.data.model_copy(update={"state": Config.model_validate(
        STUDY | {"data": STUDY["data"] | {"state": states}}).data.state})})  # fmt: skip
    plain = panel_from_frame(frame, config)
    for differ in (False, True):
        schema = plain.schema.with_types(2, dynamics=differ)
        dynamics = new_networks(config, schema).dynamics
        torch.nn.init.normal_(dynamics.heads.weight, generator=torch.Generator().manual_seed(0))
        one, two = (torch.cat([plain.state[:50], torch.full((50, 1), k)], 1) for k in (0.0, 1.0))
        following = torch.cat([plain.state[1:51], torch.zeros(50, 1)], 1)
        same = torch.equal(
            dynamics.log_prob(one, plain.action[:50], following), dynamics.log_prob(two, plain.action[:50], following)
        )
        assert same != differ


def test_the_expanded_panel_has_everybody_once_per_type():
    frame, _ = panel(seed=1)
    config = Config.model_validate(STUDY)
    plain = panel_from_frame(frame, config)
    model = new_networks(config, plain.schema.with_types(2, dynamics=False))
    posterior = torch.rand(MEMBERS, 1).double()
    posterior = torch.cat([posterior, 1 - posterior], 1)
    mixture = Mixture(plain, model.shares, posterior, torch.zeros_like(posterior))
    double = mixture.expanded(model)  # a panel checks itself
    assert double.n_members == 2 * MEMBERS and double.n_transitions == 2 * plain.n_transitions
    weight = double.weight.view(2, -1)
    torch.testing.assert_close(weight.sum(0), plain.weight)
    torch.testing.assert_close(weight[1], posterior[plain.member, 1].float())
    assert torch.equal(double.state[:, -1], torch.arange(2.0).repeat_interleave(plain.n_rows))


def test_one_type_is_enough_where_there_is_one():
    frame, kind = panel(seed=2)
    frame = frame[frame["id"].isin(np.flatnonzero(kind == 0))]
    config = Config.model_validate(STUDY)
    plain = panel_from_frame(frame, config)
    policy, _ = market()
    log_pi = policy[0, plain.state[:, 0].long()].float().log()
    out = plain.member % 5 == 0
    shares = TypeShares(plain.schema.with_types(2, dynamics=False))
    _, report = started(plain, log_pi, out, 2, shares=shares, seed=0)
    one, two, _ = report.by_number
    assert one["bic"] < two["bic"] and two["held_out_log_likelihood"] < one["held_out_log_likelihood"] + 0.003


@pytest.mark.slow
def test_where_nobody_differs_types_change_nothing():
    """The evidence shrinks away what would tell them apart, and nobody is anything for sure."""
    frame, kind = panel(seed=11)
    frame = frame[frame["id"].isin(np.flatnonzero(kind == 0))]
    (one, _), (two, metrics) = fitted(frame, types=1), fitted(frame)
    use = pd.DataFrame({"use": range(LEVELS)})
    for answer in ("reward", "standard_error"):
        alone = getattr(one, answer)(use)["member"]
        for k in (1, 2):
            assert np.allclose(getattr(two, answer)(use.assign(type=k))["member"], alone, atol=5e-3)
    assert metrics["types"]["certainty"] < 0.75


def test_starting_points_may_be_tried_on_some_members(monkeypatch):
    """The types are found all the same, for everybody."""
    monkeypatch.setattr(types_module, "MEMBERS", 250)
    frame, kind = panel(seed=3)
    plain = panel_from_frame(frame, Config.model_validate(STUDY))
    log_pi = market()[0].mean(0)[plain.state[:, 0].long()].float().log()
    shares = TypeShares(plain.schema.with_types(2, dynamics=False))
    posterior, report = started(plain, log_pi, plain.member % 5 == 0, 2, shares=shares, seed=0)
    second = posterior[:, 1].numpy()
    assert len(second) == MEMBERS and (second[kind == 1][:, None] > second[kind == 0]).mean() > 0.9
    assert report.monotone and report.by_number[1]["bic"] < report.by_number[0]["bic"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"estimation": {"refit": {"rounds": 0}}}, "rounds` must be at least 1"),
        ({"data": STUDY["data"] | {"duration": "months"}}, "data.duration"),
        ({"data": STUDY["data"] | {"state": {"type": {"kind": "category", "dynamics": "static"}}}}, "rename it"),
    ],
)
def test_what_cannot_have_types(change, said):
    with pytest.raises(ValueError, match=said):
        Config.model_validate(STUDY | {"reward": {}} | change)
    Config.model_validate(STUDY | {"reward": {}} | change | {"types": 1})


def test_what_does_not_know_types_is_refused(study):
    frame, _, model, _ = study
    with pytest.raises(InputError, match=r"hidden types.*types: 1"):
        panel_from_frame(frame, model.config, schema=model.schema)
    with pytest.raises(InputError, match="'type'"):
        model.standard_error(frame)
    assert (model.standard_error(frame.assign(type=1))["member"] > 0).all()
    column = {"g": {"kind": "numeric", "dynamics": "static"}}
    data = STUDY["data"] | {"state": STUDY["data"]["state"]}
    config = Config.model_validate(STUDY | {"data": data, "anchor": {"action": "none", "reward": next(iter(column))}})
    with pytest.raises(InputError, match="types: hidden types need the refit"):
        estimate(
            config,
            panel_from_frame(frame.assign(g=0.0), config),
            bench=Workbench(device=torch.device("cpu"), seed=0),
        )
