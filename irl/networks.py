"""The networks of the three steps, and the features ("basis") that they lend to the kernel.

Each network takes the state tensor ``state[N, F]`` of :class:`irl.data.schema.StateSchema` (codes of categories and
ordinals, values of counts and numbers in declared units); the encoder is part of the network, so an exported network
takes the same columns. ``features`` of every network has the constant 1 as its first column, as the kernel asks.

    Crossings           main effects and interactions of the columns             refit, scenarios
    Refitted            r(s, a) and what follows, linear in features                 refit
    PolicyNetwork       log pi(a|s), a masked softmax                        P step
    AnchorValueNetwork  Q(s, A), linear in its features                      Q step
    RewardNetwork       r(s, a), one head per action; the anchor's is g(s)   R step
"""

from __future__ import annotations

import itertools
from itertools import pairwise

import torch
from torch import Tensor, nn

from irl import bellman
from irl.data.schema import StateSchema


class Encoder(nn.Module):
    """State columns -> network inputs x[N, E]: one-hot levels, and standardised scalars.

    A category never seen in training has code ``len(labels)``, which is no slot's code: all its slots are 0.
    Ordinals enter twice, by level and as a scalar, so that a network can use their order without being bound to it.
    """

    slot_column: Tensor
    slot_code: Tensor
    scalar_column: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, schema: StateSchema) -> None:
        super().__init__()
        slots = [(f, code) for f, c in enumerate(schema.columns) if c.discrete for code in range(len(c.labels))]
        scalars = [(f, *_standard(c.kind, len(c.labels), c.centre, c.scale)) for f, c in enumerate(schema.columns)]
        scalars = [s for s, c in zip(scalars, schema.columns, strict=True) if c.kind != "category"]
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


def _standard(kind: str, levels: int, centre: float, scale: float) -> tuple[float, float]:
    """Centre and scale of a scalar input; ordinals are spread over [-1, 1]."""
    return ((levels - 1) / 2, max(levels - 1, 1) / 2) if kind == "ordinal" else (centre, scale)


class Trunk(nn.Module):
    """Encoder and hidden layers (SiLU: on the simulated market it halved the policy's divergence against tanh)."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = Encoder(schema)
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
    """log pi(a|s) over the menu."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(schema, hidden)
        self.head = nn.Linear(self.trunk.width, len(schema.actions))

    def forward(self, state: Tensor, menu: Tensor) -> Tensor:
        """log pi[N, A]; -inf where ``menu[N, A]`` is False."""
        return bellman.log_policy(self.head(self.trunk(state)), menu, 1.0)


class AnchorValueNetwork(nn.Module):
    """Q(s, A)[N], in reward units: linear in the trunk's features, so that the kernel can solve the last layer."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.trunk = Trunk(schema, hidden)
        self.head = nn.Parameter(torch.zeros(1 + self.trunk.width))

    def forward(self, state: Tensor) -> Tensor:
        return self.trunk.features(state) @ self.head


class RewardNetwork(nn.Module):
    """r(s, a)[N, A], in reward units. The anchor's column is g(s), given and not learned."""

    centre: Tensor
    scale: Tensor

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.anchor = schema.anchor
        self.trunk = Trunk(schema, hidden)
        self.head = nn.Linear(self.trunk.width, len(schema.actions))
        self.register_buffer("centre", torch.zeros(len(schema.actions)))
        self.register_buffer("scale", torch.ones(len(schema.actions)))

    def forward(self, state: Tensor, anchor_reward: Tensor) -> Tensor:
        reward = self.centre + self.scale * self.head(self.trunk(state))
        is_anchor = torch.arange(reward.shape[1], device=reward.device) == self.anchor
        return torch.where(is_anchor, anchor_reward.unsqueeze(-1), reward)


class Crossings(nn.Module):
    """Main effects and interactions of the state's columns, x[N, D], first column 1: products of up to three inputs.

    Inputs are indicators of every level (none is left out: these features are made for estimators that shrink, which
    should not depend on which level comes first) and standardised numbers; a column that never varies gives none. What
    never changes about a member (segment, a price assigned once) is crossed with every other column, since the effect
    of anything may differ by it; and, so that a tested price may count for one segment under one plan only, static
    categories are crossed with randomised and table columns at once.

    Attributes
    ----------
    groups : int64 [D], features of the same columns share a group; 0 is the constant.
    """

    column: Tensor
    code: Tensor
    centre: Tensor
    scale: Tensor
    factors: Tensor
    groups: Tensor

    def __init__(self, schema: StateSchema) -> None:
        super().__init__()
        columns = schema.columns
        inputs = [  # (column, code); code -1: the number itself
            (f, code)
            for f, c in enumerate(columns)
            for code in (range(len(c.labels)) if c.discrete else [-1])
            if c.minimum < c.maximum
        ]
        fixed = {f for f, c in enumerate(columns) if c.dynamics == "static"}
        labelled = {f for f in fixed if columns[f].kind == "category"}
        tested = {f for f in fixed if columns[f].assigned == "randomised"}
        moved = {f for f, c in enumerate(columns) if c.dynamics == "table"}
        at = range(len(inputs))
        chosen: list[tuple[int, ...]] = [(), *((i,) for i in at)]
        for i, j in itertools.combinations(at, 2):
            f, g = inputs[i][0], inputs[j][0]
            if f != g and (f in fixed or g in fixed):
                chosen.append((i, j))
        kinds = ([a for a in at if inputs[a][0] in kind] for kind in (labelled, tested, moved))
        chosen += [(i, j, k) for i, j, k in itertools.product(*kinds) if inputs[i][0] != inputs[j][0]]
        of_columns = [tuple(sorted(inputs[i][0] for i in product)) for product in chosen]
        number = {columns: g for g, columns in enumerate(dict.fromkeys(of_columns))}
        padded = [[1 + i for i in product] + [0] * (3 - len(product)) for product in chosen]  # input 0 is the constant
        self.register_buffer("column", torch.tensor([f for f, _ in inputs], dtype=torch.long))
        self.register_buffer("code", torch.tensor([float(code) for _, code in inputs]))
        self.register_buffer("centre", torch.tensor([0.0 if code >= 0 else columns[f].centre for f, code in inputs]))
        self.register_buffer("scale", torch.tensor([1.0 if code >= 0 else columns[f].scale for f, code in inputs]))
        self.register_buffer("factors", torch.tensor(padded, dtype=torch.long).T.contiguous())
        self.register_buffer("groups", torch.tensor([number[columns] for columns in of_columns], dtype=torch.long))
        self.width = len(chosen)

    def forward(self, state: Tensor) -> Tensor:
        raw = state.T.contiguous().index_select(0, self.column)
        indicator = (raw == self.code.unsqueeze(1)).to(state.dtype)
        number = (raw - self.centre.unsqueeze(1)) / self.scale.unsqueeze(1)
        inputs = torch.where(self.code.unsqueeze(1) < 0, number, indicator)
        inputs = torch.cat([torch.ones_like(inputs[:1]) if len(inputs) else state.new_ones(1, len(state)), inputs])
        first, second, third = (inputs.index_select(0, factor) for factor in self.factors)
        return (first * second * third).T


class Refitted(nn.Module):
    """The refit's reward and continuation, each linear in features: r(s, a) = x(s).theta_a, c(s, a) = phi(s).w_a.

    Attributes
    ----------
    theta : [A, Dx], the anchor's row unused: its reward is g(s).
    weights : [A, D], float64, of the continuation gamma^k E[V(s')|s, a].
    """

    theta: Tensor
    weights: Tensor

    def __init__(self, anchor: int, actions: int, reward_features: int, features: int) -> None:
        super().__init__()
        self.anchor = anchor
        self.register_buffer("theta", torch.zeros(actions, reward_features, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(actions, features, dtype=torch.float64))

    def reward(self, x: Tensor, anchor_reward: Tensor) -> Tensor:
        """r[N, A] in reward units, float64."""
        reward = x.double() @ self.theta.T
        is_anchor = torch.arange(len(self.theta), device=x.device) == self.anchor
        return torch.where(is_anchor, anchor_reward.double().unsqueeze(-1), reward)

    def continuation(self, phi: Tensor) -> Tensor:
        """c[N, A] in reward units, float64."""
        return phi.double() @ self.weights.T
