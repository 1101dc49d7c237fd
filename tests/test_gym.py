"""The environments: what Gymnasium asks of them, and that they do what the model says."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("gymnasium", reason="the extra `gym` is not installed")

from gymnasium.utils.env_checker import check_env

from irl.config import Config, InputError
from irl.data.schema import Column, StateSchema
from irl.fitted import FittedModel, new_networks
from irl.gym import MemberEnv, MembersEnv, start_states

ACTIONS = ("none", "basic", "full")
COLUMNS = (
    Column(name="status", kind="category", dynamics="table", labels=("out", "in", "locked", "gone"), maximum=3.0,
           parents=(0,)),
    Column(name="price", kind="numeric", dynamics="static", assigned="randomised", centre=9.0, minimum=5.0,
           maximum=12.0),
    Column(name="use", kind="ordinal", dynamics="learned", labels=("0", "1", "2"), maximum=2.0),
)  # fmt: skip
FRAME = pd.DataFrame(
    {
        "id": [1, 1, 2, 2, 3],
        "t": [1, 0, 0, 1, 0],
        "status": ["out", "gone", "in", "out", "locked"],
        "price": [5.0, 6.0, 7.0, 8.0, 9.0],
        "use": [0, 1, 2, 0, 1],
    }
)
"""Members start in their first row that is not terminal: 1 at price 5, 2 at 7, 3 at 9."""


def model_of(**options) -> FittedModel:
    """Random weights; locked: a contract (`basic` alone); gone: terminal; in: `full` cannot be chosen."""
    state = {c.name: {"kind": c.kind, "dynamics": c.dynamics} for c in COLUMNS}
    state["use"]["levels"] = 3
    data = {"path": "none", "member": "id", "period": "t", "action": "plan", "actions": ACTIONS, "state": state,
            "available": {"none": {"status": ["out", "in"]}, "full": {"status": "out"}},
            "terminal": {"status": "gone"}, **options.pop("data", {})}  # fmt: skip
    steps = {name: {"hidden": [5]} for name in ("policy", "anchor_q", "reward", "dynamics")}
    study = {"data": data, "anchor": {"action": "none", "reward": 0.3}, "discount": 0.9, "temperature": 0.8}
    config = Config.model_validate(study | {"estimation": steps} | options)
    schema = StateSchema(
        columns=COLUMNS,
        actions=ACTIONS,
        anchor=0,
        anchor_reward=config.anchor.reward,
        terminal=config.data.terminal,
        available=tuple((ACTIONS.index(a), condition) for a, condition in config.data.available.items()),
        defaults=tuple((ACTIONS.index(a), condition) for a, condition in config.defaults.items()),
    )
    if config.types.number > 1:
        schema = schema.with_types(config.types.number, dynamics=False)
    torch.manual_seed(0)
    model = new_networks(config, schema)
    if model.refit is not None:
        model.refit.theta.copy_(torch.randn_like(model.refit.theta))
    table = model.dynamics.table_0
    table.copy_(torch.tensor([0.5, 0.3, 0.15, 0.05]).expand_as(table))
    return model


@pytest.fixture(scope="module")
def model() -> FittedModel:
    return model_of()


@pytest.mark.parametrize("shocks", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"types": 2}, {"attention": {"default": {"none": {"status": "out"}}}}], ids=str
)
def test_gymnasium_finds_no_fault(options, shocks):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*(infinity|not instantiated via the environment registry)")
        warnings.simplefilter("error", append=True)
        check_env(MemberEnv(model_of(**options), FRAME, shocks=shocks), skip_render_check=True)


def test_members_start_in_their_first_rows_that_are_not_terminal(model):
    assert start_states(model, FRAME)[:, 1].tolist() == [5, 7, 9]
    assert start_states(model, FRAME.drop(columns="id"))[:, 1].tolist() == [5, 7, 8, 9]  # each row for itself
    env = MemberEnv(model, FRAME)
    assert {float(env.reset(seed=seed)[0][1]) for seed in range(30)} == {5, 7, 9}
    with pytest.raises(InputError, match="no member can start"):
        start_states(model, FRAME[FRAME["status"] == "gone"])


def test_a_step_gives_what_the_model_says(model):
    env = MembersEnv(model, FRAME, members=300, periods=10**6)
    state, info = env.reset(seed=1)
    frame = model.schema.decode(torch.from_numpy(state))
    policy, reward = model.policy(frame).to_numpy(), model.reward(frame).to_numpy()
    assert (info["action_mask"] == (policy > 0)).all()
    following, gained, terminated, truncated, info = env.step(np.full(300, 2))
    status = frame["status"].to_numpy()
    assert (info["action"] == np.select([status == "out", status == "in"], [2, 0], 1)).all()  # full, anchor, contract
    rows = np.arange(300)
    assert gained == pytest.approx(np.nan_to_num(reward[rows, info["action"]]))
    assert (gained[status == "locked"] == 0).all() and (gained[status == "in"] == pytest.approx(0.3))
    assert (following[:, 1] == state[:, 1]).all() and (terminated == (following[:, 0] == 3)).all()
    assert not truncated.any() and 0 < terminated.sum() < 60
    shares = np.bincount(following[:, 0].astype(int), minlength=4) / 300
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.1)


def test_one_member_and_many_agree_and_seeds_repeat(model):
    one, many = MemberEnv(model, FRAME, shocks=True), MembersEnv(model, FRAME, members=1, shocks=True)
    again = MemberEnv(model, FRAME, shocks=True)
    assert (one.reset(seed=5)[0] == many.reset(seed=5)[0][0]).all()
    again.reset(seed=5)
    for action in (0, 1, 2, 0):
        observed, reward, *_ = one.step(np.int64(action))
        seen, gained, *_ = many.step(np.array([action]))
        assert (observed == seen[0]).all() and reward == gained[0]
        assert (again.step(np.int64(action))[0] == observed).all()


def test_episodes_end_and_members_start_anew_at_the_next_step(model):
    env = MembersEnv(model, FRAME, members=50, periods=3)
    env.reset(seed=0)
    over, ends, cuts = np.zeros(50, dtype=bool), [], []
    for _ in range(8):
        before = over
        observed, reward, terminated, truncated, info = env.step(np.zeros(50, dtype=np.int64))
        over = terminated | truncated
        assert not over[before].any() and (reward[before] == 0).all()
        assert (info["action_mask"].sum(1) == 0)[terminated].all()
        assert np.isin(observed[before, 0], [0, 1, 2]).all()
        ends.append(terminated)
        cuts.append(truncated)
    staying = ~np.array(ends).any(0)
    assert staying.any() and not staying.all()
    assert (np.array(cuts)[:, staying].T == [0, 0, 1, 0, 0, 0, 1, 0]).all()


def test_shocks_make_an_agent_that_maximises_choose_as_members_do(model):
    """The largest of Q + shock is chosen with the policy's probabilities (Gumbel-max), and shocks have mean 0."""
    env = MembersEnv(model, FRAME[FRAME["price"] == 5.0], members=4000, shocks=True)
    observed, _ = env.reset(seed=0)
    state, shock = torch.from_numpy(observed[:, :3]), observed[:, 3:]
    log_pi = model.log_policy_of(state, model.schema.menu(state)).numpy()
    chosen = (model.config.temperature * log_pi + shock).argmax(1)
    shares = np.bincount(chosen, minlength=3) / 4000
    assert shares == pytest.approx(np.exp(log_pi[0]), abs=0.03)
    assert shock.mean(0) == pytest.approx(0, abs=0.06)
    gained = env.step(chosen)[1]
    assert gained == pytest.approx(model.reward_of(state).numpy()[0][chosen] + shock[np.arange(4000), chosen], abs=1e-5)


def test_without_a_decision_the_default_happens():
    model = model_of(attention={"default": {"none": {"status": "out"}}})
    model.attention.weight.data.fill_(0.0)  # lambda = 1/2
    env = MembersEnv(model, FRAME[FRAME["price"] == 5.0], members=1000)
    env.reset(seed=0)
    happened = env.step(np.full(1000, 2))[-1]["action"]
    assert np.bincount(happened, minlength=3) / 1000 == pytest.approx([0.5, 0, 0.5], abs=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"anchor": {"action": "none", "reward": "bonus"}}, "'bonus'"), ({"data": {"duration": "k"}}, "several periods")],
)
def test_studies_that_cannot_be_simulated_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        MemberEnv(model_of(**options), FRAME)
