"""Answers beside the exact ones: errors against the bars, as tables."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

MONTHS = 12
"""After so many the shares are judged."""
MEAN, WORST, RELATIVE, ABSOLUTE = 0.7, 2.0, 0.05, 0.05
"""Points of a plan share (mean over segments and plans, and largest); parts of a surplus, reward units of it."""
STUDY = ["members", "discount", "seed"]
CASE = [*STUDY, "scenario", "case"]
CELL = [*CASE, "segment", "outcome", "period"]
KEYS = [name for name in CELL if name not in (*STUDY, "scenario")]


def print_scenarios(console: Console, found: pd.DataFrame, factor: float | None) -> None:
    """Errors of shares, by case; of the surplus, by segment; and how long the answers took."""
    shares = found[found["outcome"].str.startswith("share_")].set_index(CELL)
    errors = pd.DataFrame({"level": shares["found_after"] - shares["exact_after"]})
    errors["change"] = errors["level"] - (shares["found_before"] - shares["exact_before"])
    errors = errors[(shares["exact_after"] > 0) | (shares["found_after"] > 0)]  # who is not offered a plan has no error
    errors *= 100
    bounded = "bound_after" in shares
    if bounded:
        errors["bound"] = 100 * (shares["bound_after"] - shares["exact_after"])
    bar = "" if factor is None else f", bars {factor * MEAN:g} and {factor * WORST:g}"
    table = Table("discount", "scenario", "case", title=f"Plan shares: mean absolute and largest error, points{bar}")
    for view in ("level, 12", "change, 12", "level, 11", "change, 11", "level, mean of all", "change, mean of all"):
        table.add_column(view, justify="right")
    if bounded:
        table.add_column("bound's level, 12", justify="right")
    table.add_column("largest at 12")
    table.add_column("bar")
    periods = errors.index.get_level_values("period")
    by_period = {"12": errors[periods == MONTHS], "11": errors[periods == MONTHS - 1]}
    by_period["mean of all"] = errors.groupby([k for k in CELL if k != "period"]).mean()
    for key, judged in by_period["12"].groupby(["discount", "scenario", "case"]):
        views = {
            f"{what}, {name}": frame.xs(key, level=["discount", "scenario", "case"])[what].abs()
            for name, frame in by_period.items()
            for what in ("level", "change")
        }
        columns = [*views.values(), *([judged["bound"].abs()] if bounded else [])]
        where = judged["level"].abs().idxmax()
        met = all(
            e.mean() <= MEAN * (factor or 1) and e.max() <= WORST * (factor or 1)
            for name, e in views.items()
            if name.endswith(", 12")
        )
        place = dict(zip(CELL, where, strict=True))
        largest = f"{place['segment']} {place['outcome'].removeprefix('share_')} {judged.loc[where, 'level']:+.2f}"
        table.add_row(
            f"{key[0]:g}",
            *map(str, key[1:]),
            *(f"{e.mean():.2f} {e.max():.2f}" for e in columns),
            largest,
            said(met, factor),
        )
    console.print(table)
    table = Table("discount", "scenario", "case", "segment", title="Surplus, lifetime, reward units")
    heads = ("exact", "found", "error", "se", "error, %", "error per period", "bar")
    for head in (*heads, *(("bound's error", "bar") if bounded else ())):
        table.add_column(head, justify="right")
    for _, row in found[found["outcome"] == "surplus"].iterrows():
        exact, error = row["exact_after"], row["found_after"] - row["exact_after"]
        near = (factor or 1) * max(RELATIVE * abs(exact), ABSOLUTE)
        bound = row["bound_after"] - exact if bounded else math.nan
        share = f"{100 * error / exact:+.1f}" if abs(exact) > 1e-6 else ""
        numbers = (
            f"{exact:.3f}",
            f"{row['found_after']:.3f}",
            f"{error:+.3f}",
            f"{row['se']:.3f}" if row["se"] > 0 else "",
            share,
            f"{(1 - row['discount']) * error:+.4f}",
        )
        table.add_row(f"{row['discount']:g}", row["scenario"], row["case"], row["segment"], *numbers,
            said(abs(error) <= near, factor), *([f"{bound:+.3f}", said(abs(bound) <= near, factor)] if bounded else []),
        )  # fmt: skip
    console.print(table)
    spent = (
        found[found["outcome"] == "seconds"]
        .groupby(["discount", "scenario", "segment"], sort=False)["found_after"]
        .mean()
        .unstack()
    )
    table = Table("discount", "scenario", *map(str, spent), title="Seconds")
    for (discount, scenario), row in spent.iterrows():
        table.add_row(f"{discount:g}", str(scenario), *(f"{x:.0f}" for x in row))
    console.print(table)


def print_attribution(console: Console, found: pd.DataFrame, factor: float | None) -> None:
    """Errors of the benefits' contributions (or removal effects), and gaps of the wrong sign."""
    one = found[found["over"].isna()]
    table = Table("discount", "segment", "benefit", title=f"Lifetime, reward units: {', '.join(one['kind'].unique())}")
    bounded, near = "bound" in one, RELATIVE * (factor or 1)
    heads = ("exact", "found", "se", "error, %", "bar")
    for head in (*heads, *(("bound's error, %", "bar") if bounded else ())):
        table.add_column(head, justify="right")
    for _, row in one.sort_values(
        ["discount", "segment", "exact"], ascending=[True, True, False], kind="stable"
    ).iterrows():
        error, bound = row["found"] / row["exact"] - 1, (row["bound"] / row["exact"] if bounded else math.nan) - 1
        numbers = (f"{row['exact']:.3f}", f"{row['found']:.3f}", f"{row['se']:.3f}", f"{100 * error:+.1f}")
        table.add_row(
            f"{row['discount']:g}",
            row["segment"],
            row["benefit"],
            *numbers,
            said(abs(error) <= near, factor),
            *([f"{100 * bound:+.1f}", said(abs(bound) <= near, factor)] if bounded else []),
        )
    console.print(table)
    gaps = found[found["over"].notna()]
    clear = gaps[gaps["exact"].abs() > 2 * gaps["se"]]
    wrong = clear[clear["exact"] * clear["found"] <= 0]
    about = f"order of two benefits: {len(clear)} of {len(gaps)} gaps exceed two standard errors"
    console.print(f"{about}, {len(wrong)} of them found the wrong way: {said(wrong.empty, factor)}")
    for _, row in wrong.iterrows():
        which = f"{row['discount']:g} {row['segment']}: {row['benefit']} over {row['over']}"
        console.print(f"  {which}: exact {row['exact']:+.3f}, found {row['found']:+.3f}, se {row['se']:.3f}")


def said(met: bool, factor: float | None) -> str:
    """Whether a bar is met; nothing for panels that are not judged."""
    return "" if factor is None else "met" if met else "MISSED"
