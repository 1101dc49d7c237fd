"""A study of three hidden types, small enough for exact comparisons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import Config
from irl.data.panel import Panel, panel_from_frame
from irl.fitted import FittedModel, new_networks

TYPES, PERIODS = 3, 6
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "state": {"use": {"kind": "ordinal", "levels": 3, "dynamics": "table"}},
    },
    "anchor": {"action": "none"},
    "discount": 0.8,
    "types": TYPES,
}  # fmt: skip


@pytest.fixture(scope="package")
def three_types() -> Callable[[int], tuple[Panel, FittedModel]]:
    """``three_types(members)``: a panel of random choices, and a model of three types, untrained."""

    def make(members: int) -> tuple[Panel, FittedModel]:
        rng, rows = np.random.default_rng(0), members * PERIODS
        frame = pd.DataFrame({
            "id": np.repeat(np.arange(members), PERIODS), "month": np.tile(np.arange(PERIODS), members),
            "use": rng.integers(3, size=rows), "plan": rng.choice(["none", "member"], rows),
        })  # fmt: skip
        config = Config.model_validate(STUDY)
        panel = panel_from_frame(frame, config)
        torch.manual_seed(0)
        return panel, new_networks(config, panel.schema.with_types(TYPES, dynamics=False))

    return make
