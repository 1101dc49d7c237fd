"""The refit under each kind of anchor: its pieces are exact on a problem solved exactly, and it recovers a market.

The pieces are the kernel's worth of the features and of the offset, the map to logits, and what is stored; with tabular
features, the exact policy and every transition weighted by its probability they must give the true policy and reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from irl import evaluation, tabular
from irl.config import Config
from irl.data.column import Column
from irl.data.panel import panel_from_frame
from irl.data.schema import StateSchema
from irl.estimation import refit
from irl.estimation.dynamics import fit_dynamics
from irl.estimation.findings import findings
from irl.estimation.parameters import Parameters
from irl.estimation.pipeline import held_out_rows
from irl.estimation.policy import fit_policy
from irl.estimation.training import Workbench
from irl.fitted import FittedModel, new_networks
from irl.refitted import Refitted
from irl.transitions import Reached, Transitions

STATES, ACTIONS = 5, ("left", "usual", "right")
G = (0.25, -1.5, 0.5, 2.0, -0.0625)  # also the labels of the states
MENU = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
USUAL = (2, 1, 0, 1, 2)
"""The anchor of every state, where it depends on the state."""
WEIGHT = (0.5, 3.0, 0.25, 1.0, 0.0)
FORMS = {
    "action": {"anchor": 1},
    "by state": {"anchor": None, "anchor_by_state": "named"},
    "uniform": {"anchor": None, "anchor_weights": (1.0, 1.0, 1.0)},
    "weights": {"anchor": None, "anchor_weights": (0.25, "weight", 0.5)},
}


def schema_of(form: str) -> StateSchema:
    labels = tuple(map(str, G))
    columns = (
        Column(name="state", kind="ordinal", dynamics="learned", labels=labels, maximum=4.0),
        Column(name="named", kind="category", dynamics="learned", labels=ACTIONS, maximum=2.0),
        Column(name="weight", kind="numeric", dynamics="learned", maximum=3.0),
    )
    available = tuple((a, {"state": tuple(labels[s] for s in range(STATES) if MENU[s, a])}) for a in range(3))
    return StateSchema(
        columns=columns, actions=ACTIONS, anchor_reward="state", available=available, terminal={}, **FORMS[form]
    )


def states() -> Tensor:
    """[5, 3], float64, so that the reference's thirds add up to 1."""
    return torch.tensor([range(STATES), USUAL, WEIGHT], dtype=torch.float64).T


def basis(state: Tensor) -> Tensor:
    """[N, 5]: the constant, and indicators of all states but the first."""
    x = torch.nn.functional.one_hot(state[:, 0].long(), STATES).float()
    x[:, 0] = 1
    return x


@dataclass(frozen=True)
class Problem:
    """transition[S, A, S'] in 64ths, true reward[S, A], whose mean under the form's reference is G; the solution."""

    schema: StateSchema
    transition: Tensor
    reward: Tensor
    solution: tabular.Solution
    discount: float
    temperature: float


def problem(form: str, discount: float, temperature: float, seed: int) -> Problem:
    discount = torch.tensor(discount).item()
    generator = torch.Generator().manual_seed(seed)
    urns = (torch.rand(STATES, 3, 64, generator=generator) ** 2 * STATES).long()
    transition = torch.stack([(urns == s).sum(-1) for s in range(STATES)], dim=-1).double() / 64
    reward = 2 * torch.randn(STATES, 3, generator=generator, dtype=torch.float64)
    schema = schema_of(form)
    mu = schema.reference(states(), MENU).double()
    reward = reward - (mu * reward).sum(1, keepdim=True) + torch.tensor(G).double().unsqueeze(1)
    mdp = tabular.FiniteMDP(reward, MENU, tabular.dense_expectation(transition), discount, temperature)
    return Problem(schema, transition, reward, tabular.solve(mdp, tolerance=1e-11), discount, temperature)


def transitions(transition: Tensor) -> Transitions:
    s, a, following = (MENU.unsqueeze(-1) & (transition > 0)).nonzero().unbind(1)
    one = torch.ones(len(s), 1)
    return Transitions(
        states()[s], a, Reached.by(states()[following].unsqueeze(1), 0 * s), one, ~one.bool(), torch.zeros_like(s),
        transition[s, a, following].float(),
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("discount", [0.5, 0.95, 0.99, 0.999])
@pytest.mark.parametrize(("temperature", "seed"), [(1.0, 0), (0.5, 1)])
def test_the_true_reward_gives_the_true_policy(form, discount, temperature, seed):
    true = problem(form, discount, temperature, seed)
    schema, exact = true.schema, true.solution
    model = SimpleNamespace(
        schema=schema,
        config=SimpleNamespace(discount=true.discount, temperature=temperature),
        basis=basis,
        terms=SimpleNamespace(width=STATES),
        policy_network=lambda state, menu: exact.log_policy[state[:, 0].long()],
        attention=None,
        inertia_of=lambda state: None,
        refit=Refitted(schema.anchor, 3, STATES, STATES),
    )
    mean, scale = torch.tensor([0, 0.5, 0.25, -1, 0]).double(), torch.tensor([1, 2, 1, 0.5, 4]).double()
    block = torch.diag(1 / scale)
    block[0] -= mean / scale
    own = Parameters(torch.block_diag(block, block), torch.zeros(2 * STATES, dtype=torch.long))
    sums = refit.feature_sums(model, transitions(true.transition), own, refitted=False)
    solution = evaluation.solve(sums, ridge=0.0)
    assert solution.residual < 1e-9  # what was never chosen has no value, so that the matrix is singular
    x, g, mu = basis(states()).double(), torch.tensor(G), schema.reference(states(), MENU)
    # where the fixed action is off the menu its utility is free: 0
    shift = 0 if schema.anchor is not None else true.reward[:, schema.base] * MENU[:, schema.base]
    utility = true.reward.T - shift
    paid = [a for a in range(3) if a != schema.base]
    theta = torch.linalg.solve((x - mean) / scale, utility[paid].T).T.flatten()
    continuation = x @ (solution.weights[..., :-1] @ own.raw @ theta + solution.weights[..., -1]).T
    expected = true.discount * true.transition @ exact.value
    rounding = 4e-10 / (1 - discount)  # of levels, which are as large as that
    torch.testing.assert_close(continuation[MENU], expected[MENU], rtol=0, atol=rounding)
    logit = refit.logit_of(model, solution.weights, own)
    log_pi = logit.log_policy(theta, x, g.double(), MENU)
    torch.testing.assert_close(log_pi, exact.log_policy, rtol=0, atol=1e-8)
    refit.store(model, theta, solution.weights, own)
    stored = model.refit
    torch.testing.assert_close(stored.reward(x, g, mu)[MENU], true.reward[MENU], rtol=0, atol=1e-8)
    torch.testing.assert_close(stored.continuation(x), continuation, rtol=0, atol=rounding)


# A market of two regions and four levels of use; a level of `cell` is both, its label the mean of the two rewards.

LEVELS, GAMMA = 4, 0.9
CELLS = (-0.35, 0.05, 0.4, 0.65, 0.1, 0.15, 0.25, 0.3)
WORTH = 2 * np.array(CELLS) - 0.5
"""Reward of `member` in every cell; that of `none` is .5."""
TINY = {"hidden": [16], "max_epochs": 10, "batch_size": 512, "weight_decay": 0.1}
BENCH = Workbench(device=torch.device("cpu"), seed=0)


def config(anchor: dict, **reward) -> Config:
    return Config.model_validate({
        "data": {
            "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
            "segment": "region",
            "state": {
                "region": {"kind": "category", "dynamics": "static"},
                "cell": {"kind": "ordinal", "levels": CELLS, "dynamics": "table"},
                "named": {"kind": "category", "dynamics": "static"},
            },
        },
        "anchor": anchor,
        "discount": GAMMA,
        "temperature": 0.8,
        "estimation": {"policy": TINY, "anchor_q": TINY, "reward": TINY, "dynamics": TINY},
        "reward": reward,
    })  # fmt: skip


def panel(reward: np.ndarray, named: tuple[str, str], *, members: int = 1200, periods: int = 12) -> pd.DataFrame:
    """``reward[8, 2]`` of the actions none and member in every cell; ``named`` by region."""
    up, down = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
    up[-1, -1] = down[0, 0] = 1
    apart, stay = np.eye(2), np.eye(LEVELS)
    moves = np.stack([np.kron(apart, 0.6 * stay + 0.4 * down), np.kron(apart, 0.5 * stay + 0.5 * up)])
    expectation = tabular.dense_expectation(torch.from_numpy(moves).transpose(0, 1))
    mdp = tabular.FiniteMDP(torch.from_numpy(reward), torch.ones(8, 2, dtype=torch.bool), expectation, GAMMA, 0.8)
    policy = tabular.solve(mdp).policy[:, 1].numpy()
    rng = np.random.default_rng(0)
    cell, rows = rng.integers(0, 8, members), []
    for month in range(periods):
        action = (rng.random(members) < policy[cell]).astype(int)
        region = cell // LEVELS
        columns = {"id": np.arange(members), "month": month, "cell": np.array(CELLS)[cell]}
        columns |= {"region": np.array(["north", "south"])[region], "named": np.array(named)[region]}
        rows.append(pd.DataFrame(columns | {"plan": np.array(["none", "member"])[action]}))
        cell = (rng.random(members)[:, None] > moves[action, cell].cumsum(1)).sum(1).clip(0, 7)
    return pd.concat(rows)


def refitted(study: Config, frame: pd.DataFrame) -> tuple[FittedModel, dict]:
    """Policy, dynamics and refit, without the Q and R steps between them; and what was found."""
    data = panel_from_frame(frame, study)
    torch.manual_seed(0)
    model, held_out, e = new_networks(study, data.schema), held_out_rows(data, 0.2, 0), study.estimation
    policy = fit_policy(data, held_out, e.policy, bench=BENCH)[0].eval()
    model = replace(model, policy_network=policy, dynamics=fit_dynamics(data, held_out, e.dynamics, bench=BENCH)[0])
    refit.fit_refit(model, data, held_out, e.refit, bench=BENCH)
    return model, findings(model, data)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return panel(np.stack([np.full(8, 0.5), WORTH], 1), ("none", "none"))


@pytest.fixture(scope="module")
def by_action(frame):
    return refitted(config({"action": "none", "reward": 0.5}, benefits=["cell"]), frame)


def truth(frame: pd.DataFrame) -> np.ndarray:
    return 2 * frame["cell"].to_numpy() - 0.5


def test_an_anchor_by_state_that_is_always_the_same_is_the_anchor_action(frame, by_action):
    model, found = by_action
    other, again = refitted(config({"by_state": "named", "reward": 0.5}, benefits=["cell"]), frame)
    assert np.sqrt(np.mean((model.reward(frame)["member"] - truth(frame)) ** 2)) < 0.1
    assert np.allclose(model.reward(frame), other.reward(frame), atol=1e-3)
    assert (other.reward(frame)["none"] == 0.5).all() and (other.standard_error(frame)["none"] == 0).all()
    assert np.allclose(model.standard_error(frame), other.standard_error(frame), atol=1e-3)
    assert np.allclose(model.policy(frame), other.policy(frame), atol=1e-3)
    assert np.allclose(model.value(frame), other.value(frame), atol=2e-2)
    for part in ("reward_summary", "contributions"):
        for region in ("north", "south", "all"):
            mine, theirs = (f[part]["member"][region] for f in (found, again))
            mine, theirs = (f.get("cell", f) for f in (mine, theirs))
            assert [theirs[k] for k in ("mean", "se")] == pytest.approx([mine[k] for k in ("mean", "se")], abs=2e-3)
    assert again["reward_summary"]["none"]["all"]["se"] == pytest.approx(0, abs=1e-9)


def test_the_mean_of_all_actions_may_be_what_is_known(frame, by_action):
    model, _ = by_action
    other, found = refitted(config({"policy": "uniform", "reward": "cell"}, benefits=["cell"]), frame)
    reward = other.reward(frame)
    assert np.allclose(reward.mean(axis=1), frame["cell"], atol=1e-6)
    assert np.sqrt(np.mean((reward["member"] - truth(frame)) ** 2)) < 0.1
    assert np.sqrt(np.mean((reward["none"] - 0.5) ** 2)) < 0.1
    error = other.standard_error(frame)  # of half the difference, with opposite signs
    assert np.allclose(error["none"], error["member"]) and (error["none"] > 0).all()
    assert np.abs(other.policy(frame) - model.policy(frame)).max(axis=None) < 0.02
    lowest = other.reward(frame.assign(cell=CELLS[0]))
    for action in ("none", "member"):  # what a benefit adds to every action counts too
        added = float((reward[action] - lowest[action]).mean())
        assert found["contributions"][action]["all"]["cell"]["mean"] == pytest.approx(added, abs=1e-3)
        assert found["reward_summary"][action]["all"]["se"] > 0


def test_the_anchor_may_change_sides(frame):
    """In the south it is membership that is worth .5, and not being a member what is to be found."""
    south = np.arange(8) >= LEVELS
    reward = np.where(np.stack([south, ~south], 1), WORTH[:, None], 0.5)
    frame = panel(reward, ("none", "member"))
    model, _ = refitted(config({"by_state": "named", "reward": 0.5}), frame)
    found, south = model.reward(frame), (frame["region"] == "south").to_numpy()
    assert (found["member"][south] == 0.5).all() and (found["none"][~south] == 0.5).all()
    unknown = np.where(south, found["none"], found["member"])
    assert np.sqrt(np.mean((unknown - truth(frame)) ** 2)) < 0.1
    error = model.standard_error(frame)
    assert (error["member"][south] == 0).all() and (error["none"][south] > 0).all()


def test_coefficients_are_of_the_reward_less_that_of_the_first_action(frame):
    study = config({"policy": {"none": 1, "member": 3}, "reward": 0.25}, structure="linear", columns=["cell"])
    model, found = refitted(study, frame)
    rows = {row["name"]: row for row in found["coefficients"]}
    assert set(rows) == {"constant", "cell"} and {row["action"] for row in rows.values()} == {"member"}
    reward = model.reward(frame)
    fitted = rows["constant"]["estimate"] + rows["cell"]["estimate"] * frame["cell"]
    assert np.allclose(reward["member"] - reward["none"], fitted, atol=1e-5)
    assert np.allclose(0.25 * reward["none"] + 0.75 * reward["member"], 0.25)
    assert rows["cell"]["se"] == pytest.approx(float(model.refit.covariance[1, 1].sqrt()))
