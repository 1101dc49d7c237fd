"""The members of the simulated market: what each segment values, and how its use of the benefits moves.

Invented, every number; the segments' names are labels, not findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LEVELS = 3
"""Levels of engagement with a benefit."""
YEAR = 12
MOOD = "mood"
"""A taste for membership that comes and goes, which a panel may leave out: shocks that are correlated over time."""


@dataclass(frozen=True)
class Benefit:
    """What one benefit is worth to a segment at full use, and how its use moves (probabilities per month)."""

    taste: float
    rise: float  # one level up, as a member
    drop: float  # one level down, as a member
    rise_out: float
    drop_out: float

    @property
    def fastest(self) -> float:
        return max(self.rise + self.drop, self.rise_out + self.drop_out)

    def kernel(self, member: bool) -> Tensor:
        """Transition matrix [LEVELS, LEVELS] of the level."""
        up, down = (self.rise, self.drop) if member else (self.rise_out, self.drop_out)
        moves = torch.diag(torch.full((LEVELS - 1,), up, dtype=torch.float64), 1)
        moves = moves + torch.diag(torch.full((LEVELS - 1,), down, dtype=torch.float64), -1)
        return moves + torch.diag(1 - moves.sum(1))


@dataclass(frozen=True)
class Segment:
    """The tastes of one segment, in reward units per month."""

    share: float
    base: float  # flow of a member who uses nothing
    price: float  # per dollar
    joining: float  # cost of becoming a member again, either plan
    commitment: float  # cost of signing up for a year, beside its price
    perk: float  # added to the flow on the annual plan
    saturation: float  # the most that benefits can add, approached with diminishing returns
    benefits: Mapping[str, Benefit]

    def moody(self, strength: float) -> Segment:
        """Members whose taste for membership is lower or higher by half of ``strength`` for some months: a benefit
        that gives it, whose use moves as often up as down, in or out alike (correlation from month to month .9)."""
        own = Benefit(strength, *[0.1] * 4)
        return replace(self, base=self.base - strength / 2, benefits={**self.benefits, MOOD: own})

    def of_type(self, taste: float, use: float = 1.0) -> Segment:
        """Members who value every benefit ``taste`` times as much, and whose use rises ``use`` times as fast."""
        scaled = {
            name: replace(b, taste=taste * b.taste, rise=use * b.rise, rise_out=use * b.rise_out)
            for name, b in self.benefits.items()
        }
        return replace(self, benefits=scaled)


def invented_segments() -> dict[str, Segment]:
    """Invented tastes: the order of the benefits' numbers is taste, rise, drop, rise_out, drop_out."""
    return {
        "gen_z": Segment(
            share=0.27, base=-0.90, price=0.030, joining=0.8, commitment=2.65, perk=0.35, saturation=5.0,
            benefits={
                "shipping": Benefit(0.40, 0.15, 0.15, 0.05, 0.20), "video": Benefit(0.80, 0.18, 0.12, 0.05, 0.20),
                "music": Benefit(0.70, 0.16, 0.14, 0.06, 0.20), "gaming": Benefit(0.90, 0.14, 0.12, 0.04, 0.20),
                "grocery": Benefit(0.20, 0.08, 0.18, 0.03, 0.25),
            },
        ),
        "family_us": Segment(
            share=0.28, base=-0.95, price=0.026, joining=0.8, commitment=2.65, perk=0.38, saturation=5.0,
            benefits={
                "shipping": Benefit(1.00, 0.18, 0.12, 0.05, 0.18), "video": Benefit(0.60, 0.16, 0.14, 0.05, 0.20),
                "music": Benefit(0.30, 0.12, 0.16, 0.04, 0.20), "gaming": Benefit(0.20, 0.08, 0.20, 0.03, 0.22),
                "grocery": Benefit(0.90, 0.14, 0.12, 0.04, 0.20),
            },
        ),
        "urban_india": Segment(
            share=0.25, base=-0.90, price=0.033, joining=0.7, commitment=2.50, perk=0.35, saturation=5.0,
            benefits={
                "shipping": Benefit(0.70, 0.16, 0.13, 0.05, 0.20), "video": Benefit(0.90, 0.17, 0.13, 0.05, 0.20),
                "music": Benefit(0.45, 0.14, 0.15, 0.05, 0.20), "gaming": Benefit(0.40, 0.12, 0.15, 0.04, 0.20),
                "grocery": Benefit(0.55, 0.13, 0.14, 0.04, 0.20),
            },
        ),
        "rural_india": Segment(
            share=0.20, base=-0.75, price=0.036, joining=0.6, commitment=2.40, perk=0.45, saturation=5.0,
            benefits={
                "shipping": Benefit(0.80, 0.14, 0.14, 0.04, 0.20), "video": Benefit(0.90, 0.16, 0.14, 0.05, 0.20),
                "music": Benefit(0.60, 0.15, 0.15, 0.05, 0.20), "gaming": Benefit(0.30, 0.08, 0.18, 0.03, 0.22),
                "grocery": Benefit(0.20, 0.06, 0.20, 0.03, 0.24),
            },
        ),
    }  # fmt: skip


def invented_seasons() -> dict[str, tuple[float, ...]]:
    """By how much a benefit is worth more (or less) in each month of the year, as a share."""
    #                Jan    Feb    Mar   Apr   May   Jun   Jul   Aug   Sep   Oct   Nov   Dec
    return {
        "shipping": (-0.15, -0.10, 0.00, 0.00, 0.00, 0.00, 0.15, 0.00, 0.00, 0.10, 0.35, 0.50),
        "video": (0.15, 0.10, 0.00, 0.00, -0.05, -0.10, -0.15, -0.10, 0.00, 0.05, 0.10, 0.20),
        "music": (0.00, 0.00, 0.00, 0.00, 0.05, 0.10, 0.15, 0.10, 0.00, 0.00, 0.00, 0.10),
        "gaming": (0.00, 0.00, -0.05, -0.05, 0.10, 0.35, 0.45, 0.35, -0.10, -0.05, 0.00, 0.20),
        "grocery": (0.00, 0.00, 0.00, 0.05, 0.00, -0.05, -0.05, 0.00, 0.00, 0.05, 0.15, 0.25),
    }
