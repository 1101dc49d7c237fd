"""The choices of a mixture, each distinct pair of state and action once per type.

Members are often in the same states as others, and everybody is of every type with some weight. Likelihoods are sums
over pairs of state and action, weighted by how often they occurred and with what posterior; so features are made, and
kept, once per pair and type. (Of 720,000 choices on the simulated market 45 % of the states are distinct.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl.data.panel import Panel
from irl.estimation.logit import Choices
from irl.fitted import FittedModel

CACHED = 1_250_000_000
"""Numbers of the features of all pairs up to which they are kept in memory."""


@dataclass(frozen=True)
class Pairs:
    """What choices are read from: K U pairs of type, state and action, type by type, and their weight."""

    state: Tensor
    anchor_reward: Tensor
    menu: Tensor
    action: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Distinct(Choices):
    """Of choices of the rows of a panel without types: pair[n], member[n], and mass_of[n], the weight of each."""

    panel: Pairs
    pair: Tensor
    member: Tensor
    mass_of: Tensor

    @property
    def most_cached(self) -> int:
        return CACHED

    @property
    def types(self) -> int:
        return self.model.schema.types

    def weighted(self, posterior: Tensor) -> Distinct:
        """The same choices under other posteriors [M, K]."""
        pairs = len(self.rows) // self.types
        weight = self.mass_of.new_zeros(self.types, pairs)
        for k in range(self.types):
            weight[k].index_add_(0, self.pair, self.mass_of * posterior[self.member, k])
        return replace(self, panel=replace(self.panel, weight=weight.flatten().float()))

    def by_member(self, values: Tensor, members: int) -> Tensor:
        """Sums [M, K] over each member's choices of values[K U] of pairs."""
        total = values.new_zeros(members, self.types)
        for k, own in enumerate(values.view(self.types, -1)):
            total[:, k].index_add_(0, self.member, own[self.pair])
        return total

    def some(self, most: int, *, seed: int) -> Choices:
        """So many, drawn by weight, with replacement: pairs differ in how often they occurred."""
        generator = torch.Generator().manual_seed(seed)
        if len(self.rows) <= most:
            return self
        cumulated = self.panel.weight.double().cumsum(0).cpu()
        at = torch.rand(most, generator=generator, dtype=torch.float64) * cumulated[-1]
        rows = torch.searchsorted(cumulated, at).clamp_max(len(cumulated) - 1)
        rows, times = rows.unique(return_counts=True)
        device = self.rows.device
        rows, times = rows.to(device), times.to(device)
        panel = replace(self.panel, weight=self.panel.weight.index_put((rows,), times.to(self.panel.weight.dtype)))
        return Choices(self.model, panel, rows, {})


def distinct(model: FittedModel, panel: Panel, rows: Tensor, posterior: Tensor) -> Distinct:
    """The choices in ``rows`` of a panel without types, by members of types posterior[M, K]."""
    key = torch.cat([panel.state[rows], panel.action[rows].unsqueeze(1).to(panel.state.dtype)], 1)
    _, pair = key.unique(dim=0, return_inverse=True)
    found, types = int(pair.max()) + 1, posterior.shape[1]
    one = rows.new_zeros(found).scatter_(0, pair, rows)  # a row of each pair
    kind = torch.arange(types, device=rows.device).repeat_interleave(found).unsqueeze(1)
    one = one.repeat(types)
    state = torch.cat([panel.state[one], kind.to(panel.state.dtype)], 1)
    pairs = Pairs(state, panel.anchor_reward[one], panel.menu[one], panel.action[one], torch.zeros_like(state[:, 0]))
    every = torch.arange(len(one), device=rows.device)
    choices = Distinct(model, pairs, every, {}, pair, panel.member[rows], panel.weight[rows].double())
    return choices.weighted(posterior)
