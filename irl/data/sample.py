"""Members that a run carries, so that it can be asked where its panel is not: ``RUN/sample.parquet``.

A sample has all rows that were fitted on of some members, drawn at random and numbered anew, and no column but those
that the study names. Nothing in it says who they are; what they did in which period is there. It serves questions that
take the model as it is (scenarios, attribution); what is estimated again asks for the panel.
"""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
import pandas as pd

from irl.config import Config
from irl.data.encode import factorized
from irl.data.read import read_fitted, read_table
from irl.data.rows import study_columns

SAMPLE = "sample.parquet"


def draw_sample(frame: pd.DataFrame, config: Config, *, members: int, seed: int) -> pd.DataFrame:
    """The rows of so many members of ``frame``, those a study was fitted on (all, if there are fewer).

    Members (and clusters, if a column names them) are numbered from 0 in an order drawn by ``seed``; rows come by
    member in the order of the frame.
    """
    data, random = config.data, np.random.default_rng(seed)
    frame = frame[[name for name in study_columns(config) if name in frame.columns]]
    codes, known = factorized(frame[data.member])
    number = random.permutation(len(known))[codes]
    frame = frame.assign(**{data.member: number})[number < members]
    if data.cluster is not None and data.cluster not in (data.member, *data.state, *data.segment):
        clusters, known = factorized(frame[data.cluster])
        frame = frame.assign(**{data.cluster: random.permutation(len(known))[clusters]})
    return frame.sort_values(data.member, kind="stable", ignore_index=True)


def with_sample(config: Config, run: Path) -> tuple[Config, str | None]:
    """The study as it is; or, if its panel is not there and the run carries a sample, reading that, and what to say."""
    sample, path = run / SAMPLE, config.data.path
    if not sample.is_file() or Path(path).expanduser().exists() or glob.glob(str(Path(path).expanduser())):
        return config, None
    data = config.data.model_copy(update={"path": str(sample), "held_out": {}, "until": None})  # done when it was drawn
    members = read_table(str(sample), columns=[data.member])[data.member].nunique()
    said = f"the panel {path} is not here: the members are the {members:,} of {sample}"
    return config.model_copy(update={"data": data}), said


def members_of(config: Config, run: Path) -> tuple[pd.DataFrame, str | None]:
    """The rows that a study was fitted on, or of the sample that its run carries; and, if so, what is to be said of it.

    Raises
    ------
    InputError
        If there is neither, or the rows cannot be read.
    """
    config, said = with_sample(config, run)
    return read_fitted(config), said
