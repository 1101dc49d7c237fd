"""A small plan study used by the tests of irl.data, and a clean frame for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from irl.config import Config

Study = Callable[..., Config]


@pytest.fixture
def study() -> Study:
    """A function that makes the study; its arguments replace options of the data section (anchor apart)."""

    def make(*, anchor: dict[str, Any] | None = None, **data: Any) -> Config:
        options: dict[str, Any] = {
            "path": "panel.parquet",
            "member": "id",
            "period": "month",
            "action": "plan",
            "actions": ["none", "monthly", "annual"],
            "available": {
                "none": {"status": ["out", "in"]},
                "monthly": {"status": ["out", "in", "locked"]},
                "annual": {"status": "out"},
            },
            "terminal": {"status": ["gone"]},
            "segment": "region",
            "state": {
                "status": {"kind": "category", "dynamics": "table", "parents": ["status", "left"]},
                "left": {"kind": "ordinal", "levels": 3, "dynamics": "table"},
                "uses": {"kind": "count", "dynamics": "learned"},
                "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
            },
        }
        return Config.model_validate(
            {"data": options | data, "anchor": anchor or {"action": "none"}, "discount": 0.9},
        )

    return make


@pytest.fixture
def frame() -> pd.DataFrame:
    """Members 7 and 9. 7: a choice, two locked months, a choice, gone. 9: a choice, a missing month, two choices."""
    return pd.DataFrame(
        {
            "id": [7, 7, 7, 7, 7, 9, 9, 9],
            "month": [1, 2, 3, 4, 5, 1, 3, 4],
            "plan": ["monthly", "monthly", "monthly", "none", None, "none", "annual", "none"],
            "status": ["out", "locked", "locked", "in", "gone", "out", "out", "in"],
            "left": [0, 2, 1, 0, 0, 0, 0, 0],
            "uses": [0, 4, 4, 2, 0, 0, 1, 5],
            "price": [0.8, 0.8, 0.8, 0.8, 0.8, 1.2, 1.2, 1.2],
            "region": ["north", "north", "north", "south", "south", "east", "east", "east"],
        }
    )
