"""Reward curves: against rewards and standard errors worked by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from irl.config import Config
from irl.data.panel import panel_from_frame
from irl.estimation.curves import curves
from irl.fitted import new_networks

STATE = {
    "region": {"kind": "category", "dynamics": "static"},
    "use": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
    "price": {"kind": "numeric", "dynamics": "static"},
}
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "segment": "region", "state": STATE,
    },
    "anchor": {"action": "none", "reward": 0.0},
    "reward": {"structure": "linear"},
    "discount": 0.9,
}  # fmt: skip
THETA = {"1": -1.0, "region=south": 0.5, "use": 0.25, "price": -0.1}


def near(expected):
    """Equal to the six digits that are kept."""
    return pytest.approx(expected, rel=1e-5)


def made(frame, **changes):
    """The model of a linear reward with weights THETA, their covariance diagonal: .01, .02, ...; and its panel."""
    config = Config.model_validate(STUDY | changes)
    panel = panel_from_frame(frame, config)
    model = new_networks(config, panel.schema)
    assert model.refit is not None and model.terms.names == tuple(THETA)
    model.refit.theta[1] = torch.tensor(list(THETA.values()), dtype=torch.float64)
    width = len(model.refit.covariance)
    model.refit.covariance.copy_(torch.diag(0.01 * torch.arange(1, width + 1, dtype=torch.float64)))
    return model, panel


@pytest.fixture
def frame():
    """One member of the north at price 10, two of the south at prices 10 and 20; two months each."""
    rows = [("a", "north", 10.0), ("b", "south", 10.0), ("c", "south", 20.0)]
    return pd.DataFrame([
        {"id": i, "month": t, "plan": ("none", "member")[t], "region": region, "use": t * 2, "price": price}
        for i, region, price in rows for t in (0, 1)
    ])  # fmt: skip


def test_a_feature_is_moved_and_all_else_stays(frame):
    model, panel = made(frame)
    found = curves(model, panel)
    assert set(found) == {"use", "price"}  # the segments' own column is none
    assert found["use"]["values"] == ["0", "2"] and found["price"]["values"] == [10.0, 20.0]
    assert set(found["use"]["rewards"]) == {"member"}  # the anchor's is known
    use = found["use"]["rewards"]["member"]
    assert use["north"]["mean"] == near([-1 - 1, -1 + 0.5 - 1])
    assert use["south"]["mean"] == near([-1 + 0.5 - 1.5, -1 + 0.5 + 0.5 - 1.5])
    price = found["price"]["rewards"]["member"]
    assert price["south"]["mean"] == near([-1 + 0.5 + 0.25 - 1, -1 + 0.5 + 0.25 - 2])
    assert price["all"]["mean"] == near([-1 + 1 / 3 + 0.25 - 1, -1 + 1 / 3 + 0.25 - 2])


def test_errors_are_those_of_the_mean(frame):
    model, panel = made(frame)
    se = curves(model, panel)["use"]["rewards"]["member"]["south"]["se"]
    assert se == near([math.sqrt(0.01 + 0.02 + 0.03 * u**2 + 0.04 * 15**2) for u in (0, 2)])
    model.refit.covariance.zero_()
    assert curves(model, panel)["use"]["rewards"]["member"]["south"]["se"] == [None, None]


def test_relative_to_a_reference_policy(frame):
    model, panel = made(frame, anchor={"policy": "uniform", "reward": 2.0})
    found = curves(model, panel)["use"]["rewards"]
    member = -1 + 0.5 + 0.25 * 2 - 1.5
    assert found["member"]["south"]["mean"][1] == near(2 + member / 2)
    assert found["none"]["south"]["mean"][1] == near(2 - member / 2)
    whole = math.sqrt(0.01 + 0.02 + 0.03 * 2**2 + 0.04 * 15**2)
    assert found["none"]["south"]["se"][1] == near(whole / 2)


def test_features_of_a_contract_are_put_to_values_seen_together():
    state = {
        "status": {"kind": "category", "dynamics": "table", "parents": ["status", "left"]},
        "left": {"kind": "ordinal", "levels": 3, "dynamics": "table", "parents": ["status", "left"]},
    }
    data = STUDY["data"] | {"state": state, "segment": []}
    frame = pd.DataFrame({
        "id": list("aaaabbbb"), "month": [0, 1, 2, 3] * 2, "plan": ["none", "member"] * 4,
        "status": ["out", "in", "in", "in"] * 2, "left": [0, 2, 1, 0] * 2,
    })  # fmt: skip
    config = Config.model_validate(STUDY | {"data": data})
    panel = panel_from_frame(frame, config)
    model = new_networks(config, panel.schema)
    model.refit.theta[1] = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    assert model.terms.names == ("1", "status=out", "left")
    left = curves(model, panel)["left"]["rewards"]["member"]["all"]["mean"]
    assert left == near([1 + 10 / 4, 101, 201])  # left 0: all states; 1 and 2: those in
    status = curves(model, panel)["status"]["rewards"]["member"]["all"]["mean"]
    assert status == near([1 + 75, 11.0])  # in: at any; out: only where nothing is left


def test_an_action_that_is_nowhere_available_has_no_point(frame):
    data = STUDY["data"] | {"actions": ["none", "member", "more"], "available": {"more": {"use": [2]}}}
    config = Config.model_validate(STUDY | {"data": data})
    panel = panel_from_frame(frame, config)
    found = curves(new_networks(config, panel.schema), panel)["use"]["rewards"]["more"]
    assert found["north"]["mean"] == [None, 0.0]


def test_many_values_are_looked_at_in_a_few_places():
    frame = pd.DataFrame({
        "id": [i // 2 for i in range(202)], "month": [0, 1] * 101, "plan": ["none", "member"] * 101,
        "region": [("north", "south")[i // 2 % 2] for i in range(202)], "use": [0, 2] * 101,
        "price": [float(i // 2) for i in range(202)],
    })  # fmt: skip
    model, panel = made(frame)
    values = curves(model, panel)["price"]["values"]
    assert len(values) == 9 and values[0] == near(5.0) and values[-1] == near(95.0)


def test_of_very_long_panels_a_part_is_looked_at(frame, monkeypatch):
    monkeypatch.setattr("irl.estimation.curves.LOOKED_AT", 5)
    model, panel = made(frame)
    found = curves(model, panel)
    assert found == curves(model, panel)
    assert found["use"]["rewards"]["member"]["all"]["mean"][0] < 0


def test_sampled_states_stand_for_all_of_their_segment(frame, monkeypatch):
    for name in ("ROWS", "LEAST_ROWS"):
        monkeypatch.setattr(f"irl.estimation.curves.{name}", 2)  # of two rows of the north, and four of the south
    model, panel = made(frame)
    model.refit.theta[1, 3] = 0.0
    assert curves(model, panel)["use"]["rewards"]["member"]["all"]["mean"][0] == near(-1 + 0.5 * 4 / 6)
