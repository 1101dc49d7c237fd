"""Attention: the probability that a member decides in a period; otherwise the declared default happens.

    lambda(s) = 1 / (1 + exp(-x(s).eta)) ,   x: 1, the levels of `by`, the shifters

on standardised columns. What follows from it for choices and values is in :mod:`irl.bellman`; how it is estimated, in
:mod:`irl.estimation.attention`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from irl import bellman
from irl.data.schema import StateSchema
from irl.declared import Attention
from irl.networks import LinearTerms, StandardTerms

NEAREST = 1e-6
"""How near to 0 and 1 lambda may come."""


class AttentionLogit(StandardTerms):
    """lambda(s), where there is a default.

    Attributes
    ----------
    weight : eta [E], of standardised features.
    covariance : [E, E], float64, of the weight; 0 without standard errors.
    """

    covariance: Tensor

    def __init__(self, schema: StateSchema, declared: Attention) -> None:
        levelled = [replace(c, kind="category") if c.name in declared.by else c for c in schema.columns]
        columns = declared.columns or ("",)  # "": none
        super().__init__(LinearTerms(replace(schema, columns=tuple(levelled)), columns), torch.float32)
        self.schema = schema
        width = self.terms.width
        self.weight = nn.Parameter(torch.zeros(width))
        self.register_buffer("covariance", torch.zeros(width, width, dtype=torch.float64))

    def forward(self, state: Tensor) -> Tensor:
        """lambda[N], whether there is a default or not."""
        return likely(self.features(state) @ self.weight)

    def inertia(self, state: Tensor) -> bellman.Inertia:
        """lambda and the default at state[N, F]."""
        return bellman.Inertia(self(state), self.schema.default(state))


def likely(log_odds: Tensor) -> Tensor:
    """The probability of these log odds, neither 0 nor 1."""
    return log_odds.sigmoid().clamp(NEAREST, 1 - NEAREST)
