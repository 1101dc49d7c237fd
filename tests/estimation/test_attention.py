"""Inattention against a small market solved exactly: lambda, rewards, what follows, answers, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import bellman, tabular
from irl.config import Config, InputError
from irl.counterfactual import ask
from irl.counterfactual.attribution import attribute
from irl.data.panel import panel_from_frame
from irl.estimation.attention import Inattentive, slope
from irl.estimation.falsification import battery
from irl.estimation.logit import Choices
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.fitted import load_model

LEVELS, GAMMA, MEMBERS, PERIODS, TOLD, JOINING = 4, 0.8, 1200, 20, 0.4, 1.2
PRICES, LAMBDA = (0.5, 1.0, 1.5), (0.3, 0.85)
TINY = {"hidden": [8], "max_epochs": 8, "batch_size": 1024, "weight_decay": 0.1}
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "state": {
            "use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"},
            "status": {"kind": "category", "dynamics": "table"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
            "told": {"kind": "category", "dynamics": "learned"},
        },
    },
    "anchor": {"action": "none"},
    "reward": {"structure": "linear", "benefits": ["use"]},
    "discount": GAMMA,
    "attention": {"default": {"none": {"status": ["out"]}, "member": {"status": ["in"]}}, "shifters": ["told"]},
    "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY, "folds": 1,
                   "refit": {"rows": 300}},
}  # fmt: skip
STATES = list(itertools.product(range(LEVELS), (0, 1)))  # use, status
UP, DOWN = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
UP[-1, -1] = DOWN[0, 0] = 1
MOVES = (0.6 * np.eye(LEVELS) + 0.4 * DOWN, 0.5 * np.eye(LEVELS) + 0.5 * UP)


def worth(use, status, price):
    """Reward of `member`, linear in its columns; `none` is worth 0."""
    return 0.5 * use - price - JOINING * (1 - status)


def solved(price: float, add: float = 0.0, told: float = TOLD) -> tuple[tabular.FiniteMDP, tabular.Solution]:
    """The market at one price; members know that they will be told, or not, in time."""
    use, status = (torch.tensor(column).double() for column in zip(*STATES, strict=True))
    reward = torch.stack([torch.zeros_like(use), worth(use, status, price) + add], 1)
    move = np.zeros((len(STATES), 2, len(STATES)))
    for s, (level, _) in enumerate(STATES):
        for a, t in itertools.product((0, 1), range(len(STATES))):
            move[s, a, t] = MOVES[a][level, STATES[t][0]] * (STATES[t][1] == a)
    mean = told * LAMBDA[1] + (1 - told) * LAMBDA[0]
    inertia = bellman.Inertia(torch.full((len(STATES),), mean).double(), status.long())
    expectation = tabular.dense_expectation(torch.from_numpy(move))
    menu = torch.ones(len(STATES), 2, dtype=torch.bool)
    mdp = tabular.FiniteMDP(reward, menu, expectation, GAMMA, 1.0, inertia=inertia)
    return mdp, tabular.solve(mdp)


def panel(seed: int, members: int = MEMBERS, burn_in: int = 10) -> pd.DataFrame:
    """Members at drawn prices; ``looked`` is whether a decision was made."""
    rng = np.random.default_rng(seed)
    decided = np.stack([bellman.log_policy(solved(p)[1].q, torch.ones(8, 2).bool(), 1.0).exp()[:, 1] for p in PRICES])
    price, use, status, rows = rng.integers(3, size=members), np.zeros(members, int), np.zeros(members, int), []
    for month in range(-burn_in, PERIODS):
        told = (rng.random(members) < TOLD).astype(int)
        looked = rng.random(members) < np.array(LAMBDA)[told]
        action = np.where(looked, rng.random(members) < decided[price, 2 * use + status], status).astype(int)
        if month >= 0:
            columns = {"use": use, "status": np.array(["out", "in"])[status], "price": np.array(PRICES)[price]}
            plan = {"plan": np.array(["none", "member"])[action], "told": told, "looked": looked.astype(int)}
            rows.append(pd.DataFrame({"id": np.arange(members), "month": month, **columns, **plan}))
        use = (rng.random(members)[:, None] > np.stack(MOVES)[action, use].cumsum(1)).sum(1).clip(0, LEVELS - 1)
        status = action
    return pd.concat(rows, ignore_index=True)


def fitted(frame, **options):
    config = Config.model_validate(STUDY | options)
    return estimate(config, panel_from_frame(frame, config), bench=Workbench(device=torch.device("cpu"), seed=0))


@pytest.fixture(scope="module")
def study():
    frame = panel(seed=3)
    return frame, *fitted(frame)


def truth(frame):
    return worth(frame["use"], frame["status"] == "in", frame["price"])


def test_lambda_and_the_joining_reward(study):
    frame, model, metrics = study
    found = metrics["attention"]
    assert found["identified_by"] == "shifters"
    for cell, true in zip(found["cells"], LAMBDA, strict=True):
        assert cell["lambda"] == pytest.approx(true, abs=0.03) and 0.01 < cell["se"] < 0.08
        assert cell["low"] < cell["lambda"] < cell["high"]
    out = frame["status"] == "out"
    reward = model.reward(frame)["member"]
    assert reward[out].mean() == pytest.approx(truth(frame)[out].mean(), rel=0.1)
    error = model.standard_error(frame)["member"]
    assert ((reward - truth(frame)).abs() / error).mean() < 2
    always = found["reward_always_decided"]["member"]["all"]["mean"]
    assert always < metrics["reward_summary"]["member"]["all"]["mean"] - 0.3  # inertia taken for a cost
    assert metrics["refit"]["log_likelihood"] > metrics["refit_always_decided"]["log_likelihood"] + 1e-3


def test_what_is_seen_what_is_decided_and_values(study):
    frame, model, _ = study
    some = frame.drop_duplicates(["use", "status", "price", "told"]).reset_index(drop=True)
    attention, decided, seen = model.attention_probability(some), model.policy(some, decided=True), model.policy(some)
    default = pd.get_dummies(some["status"].map({"out": "none", "in": "member"}))[["none", "member"]]
    expected = decided.mul(attention, axis=0) + default.mul(1 - attention, axis=0)
    pd.testing.assert_frame_equal(seen, expected, check_dtype=False)
    assert np.allclose(attention.groupby(some["told"]).std(), 0, atol=1e-6)
    values = {p: solved(p)[1].value for p in PRICES}  # before it is known whether there is a reminder, let alone a look
    true = [
        float(values[p][2 * u + (s == "in")])
        for p, u, s in zip(some["price"], some["use"], some["status"], strict=True)
    ]
    of = some.assign(found=model.value(some), true=true, share=np.where(some["told"] == 1, TOLD, 1 - TOLD))
    mean = (of["found"] * of["share"]).groupby([of["use"], of["status"], of["price"]]).sum()
    assert np.abs(mean - of.groupby(["use", "status", "price"])["true"].first()).max() < 0.35


def test_how_values_move_with_eta(study):
    frame, model, _ = study
    state = model.schema.encode(frame.head(50))
    menu = model.schema.menu(state)
    q, log_pi = model.reward_of(state) + model.refit.continuation(model.basis(state)), model.log_policy_of(state, menu)
    value, h = bellman.soft_value(q, menu, 1.0), 1e-3
    found, eta = slope(model, state, log_pi), model.attention.weight.detach().clone()
    for p in range(len(eta)):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                model.attention.weight[p] = eta[p] + sign * h
            ends.append(bellman.ex_ante_value(value, q, menu, model.inertia_of(state)))
        with torch.no_grad():
            model.attention.weight.copy_(eta)
        torch.testing.assert_close(found[:, p], (ends[0] - ends[1]) / (2 * h), rtol=1e-3, atol=1e-4)


def test_the_score_and_the_information_of_the_mixture(study):
    """The gradient is the likelihood's; its expected square over what may happen is the information."""
    frame, model, _ = study
    few = replace(panel_from_frame(frame, model.config, schema=model.schema).take_members(torch.arange(MEMBERS) < 2))
    generator = torch.Generator().manual_seed(0)
    actions, d = model.refit.weights.shape
    mapping = torch.randn(actions, d, 5, generator=generator).double() / 5
    offset = torch.randn(actions, d, generator=generator).double() / 9
    theta = torch.randn(5, generator=generator).double()  # three of the reward, two of lambda
    for told in (False, True):
        logit = Inattentive(mapping, offset, 0, 1.3, model.attention, told)
        active = few.active.clone()
        active[::3] = few.action[::3] != model.schema.default(few.state[::3]) if told else True
        choices = Choices(model, replace(few, active=active), torch.arange(few.n_rows), {})
        slope, h = logit.gradient(theta, choices), 1e-3
        for p in range(5):
            step = torch.zeros(5).double()
            step[p] = h
            ends = [logit.log_likelihood(theta + s * step, choices) for s in (1, -1)]
            assert float(slope[p]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=5e-3, abs=5e-3)
        total = torch.zeros(5, 5).double()
        for row, (action, looked) in itertools.product(range(4), itertools.product((0, 1), (True, False))):
            if not told and not looked:
                continue
            shown = replace(few, action=torch.full_like(few.action, action), active=torch.full_like(active, looked))
            one = Choices(model, shown, torch.tensor([row]), {})
            if told and not looked and action != int(model.schema.default(few.state[row : row + 1])):
                continue
            score, probability = logit.gradient(theta, one), np.exp(logit.log_likelihood(theta, one))
            total += probability * torch.outer(score, score)
        rows = Choices(model, few, torch.arange(4), {})
        torch.testing.assert_close(logit.information(theta, rows), total, rtol=1e-3, atol=1e-4)


def test_rollouts_follow_the_oracle_under_a_scenario(study):
    frame, model, _ = study
    changes = [{"reward": {"action": "member", "add": 0.6}}, {"feature": {"name": "told", "set": 1}}]
    scenario = {"name": "sweeter, and everybody is reminded", "periods": 8, "members": "all", "changes": changes}
    rows = ask(model, scenario, frame).answer(bands=False).outcomes
    rows = rows[(rows["outcome"] == "membership") & (rows["segment"] == "all")]
    first = frame[frame["month"] == 0]
    exact = np.zeros((2, 8))
    for price, (k, change) in itertools.product(PRICES, enumerate(((0.0, TOLD), (0.6, 1.0)))):
        mdp, found = solved(price, *change)
        here = first[first["price"] == price]
        start = torch.from_numpy(np.bincount(2 * here["use"] + (here["status"] == "in"), minlength=8) / MEMBERS)
        path = tabular.propagate(mdp, found.policy, start, periods=8)
        exact[k] += [float((mass * found.policy[:, 1]).sum()) for mass in path]
    assert np.abs(rows["baseline"].to_numpy() - exact[0]).max() < 0.03
    assert np.abs(rows["scenario"].to_numpy() - exact[1]).max() < 0.03
    assert (exact[1] - exact[0])[-1] > 0.08 and (rows["low"] < rows["change"]).all()


def test_what_members_collect_is_what_happens(study):
    frame, model, _ = study
    found = attribute(model, panel_from_frame(frame, model.config, schema=model.schema), rows=300)["visited"]["all"]
    expected = []
    for price, here in frame.groupby("price"):
        mdp, solution = solved(price)
        collected = tabular.evaluate(mdp, solution.policy, entropy=False).value
        expected.append(collected[2 * here["use"].to_numpy() + (here["status"] == "in").to_numpy()])
    exact, total = float(torch.cat(expected).mean()), found["total"]
    assert abs(total["mean"] - exact) < 2.5 * total["se"] < 0.4


def test_saved_and_loaded(study, tmp_path):
    frame, model, _ = study
    model.save(tmp_path / "model")
    again, some = load_model(tmp_path / "model"), frame.head(60)
    pd.testing.assert_frame_equal(again.policy(some), model.policy(some))
    pd.testing.assert_series_equal(again.attention_probability(some), model.attention_probability(some))
    assert torch.equal(again.attention.covariance, model.attention.covariance)


def test_shifters_are_in_nothing_but_attention_and_what_follows(study):
    _, model, _ = study
    told = model.schema.index("told")
    assert all(told not in columns for columns in model.terms.columns_of)
    assert any(told in columns for columns in model.crossings.columns_of)
    state = torch.zeros(2, 4)
    state[1, told] = 1
    menu = model.schema.menu(state)
    one, two = model.policy_network(state, menu)
    assert torch.equal(one, two)


def test_where_it_is_told_who_decided():
    frame = panel(seed=1, members=400)
    data = STUDY["data"] | {"active": "looked"}
    model, metrics = fitted(frame, data=data)
    found = metrics["attention"]
    assert found["identified_by"] == "column"
    for cell, true in zip(found["cells"], LAMBDA, strict=True):
        looked = frame.loc[frame["told"].astype(str) == cell["levels"]["told"], "looked"].mean()
        assert cell["lambda"] == pytest.approx(looked, abs=0.01) and cell["lambda"] == pytest.approx(true, abs=0.03)
    out = frame["status"] == "out"
    assert model.reward(frame)["member"][out].mean() == pytest.approx(truth(frame)[out].mean(), rel=0.15)
    config = Config.model_validate(STUDY | {"data": data})
    wrong = frame.assign(looked=np.where(frame.index == 7, 2, frame["looked"]))
    with pytest.raises(InputError, match=r"'looked': neither 0 nor 1 \(1 row"):
        panel_from_frame(wrong, config)
    left = (frame["status"] == "in") & (frame["plan"] == "none")
    with pytest.raises(InputError, match="0 where the action is not the default"):
        panel_from_frame(frame.assign(looked=np.where(left, 0, frame["looked"])), config)


def test_what_does_not_know_attention_is_refused(study):
    frame, model, metrics = study
    with pytest.raises(InputError, match="falsification cannot be asked with `attention`"):
        battery(model, panel_from_frame(frame, model.config, schema=model.schema), metrics["refit"]["precisions"])
    with pytest.raises(InputError, match="every period was decided"):
        fitted(frame.assign(looked=1), data=STUDY["data"] | {"active": "looked"})
    with pytest.raises(InputError, match="attention: it is told from the reward by the refit"):
        fitted(frame.assign(g=0.0), anchor={"action": "none", "reward": "g"}, reward={})
