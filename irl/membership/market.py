"""A simulated membership market whose rewards are known: what the estimator is measured against.

Members of a Prime-like programme choose every month between no plan, a monthly plan and an annual one. The market is
*invented*: no number in it was measured anywhere, and the segments' names are labels, not findings.

State (one row per member and month): ``segment``; ``status`` (out, monthly, annual) and ``months_left`` of prepaid
contract; ``price_monthly`` and ``price_annual``, drawn per member from a price test and never changing; one engagement
level 0, 1, 2 per benefit; the calendar ``month`` (0 = January). Contract mechanics:

    none                          -> out, 0      (inside a contract the rest is forfeited)
    monthly (status out, monthly) -> monthly, 0
    annual (status out, monthly)  -> annual, 11  (pays the annual price)
    annual (status annual, k)     -> annual, k-1 (nothing to pay), and after the last month -> monthly, 0

so ``annual`` means that prepaid months are left, and ``monthly`` that the member is one without a contract. Each
benefit's level moves up or down by at most one, independently of the others given segment and membership.

Rewards, per month: none 0 (the anchor); membership gives the *flow* of the benefits used (with a season per benefit and
diminishing returns to using many of them) less what is paid now, times the segment's price coefficient, less a joining
cost if out and a cost of committing to a year. The market is solved exactly (:mod:`irl.tabular`), one *cell* - a
segment facing a pair of prices - at a time, since cells do not communicate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl import bellman, tabular
from irl.bellman import Nests
from irl.config import Config, InputError
from irl.membership.tastes import LEVELS, MOOD, YEAR, Segment, invented_seasons, invented_segments

ACTIONS = ("none", "monthly", "annual")
NONE, MONTHLY, ANNUAL = range(3)
STATUSES = ("out", "monthly", "annual")


class Cell(NamedTuple):
    """What never changes for a member, and so delimits a problem of its own."""

    segment: str
    price_monthly: float
    price_annual: float


class Rules(NamedTuple):
    """What the members of a cell face: reward[YEAR, states, A], available[states, A], ``kernels`` as of
    :meth:`Market.kernels`; of actions that are added behind ``ACTIONS``, the contracts they lead to, and the nests."""

    reward: Tensor
    available: Tensor
    kernels: Tensor
    moves: tuple[np.ndarray, ...] = ()
    nests: Nests | None = None


@dataclass(frozen=True)
class Market:
    """All parameters. Benefits are numbered as in ``seasons``, the states of a cell by contract (out, monthly, annual
    with 1, 2, ... months left), then by the levels of the benefits, the last one fastest."""

    discount: float = 0.95
    temperature: float = 1.0
    segments: Mapping[str, Segment] = field(default_factory=invented_segments)
    seasons: Mapping[str, tuple[float, ...]] = field(default_factory=invented_seasons)
    list_monthly: float = 10.0
    list_annual: float = 84.0
    price_factors: tuple[float, ...] = (0.8, 1.0, 1.2)
    contract_months: int = 12
    commitment: bool = False
    """Whether an annual contract cannot be left: inside it there is nothing to choose."""
    attention: float = 1.0
    """The probability that a member decides in a month; otherwise the plan renews itself (out: stays out)."""
    reminded: float = 0.0
    """The probability of a reminder in a month, independent of all else (a column ``reminded`` if above 0)."""
    attention_reminded: float = 1.0
    """The probability that a member decides who is reminded."""
    nest: float = 0.0
    """The part of the taste shocks that the two plans share."""
    entry: Literal["everyone", "stock"] = "everyone"
    """Who is in a panel: everybody in the market, or those who are members when it begins."""

    def __post_init__(self) -> None:
        problems = [f"{name}: no benefit {benefit!r}" for name, segment in self.segments.items()
                    for benefit in self.seasons if benefit not in segment.benefits]  # fmt: skip
        problems += [f"season of {name}: {len(s)} months" for name, s in self.seasons.items() if len(s) != YEAR]
        if not self.segments or not self.seasons or not self.price_factors:
            problems.append("a market needs a segment, a benefit and a price factor")
        if self.contract_months < 2:
            problems.append(f"contract_months is {self.contract_months}; at least 2")
        for name in ("attention", "reminded", "attention_reminded"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} is {getattr(self, name)}; it is a probability")
        problems += [f"{name}: use of {b!r} moves with a probability above 1" for name, segment in self.segments.items()
                     for b, own in segment.benefits.items() if own.fastest > 1]  # fmt: skip
        if not 0 <= self.nest < 1 or not self.mean_attention > 0:
            problems.append("`nest` is at least 0 and below 1, and somebody has to decide sometimes")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def benefits(self) -> tuple[str, ...]:
        return tuple(self.seasons)

    @property
    def contracts(self) -> int:
        return self.contract_months + 1

    @property
    def levels(self) -> int:  # combinations of engagement levels
        return int(LEVELS ** len(self.seasons))

    @property
    def mean_attention(self) -> float:
        return self.reminded * self.attention_reminded + (1 - self.reminded) * self.attention

    @property
    def axes(self) -> tuple[int, ...]:
        """The shape of a cell's states: contract, then the level of each benefit."""
        return (self.contracts, *[LEVELS] * len(self.seasons))

    @property
    def states(self) -> int:
        return self.contracts * self.levels

    @property
    def columns(self) -> tuple[str, ...]:
        told = ("reminded",) if self.reminded > 0 else ()
        return ("segment", "status", "months_left", "price_monthly", "price_annual", *self.benefits, "month", *told)

    def cells(self) -> list[Cell]:
        """Every segment at every pair of prices of the price test."""
        factors = itertools.product(self.segments, self.price_factors, self.price_factors)
        return [Cell(s, round(m * self.list_monthly, 4), round(a * self.list_annual, 4)) for s, m, a in factors]

    def state_table(self, cell: Cell) -> pd.DataFrame:
        """The states of a cell as a panel shows them, one row per month and state, month-major."""
        contract, *levels = np.unravel_index(np.arange(self.states), self.axes)
        columns: dict[str, object] = dict(cell._asdict())
        columns["status"] = np.tile(np.array(STATUSES)[np.minimum(contract, 2)], YEAR)
        columns["months_left"] = np.tile(np.maximum(contract - 1, 0), YEAR)
        columns |= {name: np.tile(level, YEAR) for name, level in zip(self.benefits, levels, strict=True)}
        columns["month"] = np.repeat(np.arange(YEAR), self.states)
        columns["reminded"] = 0
        return pd.DataFrame(columns)[list(self.columns)]

    def flow(self, segment: str) -> Tensor:
        """What membership gives in a month, before payments: [YEAR, levels]."""
        taste = self.segments[segment]
        level = np.unravel_index(np.arange(self.levels), self.axes[1:])
        appeal = torch.zeros(YEAR, self.levels, dtype=torch.float64)
        for benefit, used in zip(self.benefits, level, strict=True):
            season = 1 + torch.tensor(self.seasons[benefit], dtype=torch.float64)
            use = torch.as_tensor(used / (LEVELS - 1))
            appeal += taste.benefits[benefit].taste * season[:, None] * use
        return taste.base + taste.saturation * -torch.expm1(-appeal / taste.saturation)

    def reward(self, cell: Cell) -> Tensor:
        """r[YEAR, states, actions] of a cell; NaN where an action is not available."""
        taste, flow = self.segments[cell.segment], self.flow(cell.segment)
        reward = torch.zeros(YEAR, self.contracts, self.levels, len(ACTIONS), dtype=torch.float64)
        reward[..., MONTHLY] = (flow - taste.price * cell.price_monthly)[:, None]
        reward[..., ANNUAL] = (flow + taste.perk)[:, None]
        reward[:, :2, :, ANNUAL] -= taste.commitment + taste.price * cell.price_annual
        reward[:, 0, :, NONE + 1 :] -= taste.joining
        return reward.reshape(YEAR, self.states, len(ACTIONS)).masked_fill(~self.available(), torch.nan)

    def available(self) -> Tensor:
        """Menu[states, actions]: all but ``monthly`` inside a contract, and ``annual`` alone if it cannot be left."""
        menu = torch.ones(self.contracts, self.levels, len(ACTIONS), dtype=torch.bool)
        menu[2:, :, MONTHLY] = False
        menu[2:, :, NONE] = not self.commitment
        return menu.reshape(self.states, len(ACTIONS))

    def next_contract(self, action: int) -> np.ndarray:
        """The contract [contracts] that an action leads to (``monthly`` inside a contract never happens)."""
        now = np.arange(self.contracts)
        after_annual = np.where(now < 2, self.contracts - 1, now - 1)
        return [np.zeros_like(now), np.ones_like(now), after_annual][action]

    def renewed(self) -> Tensor:
        """What happens [states] where nobody decides: the plan renews itself, the contract runs on."""
        return torch.arange(self.contracts).clamp_max(ANNUAL).repeat_interleave(self.levels)

    def kernels(self, segment: str) -> Tensor:
        """How the levels move out and as a member: [2, benefits, LEVELS, LEVELS], rows from, columns to."""
        benefits = [self.segments[segment].benefits[name] for name in self.benefits]
        return torch.stack([torch.stack([benefit.kernel(member) for benefit in benefits]) for member in (False, True)])

    def problem(self, rules: Rules) -> tabular.FiniteMDP:
        """The soft MDP of a cell with the given rules."""
        contract = torch.eye(self.contracts, dtype=torch.float64)
        moves = [*(self.next_contract(a) for a in range(len(ACTIONS))), *rules.moves]
        axes = [[contract[to], *rules.kernels[int(a != NONE)]] for a, to in enumerate(moves)]
        move = tabular.factored_expectation(axes)
        nests = rules.nests or (Nests((0, 1, 1), (1.0, 1 - self.nest)) if self.nest else None)
        attention = torch.full((self.states,), self.mean_attention, dtype=torch.float64)
        inertia = bellman.Inertia(attention, self.renewed()) if self.mean_attention < 1 else None
        about = (self.discount, self.temperature, nests, inertia)
        return tabular.FiniteMDP(rules.reward, rules.available, move, *about)

    def moody(self, strength: float) -> Market:
        """The same with a taste for membership that comes and goes (:data:`irl.membership.tastes.MOOD`), a column."""
        segments = {name: segment.moody(strength) for name, segment in self.segments.items()}
        return replace(self, segments=segments, seasons={**self.seasons, MOOD: (0.0,) * YEAR})

    def rules(self, cell: Cell, edit: Edit | None = None) -> Rules:
        """What the members of a cell face, after ``edit`` if there is one."""
        rules = Rules(self.reward(cell), self.available(), self.kernels(cell.segment))
        return rules if edit is None else edit(self.state_table(cell), rules)


def market_of(config: Config) -> Market:
    """The market that a study is simulated on, of one type of members; InputError if it has none."""
    if config.market is None:
        raise InputError("no `market` section; add e.g. market: {members: 4000, periods: 36}")
    about = config.market.model_dump(exclude={"members", "periods", "types", "chosen_use", "shocks"})
    market, shocks = Market(discount=config.discount, temperature=config.temperature, **about), config.market.shocks
    return market.moody(shocks) if shocks else market


@dataclass(frozen=True)
class MarketSolution:
    """A solved market: reward, policy [cells, YEAR, states, actions] and value [cells, YEAR, states].

    The policy is what happens; of members who decide only with some probability, ``decided`` is what they decide.
    """

    market: Market
    cells: tuple[Cell, ...]
    reward: Tensor
    policy: Tensor
    value: Tensor
    available: Tensor  # [cells, states, actions]
    kernels: Tensor  # [cells, 2, benefits, LEVELS, LEVELS]
    error: float  # bound on the error of the values
    decided: Tensor | None = None

    def locate(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(cell, month, state) numbers of the rows of ``frame``; InputError for rows the solution does not cover."""
        return locate(self.market, self.cells, frame)


def locate(market: Market, cells: Sequence[Cell], frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell, month, state) numbers of the rows of ``frame``; InputError for rows that are in none of the cells."""
    missing = [name for name in market.columns if name not in frame]
    if missing:
        raise InputError(f"the frame lacks the state columns {', '.join(missing)}")
    number = {cell: i for i, cell in enumerate(cells)}
    wanted, inverse = _cells_of(frame)
    unsolved = [str(tuple(cell)) for cell in wanted if cell not in number]
    if unsolved:
        raise InputError(f"not solved for {'; '.join(unsolved[:3])}: pass cells=cells_of(frame) to solve")
    status = pd.Index(STATUSES).get_indexer(pd.Index(frame["status"]))
    left = frame["months_left"].to_numpy().astype(int)
    levels = [frame[name].to_numpy().astype(int) for name in market.benefits]
    month = frame["month"].to_numpy().astype(int)
    wrong = (status < 0) | ((status == 2) != (left > 0)) | (left >= market.contract_months)
    wrong |= (month < 0) | (month >= YEAR) | np.any([(v < 0) | (v >= LEVELS) for v in levels], axis=0)
    if wrong.any():
        raise InputError(f"{wrong.sum()} rows are not states of the market, first: {frame.index[wrong][0]!r}")
    contract = np.where(status == 2, left + 1, status)
    state = np.ravel_multi_index((contract, *levels), market.axes)
    return np.array([number[cell] for cell in wanted])[inverse], month, state


Edit = Callable[[pd.DataFrame, Rules], Rules]
"""A change: (state table of a cell, its rules) -> the rules, changed."""


def _cells_of(frame: pd.DataFrame) -> tuple[list[Cell], np.ndarray]:
    static = pd.DataFrame({"segment": frame["segment"].astype(str)})
    for name in Cell._fields[1:]:
        static[name] = frame[name].astype(float).round(4)
    group = static.groupby(list(Cell._fields), dropna=False)
    inverse = group.ngroup().to_numpy()
    return [Cell(str(s), float(m), float(a)) for s, m, a in group.size().index], inverse


def cells_of(frame: pd.DataFrame) -> list[Cell]:
    """The cells that occur in the rows of ``frame``, whose prices may be any numbers."""
    return _cells_of(frame)[0]


def solve(
    market: Market,
    *,
    cells: Sequence[Cell] | None = None,
    edit: Edit | None = None,
    tolerance: float = 1e-10,
    track: Callable[[Iterable[Cell]], Iterable[Cell]] = iter,
) -> MarketSolution:
    """The market solved exactly, cell by cell; ``track`` may wrap the cells in a progress bar.

    ``edit`` changes the rules before solving (a scenario); rows are still found by their unchanged state.
    """
    cells, error = tuple(market.cells() if cells is None else cells), 0.0
    parts: list[tuple[Tensor, ...]] = []
    for cell in track(cells):
        with tabular.one_thread():
            rules = market.rules(cell, edit)
            solved = tabular.solve(market.problem(rules), tolerance=tolerance)
        assert solved.converged, f"{cell}: error {solved.error} after {solved.iterations} sweeps"
        error = max(error, solved.error)
        problem = market.problem(rules)
        decided = bellman.log_policy(solved.q, rules.available, market.temperature, problem.nests).exp()
        parts.append((rules.reward, solved.policy, solved.value, rules.available, rules.kernels, decided))
    reward, policy, value, available, kernels, chosen = (torch.stack(part) for part in zip(*parts, strict=True))
    decides = None if market.mean_attention == 1 else chosen
    return MarketSolution(market, cells, reward, policy, value, available, kernels, error, decides)


def simulate(
    solution: MarketSolution, *, members: int, periods: int, seed: int, burn_in_years: int = 4
) -> pd.DataFrame:
    """A panel of ``members`` who follow the exact policy: one row per member and period, sorted.

    Columns ``member_id``, ``period`` (0: a January), the state columns, and the chosen ``plan``. Segments are drawn by
    their shares and prices uniformly from the solved cells; everyone has been in the market, from no plan and no
    engagement, for ``burn_in_years`` before period 0. With ``entry: stock``, only who is a member then is in the panel.
    """
    market, generator = solution.market, np.random.default_rng(seed)
    share = np.array([market.segments[cell.segment].share for cell in solution.cells])
    present = members * (1 if market.entry == "everyone" else 5)
    cell = generator.choice(len(share), size=present, p=share / share.sum())
    cumulative = (solution.policy if solution.decided is None else solution.decided).cumsum(-1).numpy()
    renewed = market.renewed().numpy()
    kernels = solution.kernels.numpy().cumsum(-1)[..., :-1]  # cumulated, for drawing the next level
    following = np.stack([market.next_contract(action) for action in range(len(ACTIONS))])
    contract, level = np.zeros(present, dtype=int), np.zeros((present, len(market.benefits)), dtype=int)
    recorded: list[tuple[np.ndarray, ...]] = []
    for period in range(-YEAR * burn_in_years, periods):
        if period == 0 and market.entry == "stock":
            found = generator.choice(np.flatnonzero(contract > 0), size=members)  # with replacement
            cell, contract, level = cell[found], contract[found], level[found]
        state = np.ravel_multi_index((contract, *level.T), market.axes)
        draw = generator.random((len(cell), 1 + len(market.benefits)))
        told = np.zeros(len(cell), dtype=bool)
        # the last action is what is left, so that rounding of the cumulated probabilities cannot pick a fourth
        action = (draw[:, :1] >= cumulative[cell, period % YEAR, state, :-1]).sum(1)
        if market.mean_attention < 1:
            told = generator.random(len(cell)) < market.reminded
            awake = generator.random(len(cell)) < np.where(told, market.attention_reminded, market.attention)
            action = np.where(awake | (market.commitment & (contract > 1)), action, renewed[state])
        if period >= 0:
            recorded.append((contract, level, action, told))
        contract = following[action, contract]
        limits = kernels[cell[:, None], (action != NONE).astype(int)[:, None], np.arange(level.shape[1]), level]
        level = (draw[:, 1:, None] >= limits).sum(-1)
    return _panel(solution, cell, recorded)


def _panel(solution: MarketSolution, cell: np.ndarray, recorded: Sequence[tuple[np.ndarray, ...]]) -> pd.DataFrame:
    periods, members = len(recorded), len(cell)
    contract, level, action, told = (np.stack(p, axis=1) for p in zip(*recorded, strict=True))  # [members, periods]
    width = len(str(members - 1))
    period = np.tile(np.arange(periods), members)
    columns: dict[str, object] = {
        "member_id": np.repeat([f"m{i:0{width}d}" for i in range(members)], periods),
        "period": period,
        "segment": np.repeat(np.array([c.segment for c in solution.cells])[cell], periods),
        "status": np.array(STATUSES)[np.minimum(contract.ravel(), 2)],
        "months_left": np.maximum(contract.ravel() - 1, 0),
        "price_monthly": np.repeat(np.array([c.price_monthly for c in solution.cells])[cell], periods),
        "price_annual": np.repeat(np.array([c.price_annual for c in solution.cells])[cell], periods),
    }
    columns |= {name: level[..., b].ravel() for b, name in enumerate(solution.market.benefits)}
    columns["month"] = period % YEAR
    columns |= {"reminded": told.ravel().astype(int)} if solution.market.reminded > 0 else {}
    return pd.DataFrame(columns | {"plan": np.array(ACTIONS)[action.ravel()]})


def true_reward(solution: MarketSolution, frame: pd.DataFrame) -> pd.DataFrame:
    """The rewards of the rows of ``frame``, one column per action; NaN where unavailable."""
    cell, _, state = located = solution.locate(frame)
    available = solution.available[cell, state]
    return _table(torch.where(available, solution.reward[located], torch.nan), frame)


def true_policy(solution: MarketSolution, frame: pd.DataFrame) -> pd.DataFrame:
    """The exact choice probabilities of the rows of ``frame``; 0 where unavailable."""
    return _table(solution.policy[solution.locate(frame)], frame)


def true_value(solution: MarketSolution, frame: pd.DataFrame) -> pd.Series:
    """The exact soft values of the rows of ``frame``."""
    return pd.Series(solution.value[solution.locate(frame)].numpy(), index=frame.index, name="value")


def _table(values: Tensor, frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(values.numpy(), index=frame.index, columns=list(ACTIONS))
