"""How far an answer moves with the anchor's reward: the scenario again, at rewards that fit the choices as well.

If the anchor's reward is not g but g + delta(s), then the rewards are not r but r + c - gamma^k E[c(s')|s,a], where c
is what the error is worth from now on,

    c(s) = delta(s) + gamma^k E[c(s')|s, mu] ,   mu the anchor (or reference policy), c = 0 where terminal.

Both c and E[c(s')|s,a] are the kernel's, on the same drawn transitions and basis as the values, so that baseline
choices stay as they are, up to rounding. Errors tried: a constant of either sign, and random patterns over the terms of
the reward, all of largest size ``ANCHOR_ERROR``. Where choices are identified nothing is solved again: values rise by c
at the state faced, and only the surplus can move.

Sources: the shaping r + c - gamma P c, Ng, Harada, Russell (1999); its role here, Kalouptsidi, Scott, Souza-Rodrigues
(2021). Limits: the band spans the errors tried, not all of that size, and holds the estimates fixed: the intervals are
about these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from irl import evaluation
from irl.counterfactual.counts import Counts
from irl.counterfactual.identification import Identification, classify
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.timing import Policy
from irl.fitted import FittedModel, free_rows
from irl.scenario import Timing
from irl.transitions import RIDGE_ROWS, Transitions

ANCHOR_ERROR = 0.5
"""Largest error of the anchor's reward that is tried, in temperatures: half the scale of a taste shock per period."""
PATTERNS = 2
"""Random patterns of the error over states, beside the two constants; each of the four solves the scenario again."""
TOLERANCE = 1e-3
"""Mean change of choice probabilities at which these solves stop: a band needs no more, and rounds are dear."""
MOST_ROWS = 4_000
"""States from which transitions are drawn at most for the band. All of it is solved on them, the model's own scenario
too, so that what is missed for lack of more is missed alike and does not widen it."""
MOST_MEMBERS = 4096
"""Members simulated at most for the band."""


@dataclass(frozen=True, kw_only=True)
class Equivalent(FittedModel):
    """The model at the reward r + c - gamma^k E[c(s')|s,a], c = phi(s).level and the expectation phi(s).ahead[a]; its
    choices without a change are those of ``original``."""

    original: FittedModel
    level: Tensor
    ahead: Tensor

    @torch.no_grad()
    def reward_of(self, state: Tensor, anchor_reward: Tensor | None = None) -> Tensor:
        phi = self.basis(state).double()
        return self.original.reward_of(state, anchor_reward) + (phi @ self.level).unsqueeze(1) - phi @ self.ahead.T

    @property
    def reward_weights(self) -> Tensor | None:
        own = self.original.reward_weights
        return None if own is None else torch.cat([own, self.level - self.ahead])

    def reward_from(self, parts: Tensor, state: Tensor) -> Tensor:
        own = parts.shape[1] - len(self.ahead)
        return self.original.reward_from(parts[:, :own], state) + parts[:, own:]

    def log_policy_of(self, state: Tensor, menu: Tensor, phi: Tensor | None = None) -> Tensor:
        return self.original.log_policy_of(state, menu, phi)


@dataclass(frozen=True)
class Band:
    """How far the changes that a scenario makes move with the anchor's reward.

    ``error`` is the largest error tried, in reward units. ``outcomes``: outcome -> segment (and "all") -> (change, low,
    high); the mean of each plan's share over the periods, and the surplus in reward units per period, which are each
    segment's own and not added up. A segment of which nobody is simulated is left out.
    """

    error: float
    outcomes: dict[str, dict[str, tuple[float, float, float]]]

    def sentence(self) -> str:
        """The band of everybody, and of the surplus of any segment, in words."""
        said = []
        for name, by in self.outcomes.items():
            share = name.startswith("share_")
            shown = list(by.values())[-1:] if share else list(by.values())
            low, high = min(low for _, low, _ in shown), max(high for *_, high in shown)
            scale, digits, unit = (100, 2, " points") if share else (1, 3, " reward units per period")
            bounds = f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}".replace("-", "−")
            said.append(f"{name.removeprefix('share_')} {bounds}{unit}")
        return f"if that reward is off by up to {self.error:g} reward units, the change is: {', '.join(said)}"

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        outcomes = {name: {s: list(values) for s, values in by.items()} for name, by in self.outcomes.items()}
        return {"error": self.error, "outcomes": outcomes}


@dataclass(frozen=True)
class Dependence:
    """The verdict on a scenario and, if it depends on the anchor's reward, the band."""

    identification: Identification
    band: Band | None = None

    def plain(self) -> dict[str, Any]:
        """For the record: plain values for JSON."""
        band = None if self.band is None else self.band.plain()
        return {"identification": self.identification.plain(), "anchor_band": band}

    def warnings(self, case: str) -> list[str]:
        """The verdict with its band, where there is one."""
        return [] if self.band is None else [f"{case}: {self.identification.sentence()}; {self.band.sentence()}"]


def equivalents(
    model: FittedModel, rows: Transitions, errors: Tensor, *, ridge_rows: float = RIDGE_ROWS
) -> list[Equivalent]:
    """The models of the anchor's rewards g + errors[K, N], given at the states of ``rows``, which are transitions under
    the programme as it is."""
    ridge, level = rows.ridge(ridge_rows), levels_of(model, rows, errors, ridge_rows=ridge_rows)
    actions = len(model.schema.actions)
    ahead = evaluation.solve(evaluation.accumulate(_ahead_chunks(model, rows, level), actions=actions), ridge=ridge)
    own = {f.name: getattr(model, f.name) for f in fields(FittedModel)}
    return [
        Equivalent(**own, original=model, level=level[:, k], ahead=ahead.weights[:, :, k]) for k in range(len(errors))
    ]


def levels_of(model: FittedModel, rows: Transitions, errors: Tensor, *, ridge_rows: float = RIDGE_ROWS) -> Tensor:
    """c of each error, as weights [D, K] of the basis. Arguments as of :func:`equivalents`."""
    sums = evaluation.accumulate(_anchor_chunks(model, rows, errors))
    return evaluation.solve(sums, ridge=rows.ridge(ridge_rows)).weights[0]


def anchor_errors(model: FittedModel, state: Tensor, *, seed: int) -> Tensor:
    """delta[2 + PATTERNS, N] at state[N, F], in reward units: -/+ a constant, and random sums of the reward's terms."""
    size = ANCHOR_ERROR * model.config.temperature
    terms = model.terms(state).double()[:, 1:]
    spread = terms.std(0, correction=0)
    terms = (terms - terms.mean(0)) / spread.where(spread > 0, torch.ones_like(spread))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(terms.shape[1], PATTERNS, generator=generator, dtype=torch.float64).to(state.device)
    patterns = (terms @ weights).T
    patterns = patterns / patterns.abs().amax(1, keepdim=True).clamp_min(1e-12)
    constants = patterns.new_ones(2, len(state)) * patterns.new_tensor([[-1.0], [1.0]])
    return size * torch.cat([constants, patterns])


def dependence(
    baseline: ScenarioPolicy,
    policy: Policy,
    timing: Timing,
    unchanged: Callable[[int], Transitions],
    again: Callable[[ScenarioPolicy], Policy],
    starts: Starts,
    *,
    periods: int,
    seed: int,
) -> Dependence:
    """How a solved scenario depends on the anchor's reward.

    Parameters
    ----------
    unchanged : by segment, the transitions on which the baseline was solved.
    again : solves the scenario for the model of another baseline, to ``TOLERANCE``, on ``MOST_ROWS`` states.
    """
    model = baseline.model
    found = classify(policy.intervention.changes, model.schema, timing)
    if found.welfare:
        return Dependence(found)
    starts, logged = _some(starts, seed), unchanged(0)
    errors = anchor_errors(model, logged.state, seed=seed)
    if found.behaviour and isinstance(policy, ScenarioPolicy):
        moved = {"surplus": _surplus_by_error(policy, baseline, levels_of(model, logged, errors), starts)}
    else:
        others = equivalents(model, logged, errors)
        moved = _by_error(policy, baseline, others, again, starts, periods=periods, seed=seed)
    band = _band(model, moved)
    return Dependence(found, band if band.outcomes else None)


def _band(model: FittedModel, moved: dict[str, Tensor]) -> Band:
    """The band of outcome -> changes [1 + K, S (+ 1)], the model's own first; NaN where they are a mean of nobody."""
    labels = [*model.schema.segments, "all"] if len(model.schema.segments) > 1 else model.schema.segments
    outcomes = {
        outcome: {
            label: (float(by[0]), float(by.min()), float(by.max()))
            for label, by in zip(labels, changes.T, strict=True)
            if (outcome != "surplus" or label in model.schema.segments) and not bool(by.isnan().all())
        }
        for outcome, changes in moved.items()
    }
    return Band(ANCHOR_ERROR * model.config.temperature, {name: by for name, by in outcomes.items() if by})


def _by_error(
    policy: Policy,
    baseline: ScenarioPolicy,
    others: list[Equivalent],
    again: Callable[[ScenarioPolicy], Policy],
    starts: Starts,
    *,
    periods: int,
    seed: int,
) -> dict[str, Tensor]:
    """outcome -> change [1 + K, S]: of the model's own scenario, then of each equivalent's, solved anew."""
    model = baseline.model
    unchanged = _without_draws(baseline)
    assert isinstance(unchanged, ScenarioPolicy)
    # the same choices, of values higher by c: what follows is worth more by its expectation
    baselines = [unchanged, *(replace(unchanged, model=o, weights=unchanged.weights + o.ahead) for o in others)]
    solved = [again(each) for each in baselines]
    cases: dict[str, Policy] = {"baseline": unchanged, "own": _without_draws(policy)}
    cases |= {str(k): each for k, each in enumerate(solved)}
    counts = rollout(model, cases, starts, periods=periods, seed=seed)
    before = _shares(counts["baseline"])
    shares = torch.stack([_shares(counts[str(k)]) for k in range(len(solved))])  # [1 + K, S, A]
    shares += _shares(counts["own"]) - before - shares[0].clone()
    as_they_were: dict[str, Policy] = {"news": cases["own"], **{str(k): each for k, each in enumerate(baselines)}}
    worth = rollout(model, as_they_were, starts, periods=policy.news + 1, seed=seed)
    value = torch.stack([counts[str(k)].value - worth[str(k)].value for k in range(len(solved))])
    value += counts["own"].value - counts["0"].value
    surplus = _per_member(model, value, counts["baseline"].valued)
    names = policy.intervention.actions
    return {f"share_{a}": shares[..., k] for k, a in enumerate(names)} | {"surplus": surplus}


def _without_draws(policy: Policy) -> Policy:
    """The same policy, of which no errors are wanted."""
    if isinstance(policy, ScenarioPolicy):
        return replace(policy, draws=None, weight_draws=None)
    first = tuple(replace(each, draws=None, weight_draws=None) for each in policy.first)
    return replace(policy, first=first, last=replace(policy.last, draws=None, weight_draws=None))


def _surplus_by_error(policy: ScenarioPolicy, baseline: ScenarioPolicy, level: Tensor, starts: Starts) -> Tensor:
    """The surplus [1 + K, S] where choices are identified: values under the changes rise by c at the state faced, times
    the factor by which the rewards are scaled."""
    model, segment = baseline.model, starts.segment
    faced = policy.intervention.state(starts.state, segment)
    flat = torch.zeros(len(faced), len(policy.intervention.actions), dtype=torch.float64, device=faced.device)
    factor = policy.intervention.reward(flat + 1, faced, segment) - policy.intervention.reward(flat, faced, segment)
    gain = policy.value(faced, policy.menu(faced, segment), segment) - baseline.value(
        starts.state, baseline.menu(starts.state, segment), segment
    )
    moved = factor[:, 0] * _levels(model, level, faced) - _levels(model, level, starts.state)
    valued = _by_segment(model, starts, torch.ones_like(gain.double()).unsqueeze(0))[0]
    return _per_member(model, _by_segment(model, starts, gain.double() + moved), valued)


def _levels(model: FittedModel, level: Tensor, state: Tensor) -> Tensor:
    """c [1 + K, N] at state[N, F], of level[D, K]: 0 for the model itself, then of each error."""
    found = (model.basis(state).double() @ level).T
    return torch.cat([torch.zeros_like(found[:1]), found])


def _by_segment(model: FittedModel, starts: Starts, values: Tensor) -> Tensor:
    """values[K, N] of the members who have a choice at the start, summed by segment [K, S]."""
    choosing = free_rows(model.schema, starts.state)
    sums = values.new_zeros(len(values), len(model.schema.segments))
    return sums.index_add_(1, starts.segment, values * choosing)


def _shares(counts: Counts) -> Tensor:
    """Means over the periods of the plan shares [S (+ 1), A]; periods in which nobody is left do not count."""
    chose, present = (_with_total(n.unsqueeze(0))[0] for n in (counts.chose, counts.present.unsqueeze(2)))
    return (chose / present).nanmean(1)


def _per_member(model: FittedModel, value: Tensor, valued: Tensor) -> Tensor:
    """value[K, S] per member and period [K, S (+ 1)]."""
    return (1 - model.config.discount) * _with_total(value) / _with_total(valued.unsqueeze(0))


def _with_total(by_segment: Tensor) -> Tensor:
    """by_segment[K, S, ...] with the sum over segments appended if there are several."""
    several = by_segment.shape[1] > 1
    return torch.cat([by_segment, by_segment.sum(1, keepdim=True)], 1) if several else by_segment


def _some(starts: Starts, seed: int) -> Starts:
    if len(starts.state) <= MOST_MEMBERS:
        return starts
    chosen = torch.randperm(len(starts.state), generator=torch.Generator().manual_seed(seed))[:MOST_MEMBERS]
    chosen = chosen.sort().values.to(starts.state.device)
    return Starts(starts.state[chosen], starts.segment[chosen])


class _Following(NamedTuple):
    """Of the states that follow: phi[U, D], and values [U, K] linear in it."""

    phi: Tensor
    value: Tensor


def _anchor_chunks(model: FittedModel, rows: Transitions, errors: Tensor) -> Iterator[evaluation.Rows]:
    """Rows whose solution is c, linear in the basis: every action counts by its weight in the reference policy."""
    for i, part, phi, following, discount in _parts(model, rows, None):
        reference = model.schema.reference(part.state, model.schema.menu(part.state))
        weight = reference.gather(1, part.action.unsqueeze(1)).squeeze(1) * part.weight
        target, place = errors[:, i].T, part.reached.place
        yield evaluation.Rows(phi, following.phi, discount, target, weight.double(), place=place)


def _ahead_chunks(model: FittedModel, rows: Transitions, level: Tensor) -> Iterator[evaluation.Rows]:
    """Rows whose solution is gamma^k E[c(s')|s,a] by action: a regression, nothing follows."""
    for _, part, phi, following, discount in _parts(model, rows, level):
        target = evaluation.mean_over_draws(following.value, part.reached.place, discount.unsqueeze(2)).squeeze(1)
        nothing, nobody = torch.zeros_like(discount[:, 0]), phi.new_zeros(len(phi), len(model.schema.actions))
        yield evaluation.Rows(phi, phi, nothing, target, part.weight.double(), part.action, nobody)


def _parts(
    model: FittedModel, rows: Transitions, level: Tensor | None
) -> Iterator[tuple[Tensor, Transitions, Tensor, _Following, Tensor]]:
    """Chunks: which, the rows, phi[n, D], what follows (with the values of ``level`` [D, K]), and gamma^k [n, S]."""

    def made(state: Tensor, segment: Tensor) -> _Following:
        phi = model.basis(state).double()
        return _Following(phi, phi[:, :0] if level is None else phi @ level)

    for i, part, following in rows.in_chunks(made, model.basis(rows.state[:1]).shape[1]):
        yield i, part, model.basis(part.state).double(), following, part.discount(model.config.discount)
