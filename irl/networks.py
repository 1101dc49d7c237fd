"""The networks of the three steps, and the features ("basis") that they lend to the kernel.

Each network takes the state tensor ``state[N, F]`` of :class:`irl.data.schema.StateSchema` (codes of categories and
ordinals, values of counts and numbers in declared units); the encoder is part of the network, so an exported network
takes the same columns. ``features`` of every network has the constant 1 as its first column, as the kernel asks.

    LinearTerms         the columns as they are                              refit (reward.structure: linear)
    PolicyNetwork       log pi(a|s), a masked softmax                        P step
    AnchorValueNetwork  the anchor's value, linear in features               Q step
    RewardNetwork       r(s, a), one head per action, given g(s)             R step
    TypeShares          P(type | first state)                                hidden types
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from irl import bellman
from irl.crossings import Crossings, standard
from irl.data.schema import StateSchema


class Encoder(nn.Module):
    """State columns -> network inputs x[N, E]: one-hot levels, and standardised scalars.

    A category never seen in training has code ``len(labels)``, which is no slot's code: all its slots are 0.
    Ordinals enter twice, by level and as a scalar, so that a network can use their order without being bound to it.
    ``without``: columns that are left out.
    """

    slot_column: Tensor
    slot_code: Tensor
    scalar_column: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, schema: StateSchema, *, without: tuple[str, ...] = ()) -> None:
        super().__init__()
        used = [(f, c) for f, c in enumerate(schema.columns) if c.name not in without]
        slots = [(f, code) for f, c in used if c.discrete for code in range(len(c.labels))]
        numbers = [(f, c) for f, c in used if c.kind != "category"]
        scalars = [(f, *standard(c.kind, len(c.labels), c.centre, c.scale)) for f, c in numbers]
        self.register_buffer("slot_column", torch.tensor([f for f, _ in slots], dtype=torch.long))
        self.register_buffer("slot_code", torch.tensor([code for _, code in slots], dtype=torch.float32))
        self.register_buffer("scalar_column", torch.tensor([f for f, _, _ in scalars], dtype=torch.long))
        self.register_buffer("centre", torch.tensor([m for _, m, _ in scalars], dtype=torch.float32))
        self.register_buffer("scale", torch.tensor([s for _, _, s in scalars], dtype=torch.float32))
        self.width = len(slots) + len(scalars)

    def forward(self, state: Tensor) -> Tensor:
        columns = state.T.contiguous()  # [F, N]: copying whole rows is three times as fast as gathering within them
        levels = columns.index_select(0, self.slot_column) == self.slot_code.unsqueeze(1)
        scalars = (columns.index_select(0, self.scalar_column) - self.centre.unsqueeze(1)) / self.scale.unsqueeze(1)
        return torch.cat([levels.to(state.dtype), scalars]).T


class Trunk(nn.Module):
    """Encoder and hidden layers (SiLU: on the simulated market it halved the policy's divergence against tanh)."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...], *, without: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.encoder = Encoder(schema, without=without)
        widths = (self.encoder.width, *hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.width = widths[-1]

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.layers(self.encoder(state))
        return out

    def features(self, state: Tensor) -> Tensor:
        """phi[N, 1 + width], first column 1."""
        hidden = self(state)
        return torch.cat([torch.ones_like(hidden[:, :1]), hidden], dim=1)


class PolicyNetwork(nn.Module):
    """log pi(a|s) over the menu, of members who decide: what shifts attention alone is left out."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(schema, hidden, without=schema.shifters)
        self.head = nn.Linear(self.trunk.width, len(schema.actions))

    def forward(self, state: Tensor, menu: Tensor) -> Tensor:
        """log pi[N, A]; -inf where ``menu[N, A]`` is False."""
        return bellman.log_policy(self.head(self.trunk(state)), menu, 1.0)


class AnchorValueNetwork(nn.Module):
    """The value of the anchor (of the reference policy mu), in reward units, through what follows it:

        W(s) = sum_a mu(a|s) Q(s,a) = g(s) + sum_a mu(a|s) c(s,a)

    c(s,a) is linear in the crossings of the columns and the trunk's features, so that the kernel can solve the last
    layer. ``head`` [L, D] has a row for every action that mu ever takes.
    """

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.crossings, self.trunk = Crossings(schema), Trunk(schema, hidden)
        self.deep = bool(hidden)
        self.referred = list(schema.referred)
        width = self.crossings.width + (self.trunk.width if hidden else 0)
        self.head = nn.Parameter(torch.zeros(len(self.referred), width))

    def features(self, state: Tensor) -> Tensor:
        """phi[N, D], first column 1."""
        crossed: Tensor = self.crossings(state)
        return torch.cat([crossed, self.trunk(state)], 1) if self.deep else crossed

    def forward(self, state: Tensor, reference: Tensor, known: Tensor) -> Tensor:
        """W[N] of state[N, F], mu[N, A] and g[N]."""
        return known + self.continuation(state, reference[:, self.referred])

    def continuation(self, state: Tensor, reference: Tensor) -> Tensor:
        """sum_a mu(a|s) c(s,a) [N], with mu[N, L] on the actions it ever takes."""
        return ((self.features(state) @ self.head.T) * reference).sum(1)


class RewardNetwork(nn.Module):
    """r(s, a)[N, A], in reward units. The mean under the reference policy is g(s), given and not learned: where that is
    one action its reward is g(s), else utilities are shifted to it (``bellman.reward_from_utility``)."""

    centre: Tensor
    scale: Tensor

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(schema, hidden, without=schema.shifters)
        self.head = nn.Linear(self.trunk.width, len(schema.actions))
        self.register_buffer("centre", torch.zeros(len(schema.actions)))
        self.register_buffer("scale", torch.ones(len(schema.actions)))

    def forward(self, state: Tensor, known: Tensor, reference: Tensor) -> Tensor:
        """Of state[N, F], g[N] and mu[N, A]."""
        utility = self.centre + self.scale * self.head(self.trunk(state))
        utility = torch.where(reference == 1, known.unsqueeze(-1), utility)
        return bellman.reward_from_utility(utility, reference, known)


class LinearTerms(nn.Module):
    """The columns as they are, x[N, D], first column 1: numbers and ordinals in their declared units (an ordinal whose
    labels are no numbers counts its levels from 0), and an indicator for every level of a category but the first.

    Attributes
    ----------
    names : [D], of the features.
    groups : int64 [D], the features of a column share one; 0 is the constant.
    columns_of : [D], the state columns that each feature is made of.
    """

    column: Tensor
    worth: Tensor
    counted: Tensor
    groups: Tensor

    def __init__(self, schema: StateSchema, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        features: list[tuple[int, str, list[float]]] = []  # (column, name, worth of every code; none: the number)
        for f, c in enumerate(schema.columns):
            if (names and c.name not in names) or not c.minimum < c.maximum:
                continue
            if c.kind == "category":
                features += [
                    (f, f"{c.name}={label}", [float(i == code) for i in range(len(c.labels) + 1)])
                    for code, label in enumerate(c.labels)
                    if code
                ]
            else:
                features.append((f, c.name, [*_label_values(c.labels), 0.0] if c.discrete else []))
        longest = max((len(w) for _, _, w in features), default=0)
        padded = [w + [0.0] * (longest - len(w)) for _, _, w in features]  # never looked up; stored, so finite
        own = list(dict.fromkeys(f for f, _, _ in features))
        self.names = ("1", *(name for _, name, _ in features))
        self.columns_of: tuple[frozenset[int], ...] = (frozenset(), *(frozenset([f]) for f, _, _ in features))
        self.register_buffer("column", torch.tensor([f for f, _, _ in features], dtype=torch.long))
        self.register_buffer("worth", torch.tensor(padded).view(len(features), longest))
        self.register_buffer("groups", torch.tensor([0, *(1 + own.index(f) for f, _, _ in features)]))
        self.register_buffer("counted", torch.tensor([not w for _, _, w in features], dtype=torch.bool))
        self.width = 1 + len(features)

    def forward(self, state: Tensor) -> Tensor:
        raw = state.T.contiguous().index_select(0, self.column)  # [D - 1, N]
        if self.worth.shape[1]:
            code = raw.long().clamp(0, self.worth.shape[1] - 1)
            raw = torch.where(self.counted.unsqueeze(1), raw, self.worth.gather(1, code))
        return torch.cat([torch.ones_like(state[:, :1]).T, raw]).T


class StandardTerms(nn.Module):
    """The columns as they are (:class:`LinearTerms`), standardised on some rows; in ``dtype``."""

    centre: Tensor
    scale: Tensor

    def __init__(self, terms: LinearTerms, dtype: torch.dtype) -> None:
        super().__init__()
        self.terms = terms
        self.register_buffer("centre", torch.zeros(terms.width, dtype=dtype))
        self.register_buffer("scale", torch.ones(terms.width, dtype=dtype))

    @torch.no_grad()
    def standardise(self, state: Tensor) -> None:
        """Take centre and scale from state[N, F]; what does not vary there stays out."""
        x = self.terms(state).to(self.centre.dtype)
        sd = x.std(0, correction=0)
        self.centre.copy_(x.mean(0))
        self.scale.copy_(torch.where(sd > 1e-4 * x.abs().amax(0).clamp_min(1e-12), sd, torch.inf))
        self.centre[0], self.scale[0] = 0.0, 1.0

    def features(self, state: Tensor) -> Tensor:
        """x[N, D] of state[N, F], first column 1."""
        x: Tensor = self.terms(state)
        return (x.to(self.centre.dtype) - self.centre) / self.scale


class TypeShares(StandardTerms):
    """log P(type | first observed state): a multinomial logit in the columns as they are, standardised.

    The state that a member is first seen in follows from choices made before, and these from his type: this is the
    correction for initial conditions (Wooldridge 2005, in a discrete form; Arcidiacono & Miller 2011).

    Attributes
    ----------
    weight : [K, D], float64, the row of the first type 0.
    covariance : [B, P + B], float64, of the B weights of all other rows with the P parameters of the reward and with
        themselves; 0 without standard errors.
    """

    weight: Tensor
    covariance: Tensor

    def __init__(self, schema: StateSchema, parameters: int = 0) -> None:
        super().__init__(LinearTerms(schema, tuple(c.name for c in schema.columns if not c.hidden)), torch.float64)
        width = self.terms.width
        several = (schema.types - 1) * width
        self.register_buffer("weight", torch.zeros(schema.types, width, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(several, parameters + several, dtype=torch.float64))

    def forward(self, state: Tensor) -> Tensor:
        """log share[N, K] of state[N, F]."""
        return (self.features(state) @ self.weight.T).log_softmax(1)


def _label_values(labels: tuple[str, ...]) -> list[float]:
    """The labels as numbers, if they are; else 0, 1, ..."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return [float(code) for code in range(len(labels))]
