"""Hidden types under draws of the parameters, in rollouts, and in attributions, on a model with random parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import Config
from irl.counterfactual import attribution
from irl.counterfactual import backtest as backtest_module
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.solve import solve
from irl.counterfactual.type_draws import parameter_draws, posterior_slopes, start_scores
from irl.data.panel import first_rows, of_type, panel_from_frame, typed
from irl.draws import drawn
from irl.fitted import new_networks
from irl.transitions import States, Unchanged

MEMBERS, PERIODS, TYPES, SMALL = 30, 5, 3, 1e-5
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "state": {"use": {"kind": "ordinal", "levels": 3, "dynamics": "table"}},
    },
    "anchor": {"action": "none"},
    "reward": {"benefits": ["use"]},
    "discount": 0.8,
    "types": TYPES,
    "estimation": {name: {"hidden": [4]} for name in ("policy", "anchor_q", "reward", "dynamics")},
}  # fmt: skip


@pytest.fixture(scope="module")
def frame():
    rng, rows = np.random.default_rng(0), MEMBERS * PERIODS
    return pd.DataFrame({
        "id": np.repeat(np.arange(MEMBERS), PERIODS), "month": np.tile(np.arange(PERIODS), MEMBERS),
        "use": rng.integers(3, size=rows), "plan": rng.choice(["none", "member"], rows),
    })  # fmt: skip


@pytest.fixture(scope="module")
def plain(frame):
    return panel_from_frame(frame, Config.model_validate(STUDY))


@pytest.fixture(scope="module")
def model(plain):
    """With a joint covariance of reward and shares."""
    torch.manual_seed(0)
    found = new_networks(Config.model_validate(STUDY), plain.schema.with_types(TYPES, dynamics=False))
    found.refit.theta[1] = 0.5 * torch.randn(found.terms.width).double()
    found.shares.standardise(plain.state)
    found.shares.weight[1:] = 0.5 * torch.randn(found.shares.weight[1:].shape).double()
    size = len(found.refit.covariance) + len(found.shares.covariance)
    root = torch.randn(size, size).double() / size
    joint = root @ root.T
    found.refit.covariance.copy_(joint[: len(found.refit.covariance), : len(found.refit.covariance)])
    found.shares.covariance.copy_(joint[len(found.refit.covariance) :])
    return found


@pytest.fixture(scope="module")
def policy(model, plain):
    theta, _ = parameter_draws(model, 4, seed=0)
    state = torch.cat([of_type(typed(plain, model.schema, plain.member * 0).state, k) for k in range(TYPES)])
    states = States(state, torch.zeros(len(state), dtype=torch.long), torch.ones(len(state)))
    rows = drawn(model.dynamics, Unchanged(model.schema), states, seed=0)
    found = solve(model, Intervention(model.schema, ()), rows.of_segment, draws=theta)
    model.refit.weights.copy_(found.weights[0])
    return found


def test_draws_have_the_joint_covariance(model):
    size, several = len(model.refit.covariance), len(model.shares.covariance)
    theta, weights = parameter_draws(model, size + several + 3, seed=1)
    assert (weights[:, 0] == 0).all()
    flat = torch.cat([theta[:, 1:].flatten(1), weights[:, 1:].flatten(1)], 1)
    moments = flat.T @ flat / len(flat)
    torch.testing.assert_close(moments[:size, :size], model.refit.covariance)
    torch.testing.assert_close(moments[size:], model.shares.covariance)


def test_posteriors_move_with_the_parameters_as_they_should(model, policy, plain):
    """Against the posterior at parameters a little off in the direction of each draw."""
    shares = parameter_draws(model, 4, seed=0)[1]
    panel, first = typed(plain, model.schema, plain.member * 0), first_rows(plain.member)
    q, found = posterior_slopes(policy, plain.state[first], panel, shares)

    def log_posterior(b, step):
        refit, weight = (
            type(model.refit)(0, 2, model.terms.width, policy.weights.shape[-1]),
            model.shares.weight.clone(),
        )
        refit.load_state_dict(model.refit.state_dict())
        refit.theta += step * policy.draws[b]
        refit.weights += step * policy.weight_draws[0, b]
        model.shares.weight += step * shares[b]
        out = replace(model, refit=refit).posterior(panel).log()
        model.shares.weight.copy_(weight)
        return out

    for b in range(4):
        numerical = (log_posterior(b, 1e-2) - log_posterior(b, -1e-2)) / 2e-2
        torch.testing.assert_close(found[:, :, b], numerical, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(
        torch.einsum("mk,mkb->mb", q, found), torch.zeros(MEMBERS, 4).double(), atol=1e-6, rtol=0
    )
    assert found.abs().max() > 0.1


def test_a_start_has_the_score_of_its_member_and_type(model, policy, plain):
    shares = parameter_draws(model, 4, seed=0)[1]
    kind = plain.member % TYPES
    panel, rows = typed(plain, model.schema, kind), torch.tensor([7, 3 * PERIODS, 7])
    every = torch.arange(3)
    found = start_scores(policy, Starts(panel.state[rows], rows * 0, rows), panel, shares)(every)
    slopes = posterior_slopes(policy, panel.state[first_rows(plain.member)], panel, shares)[1]
    member = plain.member[rows]
    torch.testing.assert_close(found, slopes[member, kind[rows]])
    alone = start_scores(policy, Starts(panel.state[rows], rows * 0, rows), None, shares)(every)
    share = model.log_shares(panel.state[rows]).exp()
    moved = torch.einsum("nd,bkd->nkb", model.shares.features(panel.state[rows]), shares)
    expected = moved - torch.einsum("nk,nkb->nb", share, moved).unsqueeze(1)
    torch.testing.assert_close(alone, expected[every, panel.state[rows, -1].long()])


def test_scores_of_the_start_count_for_everything_that_members_do(model, policy, plain):
    """The same score for all moves every sum by itself times that score."""
    state = typed(plain, model.schema, plain.member % TYPES).state
    starts = Starts(state, torch.zeros(len(state), dtype=torch.long))
    score = torch.tensor([0.5, -2.0, 0.0, 1.0]).double()
    scored = replace(starts, score=lambda which: score.repeat(len(which), 1))
    asked = {"periods": 3, "seed": 0, "used": (0,)}
    without, having = (rollout(model, {"baseline": policy}, s, **asked)["baseline"] for s in (starts, scored))
    for name, sums in having.tensors().items():
        more = having.slopes.tensors()[name] - without.slopes.tensors()[name]
        torch.testing.assert_close(more, sums.unsqueeze(-1) * score, rtol=1e-4, atol=1e-4)


def test_attribution_is_a_mean_over_the_posterior(model, policy, plain, monkeypatch):
    """Of what it is for each type, if members were weighted by how probably they are of it."""
    state = torch.cat([of_type(typed(plain, model.schema, plain.member * 0).state, k) for k in range(TYPES)])
    states = States(state, torch.zeros(len(state), dtype=torch.long), torch.ones(len(state)))
    rows = drawn(model.dynamics, Unchanged(model.schema), states, seed=0)
    monkeypatch.setattr(attribution, "drawn", lambda *_, **__: rows)
    q = model.posterior(typed(plain, model.schema, plain.member * 0))
    parts = []
    for k in range(TYPES):
        own = replace(typed(plain, model.schema, plain.member * 0 + k), weight=q[plain.member, k].float())
        parts.append(attribution.attribute(model, own))
    found = attribution.attribute(model, plain)
    for place, mass in (("start", q.sum(0)), ("visited", q.sum(0))):
        cell = found[place]["all"]
        expected = sum(p[place]["all"]["benefits"]["use"]["mean"] * float(m) for p, m in zip(parts, mass, strict=True))
        assert cell["benefits"]["use"]["mean"] == pytest.approx(expected / MEMBERS, rel=1e-4)
        assert cell["choices"] == parts[0][place]["all"]["choices"]


def leaving_out(model, **data):
    data = model.config.data.model_copy(update=data)
    return replace(model, config=model.config.model_copy(update={"data": data}))


def forecast(monkeypatch, ask, model, frame):
    """The answer, and who was forecast."""
    seen = []
    real = backtest_module.draws_of
    monkeypatch.setattr(backtest_module, "draws_of", lambda p, o, **how: (seen.append(o), real(p, o, **how))[1])
    return ask(model, frame, draws=3), seen[0]


def test_a_backtest_draws_types_by_what_was_chosen_before(model, policy, frame, monkeypatch):
    until = leaving_out(model, until=1)
    frame = frame[(frame["id"] > 0) | (frame["month"] > 1)].sample(frac=1, random_state=0)  # the first comes later
    before = frame[frame["month"] <= 1]
    answer, observed = forecast(monkeypatch, backtest_module.backtest, until, frame)
    assert answer["segments"]["all"]["members"] == MEMBERS
    codes = pd.factorize(frame["id"])[1]
    known = model.type_probabilities(before).groupby(before["id"].to_numpy()).first()
    newcomer = model.type_probabilities(frame[(frame["id"] == 0) & (frame["month"] == 2)][["use"]]).to_numpy()
    for i, name in enumerate(codes):
        expected = known.loc[name].to_numpy() if name else newcomer[0]
        np.testing.assert_allclose(observed.types[i].numpy(), expected, rtol=1e-5)
    many = torch.stack([observed.starts(torch.Generator().manual_seed(i))[:, -1] for i in range(400)])
    share = torch.stack([(many == k).double().mean(0) for k in range(TYPES)], 1)
    assert (share - observed.types).abs().max() < 0.12


def test_nothing_is_known_of_the_types_in_an_arm_but_their_first_state(model, policy, frame, monkeypatch):
    frame = frame.assign(arm=(frame["id"] >= 20).astype(int))
    held = leaving_out(model, held_out={"arm": (1,)}, min_cell=1)
    answer, observed = forecast(monkeypatch, backtest_module.experiment, held, frame)
    assert answer["segments"]["all"]["members"] == 10
    first = frame[(frame["id"] >= 20) & (frame["month"] == 0)]
    np.testing.assert_allclose(observed.types.numpy(), model.type_probabilities(first[["use"]]).to_numpy(), rtol=1e-6)
