"""How far the answers rest on assumptions: the refit again at other discounts, and at other rewards of the anchor.

Every point has the P step, the networks' features and the dynamics as fitted, the same draws of what follows, and no
standard errors; only the discount gamma or the anchor's reward g(s) is another. Of each it keeps the headline results
(mean rewards, contributions of benefits, coefficients), how likely the observed choices are, and choice probabilities
at some decisions. Discounts are given by the year and converted to the period: gamma = annual^(1 / periods per year).

How likely choices are is told by members held out: five folds of members (or of declared clusters), each under weights
maximised without it. Summed by group of members, so that two points are compared pair by pair (Vuong 1989) in
:mod:`irl.report.sensitivity`. The likelihood of all choices favours the point with more effective parameters.

``RUN/sensitivity.json`` is written after each point, whole; points that are there are not made again. The models at
other discounts are left in ``RUN/variants``, for scenarios to be answered by (scripts/assumptions.py).

Sources: Magnac & Thesmar (2002): gamma is not identified unless something moves what follows and not the reward of now;
what a panel says here comes from the form of the reward. Limits: the trunks' features were trained at the study's own
gamma; the policy under which features are valued, and the precisions of the priors, come from all members.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irl import runs
from irl.config import InputError
from irl.data.disclosure import withheld_of
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.estimation.findings import coefficients, contributions, reward_summary
from irl.estimation.logit import Choices, Logit, cross_validated
from irl.estimation.pipeline import held_out_rows
from irl.estimation.refit import fit_refit
from irl.estimation.training import Workbench
from irl.fitted import FittedModel

DISCOUNTS = (0.80, 0.85, 0.90, 0.95, 0.97)
"""Annual discount factors tried unless others are asked for."""
SHIFTS = (-1.0, -0.5, 0.5, 1.0)
"""What is added to the anchor's reward, in reward units, unless other amounts are asked for."""
ROWS = 8_000
"""States from which what follows is drawn, at most."""
VARIANTS = "variants"
"""Folder of a run with the models at other discounts."""
FOLDS = 5
MOST_GROUPS = 1_000
"""Groups of members (or clusters) whose held-out log-likelihoods are kept; a multiple of FOLDS."""
DECISIONS = 500
"""Decisions whose choice probabilities are kept."""


@dataclass(frozen=True)
class Point:
    """What was found at one discount (per period) and one shift of the anchor's reward (reward units).

    ``log_likelihood`` of all choices and ``held_out`` (by group of members) are in nats, weighted; ``probabilities``
    [DECISIONS x A], one decision after the other; ``policy_change`` that of the last round; ``converged`` and
    ``condition`` (None where infinite) the kernel's.
    """

    discount: float
    shift: float
    log_likelihood: float
    effective_parameters: float
    held_out: list[float]
    probabilities: list[float]
    policy_change: float
    condition: float | None
    converged: bool
    rewards: dict[str, dict[str, float]]
    contributions: dict[str, dict[str, dict[str, float]]]
    coefficients: list[dict[str, Any]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Shifted(StateSchema):
    """A schema whose anchor is worth ``shift`` more in every state."""

    shift: float

    def known_reward(self, state: Tensor) -> Tensor:
        return super().known_reward(state) + self.shift


def per_period(annual: float, periods_per_year: float) -> float:
    """The discount per period of an annual one; InputError unless 0 < annual < 1 and a year has periods."""
    if not 0 < annual < 1:
        raise InputError(f"annual discount factor {annual:g}: give numbers above 0 and below 1, such as .95")
    if not (periods_per_year > 0 and math.isfinite(periods_per_year)):
        raise InputError(f"{periods_per_year:g} periods a year: give a positive number, 12 for months")
    return float(annual ** (1 / periods_per_year))


@dataclass(frozen=True)
class Question:
    """What is to be found: the points (discount per period, shift) that ``path`` lacks, and those it has."""

    model: FittedModel
    panel: Panel
    path: Path
    about: dict[str, Any]
    missing: tuple[tuple[float, float], ...]
    points: list[dict[str, Any]]

    def answer(self, *, tick: Callable[[str, int, int], None] = lambda label, done, of: None) -> None:
        """Make the points that are missing and write each into ``path``.

        ``tick`` is called with what is being done, points done, and points to do.
        """
        points, of = list(self.points), len(self.missing)
        withheld = withheld_of(self.panel, self.model.config.data.min_cell)
        for done, (discount, shift) in enumerate(self.missing):
            year = discount ** self.about["periods_per_year"]
            tick(f"anchor {shift:+g}" if shift else f"discount {year:.3g} a year", done, of)
            kept = None if shift or discount == self.model.config.discount else self.path.parent / VARIANTS
            kept = kept and kept / f"discount {year:.3g} a year"
            points.append(withheld.left(asdict(point_at(self.model, self.panel, discount, shift, kept=kept))))
            found = {"about": self.about, "study": self.model.config.discount, "points": points}
            runs.write_json(self.path, found)
        tick("all points", of, of)


def ask(
    model: FittedModel,
    panel: Panel,
    path: str | Path,
    *,
    periods_per_year: float,
    discounts: Sequence[float] = DISCOUNTS,
    shifts: Sequence[float] = SHIFTS,
    overwrite: bool = False,
) -> Question:
    """Whether ``model`` can be refitted on ``panel`` at every annual discount and every shift of the anchor's reward,
    and at which of them ``path`` does not have it yet; with ``overwrite``, at all.

    Raises
    ------
    InputError
        If the model has no refit, a discount or shift is unusable, the panel has fewer than two members (clusters), or
        ``path`` holds something else or points of another panel.
    """
    if model.refit is None:
        raise InputError(
            "this run has no refit, and sensitivity is that of the refit: train with `estimation.refit.rounds` of at "
            "least 1 (and an anchor reward that is a number or a state column, and no `data.duration`)"
        )
    model.refuse_attention("sensitivity")
    withheld_of(panel, model.config.data.min_cell).refuse_nothing()
    if not all(math.isfinite(shift) for shift in shifts):
        raise InputError("shifts of the anchor's reward: give finite numbers")
    if int(panel.cluster.max()) < 1:
        raise InputError("held-out likelihoods need at least two members (clusters, where `data.cluster` is declared)")
    own, path = model.config.discount, Path(path)
    wanted = [(own, 0.0), *((per_period(d, periods_per_year), 0.0) for d in discounts), *((own, s) for s in shifts)]
    about = {
        "panel": panel.identity(),
        "periods_per_year": periods_per_year,
    }
    points = [] if overwrite or not path.exists() else _stored(path, about)
    made = {(point["discount"], point["shift"]) for point in points}
    missing = tuple(at for at in dict.fromkeys(wanted) if at not in made)
    return Question(model, panel.to(model.device), path, about, missing, points)


def point_at(model: FittedModel, panel: Panel, discount: float, shift: float, *, kept: Path | None = None) -> Point:
    """The refit at a discount per period, with ``shift`` added to the anchor's reward; ``model`` stays as it is. The
    refitted one is saved in the folder ``kept``."""
    started = time.perf_counter()
    assert model.refit is not None, "sensitivity is that of the refit"
    seed = model.config.seed
    known = {f.name: getattr(model.schema, f.name) for f in fields(StateSchema)}
    schema, refit = model.schema, copy.deepcopy(model.refit)
    refit.covariance.zero_()  # has no standard errors
    model = replace(
        model,
        config=model.config.model_copy(update={"discount": discount}),
        schema=Shifted(**known, shift=shift),
        refit=refit,
    )
    panel = replace(panel, anchor_reward=panel.anchor_reward + shift)
    options = model.config.estimation.refit
    options = options.model_copy(update={"rows": min(options.rows, ROWS), "standard_errors": False})
    held_out = held_out_rows(panel, model.config.estimation.validation, seed)
    fold, group = _folds(panel, seed)
    by_group = torch.zeros(int(group.max()) + 1, dtype=torch.float64, device=model.device)

    def inspect(logit: Logit, choices: Choices, theta: Tensor, penalty: Tensor) -> None:
        found = cross_validated(logit, choices, theta, penalty, fold[choices.rows])
        by_group.index_add_(0, group[choices.rows], found)

    bench = Workbench(device=model.device, seed=seed)
    _, report = fit_refit(model, panel, held_out, options, bench=bench, inspect=inspect)
    if kept is not None:
        kept.parent.mkdir(exist_ok=True)
        replace(model, schema=schema).save(kept)
    rows = panel.free.nonzero().squeeze(1).cpu()
    chosen = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:DECISIONS]]
    pi = model.log_policy_of(panel.state[chosen], panel.menu[chosen]).exp()
    return Point(
        discount=discount,
        shift=shift,
        log_likelihood=report.log_likelihood * float(panel.weight[panel.free].double().sum()),
        effective_parameters=report.effective_parameters,
        held_out=by_group.tolist(),
        probabilities=[round(p, 6) for p in pi.flatten().tolist()],
        policy_change=report.policy_change[-1],
        condition=report.condition if math.isfinite(report.condition) else None,
        converged=report.converged,
        rewards={a: {s: cell["mean"] for s, cell in by.items()} for a, by in reward_summary(model, panel).items()},
        contributions={
            a: {s: {name: cell["mean"] for name, cell in cells.items()} for s, cells in by.items()}
            for a, by in contributions(model, panel).items()
        },
        coefficients=[{k: row[k] for k in ("action", "name", "estimate")} for row in coefficients(model)],
        seconds=time.perf_counter() - started,
    )


def _folds(panel: Panel, seed: int) -> tuple[Tensor, Tensor]:
    """fold[N] and group[N] of every row: whole clusters, dealt out at random; a group lies in one fold."""
    clusters = int(panel.cluster.max()) + 1
    order = torch.randperm(clusters, generator=torch.Generator().manual_seed(seed)).to(panel.cluster.device)
    group = (order % min(clusters, MOST_GROUPS))[panel.cluster]
    return group % FOLDS, group


def _stored(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The points in the file; InputError if they are of another panel, or not points."""
    content = runs.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("points"), list):
        raise InputError(f"{path}: not what this writes; give --overwrite to start again")
    then = content.get("about", {})
    changed = sorted(key for key in about if then.get(key) != about[key])
    if changed:
        raise InputError(f"{path}: made with another {' and '.join(changed)}; give --overwrite to start again")
    return list(content["points"])
