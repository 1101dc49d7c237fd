"""The P step: polishing never does harm and does good where it should; calibration against hand-made counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import Config, InputError, Step
from irl.data.panel import panel_from_frame
from irl.estimation.policy import BINS, PolicyStep, calibration, fit_policy, polish
from irl.estimation.training import Workbench
from irl.networks import PolicyNetwork

BENCH = Workbench(device=torch.device("cpu"), seed=0)
CONFIG = Config.model_validate(
    {
        "data": {
            "path": "none.parquet", "member": "id", "period": "t", "action": "act", "actions": ["a", "b"],
            "segment": "side", "state": {"x": {"kind": "numeric", "dynamics": "learned"}},
        },
        "anchor": {"action": "a"}, "discount": 0.9,
    }
)  # fmt: skip


def panel(members: int = 400, *, periods: int = 5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=members * periods)
    chosen = rng.random(len(x)) < 1 / (1 + np.exp(-np.sin(3 * x) * 2))
    frame = pd.DataFrame({
        "id": np.repeat(np.arange(members), periods), "t": np.tile(np.arange(periods), members), "x": x,
        "act": np.array(["a", "b"])[chosen.astype(int)],
        "side": np.repeat(np.where(np.arange(members) % 2, "l", "r"), periods),
    })  # fmt: skip
    return panel_from_frame(frame, CONFIG)


def test_polishing_finds_what_too_few_epochs_did_not():
    data = panel()
    held_out = data.member % 4 == 0
    options = Step(hidden=(16,), max_epochs=2, batch_size=500)
    _, report = fit_policy(data, held_out, options, bench=BENCH)
    assert report.polish_gain > 0.02
    assert report.held_out_loss == pytest.approx(report.trained.held_out_loss - report.polish_gain)


def test_polishing_never_does_harm():
    """With ten rows to fit, the likelihood of the others falls at once; the weights are then those from before."""
    data = panel(40)
    torch.manual_seed(0)
    network = PolicyNetwork(data.schema, (32,))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    rows = (data.state, data.menu, data.action, data.weight)
    flipped = (data.state, data.menu, 1 - data.action, data.weight)
    step = PolicyStep(network, Step())
    few = tuple(c[:10] for c in rows)
    assert polish(step, few, tuple(c[:10] for c in flipped)) == 0.0
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


class Given(PolicyNetwork):
    """Probabilities that are the state itself."""

    def forward(self, state, menu):
        return torch.stack([1 - state[:, 0], state[:, 0]], 1).log()


def test_calibration_counts_by_hand():
    data = panel(8, periods=2)
    rows = torch.ones(data.n_rows, dtype=torch.bool)
    x = torch.where(torch.arange(data.n_rows) % 2 == 0, 0.22, 0.77)
    object.__setattr__(data, "state", x.unsqueeze(1))
    object.__setattr__(data, "action", (torch.arange(data.n_rows) % 4 == 1).long())
    error, table = calibration(Given(data.schema, (4,)), data, rows)
    # bin .2: b at .22, never chosen, and a at .23, chosen every second time; bin .7: their complements
    low, high = table["all"]
    assert low == pytest.approx({"predicted": 0.225, "observed": 0.25, "choices": 16})
    assert high == pytest.approx({"predicted": 0.775, "observed": 0.75, "choices": 16})
    assert error == pytest.approx(0.025)
    assert {"l", "r", "all"} == set(table) and all(len(t) <= BINS for t in table.values())


def test_nobody_to_train_on_is_said():
    data = panel(10)
    with pytest.raises(InputError, match="folds"):
        fit_policy(data, torch.ones(data.n_rows, dtype=torch.bool), Step(), bench=BENCH)
