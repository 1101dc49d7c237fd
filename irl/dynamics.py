"""The transition model: how each column of the state moves, given the state and the action.

    static    stays (segment, a price assigned once)
    clock     advances by itself: categories and ordinals to their successor, numbers by a constant step
    table     frequencies of the next level given the action and the declared parents (contract mechanics)
    learned   one shared trunk over state and action, then a small head per column, drawn in sequence: each head also
              sees the table and learned values already drawn (linearly), so that columns may move together

Heads of ``learned`` columns: category and ordinal, a softmax over levels; count, a logistic rounded to whole numbers
(Salimans et al., PixelCNN++, 2017: closed-form likelihood and inverse); numeric, a normal. Every head starts from
simple statistics, so that the network has only to say what these do not: levels from their (smoothed) frequencies given
the column's own level, the action and the static categories, numbers from a regression on the present value, by action.
Count and numeric are centred on the present value and cut to the observed range, what lies beyond counting as the bound
(so does a value beyond it). Where many rows sit at the column's minimum (spend = 0), that value has a probability of
its own besides (a hurdle). Everything is drawn by inverting the distribution function at a uniform number given by the
caller, so that baseline and scenario can share their random numbers; a draw never falls when its number rises.

A table cell never seen falls back on the frequencies given the column's own level and the action, then given its own
level, then stays; if its own level is not among its parents, on the frequencies given the action, then on all.

Limits: several table columns are drawn independently given their parents, which is exact where they are deterministic;
numbers have no spike but at the ends of their range; a level that was never seen is neither drawn nor scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from irl.config import InputError
from irl.data.column import Column
from irl.data.schema import StateSchema
from irl.networks import Encoder

LARGEST_TABLE = 5_000_000
"""Entries (parents' combinations x actions x levels) above which a table is refused."""
LOG_SCALE_RANGE = (-7.0, 3.0)
"""Bounds of the log scale of count and numeric heads, in units of the column's standard deviation."""
LARGEST_START = 50_000
"""Entries above which the frequencies that a learned head starts from leave out static categories."""
IMPOSSIBLE = 1e-12
"""The probability at which a transition that a table holds impossible is scored."""


@dataclass(frozen=True)
class Movement:
    """How one table or learned column moves otherwise than fitted, in some of N rows: as in other states, then shifted.

    column : its index.
    where : bool[N], the rows.
    like : [N, F], the states whose distribution of moves the rows take over; None: their own.
    shift : of a level, P'(l) ~ P(l) exp(shift l), so that it is added to the log odds of each level against the one
        below; of a count or number, added to the centre of its distribution (declared units), before it is cut to the
        observed range and beside the minimum's own probability.
    """

    column: int
    where: Tensor
    like: Tensor | None = None
    shift: float = 0.0


class TransitionModel(nn.Module):
    """log P(s'|s,a) and draws of s'.

    The order of draws is: table columns, then learned columns, each in the schema's order; ``n_random`` uniforms per
    row are needed. Fitting is done by :mod:`irl.estimation.dynamics`. Inside, the parameters of the heads are [P, N],
    parameters first: what is done for each level is then done on contiguous rows.

    Raises
    ------
    InputError
        If a table would be too large.
    """

    earlier: Tensor
    """bool [E, P]: which drawn values (encoded) each head parameter may see."""
    strides: Tensor
    """float64 [n_random, F]: the entry of a drawn column's table (of a learned one: of what it starts from) is the
    product with the state's codes, plus the action."""
    atom: Tensor
    """[n_learned]: log odds of a row being at the column's minimum, to which the head adds; -inf: no probability of its
    own there."""

    def __init__(self, schema: StateSchema, hidden: tuple[int, ...]) -> None:
        super().__init__()
        check_tables(schema)
        self.schema = schema
        at = {
            kind: [f for f, c in enumerate(schema.columns) if c.dynamics == kind]
            for kind in ("clock", "table", "learned")
        }
        self.clock, self.table, self.learned = at["clock"], at["table"], at["learned"]
        self.n_random = len(self.table) + len(self.learned)
        parents = {f: schema.columns[f].parents for f in self.table}
        parents |= {f: start_parents(schema, f) for f in self.learned if schema.columns[f].discrete}
        strides = [_strides(schema, parents.get(f, ())) for f in (*self.table, *self.learned)]
        rows = torch.tensor(strides, dtype=torch.float64).view(self.n_random, len(schema.columns))
        self.register_buffer("strides", rows * len(schema.actions), persistent=False)
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
            cells = n_cells(self.schema, columns[f].parents)
            self.register_buffer(f"table_{f}", torch.zeros(cells, actions, len(columns[f].labels)))

    def _build_heads(self, hidden: tuple[int, ...]) -> None:
        columns = self.schema.columns
        blind = tuple(c.name for c in columns if c.hidden == "tastes")
        self.encoder = Encoder(self.schema, without=blind)
        widths = (self.encoder.width + len(self.schema.actions), *hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.drawn = [*self.table, *self.learned]
        self.parameters_of = _blocks([_n_parameters(columns[f]) for f in self.learned])
        self.encoding_of = _blocks([_n_encoded(columns[f]) for f in self.drawn])
        self.heads = nn.Linear(widths[-1], self.parameters_of[-1].stop)
        self.sequence = nn.Parameter(torch.zeros(self.encoding_of[-1].stop, self.parameters_of[-1].stop))
        earlier = torch.zeros_like(self.sequence, dtype=torch.bool)
        for j in range(len(self.learned)):
            earlier[: self.encoding_of[len(self.table) + j].start, self.parameters_of[j]] = True
        self.register_buffer("earlier", earlier)
        self.register_buffer("atom", torch.full((len(self.learned),), -torch.inf))
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        actions = len(self.schema.actions)
        for f in self.learned:
            cells = n_cells(self.schema, start_parents(self.schema, f))
            shape = (cells, actions, len(columns[f].labels)) if columns[f].discrete else (actions, 3)
            self.register_buffer(f"start_{f}", torch.zeros(shape))

    def log_prob(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """log P[N] of ``following[N, F]`` over table and learned columns.

        Numeric columns enter as a density in sd units, at the ends of their range as a probability.
        """
        total = state.new_zeros(len(state))
        entries = self._entries(state, action)
        for f, entry in zip(self.table, entries, strict=False):
            p = self._table_rows(f, entry)
            total = total + _at_code(p.clamp_min(IMPOSSIBLE).log().T, following[:, f])
        return total + self.learned_log_prob(state, action, following).sum(-1) if self.learned else total

    def learned_log_prob(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """log P[N, n_learned] of each learned column of ``following``, given those before it."""
        columns, parameters = self.schema.columns, self._given(state, action, following)
        terms = [
            _log_prob(columns[f], parameters[block], self.atom[j], state[:, f], following[:, f])
            for j, (f, block) in enumerate(zip(self.learned, self.parameters_of, strict=True))
        ]
        return torch.stack(terms, dim=1)

    def quantile(self, f: int, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """At which quantile [N] of its normal distribution, given the columns before it, number ``f`` came to lie."""
        parameters = self._given(state, action, following)[self.parameters_of[self.learned.index(f)]]
        location, scale = _location_scale(self.schema.columns[f], parameters, state[:, f])
        quantile: Tensor = torch.special.ndtr((following[:, f] - location) / scale)
        return quantile

    def _given(self, state: Tensor, action: Tensor, following: Tensor) -> Tensor:
        """Parameters [P, N] of the heads, of each given what was drawn before it."""
        encoded = torch.cat([_encoded(self.schema.columns[f], following[:, f]) for f in self.drawn])
        return self.head_parameters(state, action) + (self.sequence * self.earlier).T @ encoded

    @torch.no_grad()
    def sample(self, state: Tensor, action: Tensor, uniform: Tensor, movements: Sequence[Movement] = ()) -> Tensor:
        """One draw of s' [N, F] given ``state[N, F]``, ``action[N]`` and ``uniform[N, n_random]`` in (0, 1).

        ``movements`` apply in their order; later columns follow what is drawn under them.
        """
        following = state.clone()
        for f in self.clock:
            step: Tensor = getattr(self, f"clock_{f}")
            following[:, f] = step[state[:, f].long()] if self.schema.columns[f].discrete else state[:, f] + step
        entries = self._entries(state, action)
        for i, f in enumerate(self.table):
            p = self._table_rows(f, entries[i]).T
            for moved in (m for m in movements if m.column == f):
                if moved.like is not None:
                    like = self._table_rows(f, self._entries(moved.like, action)[i])
                    p = torch.where(moved.where, like.T, p)
                p = torch.where(moved.where, _tilted(p, moved.shift), p)
            following[:, f] = _draw_level(p, uniform[:, i])
        if self.learned:
            self._sample_learned(state, action, uniform[:, len(self.table) :], following, movements)
        return following

    def _sample_learned(
        self, state: Tensor, action: Tensor, uniform: Tensor, following: Tensor, movements: Sequence[Movement]
    ) -> None:
        """Draw the learned columns into ``following``; each draw shifts the parameters of the heads after it."""
        columns = self.schema.columns
        parameters = self.head_parameters(state, action)
        for moved in (m for m in movements if m.column in self.learned):
            block = self.parameters_of[self.learned.index(moved.column)]
            if moved.like is not None:
                like = self.head_parameters(moved.like, action)[block]
                parameters[block] = torch.where(moved.where, like, parameters[block])
            parameters[block] += _shift(columns[moved.column], moved.shift, parameters[block]) * moved.where
        if self.table:
            encoded = torch.cat([_encoded(columns[f], following[:, f]) for f in self.table])
            parameters = parameters + self.sequence[: len(encoded)].T @ encoded
        for j, f in enumerate(self.learned):
            block, own = self.parameters_of[j], self.encoding_of[len(self.table) + j]
            following[:, f] = _draw(columns[f], parameters[block], self.atom[j], state[:, f], uniform[:, j])
            if block.stop < len(parameters):
                parameters[block.stop :] += self.sequence[own, block.stop :].T @ _encoded(columns[f], following[:, f])

    def head_parameters(self, state: Tensor, action: Tensor) -> Tensor:
        """The network's pass: parameters [P, N] of the heads, before anything is drawn."""
        h = torch.cat([self.encoder(state).T, _levels(action, len(self.schema.actions)).to(state.dtype)])
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):  # W h and not h W, which would turn every layer's rows around
                h = torch.addmm(layer.bias.unsqueeze(1), layer.weight, h)
            else:
                h = silu(h, inplace=not h.requires_grad)
        out = torch.addmm(self.heads.bias.unsqueeze(1), self.heads.weight, h)
        entries = self._entries(state, action)[len(self.table) :]
        return out.add_(
            torch.cat([self._start(f, e, state, action) for f, e in zip(self.learned, entries, strict=True)])
        )

    def _start(self, f: int, entry: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """What the head of learned column ``f`` starts from [n, N]: log frequencies; or move, log scale and 0."""
        start: Tensor = getattr(self, f"start_{f}")
        column = self.schema.columns[f]
        if column.discrete:
            return start.flatten(0, 1).index_select(0, entry).T
        constant, slope, log_scale = start[action].T
        move = constant + slope * (state[:, f] - column.centre) / column.scale
        return torch.stack([move, log_scale, torch.zeros_like(move)])

    def _table_rows(self, f: int, entry: Tensor) -> Tensor:
        """P[N, levels] of the next level of table column ``f``."""
        table: Tensor = getattr(self, f"table_{f}")
        return table.flatten(0, 1).index_select(0, entry)

    def _entries(self, state: Tensor, action: Tensor) -> Tensor:
        """[n_random, N]: where each drawn column's frequencies are, counted over the parents' combinations and
        actions. In float64, whose whole numbers are exact, since one product is all of them at once."""
        return torch.addmm(action.double(), self.strides, state.T.double()).long()


def check_tables(schema: StateSchema) -> None:
    """InputError naming every `table` column with so many parents' combinations that counting them cannot work."""
    problems = []
    for column in schema.columns:
        if column.dynamics == "table":
            size = n_cells(schema, column.parents) * len(schema.actions) * len(column.labels)
            if size > LARGEST_TABLE:
                problems.append(f"state.{column.name}: a table over its parents would have {size:,} entries")
    if problems:
        remedy = f"\nat most {LARGEST_TABLE:,} are allowed: name fewer parents or use `dynamics: learned`"
        raise InputError("\n".join(problems) + remedy)


def start_parents(schema: StateSchema, f: int) -> tuple[int, ...]:
    """The columns by which the frequencies are counted that learned column ``f`` starts from: its own, then static
    categories as long as the counts stay small."""
    parents: tuple[int, ...] = (f,)
    for p, column in enumerate(schema.columns):
        if column.kind == "category" and column.dynamics == "static" and column.hidden != "tastes":
            size = n_cells(schema, (*parents, p)) * len(schema.actions) * len(schema.columns[f].labels)
            parents = (*parents, p) if size <= LARGEST_START else parents
    return parents


def n_cells(schema: StateSchema, parents: tuple[int, ...]) -> int:
    """Combinations of the parents' levels, "unseen" being one of each."""
    return math.prod(len(schema.columns[p].labels) + 1 for p in parents)


def _strides(schema: StateSchema, parents: tuple[int, ...]) -> list[float]:
    """[F]: by how much the parents' combination (:func:`table_cell`) rises with each column's code."""
    strides = [0.0] * len(schema.columns)
    for i, p in enumerate(parents):
        strides[p] += n_cells(schema, parents[i + 1 :])
    return strides


def table_cell(schema: StateSchema, parents: tuple[int, ...], state: Tensor) -> Tensor:
    """Index [N] of the parents' combination; the last code of each parent is "unseen"."""
    cell = torch.zeros(len(state), dtype=torch.long, device=state.device)
    for p in parents:
        cell = cell * (len(schema.columns[p].labels) + 1) + state[:, p].long()
    return cell


def _blocks(widths: list[int]) -> list[slice]:
    ends = torch.tensor(widths).cumsum(0).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _n_parameters(column: Column) -> int:
    """A logit per level; or location, log scale, and the log odds of the minimum's own probability."""
    return len(column.labels) if column.discrete else 3


def _n_encoded(column: Column) -> int:
    return len(column.labels) if column.discrete else 1


def _encoded(column: Column, value: Tensor) -> Tensor:
    """value[N] as the later heads see it, [n, N]: its level (none if unseen), or standardised."""
    if column.discrete:
        return _levels(value, len(column.labels)).to(value.dtype)
    return ((value - column.centre) / column.scale).unsqueeze(0)


def _levels(code: Tensor, levels: int) -> Tensor:
    """bool [levels, N]: which level code[N] is."""
    return code == torch.arange(levels, dtype=code.dtype, device=code.device).unsqueeze(1)


def _at_code(log_p: Tensor, code: Tensor) -> Tensor:
    """log_p[levels, N] at code[N]; 0 where the level is unseen."""
    levels = len(log_p)
    return log_p.gather(0, code.long().clamp_max(levels - 1).unsqueeze(0)).squeeze(0) * (code < levels)


def _log_prob(column: Column, parameters: Tensor, atom: Tensor, value: Tensor, following: Tensor) -> Tensor:
    """log P[N] of following[N], given parameters[n, N] of the column's head and its present value[N]."""
    if column.discrete:
        return _at_code(parameters.log_softmax(0), following)
    location, scale = _location_scale(column, parameters, value)
    following = following.clamp(column.minimum, column.maximum)
    lowest, highest = following <= column.minimum, following >= column.maximum
    z = (following - location) / scale
    if column.kind == "count":  # log(F(b) - F(a)) = log F(b) + log(1 - F(a)) + log(1 - exp(a - b)), F the logistic
        up_to = logsigmoid(z + 0.5 / scale).masked_fill(highest, 0.0)
        from_on = logsigmoid(0.5 / scale - z).masked_fill(lowest, 0.0)
        log_p = up_to + from_on + (-torch.expm1(-1 / scale)).log().masked_fill(lowest | highest, 0.0)
    else:
        density = -0.5 * (z.square() + math.log(2 * math.pi)) - (scale / column.scale).log()
        tails = torch.special.log_ndtr(torch.where(lowest, z, -z))
        log_p = torch.where(lowest | highest, tails, density)
    spike = parameters[2] + atom
    log_p = log_p + logsigmoid(-spike)
    return torch.where(lowest, torch.logaddexp(logsigmoid(spike), log_p), log_p)


def _draw(column: Column, parameters: Tensor, atom: Tensor, value: Tensor, uniform: Tensor) -> Tensor:
    """The next value[N] at uniform[N]; arguments as in :func:`_log_prob`."""
    if column.discrete:
        return _draw_level((parameters - parameters.amax(0)).exp_(), uniform)
    location, scale = _location_scale(column, parameters, value)
    spike = (parameters[2] + atom).sigmoid()
    uniform = ((uniform - spike) / (1 - spike)).clamp(0, 1)  # 0, the lowest draw, up to the spike
    count = column.kind == "count"
    following: Tensor = location + scale * (torch.logit(uniform) if count else torch.special.ndtri(uniform))
    return (following.round() if count else following).clamp(column.minimum, column.maximum)


def _location_scale(column: Column, parameters: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale [N] of the next value, in declared units: the present one plus what the head says."""
    low, high = LOG_SCALE_RANGE
    location = value + column.scale * parameters[0]
    scale: Tensor = column.scale * parameters[1].clamp(low, high).exp()
    return location, scale


def _shift(column: Column, shift: float, parameters: Tensor) -> Tensor:
    """What ``shift`` (see :class:`Movement`) adds to parameters[n, N] of the column's head, [n, 1]."""
    if column.discrete:
        return shift * torch.arange(len(parameters), device=parameters.device).unsqueeze(1)
    return torch.tensor([[shift / column.scale], [0.0], [0.0]], device=parameters.device)


def _tilted(weight: Tensor, shift: float) -> Tensor:
    """weight[levels, N] times exp(shift level), less a constant of the row that keeps the largest factor at 1."""
    tilt = shift * torch.arange(len(weight), device=weight.device).unsqueeze(1)
    most = tilt.masked_fill(weight <= 0, -torch.inf).amax(0)
    return weight * (tilt - most).clamp_max(0).exp()


def _draw_level(weight: Tensor, uniform: Tensor) -> Tensor:
    """Code [N] whose cumulated share of weight[levels, N] first exceeds uniform[N]; never one of weight 0.

    The uniform number is scaled to the total as it was summed, which rounding may leave below that of the shares.
    """
    cumulated = weight.cumsum(0)
    passed: Tensor = cumulated[:-1] <= uniform * cumulated[-1]
    return passed.sum(0).to(uniform.dtype)
