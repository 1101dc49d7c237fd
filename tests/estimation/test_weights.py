"""Weights: a member of weight 2 is two members, and a sample drawn by choices is weighted back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import evaluation
from irl.config import Config, Step
from irl.counterfactual.attribution import _cells
from irl.counterfactual.population import cautions, draw_starts
from irl.data.panel import Panel, first_rows, panel_from_frame
from irl.estimation.dynamics import fit_dynamics
from irl.estimation.findings import contributions, reward_summary
from irl.estimation.inference import choice_scores
from irl.estimation.logit import Choices, Logit
from irl.estimation.pipeline import estimate, held_out_rows
from irl.estimation.policy import fit_policy
from irl.estimation.training import Workbench
from irl.fitted import FittedModel
from irl.scenario import scenario_from
from irl.transitions import States, kernel_rows, observed

MEMBERS = 150
BENCH = Workbench(device=torch.device("cpu"), seed=0)
TINY = {"hidden": [4], "max_epochs": 2, "batch_size": 512}


def study() -> Config:
    return Config.model_validate(
        {
            "data": {
                "path": "none.parquet", "member": "id", "period": "month", "action": "plan",
                "actions": ["none", "member"], "segment": "region", "weight": "w", "cluster": "who",
                "state": {
                    "region": {"kind": "category", "dynamics": "static"},
                    "use": {"kind": "ordinal", "levels": 3, "dynamics": "table"},
                },
            },
            "anchor": {"action": "none"}, "discount": 0.9,
            "reward": {"structure": "linear", "benefits": ["use"]},
            "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY,
                           "refit": {"rows": 300}},
        }
    )  # fmt: skip


def people(members: int, periods: int, seed: int) -> pd.DataFrame:
    """Members who choose `member` more often the more they use, and use more then."""
    rng = np.random.default_rng(seed)
    use, rows = rng.integers(0, 3, members), []
    for month in range(periods):
        action = (rng.random(members) < 0.3 + 0.2 * use).astype(int)
        plan = np.array(["none", "member"])[action]
        rows.append(pd.DataFrame({"id": np.arange(members), "month": month, "use": use, "plan": plan}))
        use = np.clip(use + np.where(rng.random(members) < 0.5, 2 * action - 1, 0), 0, 2)
    frame = pd.concat(rows, ignore_index=True)
    return frame.assign(region=np.where(frame["id"] % 3, "north", "south"), who=frame["id"])


@pytest.fixture(scope="module")
def weighted_and_twice() -> tuple[FittedModel, Panel, Panel]:
    """A third of the members weigh 2, or are there twice."""
    frame, config = people(MEMBERS, 6, seed=0), study()
    heavy = frame["id"] % 3 == 1
    once = panel_from_frame(frame.assign(w=np.where(heavy, 2.0, 1.0)), config)
    model, _ = estimate(config, once, bench=BENCH)
    double = pd.concat([frame, frame[heavy].assign(id=lambda f: f["id"] + 1000)]).assign(w=1.0)
    return model, once, panel_from_frame(double, config, schema=once.schema)


def sums_of(model: FittedModel, panel: Panel) -> dict[str, torch.Tensor]:
    """What estimation and findings are made of, per unit of weight."""
    assert model.refit is not None
    share, width = float(panel.weight.double().sum()), model.refit.weights.shape[1]
    one = torch.eye(2 * width, dtype=torch.float64)
    logit = Logit(torch.stack([0 * one[:width, :width], one[:width, :width]]), model.refit.weights, 0, 1.0)
    choices = Choices(model, panel, panel.free.nonzero().squeeze(1), {})
    theta = torch.linspace(-0.5, 0.5, width, dtype=torch.float64)
    rows = kernel_rows(model, observed(panel), lambda state, phi: model.log_policy_of(state, model.schema.menu(state)))
    moves = fit_dynamics(panel, held_out_rows(panel, 0.2, 0), Step.model_validate(TINY), bench=BENCH)[0]
    groups, summary = _cells(panel, 1)[1], reward_summary(model, panel)["member"]
    return {
        "likelihood": torch.tensor(logit.log_likelihood(theta, choices) / share),
        "gradient": logit.gradient(theta, choices) / share,
        "curvature": logit.curvature(theta, choices) / share,
        "kernel": evaluation.accumulate(rows, actions=2).matrix / share,
        "scores": choice_scores(model, panel, one)[:MEMBERS] / share,
        "dynamics": torch.as_tensor(moves.table_1),
        "rewards": torch.tensor([[summary[s][k] for k in ("mean", "se")] for s in ("north", "south", "all")]),
        "benefits": torch.tensor(contributions(model, panel)["member"]["all"]["use"]["mean"]),
        "attribution": groups.state.double().T @ groups.share,
    }


def test_a_member_of_weight_two_is_two_members(weighted_and_twice):
    model, once, twice = weighted_and_twice
    plain = replace(once, weight=torch.ones_like(once.weight))
    found, same, other = (sums_of(model, panel) for panel in (once, twice, plain))
    for name, values in found.items():
        assert torch.allclose(values, same[name], rtol=1e-5, atol=1e-7), name
        assert not torch.allclose(values, other[name], rtol=1e-4, atol=1e-6), name


def test_members_start_by_their_weight(weighted_and_twice):
    model, once, _ = weighted_and_twice
    states, first = States(once.state, once.segment, once.weight), first_rows(once.member).nonzero().squeeze(1)
    scenario = scenario_from({"name": "x", "members": 30_000, "changes": [{"reward": {"action": "member", "add": 1}}]})
    starts = draw_starts(states, first, scenario, model.schema)
    weight, segment = once.weight[first], once.segment[first]
    for s in (0, 1):
        mine = segment == s
        assert int((starts.segment == s).sum()) == pytest.approx(
            30_000 * float(weight[mine].sum() / weight.sum()), abs=1
        )
        mean = (weight * once.state[first, 1])[mine].sum() / weight[mine].sum()
        drawn = starts.state[starts.segment == s, 1].mean()
        assert float(drawn) == pytest.approx(float(mean), abs=0.02)
    assert cautions(scenario, None, once) == []
    (said,) = cautions(scenario.model_copy(update={"members": "all"}), None, once)
    assert "`members: 20000` draws by weight" in said


def test_what_a_start_is_taken_for(weighted_and_twice):
    _, once, _ = weighted_and_twice
    scenario = scenario_from({"name": "x", "members": 10, "changes": [{"reward": {"action": "member", "add": 1}}]})
    assert "no cohort of newcomers" in cautions(scenario, "stock", once)[0]
    assert not cautions(scenario, "flow", once) and not cautions(scenario, "stock", None)
    last = scenario.model_copy(update={"start": "last"})
    assert not cautions(last, "stock", once)  # all are there to the end
    ended = replace(once, period=torch.where(once.member < 30, once.period - 1, once.period))
    assert "also of the 20%" in cautions(last, None, ended)[0]


def test_a_sample_drawn_by_choices_is_weighted_back():
    """Of those who chose `none` in the first month a quarter is kept."""
    frame, config = people(2500, 2, seed=1), study()
    joined = frame["id"].map(frame[frame["month"] == 0].set_index("id")["plan"] == "member")
    sample = frame[joined | (frame["id"] % 4 == 0)].assign(w=lambda f: np.where(joined[f.index], 1.0, 4.0))
    options = Step.model_validate({"hidden": [8], "max_epochs": 15, "batch_size": 256})
    share = {}
    for name, rows in (("weighted", sample), ("not", sample.assign(w=1.0))):
        panel = panel_from_frame(rows, config)
        network = fit_policy(panel, held_out_rows(panel, 0.2, 0), options, bench=BENCH)[0]
        states = panel_from_frame(frame.assign(w=1.0), config, schema=panel.schema)
        with torch.no_grad():
            share[name] = float(network(states.state, states.menu)[:, 1].exp().mean())
    true = float((0.3 + 0.2 * frame["use"]).mean())
    assert share["weighted"] == pytest.approx(true, abs=0.025) and share["not"] > true + 0.08, (share, true)


def test_members_with_one_row_serve_choices_only():
    frame, config = people(60, 5, seed=2).assign(w=1.0), study()
    single = frame[(frame["id"] >= 20) | (frame["month"] == 0)]
    panel = panel_from_frame(single, config)
    model, metrics = estimate(config, panel, bench=BENCH)
    assert metrics["panel"]["sampling"]["single"] == 20
    assert metrics["refit"]["choices"] == len(single) and np.isfinite(model.value(single)).all()
    assert (panel.next_row[first_rows(panel.member)][:20] == -1).all()
