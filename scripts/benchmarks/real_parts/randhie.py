"""RAND Health Insurance Experiment: the arm at 25 % coinsurance is left out, and forecast for the years it lasted.

Share of person-years with a doctor visit, by income group (thirds), and 95 % interval of the model's; beside what
happened in the other arms, and a static logit of the visit on the first state (coinsurance in it) and the year.
"""

from __future__ import annotations

import numpy as np
from real_parts.estimated import Clock, estimated, study

from irl.counterfactual.backtest import experiment
from irl.data.health_insurance import health_insurance

TITLE = "share with a doctor visit in the arm at 25 % coinsurance, per cent; |error|: mean over income groups"
GROUPS = ("low", "middle", "high", "all")
SHOWN = {**dict.fromkeys(GROUPS, 1), "|error|": 2}
SEEDED = False


def ours(seed: int) -> dict[str, object]:
    frame, clock = health_insurance(), Clock()
    model, _, _ = estimated(study("health_insurance", f"seed={seed}"), frame)
    answer = experiment(model, frame, seed=seed)["segments"]
    names = {
        "seen": "observed", "ours": "model", "ours, low": "low", "ours, high": "high",
        "other arms": "control", "logit": "logit",
    }  # fmt: skip
    found = {}
    for row, name in names.items():
        cells = {group: 100 * answer[group]["mean_share"]["visit"][name] for group in GROUPS}
        error = np.mean([abs(cells[g] - 100 * answer[g]["mean_share"]["visit"]["observed"]) for g in GROUPS[:3]])
        found[row] = {**cells, "|error|": float(error)} if name in ("model", "control", "logit") else cells
    return {"rows": [{"job": row, **cells} for row, cells in found.items()], **clock.read()}


JOBS = {"ours": ours}
