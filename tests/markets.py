"""Markets that several test files use."""

from __future__ import annotations

from dataclasses import replace

from irl.membership import Market


def small_market(discount: float = 0.95) -> Market:
    """Two segments, two benefits, two prices, a contract of four months: 45 states in each of 8 cells."""
    full = Market(discount=discount, price_factors=(0.8, 1.2), contract_months=4)
    return replace(
        full,
        segments={name: full.segments[name] for name in ("gen_z", "rural_india")},
        seasons={name: full.seasons[name] for name in ("video", "gaming")},
    )
