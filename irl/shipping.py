"""A trained study small enough to be shipped: the model, a sample of its members, and numbers to know it by.

What is left out of the run: the steps that training was resumed from, TensorBoard, the report, and the smallest part of
the covariance of the reward (:func:`irl.weights.write`). ``recorded.json`` holds what :func:`recorded` gives, so that a
later version can be seen to read the same model.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from irl import runs
from irl.counterfactual import ask
from irl.data import read_fitted
from irl.data.sample import SAMPLE, draw_sample
from irl.fitted import FittedModel, load, load_model
from irl.scenario import Scenario

RECORDED = "recorded.json"
KEPT = 0.999
"""Part of the trace of the covariance that is shipped."""
FEW = 30
"""Members of the sample that the recorded scenario is asked of."""


def ship(run: Path, folder: Path, *, members: int, scenario: Scenario) -> None:
    """Write the shipped form of a finished run to ``folder``, a run folder that was started; metrics.json comes last.

    Raises
    ------
    InputError
        If the run is not complete, its panel is not there, or the scenario does not fit.
    """
    model = load(run)
    sample = draw_sample(read_fitted(model.config), model.config, members=members, seed=model.config.seed)
    model.save(folder / "model", kept=KEPT)
    shutil.copyfile(run / "config.yaml", folder / "config.yaml")
    runs.atomic_write(folder / SAMPLE, sample.to_parquet(index=False, compression="zstd"))
    runs.write_json(folder / RECORDED, recorded(load_model(folder / "model"), sample, scenario))
    shutil.copyfile(run / runs.LAST, folder / runs.LAST)


def recorded(model: FittedModel, sample: pd.DataFrame, scenario: Scenario) -> dict[str, Any]:
    """Means over the rows of the sample, and a small version of the scenario's answer for its first members.

    ``reward``, ``policy`` by action, ``value``: of the rows where something is chosen; ``standard_error`` of the
    rewards of the first members, if there are any. ``shares``: case -> outcome -> (baseline, scenario), over all
    segments and 12 periods of 300 members, without intervals.
    """
    few = sample[sample[model.config.data.member] < FEW]
    asked = scenario.model_copy(update={"members": 300, "periods": 12})
    typed = model.with_types(few, seed=0)
    error = model.standard_error(typed).mean().to_dict() if model.has_standard_errors else {}
    certain = copy.deepcopy(model)
    if certain.refit is not None:
        certain.refit.covariance.zero_()  # drawing parameters would take most of the time
    table = ask(certain, asked, few).answer(bands=False).outcomes
    wanted = table["outcome"].str.startswith("share_") & (table["segment"] == table["segment"].iloc[-1])
    mean = table[wanted].groupby(["case", "outcome"])[["baseline", "scenario"]].mean()
    shares: dict[str, dict[str, list[float]]] = {}
    for (case, outcome), pair in zip(mean.index, mean.to_numpy().tolist(), strict=True):
        shares.setdefault(str(case), {})[str(outcome)] = pair
    return {
        "reward": model.reward(sample).mean().to_dict(),
        "policy": model.policy(sample).mean().to_dict(),
        "value": float(model.value(sample).mean()),
        "standard_error": error,
        "scenario": scenario.name,
        "shares": shares,
    }
