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
from irl.networks import LinearTerms

NEAREST = 1e-6
"""How near to 0 and 1 lambda may come."""


class AttentionLogit(nn.Module):
    """lambda(s), where there is a default.

    Attributes
    ----------
    weight : eta [E], of standardised features.
    covariance : [E, E], float64, of the weight; 0 without standard errors.
    """

    centre: Tensor
    scale: Tensor
    covariance: Tensor

    def __init__(self, schema: StateSchema, declared: Attention) -> None:
        super().__init__()
        levelled = [replace(c, kind="category") if c.name in declared.by else c for c in schema.columns]
        self.schema = schema
        self.terms = LinearTerms(replace(schema, columns=tuple(levelled)), declared.columns or ("",))  # "": none
        width = self.terms.width
        self.weight = nn.Parameter(torch.zeros(width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("covariance", torch.zeros(width, width, dtype=torch.float64))

    @torch.no_grad()
    def standardise(self, state: Tensor) -> None:
        """Take centre and scale from state[N, F]."""
        x = self.terms(state)
        sd = x.std(0, correction=0)
        self.centre.copy_(x.mean(0))
        self.scale.copy_(torch.where(sd > 1e-4 * x.abs().amax(0).clamp_min(1e-12), sd, torch.inf))
        self.centre[0], self.scale[0] = 0.0, 1.0

    def features(self, state: Tensor) -> Tensor:
        """x[N, E] of state[N, F], first column 1."""
        x: Tensor = self.terms(state)
        return (x - self.centre) / self.scale

    def forward(self, state: Tensor) -> Tensor:
        """lambda[N], whether there is a default or not."""
        return likely(self.features(state) @ self.weight)

    def inertia(self, state: Tensor) -> bellman.Inertia:
        """lambda and the default at state[N, F]."""
        return bellman.Inertia(self(state), self.schema.default(state))


def likely(log_odds: Tensor) -> Tensor:
    """The probability of these log odds, neither 0 nor 1."""
    return log_odds.sigmoid().clamp(NEAREST, 1 - NEAREST)
