"""The report's figures: one small panel per question, drawn once and shown by the page and by TensorBoard alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.ticker import MaxNLocator

from irl.estimation.diagnostics import CLASSES
from irl.report.estimates import LEAST_ANCHOR_SHARE, AnchorShare
from irl.report.panel import INK, WARNING, Panel, colour, panel, short
from irl.report.record import Record, ScenarioRecord, at
from irl.report.sensitivity import APART, Fit
from irl.report.tables import percent


def anchor_panel(shares: Sequence[AnchorShare], anchor: str) -> Panel | None:
    """Bars of the anchor's share by segment, thin ones in the warning colour, and the threshold; None of no segment."""
    if not shares:
        return None

    def draw(axes: Axes) -> None:
        y = np.arange(len(shares))
        values = [100 * s.share for s in shares]
        axes.barh(y, values, height=0.62, color=[WARNING if s.thin else colour(0) for s in shares])
        for i, value in enumerate(values):
            if np.isfinite(value):
                axes.text(value + 1, i, f"{value:.1f} %", va="center", fontsize=9)
        axes.axvline(100 * LEAST_ANCHOR_SHARE, color=WARNING, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(y, [short(s.segment) for s in shares])
        axes.set_ylim(len(shares) - 0.5, -0.5)
        axes.set_xlim(0, 1.22 * max([10.0, *(v for v in values if np.isfinite(v))]))
        axes.set_xlabel("% of decisions; left of the dashes: too few")

    said = ", ".join(f"{s.segment} {percent(s.share)}" for s in shares)
    text = f"Share of decisions at {anchor} by segment: {said}."
    return panel(f"Decisions at {anchor}", text, draw, height=0.9 + 0.3 * len(shares), width=4.6)


def support_panel(record: Record) -> Panel | None:
    """Bars of how probable the anchor is at the decisions of each segment: shares of them by class of probability."""
    found = [(s, at(record.metrics, "support", s, "probabilities")) for s in record.segments]
    rows = [(s, shares) for s, shares in found if shares is not None]
    if not rows:
        return None
    bounds, height = [0.0, *CLASSES, 1.0], max(2.2, 1.2 + 0.3 * len(rows))
    labels = [f"{100 * low:g}–{100 * high:g}" for low, high in pairwise(bounds)]

    def draw(axes: Axes) -> None:
        y, left = np.arange(len(rows)), np.zeros(len(rows))
        strengths = np.linspace(0.25, 1, len(labels) - 1)
        for k, label in enumerate(labels):
            width = np.array([100 * shares[k] for _, shares in rows])
            shade = {"color": colour(1), "alpha": strengths[k - 1]} if k else {"color": WARNING}
            axes.barh(y, width, left=left, height=0.62, label=label, linewidth=0, **shade)
            left += width
        axes.set_yticks(y, [short(s) for s, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of decisions")
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.45 / (height - 1)),
            ncols=5,
            handlelength=0.8,
            columnspacing=1,
            borderpad=0,
        )

    said = "; ".join(
        f"{s} " + ", ".join(f"{percent(share)} at {k} %" for share, k in zip(shares, labels, strict=True))
        for s, shares in rows
    )
    text = f"Share of decisions by the probability of {record.anchor}: {said}."
    return panel("How probable the anchor is, %", text, draw, height=height, width=4.6)


def calibration_panels(record: Record, segments: Sequence[str]) -> list[Panel]:
    """One panel per segment: frequencies of choices against their predicted probabilities, held-out members."""
    panels = []
    for segment in segments:
        bins = pd.DataFrame(at(record.metrics, "policy", "calibration", segment, default=[]), dtype=float)
        if bins.empty:
            continue

        def draw(axes: Axes, bins: pd.DataFrame = bins) -> None:
            axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, alpha=0.6)
            p, n = bins["predicted"], bins["choices"]
            spread = 196 * np.sqrt(p * (1 - p) / n.clip(lower=1))
            axes.errorbar(100 * p, 100 * bins["observed"], spread, fmt="o", color=colour(1), markersize=4)
            axes.set_xlim(-3, 103)
            axes.set_ylim(-3, 103)
            axes.set_xlabel("predicted, %")
            axes.set_ylabel("observed, %")
            axes.set_aspect("equal")

        pairs = bins[["predicted", "observed"]].itertuples(index=False)
        said = ", ".join(f"{percent(p)} predicted, {percent(o)} observed" for p, o in pairs)
        panels.append(panel(segment, f"Calibration in {segment}: {said}.", draw, width=3, height=2.8))
    return panels


def reward_panels(summary: pd.DataFrame, actions: Sequence[str], numbers: Sequence[int]) -> list[Panel]:
    """One panel per action: mean, and the 10th to 90th percentile over visited states, by segment.

    ``summary`` has columns action, segment, mean, p10, p90 in reward units; ``numbers`` are the actions' colours.
    """
    panels = []
    bounds = summary[["p10", "p90", "mean"]].to_numpy(float)
    low, high = float(np.nanmin(bounds)), float(np.nanmax(bounds))
    margin = 0.06 * max(high - low, 0.1)
    for action, n in zip(actions, numbers, strict=True):
        rows = summary[summary["action"] == action]
        if rows.empty:
            continue

        def draw(axes: Axes, rows: pd.DataFrame = rows, n: int = n) -> None:
            y = np.arange(len(rows))
            axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
            axes.hlines(y, rows["p10"], rows["p90"], color=colour(n), linewidth=5, alpha=0.35)
            axes.plot(rows["mean"], y, "o", color=colour(n), markersize=6)
            axes.set_yticks(y, [short(s) for s in rows["segment"]])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xlim(low - margin, high + margin)
            axes.set_xlabel("reward units per choice")
            axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)

        said = ", ".join(f"{r.segment} {r.mean:.2f}" for r in rows.itertuples())
        text = f"Mean recovered reward of {action} by segment, reward units: {said}."
        panels.append(panel(action, text, draw, height=0.85 + 0.3 * len(rows), width=3.9))
    return panels


def share_panels(
    scenario: ScenarioRecord, case: str, segments: Sequence[str], actions: Sequence[str], numbers: Sequence[int]
) -> list[Panel]:
    """One panel per segment: paths of the plan shares, baseline dashed, the case solid, one colour per action."""
    found = {(s, a): scenario.outcome(case=case, segment=s, name=f"share_{a}") for s in segments for a in actions}
    found = {key: rows for key, rows in found.items() if len(rows)}
    if not found:
        return []
    highest = max(float(rows[["baseline", "scenario"]].max().max()) for rows in found.values())
    panels = []
    for segment in segments:
        lines = [(a, n, found[segment, a]) for a, n in zip(actions, numbers, strict=True) if (segment, a) in found]
        if not lines:
            continue

        def draw(axes: Axes, lines: list[tuple[str, int, pd.DataFrame]] = lines) -> None:
            for _, n, rows in lines:
                x, base, new = (rows[c].to_numpy(float) for c in ("period", "baseline", "scenario"))
                low, high = (100 * (base + rows[c].to_numpy(float)) for c in ("low", "high"))
                if np.isfinite(low).any():
                    axes.fill_between(x, low, high, color=colour(n), alpha=0.2, linewidth=0)
                one = "o" if len(x) == 1 else ""
                axes.plot(x, 100 * base, linestyle=(0, (4, 3)), marker=one, color=colour(n), linewidth=1.3, alpha=0.8)
                axes.plot(x, 100 * new, marker=one, color=colour(n), linewidth=2)
            axes.set_ylim(0, min(105.0, 108 * highest))
            axes.set_xlabel("period")
            axes.set_ylabel("% of members")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

        ends = ", ".join(f"{a} {percent(r.baseline.iloc[-1])} to {percent(r.scenario.iloc[-1])}" for a, _, r in lines)
        text = f"Plan shares in segment {segment}, baseline to {case} at the last period: {ends}."
        panels.append(panel(segment, text, draw))
    return panels


def forecast_panels(
    answer: Mapping[str, Any], segments: Sequence[str], actions: Sequence[str], numbers: Sequence[int]
) -> list[Panel]:
    """One panel per segment: paths of the plan shares, observed solid, forecast dashed in its interval."""
    panels = []
    for segment in segments:
        paths = {a: at(answer, "segments", segment, "share", a) for a in actions}
        lines = [(a, n, pd.DataFrame(paths[a], dtype=float)) for a, n in zip(actions, numbers, strict=True) if paths[a]]

        def draw(axes: Axes, lines: list[tuple[str, int, pd.DataFrame]] = lines) -> None:
            for _, n, rows in lines:
                axes.fill_between(rows.index, 100 * rows["low"], 100 * rows["high"], color=colour(n), alpha=0.2, lw=0)
                axes.plot(rows.index, 100 * rows["model"], linestyle=(0, (4, 3)), color=colour(n), linewidth=1.3)
                axes.plot(rows.index, 100 * rows["observed"], marker=".", color=colour(n), linewidth=1.6)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("periods forecast")
            axes.set_ylabel("% of members")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

        ends = ", ".join(
            f"{a} {percent(r.observed.iloc[-1])}, forecast {percent(r.model.iloc[-1])}" for a, _, r in lines
        )
        panels.append(panel(segment, f"Plan shares in segment {segment} in the last period: {ends}.", draw))
    return panels


def change_panel(rows: pd.DataFrame, caption: str) -> Panel:
    """The change of one outcome by segment: a dot, and its interval where there is one."""

    def draw(axes: Axes) -> None:
        y = np.arange(len(rows))
        axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
        axes.hlines(
            y, rows["low"].to_numpy(float), rows["high"].to_numpy(float), color=colour(1), linewidth=2, alpha=0.5
        )
        axes.plot(rows["change"].to_numpy(float), y, "o", color=colour(1), markersize=6)
        axes.set_yticks(y, [short(s) for s in rows["segment"]])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("change")
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)

    said = ", ".join(f"{r.segment} {r.change:.2f}" for r in rows.itertuples())
    return panel(caption, f"{caption}, change by segment: {said}.", draw, height=0.85 + 0.3 * len(rows))


def truth_panels(
    estimated: pd.DataFrame, truth: pd.DataFrame, actions: Sequence[str], numbers: Sequence[int]
) -> list[Panel]:
    """One panel per action: how often each pair of true and recovered reward occurs, and the line where they agree."""
    panels = []
    for action, n in zip(actions, numbers, strict=True):
        pairs = pd.DataFrame({"x": truth[action], "y": estimated[action]}).dropna()
        if pairs.empty:
            continue

        def draw(axes: Axes, pairs: pd.DataFrame = pairs, n: int = n) -> None:
            red, green, blue, _ = to_rgba(colour(n))
            shades = ListedColormap([(red, green, blue, a) for a in np.linspace(0.12, 1, 9)])
            low, high = float(pairs.min().min()), float(pairs.max().max())
            extent = (low, high, low, high) if high > low else (low - 1, low + 1, low - 1, low + 1)
            axes.hexbin(
                pairs["x"], pairs["y"], gridsize=36, bins="log", mincnt=1, cmap=shades, linewidths=0, extent=extent
            )
            axes.plot(extent[:2], extent[:2], color=INK, linewidth=0.8, alpha=0.7)
            axes.set_xlabel("true reward, reward units")
            axes.set_ylabel("recovered, reward units")
            axes.set_aspect("equal")

        related = float(np.corrcoef(pairs["x"], pairs["y"])[0, 1]) if pairs.std().min() > 0 else float("nan")
        text = f"Recovered against true reward of {action}: correlation {related:.3f} over {len(pairs):,} rows."
        panels.append(panel(action, text, draw, width=3.9, height=3.6))
    return panels


def loss_panels(metrics: object, steps: Sequence[tuple[str, str]]) -> list[Panel]:
    """The held-out loss by epoch of every step that has a history; ``steps`` are (key of the metrics, caption)."""
    panels = []
    for key, caption in steps:
        history = at(metrics, key, "history", default=at(metrics, key, "trained", "history", default=[]))
        losses = [float(x) for x in history if isinstance(x, (int, float))]
        if len(losses) < 2:
            continue

        def draw(axes: Axes, losses: list[float] = losses) -> None:
            axes.plot(np.arange(1, len(losses) + 1), losses, color=colour(1), linewidth=1.6)
            axes.set_xlabel("epoch")
            axes.set_ylabel("held-out loss")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)

        text = f"Held-out loss of {caption} by epoch: from {losses[0]:.3g} to {losses[-1]:.3g}."
        panels.append(panel(caption, text, draw, height=2.4))
    return panels


def profile_panel(fits: Sequence[Fit]) -> Panel:
    """Twice the held-out log-likelihood behind the best by annual discount, and two standard errors of it; what cannot
    be told from the best is filled."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
        x, y, error = np.array([(f.annual, 2 * f.behind, 2 * APART * f.error) for f in fits]).T
        axes.plot(x, y, color=colour(1), linewidth=1.3, alpha=0.6)
        axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour(1), elinewidth=1, capsize=2.5)
        for f in fits:
            edge = colour(1) if f.converged else WARNING
            axes.plot(f.annual, 2 * f.behind, "o", markersize=6, color=edge, markerfacecolor=edge if f.tied else "none")
        axes.set_xlabel("annual discount factor")
        axes.set_ylabel("2 × nats behind the best")
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)

    said = ", ".join(f"{f.label} {2 * f.behind:.1f} (standard error {2 * f.error:.1f})" for f in fits)
    return panel("Fit on held-out members", f"Twice the nats behind the best, by annual discount: {said}.", draw)


def moves_panels(
    x: Sequence[float], rewards: Mapping[str, Sequence[float]], numbers: Sequence[int], label: str
) -> list[Panel]:
    """One panel per action: its mean reward against an assumption ``x``, called ``label``."""
    panels = []
    for (action, y), n in zip(rewards.items(), numbers, strict=True):

        def draw(axes: Axes, y: Sequence[float] = y, n: int = n) -> None:
            axes.plot(x, y, "o-", color=colour(n), linewidth=1.6, markersize=4)
            axes.set_xlabel(label)
            axes.set_ylabel("mean reward")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)

        said = ", ".join(f"{a:.3g}: {b:.2f}" for a, b in zip(x, y, strict=True))
        panels.append(panel(action, f"Mean reward of {action} by {label}: {said}.", draw))
    return panels
