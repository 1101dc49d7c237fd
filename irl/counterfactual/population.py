"""Who is simulated: the panel's members as they are, or a population that a scenario describes.

Start rows are kept ``where`` a condition holds, drawn in strata (segment, and the label of a reweighted column) whose
sizes follow the wanted shares up to one member, and their states then ``set``. Within a stratum rows are as likely as
their weights say (each member once, with ``members: all``, whatever its weight). Baseline and cases start from the same
members. Limit: a reweighted column changes who is there, not what they value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl.config import InputError, unknown
from irl.counterfactual import conditions
from irl.counterfactual.rollout import Starts
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.scenario import SLACK, Population, Scenario
from irl.transitions import States

AT_ONCE = 65_536
"""Rows among which starts are looked for together."""
GONE = 0.05
"""Share of members who were not observed to the end from which on a start at the newest row is explained."""


def check_population(population: Population | None, schema: StateSchema) -> None:
    """InputError naming all that does not fit the study."""
    if population is None:
        return
    problems = conditions.problems_of(population.where, schema, "population.where")
    for name, shares in population.reweight.items():
        place = "population.reweight"
        if name in schema.names and not schema.columns[schema.index(name)].discrete:
            problems.append(f"{place}: {name!r} has no labels; name a category, an ordinal or a segment column")
        else:
            problems += conditions.problems_of({name: tuple(shares)}, schema, place)
    for name, value in population.set.items():
        problems += _setting_problems(name, value, schema)
    if problems:
        raise InputError("the population does not fit the study:\n  " + "\n  ".join(problems))


def _setting_problems(name: str, value: bool | float | str, schema: StateSchema) -> list[str]:
    place = "population.set"
    strange = unknown(name, schema.names, place, "state column")
    if strange:
        return strange
    if schema.columns[schema.index(name)].dynamics == "static":
        return [f"{place}: {name!r} never changes for a member; choose members by it with `where` or `reweight`"]
    if name in schema.reference_columns:
        return [f"{place}: {name!r} says what the anchor is, which is given"]
    return schema.columns[schema.index(name)].setting_problems(value, f"{place}: {name!r}")


def cautions(scenario: Scenario, entry: str | None, panel: Panel | None) -> list[str]:
    """What the start population is, where it may be taken for another; ``entry``: as the study declares it."""
    if panel is None:
        return []
    found = []
    if entry == "stock" and scenario.start == "first":
        found.append(
            "members start as they were when observation began (`entry: stock`): in the middle of what they did, "
            "longer spells more often; it is no cohort of newcomers, whom `population: {where: ...}` may pick"
        )
    last = panel.period[torch.cat([panel.member.diff() > 0, panel.member.new_ones(1, dtype=torch.bool)])]
    gone = float((last < panel.period.max()).double().mean())
    if scenario.start == "last" and gone > GONE:
        found.append(
            f"`start: last` takes every member's newest row, also of the {gone:.0%} of them who were not observed to "
            "the panel's last period"
        )
    if scenario.members == "all" and float(panel.weight.max() - panel.weight.min()) > 0:
        found.append("each of the panel's members counts once, whatever its weight; `members: 20000` draws by weight")
    return found


def start_rows(schema: StateSchema, panel: Panel | None, states: States, *, start: str) -> Tensor:
    """Row index [M] of each member's start, the first or last row at which there is something to choose or to sit out;
    without a panel, of every such row.

    Raises
    ------
    InputError
        If there is no such row.
    """
    found, before = list[Tensor](), -1
    for first in range(0, len(states.state), AT_ONCE):
        state = states.state[first : first + AT_ONCE]
        usable = first + (schema.menu(state).any(1) & ~schema.is_terminal(state)).nonzero().squeeze(1)
        if panel is not None and len(usable):
            member = panel.member[usable]
            differs, fresh = member[1:] != member[:-1], member[:1] != before
            before = int(member[-1])
            if start == "first":
                usable = usable[torch.cat([fresh, differs])]
            else:
                usable = usable[torch.cat([differs, torch.ones_like(fresh)])]
                if found and not bool(fresh):  # the last member's rows went on here
                    found[-1] = found[-1][:-1]
        found += [usable] if len(usable) else []
    if not found:
        raise InputError("there is nobody to simulate: no row of the data is in a state in which something happens")
    return torch.cat(found)


def draw_starts(states: States, rows: Tensor, scenario: Scenario, schema: StateSchema) -> Starts:
    """The start states of the simulated members, of the members who start in ``rows[M]`` of ``states``.

    Each once, or as many as the scenario says, drawn with replacement, segment shares kept unless they are given.

    Raises
    ------
    InputError
        If the population asks for members whom nobody in the panel resembles, or puts them where nothing happens.
    """
    population = scenario.population or Population.model_construct()
    rows = rows[conditions.holds(schema, population.where, states.state[rows], states.segment[rows])]
    if not len(rows):
        raise InputError(f"population.where: no member starts there (`start: {scenario.start}` row)")
    real = torch.bincount(states.segment[rows], minlength=len(schema.segments))
    if scenario.members != "all":
        own, stratum = states.weight[rows].double().cpu(), states.segment[rows]
        weight = own
        for name, shares in population.reweight.items():
            code, weight = _reweighted(states.only(rows), name, shares, schema)
            stratum = stratum * (len(shares) + 1) + code
        real = torch.bincount(states.segment[rows[(weight > 0).to(rows.device)]], minlength=len(schema.segments))
        rows = rows[_drawn(stratum, weight, own, scenario.members, scenario.seed)]
    state = states.state[rows]  # a copy
    if population.set:
        for name, value in population.set.items():
            state[:, schema.index(name)] = schema.columns[schema.index(name)].code(value)
        stuck = ~schema.menu(state).any(1) | schema.is_terminal(state)
        if bool(stuck.any()):
            raise InputError("population.set: puts members where there is nothing to choose or to sit out")
    return Starts(state, states.segment[rows], rows, real=real)


def _reweighted(states: States, name: str, shares: dict[str, float], schema: StateSchema) -> tuple[Tensor, Tensor]:
    """Which label each row has (code[M], the last one: not named) and its weight[M], wanted share over present."""
    code = torch.full((len(states.state),), len(shares), device=states.state.device)
    for i, each in enumerate(shares):
        code[conditions.holds(schema, {name: (each,)}, states.state, states.segment)] = i
    own = states.weight.double().cpu()
    present = torch.bincount(code.cpu(), own, minlength=len(shares) + 1)
    rest = 1 - sum(shares.values())
    wanted = torch.tensor([*shares.values(), rest if rest > SLACK else 0.0], dtype=torch.float64)
    missing = [each for each, share, n in zip(shares, wanted, present, strict=False) if share > 0 and not n]
    if missing:
        raise InputError(f"population.reweight.{name}: nobody starts with {', '.join(missing)}")
    if wanted[-1] > 0 and not present[-1]:
        raise InputError(f"population.reweight.{name}: the shares add up to {1 - rest:g}, and no other label is left")
    return code, own * (wanted / present.clamp_min(1e-300))[code.cpu()]


def _drawn(stratum: Tensor, weight: Tensor, own: Tensor, members: int, seed: int) -> Tensor:
    """So many of M rows, with replacement; each stratum's part is that of its weights, up to one member, and a row's
    part of it that of its ``own`` weight [M]."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.bincount(stratum.cpu(), weight)
    exact = (members * sums / sums.sum()).tolist()
    quota = [int(x) for x in exact]
    by_remainder = sorted(range(len(quota)), key=lambda s: quota[s] - exact[s])
    for s in by_remainder[: members - sum(quota)]:
        quota[s] += 1
    picked = []
    for s, k in enumerate(quota):
        mine = (stratum == s).nonzero().squeeze(1)
        if k:
            part = own[mine.cpu()]
            alike = bool((part == part[0]).all())
            chosen = (
                torch.randint(len(mine), (k,), generator=generator)
                if alike
                else part.multinomial(k, replacement=True, generator=generator)
            )
            picked.append(mine[chosen.to(mine.device)])
    return torch.cat(picked)
