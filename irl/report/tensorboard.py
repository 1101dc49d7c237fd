"""What TensorBoard shows of a run beside the steps' own scalars: options and final figures (HParams), and pictures.

Training logs the scalars of every step to ``RUN/tb/STEP`` (:mod:`irl.estimation.training`). Here the finished run is
added as ``RUN/tb/summary``, and an answered scenario as ``RUN/scenarios/NAME/tb``; tags are the same in every run, so
that runs are seen side by side. A folder is written whole or not at all, and replaced when written again. Like the
report it holds aggregates only: no member's identifier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from irl import runs
from irl.config import Estimation
from irl.report import plots
from irl.report.card import card
from irl.report.curves import curve_panels, shown_segments
from irl.report.estimates import anchor_shares, trained
from irl.report.panel import Panel, picture
from irl.report.record import Record, ScenarioRecord, at, load_answer
from irl.report.truth import Truth

SECTIONS = ("discount", "temperature", "seed", "anchor", "reward", "types", "estimation", "market")
"""What of the study's options is compared between runs: what they say of columns is not."""
MOST_PANELS = 12

Drawn = tuple[str, Sequence[Panel], int, Sequence[tuple[str, int]]]
"""Tag, panels, columns, and the names of the colours."""


def log_run(record: Record, truth: Truth | str) -> Path:
    """Write ``RUN/tb/summary``: options, final figures, pictures and the model card; the folder."""
    folder = record.folder / "tb" / "summary"
    with runs.atomic_folder(folder, replace=True) as unfinished, SummaryWriter(unfinished) as writer:
        final = final_figures(record, truth)
        for part in hparams(options(record), final):
            writer.file_writer.add_summary(part)
        for tag, value in final.items():
            writer.add_scalar(tag, value, 0)
        _pictures(writer, _run_pictures(record, truth))
        writer.add_text("model card", card(record, truth), 0)
    return folder


def log_scenario(record: Record, folder: Path) -> None:
    """Write ``FOLDER/tb`` of the scenario answered in ``folder``: the paths of the plan shares of every case."""
    scenario = load_answer(folder)
    with runs.atomic_folder(folder / "tb", replace=True) as unfinished, SummaryWriter(unfinished) as writer:
        _pictures(writer, _scenario_pictures(record, scenario))


def options(record: Record) -> dict[str, bool | str | float]:
    """What runs are compared by, flat and plain (``estimation.policy.hidden`` -> ``[64, 64]``): what the study assumes,
    and those options of its fits that are not the usual ones."""
    content = record.config.model_dump(mode="json", include=set(SECTIONS))
    usual = dict(_flat({"estimation": Estimation().model_dump(mode="json")}, ""))
    found = {name: value for name, value in _flat(content, "") if usual.get(name) != value}
    counted = {name: at(record.metrics, "panel", name) for name in ("members", "rows")}
    return found | {f"panel.{name}": number for name, number in counted.items() if number is not None}


def final_figures(record: Record, truth: Truth | str) -> dict[str, float]:
    """Tag -> figure: recovery where the truth is known, held-out likelihoods, calibration, residuals, support."""
    m = record.metrics
    shares = [s.share for s in anchor_shares(record) if math.isfinite(s.share)]
    found: dict[str, Any] = {
        "final/held_out_log_likelihood": at(m, "refit", "held_out_log_likelihood"),
        "final/held_out_log_likelihood_policy": _minus(at(m, "policy", "held_out_loss")),
        "final/held_out_log_prob_dynamics": at(m, "dynamics", "held_out_log_prob"),
        "final/expected_calibration_error": at(m, "policy", "expected_calibration_error"),
        "final/bellman_residual": at(m, "anchor_q", "bellman_residual"),
        "final/reward_loss": at(trained(at(m, "reward", default={})), "held_out_loss"),
        "final/smallest_anchor_share": min(shares, default=None),
        "final/warnings": float(len([s for s in anchor_shares(record) if s.thin])),
    }
    if isinstance(truth, Truth):
        for action, scores in truth.scores.iterrows():
            found |= {f"recovery/{key}_{action}": scores[key] for key in ("rmse", "r2", "within")}
    return {tag: float(value) for tag, value in found.items() if value is not None and math.isfinite(value)}


def _run_pictures(record: Record, truth: Truth | str) -> Iterator[Drawn]:
    segments = record.segments[:MOST_PANELS]
    legend = [(s, n + 1) for n, s in enumerate(shown_segments(record))]
    for action in record.paid:
        yield f"reward curves/{action}", curve_panels(record, action), 3, legend
    yield "calibration", plots.calibration_panels(record, segments), 3, []
    support = plots.support_panel(record)
    shares = plots.anchor_panel(anchor_shares(record), record.anchor)
    yield "anchor support", [p for p in (shares, support) if p is not None], 2, []
    if isinstance(truth, Truth):
        numbers = [n + 1 for n in range(len(record.paid))]
        yield (
            "recovered against true reward",
            plots.truth_panels(truth.estimated, truth.truth, record.paid, numbers),
            3,
            [],
        )


def _scenario_pictures(record: Record, scenario: ScenarioRecord) -> Iterator[Drawn]:
    actions = record.config.data.actions
    numbers = record.numbers(actions)
    legend = list(zip(actions, numbers, strict=True))
    for case in scenario.cases:
        panels = plots.share_panels(scenario, case, record.segments[:MOST_PANELS], actions, numbers)
        yield f"plan shares, baseline dashed/{case}", panels, 3, legend


def _pictures(writer: SummaryWriter, drawn: Iterator[Drawn]) -> None:
    for tag, panels, columns, legend in drawn:
        if panels:
            with picture(panels, columns=columns, legend=legend) as figure:
                writer.add_figure(tag, figure, 0, close=False)


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, bool | str | float]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, (bool, int, float, str)) else str(value)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
