"""A tour in Python, cell by cell (`# %%`, as editors and `jupytext --to ipynb` read it).

python scripts/tutorial.py [folder, default runs/tutorial]

A small market is simulated, so that the truth is known. A study is estimated on it as it would be on your own panel;
then what members value, what they would choose at another price and which benefit counts most are looked at.
"""

# %% A market: 500 members of two invented segments choose a plan every month; two benefits, no seasons.
from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

import irl
from irl import membership, runs
from irl.config import Config
from irl.counterfactual.attribution import RESULT, attribute
from irl.data import panel_from_frame
from irl.estimation.pipeline import train
from irl.membership.tastes import invented_segments
from irl.report import load_record, log_run, recovery, write_card, write_report
from irl.report.attribution import sentences

folder = Path(sys.argv[1] if sys.argv[1:] else "runs/tutorial")
tastes = {name: taste for name, taste in invented_segments().items() if name in ("gen_z", "family_us")}
segments = {name: replace(taste, base=taste.base + 0.7) for name, taste in tastes.items()}  # few benefits, but enough
market = membership.Market(segments=segments, seasons=dict.fromkeys(("video", "shipping"), (0.0,) * 12))
solution = membership.solve(market)  # members look ahead: solved exactly
panel = membership.simulate(solution, members=500, periods=18, seed=0).drop(columns="month")
print(panel.head(3).T)

# %% The study: what the columns mean. For your own panel, the same as a YAML file (configs/membership.yaml).
contract = {"dynamics": "table", "parents": ["status", "months_left"]}  # moved by the action and these two
price = {"kind": "numeric", "dynamics": "static", "assigned": "randomised"}  # varied for no reason of taste
use = {"kind": "ordinal", "levels": 3, "dynamics": "learned"}
state = {
    "segment": {"kind": "category", "dynamics": "static"},
    "status": {"kind": "category"} | contract,
    "months_left": {"kind": "ordinal", "levels": 12} | contract,
    "price_monthly": price, "price_annual": price, "video": use, "shipping": use,
}  # fmt: skip
data = {"path": "in memory", "member": "member_id", "period": "period", "action": "plan", "segment": "segment",
        "actions": list(membership.ACTIONS), "available": {"monthly": {"status": ["out", "monthly"]}}}  # fmt: skip
config = Config.model_validate({
    "data": data | {"state": state}, "discount": 0.95,
    "anchor": {"action": "none", "reward": 0.0},  # no plan is worth nothing: rewards are relative to that
    "reward": {"structure": "linear", "benefits": ["video", "shipping"]}, "estimation": {"refit": {"rows": 1000}},
})  # fmt: skip

# %% Estimate: choice probabilities, the anchor's value, rewards, how states move, the refit by maximum likelihood.
members = panel_from_frame(panel, config)
model = train(config, members, folder, device=torch.device("cpu"), overwrite=True)
print(model.reward(panel).groupby(panel["segment"]).mean().round(2))  # a row per member and month before the mean

# %% With standard errors, and against the truth, which only a simulated market tells.
print(model.standard_error(panel).groupby(panel["segment"]).mean().round(2))
plans, truth = ["monthly", "annual"], membership.true_reward(solution, panel.assign(month=0))
scores = recovery(model.reward(panel)[plans], truth[plans], panel["segment"] + panel["status"])
print(scores.round(3))

# %% A scenario: the annual plan a fifth dearer, a price that was tested in the panel.
dearer = {"name": "dearer", "periods": 12, "changes": [{"feature": {"name": "price_annual", "set": 100.8}}]}
outcomes = irl.simulate(model, dearer, panel)
last = outcomes[(outcomes["period"] == 11) & outcomes["outcome"].str.startswith("share_")]
print(last[["segment", "outcome", "baseline", "scenario", "change", "low", "high"]].round(3).to_string(index=False))

# %% Which benefit counts most over a member's lifetime? Then the report, the model card, and figures for TensorBoard.
runs.write_json(folder / RESULT, attribute(model, members))
record = load_record(folder)
print("\n".join(sentences(record)))
print(write_report(record, "In memory."), write_card(record, "In memory."), log_run(record, "In memory."))
