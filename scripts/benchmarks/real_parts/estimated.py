"""Our estimate of a study, and how long things take, for the parts of the benchmark."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from irl.config import Config, load_config, validated
from irl.data import panel_from_frame
from irl.data.split import fitted_rows
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.fitted import FittedModel

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Clock:
    """Seconds since it was made, on the wall and of this process's CPU time."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "CPU s": time.process_time() - self.cpu}


def study(name: str, *options: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", options)


def study_of(about: dict[str, Any]) -> Config:
    return validated(Config, about, "the benchmark")


def estimated(config: Config, frame: pd.DataFrame) -> tuple[FittedModel, dict[str, Any], dict[str, float]]:
    """The model, its metrics and how long it took, of the rows of ``frame`` that the study is fitted on."""
    clock = Clock()
    panel = panel_from_frame(fitted_rows(frame, config.data), config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=config.seed))
    return model, metrics, clock.read()
