"""The transition model: how each column of the state moves, given the state and the action.

    static    stays (segment, a price assigned once)
    clock     advances by itself: categories and ordinals to their successor, numbers by a constant step
    table     frequencies of the next level given the action and the declared parents (contract mechanics)
    learned   one shared trunk over state and action, then a small head per column, drawn in sequence: each head also
              sees the table and learned values already drawn (linearly), so that columns may move together

Heads of ``learned`` columns: category and ordinal, a softmax over levels; count, a logistic rounded to whole numbers
and cut at 0 (Salimans et al., PixelCNN++, 2017: closed-form likelihood and inverse); numeric, a normal around the
present value. Everything is drawn by inverting the distribution function at a uniform number given by the caller, so
that baseline and scenario can share their random numbers.

Limits: a numeric column has no atoms (a spike at 0 is smoothed over); draws are held inside the observed range; a table
cell never seen falls back on the frequencies given the column's own level and action, then on its own level, then stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from irl.data.schema import Column, StateSchema
from irl.networks import Encoder

LOG_SCALE_RANGE = (-7.0, 3.0)
"""Bounds of the log scale of count and numeric heads, in units of the column's standard deviation."""


class TransitionModel(nn.Module):
    """log P(s'|s,a) and draws of s'.

    The order of draws is: table columns, then learned columns, each in the schema's order; ``n_random`` uniforms per
    row are needed. Fitting is done by :mod:`irl.estimation.dynamics`.
    """

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.schema = schema
        at = {
            kind: [f for f, c in enumerate(schema.columns) if c.dynamics == kind]
            for kind in ("clock", "table", "learned")
        }
        self.clock, self.table, self.learned = at["clock"], at["table"], at["learned"]
        self.n_random = len(self.table) + len(self.learned)
        self._build_mechanics()
        if self.learned:
            self._build_heads(hidden)

    def _build_mechanics(self) -> None:
        columns, actions = self.schema.columns, len(self.schema.actions)
        for f in self.clock:
            c = columns[f]
            step = torch.arange(len(c.labels) + 1).roll(-1).float() if c.discrete else torch.ones(())
            if c.discrete:  # the last level is followed by the first; an unseen level stays unseen
                step[-2:] = torch.tensor([0.0, float(len(c.labels))])
            self.register_buffer(f"clock_{f}", step)
        for f in self.table:
            cells = math.prod(len(columns[p].labels) + 1 for p in columns[f].parents)
            self.register_buffer(f"table_{f}", torch.zeros(cells, actions, len(columns[f].labels)))

    def _build_heads(self, hidden: tuple[int, ...]) -> None:
        columns = self.schema.columns
        self.encoder = Encoder(self.schema)
        widths = (self.encoder.width + len(self.schema.actions), *hidden)
        layers: list[nn.Module] = []
        for i, o in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(i, o), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.drawn = [*self.table, *self.learned]
        self.parameters_of = _blocks([_n_parameters(columns[f]) for f in self.learned])
        self.encoding_of = _blocks([_n_encoded(columns[f]) for f in self.drawn])
        self.heads = nn.Linear(widths[-1], self.parameters_of[-1].stop)
        self.sequence = nn.Parameter(torch.zeros(self.encoding_of[-1].stop, self.parameters_of[-1].stop))
        earlier = torch.zeros_like(self.sequence, dtype=torch.bool)
        for j, f in enumerate(self.learned):
            earlier[: self.encoding_of[self.drawn.index(f)].start, self.parameters_of[j]] = True
        self.register_buffer("earlier", earlier)

    def log_prob(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """log P[N] of ``following[N, F]`` over table and learned columns; numeric ones as a density in sd units."""
        total = state.new_zeros(len(state))
        for f in self.table:
            p = self._table_rows(f, state, action)
            total = total + p.gather(1, _codes(following, f, p.shape[1])).squeeze(1).clamp_min(1e-12).log()
        return total + self.learned_log_prob(state, action, following).sum(-1) if self.learned else total

    def learned_log_prob(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """log P[N, n_learned] of each learned column of ``following``, given those before it."""
        columns = self.schema.columns
        encoded = torch.cat([_encoded(columns[f], following[:, f]) for f in self.drawn], dim=1)
        parameters = self._head_parameters(state, action) + encoded @ (self.sequence * self.earlier)
        terms = [
            _log_prob(columns[f], parameters[:, block], state[:, f], following[:, f])
            for f, block in zip(self.learned, self.parameters_of, strict=True)
        ]
        return torch.stack(terms, dim=1)

    def sample(self, state: Tensor, action: Tensor, uniform: Tensor) -> Tensor:
        """One draw of s' [N, F] given ``state[N, F]``, ``action[N]`` and ``uniform[N, n_random]`` in (0, 1)."""
        following = state.clone()
        for f in self.clock:
            step: Tensor = getattr(self, f"clock_{f}")
            following[:, f] = step[state[:, f].long()] if self.schema.columns[f].discrete else state[:, f] + step
        for i, f in enumerate(self.table):
            following[:, f] = _draw_level(self._table_rows(f, state, action), uniform[:, i])
        if self.learned:
            self._sample_learned(state, action, uniform[:, len(self.table) :], following)
        return following

    def _sample_learned(self, state: Tensor, action: Tensor, uniform: Tensor, following: Tensor) -> None:
        columns = self.schema.columns
        parameters = self._head_parameters(state, action)
        for i, f in enumerate(self.drawn):
            if i >= len(self.table):
                j = i - len(self.table)
                block = self.parameters_of[j]
                following[:, f] = _draw(columns[f], parameters[:, block], state[:, f], uniform[:, j])
            later = self.parameters_of[max(i - len(self.table) + 1, 0)].start if i + 1 < len(self.drawn) else None
            if later is not None:
                link = self.sequence[self.encoding_of[i], later:]
                parameters[:, later:] += _encoded(columns[f], following[:, f]) @ link

    def _head_parameters(self, state: Tensor, action: Tensor) -> Tensor:
        chosen = nn.functional.one_hot(action, len(self.schema.actions)).to(state.dtype)
        out: Tensor = self.heads(self.trunk(torch.cat([self.encoder(state), chosen], dim=1)))
        return out

    def _table_rows(self, f: int, state: Tensor, action: Tensor) -> Tensor:
        """P[N, levels] of the next level of table column ``f``."""
        table: Tensor = getattr(self, f"table_{f}")
        return table[table_cell(self.schema, f, state), action]

    def expected_columns(self) -> list[int]:
        """Columns whose change by a scenario changes the dynamics: everything that is not static."""
        return [f for f, c in enumerate(self.schema.columns) if c.dynamics != "static"]


def table_cell(schema: StateSchema, f: int, state: Tensor) -> Tensor:
    """Index [N] of the parents' combination of table column ``f``; the last code of each parent is "unseen"."""
    cell = torch.zeros(len(state), dtype=torch.long, device=state.device)
    for p in schema.columns[f].parents:
        cell = cell * (len(schema.columns[p].labels) + 1) + state[:, p].long()
    return cell


def _blocks(widths: list[int]) -> list[slice]:
    ends = torch.tensor(widths).cumsum(0).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _n_parameters(column: Column) -> int:
    return len(column.labels) if column.discrete else 2


def _n_encoded(column: Column) -> int:
    return len(column.labels) if column.discrete else 1


def _encoded(column: Column, value: Tensor) -> Tensor:
    if column.discrete:
        return (value.unsqueeze(1) == torch.arange(len(column.labels), device=value.device)).to(value.dtype)
    return ((value - column.centre) / column.scale).unsqueeze(1)


def _codes(state: Tensor, f: int, levels: int) -> Tensor:
    return state[:, f : f + 1].long().clamp_max(levels - 1)


def _location_scale(column: Column, parameters: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (in declared units) and scale of the next value: the present one plus what the head says."""
    low, high = LOG_SCALE_RANGE
    location = value + column.scale * parameters[:, 0]
    return location, column.scale * parameters[:, 1].clamp(low, high).exp()


def _log_prob(column: Column, parameters: Tensor, value: Tensor, following: Tensor) -> Tensor:
    if column.discrete:
        seen = following < len(column.labels)
        code = following.long().clamp_max(len(column.labels) - 1).unsqueeze(1)
        return parameters.log_softmax(1).gather(1, code).squeeze(1) * seen
    location, scale = _location_scale(column, parameters, value)
    if column.kind == "count":
        upper = torch.sigmoid((following + 0.5 - location) / scale)
        lower = torch.sigmoid((following - 0.5 - location) / scale).masked_fill(following <= 0, 0.0)
        return (upper - lower).clamp_min(1e-9).log()
    z = (following - location) / scale
    return -0.5 * (z.square() + math.log(2 * math.pi)) - (scale / column.scale).log()


def _draw(column: Column, parameters: Tensor, value: Tensor, uniform: Tensor) -> Tensor:
    if column.discrete:
        return _draw_level(parameters.softmax(1), uniform)
    location, scale = _location_scale(column, parameters, value)
    if column.kind == "count":
        return (location + scale * torch.logit(uniform)).round().clamp(max(column.minimum, 0.0), column.maximum)
    return (location + scale * torch.special.ndtri(uniform)).clamp(column.minimum, column.maximum)


def _draw_level(probability: Tensor, uniform: Tensor) -> Tensor:
    """Code [N] whose cumulated probability first exceeds the uniform number."""
    below = probability.cumsum(1)[:, :-1] <= uniform.unsqueeze(1)
    return below.sum(1).to(uniform.dtype)
