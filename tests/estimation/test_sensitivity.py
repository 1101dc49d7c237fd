"""Sensitivity on a machine that wears out, solved exactly: a panel that can tell the discount and one that cannot."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config, InputError
from irl.data.panel import panel_from_frame
from irl.estimation import sensitivity as module
from irl.estimation.pipeline import estimate
from irl.estimation.sensitivity import ask, per_period, point_at
from irl.estimation.training import Workbench
from irl.fitted import new_networks
from irl.report.record import Record
from irl.report.sensitivity import profile, sentences

LEVELS, GAMMA = 10, 0.9
TINY = {"hidden": [8], "max_epochs": 8, "batch_size": 1024}
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "t", "action": "choice", "actions": ["replace", "keep"],
        "state": {"wear": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"}},
    },
    "anchor": {"action": "replace", "reward": -3.0},
    "reward": {"structure": "linear"},
    "discount": GAMMA,
    "estimation": {
        "policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY, "folds": 1,
        "refit": {"rows": 2000, "standard_errors": False},
    },
}  # fmt: skip


def machine(members: int, periods: int, seed: int, *, in_vain: bool = False) -> pd.DataFrame:
    """Keeping costs .35 per level of wear, which rises by a step in 60 % of periods; replacing costs 3 and resets it.

    ``in_vain``: wear comes anew every period whatever is done, so that no discount makes a difference.
    """
    rise = 0.4 * np.eye(LEVELS) + 0.6 * np.eye(LEVELS, k=1)
    rise[-1, -1] = 1
    reset = np.tile(rise[0], (LEVELS, 1))
    if in_vain:
        rise = reset = np.full((LEVELS, LEVELS), 1 / LEVELS)
    moves = torch.from_numpy(np.stack([reset, rise], axis=1))
    reward = torch.stack([torch.full((LEVELS,), -3.0), 0.2 - 0.35 * torch.arange(LEVELS)], 1).double()
    free = torch.ones(LEVELS, 2, dtype=torch.bool)
    policy = tabular.solve(tabular.FiniteMDP(reward, free, tabular.dense_expectation(moves), GAMMA, 1.0)).policy
    rng = np.random.default_rng(seed)
    wear, rows = rng.integers(0, LEVELS, members), []
    for t in range(periods):
        action = (rng.random(members) < policy[wear, 1].numpy()).astype(int)
        choice = np.array(["replace", "keep"])[action]
        rows.append(pd.DataFrame({"id": np.arange(members), "t": t, "wear": wear, "choice": choice}))
        wear = (rng.random(members)[:, None] > moves[wear, action].numpy().cumsum(1)).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows)


def fitted(members: int, periods: int = 20, **options):
    config = Config.model_validate(STUDY)
    panel = panel_from_frame(machine(members, periods, seed=0, **options), config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=0))
    return model, panel, metrics


@pytest.fixture(scope="module")
def large():
    return fitted(1500)


def asked(model, panel, path, tick=lambda *at: None, **options):
    question = ask(model, panel, path, periods_per_year=1, **options)
    question.answer(tick=tick)
    return len(question.missing), json.loads(path.read_text(encoding="utf-8"))


def recorded(model, content) -> Record:
    return Record(None, model.config, {}, {}, (), content)


def test_annual_discounts_are_converted_to_the_period():
    assert per_period(0.95, 12) == pytest.approx(0.995735, abs=1e-6)
    assert per_period(0.9, 1) == pytest.approx(0.9) and per_period(0.81, 2) == pytest.approx(0.9)
    for annual, year in ((1.0, 12), (0.0, 12), (1.2, 12), (0.9, 0)):
        with pytest.raises(InputError, match="give"):
            per_period(annual, year)


def test_a_large_panel_tells_the_discount(large, tmp_path):
    model, panel, _ = large
    _, content = asked(model, panel, tmp_path / "s.json", discounts=(0.3, 0.6, 0.97), shifts=())
    fits = profile(recorded(model, content))
    assert [f.annual for f in fits] == pytest.approx([0.3, 0.6, 0.9, 0.97])
    assert [f.tied for f in fits][:3] == [False, False, True] and fits[2].study
    assert fits[0].behind > fits[1].behind > 8
    assert "The panel favours an annual discount factor of 0.9" in sentences(recorded(model, content))[0]


def test_a_panel_in_which_choices_change_nothing_cannot(tmp_path):
    model, panel, _ = fitted(400, 10, in_vain=True)
    _, content = asked(model, panel, tmp_path / "s.json", discounts=(0.3, 0.6, 0.97), shifts=())
    found = sentences(recorded(model, content))
    assert found[0] == "The panel cannot tell annual discount factors between 0.3 and 0.97 apart."


def test_a_constant_shift_of_the_anchor_moves_all_rewards_and_no_choice(large):
    model, panel, _ = large
    before, after = point_at(model, panel, GAMMA, 0.0), point_at(model, panel, GAMMA, 2.0)
    assert np.abs(np.array(before.probabilities) - after.probabilities).max() < 1e-3
    for action in ("replace", "keep"):
        assert after.rewards[action]["all"] - before.rewards[action]["all"] == pytest.approx(2, abs=0.01)
    assert sum(after.held_out) == pytest.approx(sum(before.held_out), abs=0.5)
    assert before.converged and after.converged


def test_the_model_and_its_refit_are_left_as_they_were(large):
    model, panel, metrics = large
    theta = model.refit.theta.clone()
    point = point_at(model, panel, 0.5, 1.0)
    assert torch.equal(model.refit.theta, theta) and model.config.discount == GAMMA
    assert model.schema.known_reward(panel.state[:1]).item() == -3
    own = point_at(model, panel, GAMMA, 0.0)  # the study's own point is the study's refit again
    report = metrics["refit"]
    assert own.log_likelihood == pytest.approx(report["log_likelihood"] * report["choices"], abs=0.1)
    assert own.coefficients[0]["estimate"] != pytest.approx(point.coefficients[0]["estimate"], abs=0.1)
    held_out = sum(own.held_out) / report["choices"]
    assert own.log_likelihood / report["choices"] - 0.005 < held_out < own.log_likelihood / report["choices"]


def test_a_stopped_sweep_goes_on(large, tmp_path, monkeypatch):
    model, panel, _ = large
    path, plain, calls = tmp_path / "s.json", point_at(model, panel, GAMMA, 0.0), []

    def quick(model, panel, discount, shift, kept):
        assert (kept is None) == (shift != 0 or discount == GAMMA)
        calls.append((discount, shift))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return module.replace(plain, discount=discount, shift=shift)

    monkeypatch.setattr(module, "point_at", quick)
    with pytest.raises(KeyboardInterrupt):
        asked(model, panel, path, discounts=(0.5, 0.6), shifts=(1.0,))
    assert len(json.loads(path.read_text(encoding="utf-8"))["points"]) == 2
    ticks = []
    made, content = asked(model, panel, path, discounts=(0.5, 0.6), shifts=(1.0,), tick=lambda *at: ticks.append(at))
    assert made == 2 and calls[3:] == [(0.6, 0.0), (GAMMA, 1.0)]
    assert [(p["discount"], p["shift"]) for p in content["points"]] == [(GAMMA, 0), (0.5, 0), (0.6, 0), (GAMMA, 1)]
    assert ticks == [("discount 0.6 a year", 0, 2), ("anchor +1", 1, 2), ("all points", 2, 2)]
    before = path.read_bytes()
    with pytest.raises(InputError, match="made with another periods_per_year; give --overwrite"):
        ask(model, panel, path, periods_per_year=12)
    other = panel.take_members(torch.arange(panel.n_members) < 100)
    with pytest.raises(InputError, match="made with another panel"):
        asked(model, other, path)
    assert path.read_bytes() == before
    assert asked(model, other, path, discounts=(), shifts=(), overwrite=True)[0] == 1


def test_groups_are_whole_clusters_within_one_fold(large, monkeypatch):
    _, panel, _ = large
    fold, group = module._folds(panel, 0)
    frame = pd.DataFrame({"cluster": panel.cluster, "fold": fold, "group": group})
    assert (frame.groupby("cluster")["group"].nunique() == 1).all()
    assert (frame.groupby("group")["fold"].nunique() == 1).all()
    assert frame["group"].nunique() == module.MOST_GROUPS and frame["fold"].nunique() == module.FOLDS


def test_without_a_refit_it_is_refused(large, tmp_path):
    model, panel, _ = large
    plain = module.replace(model, refit=None)
    with pytest.raises(InputError, match="no refit"):
        asked(plain, panel, tmp_path / "s.json")
    assert new_networks(model.config, model.schema).refit is not None
    with pytest.raises(InputError, match="finite"):
        asked(model, panel, tmp_path / "s.json", shifts=(float("nan"),))
    assert not list(tmp_path.iterdir())
