"""Recovered rewards against the known ones of a simulated market, over the rows of the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from irl.config import InputError
from irl.data.read import read_table
from irl.fitted import load_model
from irl.report.record import Record
from irl.report.tables import Table, number

STATUS = "status"
"""The state column that, with the segment, makes the cells of ``within``, if the study has one of this name."""
KEYS = ("member_id", "period")
"""The columns of the truth file that say which row it is."""


@dataclass(frozen=True)
class Truth:
    """``scores`` as :func:`recovery` gives them; rewards of the visited rows by paid action [N]."""

    scores: pd.DataFrame
    estimated: pd.DataFrame
    truth: pd.DataFrame
    cells: str


def truth_file(record: Record) -> Path:
    """Where ``scripts/simulate.py`` puts the true rewards: next to the panel."""
    data = Path(record.config.data.path).expanduser()
    return data.with_name(f"{data.stem}_truth.parquet")


def against_truth(record: Record) -> Truth | str:
    """The comparison, or a sentence that says why there is none."""
    config, file = record.config, truth_file(record)
    data = config.data
    if config.market is None:
        return "The study is not on the simulated market, so there is no known reward to compare with."
    if not file.is_file():
        return f"The true rewards are not there any more ({file.name} next to the panel), so there is no comparison."
    columns = [f"reward_{a}" for a in record.paid]
    known = [c for c in (config.anchor.reward,) if isinstance(c, str)]
    needed = list(dict.fromkeys([data.member, data.period, *data.segment, *data.state, *known]))
    try:
        panel = read_table(data.path, columns=needed)
        true = read_table(str(file), columns=[*KEYS, *columns])
        keys = dict(zip(KEYS, (data.member, data.period), strict=True))
        true, on = true.rename(columns=keys), [data.member, data.period]
        if panel.duplicated(on).any() or true.duplicated(on).any():  # pandas' own message would name members
            return "A member has two rows in one period in the panel or its truth, so there is no comparison."
        merged = panel.merge(true, on=on)
        if merged.empty:
            return "The panel and the true rewards have no row in common, so there is no comparison."
        estimated = load_model(record.folder / "model").reward(merged)[list(record.paid)]
    except (InputError, ValueError) as error:  # keys of different types do not merge
        return f"The comparison with the true rewards is left out: {' '.join(str(error).split())}"
    grouping = [*data.segment, *([STATUS] if STATUS in data.state and STATUS not in data.segment else [])]
    cells = merged.groupby(grouping).ngroup() if grouping else pd.Series(0, index=merged.index)
    truth = merged[columns].set_axis(list(record.paid), axis=1)
    scores = recovery(estimated, truth, cells)
    return Truth(scores, estimated, truth, " × ".join(grouping) or "the whole panel")


def truth_table(truth: Truth) -> Table:
    """The scores as a table of the report."""
    rows = [
        (str(name), f"{int(s.pairs):,}", number(s.rmse, 3), number(s.sd, 3), number(s.r2, 3), number(s.within, 3))
        for name, s in truth.scores.iterrows()
    ]
    return Table(
        title="Recovered against true reward, over visited states",
        header=("action", "rows", "RMSE, reward units", "sd of truth, reward units", "R²", f"R² within {truth.cells}"),
        rows=tuple(rows),
        note=f"R² within {truth.cells} measures against each cell's own mean: what is recovered beyond differences "
        "between the cells, and errors of the cells' means count. It can be negative.",
    )


def recovery(estimated: pd.DataFrame, truth: pd.DataFrame, cells: Sequence[Any] | pd.Series) -> pd.DataFrame:
    """How well rewards are recovered where the truth is known: per action and pooled.

    Parameters
    ----------
    estimated, truth : rewards of the visited rows [N], the same columns (one per action, without the anchor) in any
        order; NaN where an action is not available. A pair (row, action) counts where both are known.
    cells : label of each row [N], e.g. segment × status.

    Returns
    -------
    Index: the actions, then ``pooled``. Columns: ``pairs``, ``rmse`` and ``sd`` (of the truth) in reward units,
    ``r2`` = 1 - SSE / SST around the mean, and ``within`` = 1 - SSE / SST around the mean of each cell and action.
    SSE is sum (estimated - truth)^2 in both, so an estimate that misses a cell's mean loses ``within`` too. NaN where
    SST is 0.
    """
    if len(estimated) != len(truth) or len(cells) != len(truth) or set(estimated) != set(truth):
        raise ValueError("estimated, truth and cells must have the same rows, and the frames the same actions")
    cell = [str(c) for c in cells]
    parts = []
    for action in estimated.columns:
        pairs = pd.DataFrame({"h": estimated[action].to_numpy(float), "y": truth[action].to_numpy(float), "cell": cell})
        parts.append(pairs.assign(action=str(action)).dropna(subset=["h", "y"]))
    pooled = pd.concat(parts, ignore_index=True)
    pooled["cell_mean"] = pooled.groupby(["action", "cell"])["y"].transform("mean")
    scores = {action: _scores(pooled[pooled["action"] == str(action)]) for action in estimated.columns}
    return pd.DataFrame({**scores, "pooled": _scores(pooled)}).T.astype({"pairs": int})


def _scores(pairs: pd.DataFrame) -> dict[str, float]:
    h, y, cell_mean = (pairs[name].to_numpy() for name in ("h", "y", "cell_mean"))
    if not len(y):
        return {"pairs": 0, "rmse": math.nan, "sd": math.nan, "r2": math.nan, "within": math.nan}
    sse = float(((h - y) ** 2).sum())

    def explained(total: float) -> float:
        return 1 - sse / total if total > 1e-12 * len(y) else math.nan

    return {
        "pairs": len(y),
        "rmse": math.sqrt(sse / len(y)),
        "sd": float(y.std()),
        "r2": explained(float(((y - y.mean()) ** 2).sum())),
        "within": explained(float(((y - cell_mean) ** 2).sum())),
    }
