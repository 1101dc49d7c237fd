"""Falsification: what the data say against the assumptions of the refit, one score test for each.

Each test adds a direction z(s,a) to the logits of the observed choices (:mod:`irl.estimation.alternatives`) and asks
whether its coefficient is 0, without estimating it (Rao 1948; Neyman 1959):

    S = sum_t sum_a (1{a} - pi) z ,   S - B'(U - L theta)   in the refit's own scores U and prior L ,
    B = (H + L)^-1 sum cov_pi(d logit/d theta, z)
    V = sum_i s_i s_i' + B' L B ,     s_i = member's share of S, less B' u_i ,   T = S' V^-1 S ~ chi2(rank of V)

with u_i the member's score of :mod:`irl.estimation.inference`: S and U are both moved by errors of what follows, and by
kernel_scores of both s_i allows for them; what these errors leave in the mean of S, since they move z as well, is taken
off (:mod:`irl.estimation.second_order`). Clustered by member, or as declared. Shrinkage is allowed for on average over
the prior (as in standard errors). A direction that the reward's features span has nothing left and is dropped.
Products of residuals have the variance that the model gives them (``products_variance``). T is scaled to the mean that
chi2 has, since V is estimated from the clusters (Hotelling 1931): 23 degrees of freedom of 500 members were rejected in
9 % (se 3) else.

Every test may be moved by another's violation: a small p says that something is wrong, not which. Several tests at 5 %
find something in a correct panel more often than one in twenty: compare with 0.05 divided by their number. Conditional
on: what standard errors are conditional on; the reward's features hold the truth (else every direction may pick up what
they miss).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irl import runs
from irl.config import InputError
from irl.data.panel import Panel
from irl.estimation.alternatives import Alternative, Residuals, alternatives, products_variance
from irl.estimation.evaluation_rows import evaluation_rows
from irl.estimation.inference import choice_scores, kernel_scores
from irl.estimation.logit import CHUNK, HESSIAN_ROWS, Choices, Logit
from irl.estimation.parameters import Parameters, reward_parameters
from irl.estimation.refit import feature_sums, logit_of
from irl.estimation.second_order import Replica, replicas
from irl.evaluation import solve
from irl.fitted import FittedModel
from irl.transitions import Transitions

RESULT = "falsification.json"
LEFT = 1e-6
"""Share of a direction's information that the reward's features must leave to it."""
FEWEST = 20
"""Clusters per degree of freedom below which no statistic is given: its distribution is one of many clusters."""


@dataclass(frozen=True)
class Check:
    """One test: ``statistic`` is chi2 with ``df`` degrees of freedom under ``null``; None, and ``why``, if not done."""

    name: str
    null: str
    statistic: float | None
    df: int
    p: float | None
    sees: str
    cannot_see: str
    why: str = ""


@torch.no_grad()
def battery(model: FittedModel, panel: Panel, precisions: Sequence[float]) -> list[Check]:
    """Every test on the panel that ``model`` was fitted on; ``precisions`` are those of the refit's report.

    Raises
    ------
    InputError
        If the model cannot be tested (:func:`refusal`), or the precisions are another's.
    """
    if (why := refusal(model)) is not None:
        raise InputError(why)
    panel, options = panel.to(model.device), model.config.estimation.refit
    found = residuals(model, panel)
    asked = alternatives(found)
    states, rows = evaluation_rows(model.dynamics, panel, most=options.rows, seed=model.config.seed)
    own = reward_parameters(model, states)
    if len(precisions) != int(own.groups.max()) + 1:
        raise InputError("the refit's precisions are of another reward: train the study again")
    penalty = torch.tensor(precisions, dtype=torch.float64, device=model.device)[own.groups]
    sums = feature_sums(model, rows, own, refitted=True)
    logit = logit_of(model, solve(sums, ridge=rows.ridge(of=sums.rows)).weights, own)
    done = [a for a in asked if isinstance(a.z, Tensor)]
    assert model.refit is not None
    theta = own.of(model.refit.theta[model.refit.paid])
    checks = _tests(found, rows, logit, own, theta, penalty, done)
    tested = dict(zip((a.name for a in done), checks, strict=True))
    return [tested.get(a.name) or _check(a, why=str(a.z)) for a in asked]


def refusal(model: FittedModel) -> str | None:
    """Why a model cannot be tested; None if it can."""
    if model.refit is None:
        return (
            "this run has no refit, and falsification is that of the refit: train with `estimation.refit.rounds` of at "
            "least 1 (and an anchor reward that is a number or a state column, and no `data.duration`)"
        )
    if model.schema.types > 1:
        return "falsification tests what one type of members assumes: train the study with `types: 1`"
    if model.config.attention is not None:
        return "falsification cannot be asked with `attention` yet: train the study without it to ask"
    return None


def tested(model: FittedModel, panel: Panel, precisions: Sequence[float]) -> dict[str, Any]:
    """The battery as plain values for JSON: ``seconds`` it took, and ``checks``."""
    started = time.perf_counter()
    checks = [asdict(check) for check in battery(model, panel, precisions)]
    return {"seconds": time.perf_counter() - started, "checks": checks}


def falsify(run: str | Path, model: FittedModel, panel: Panel) -> float:
    """The battery of a finished run into its ``falsification.json``; how many seconds it took.

    Raises
    ------
    InputError
        If the panel is not the one that the run was trained on, or as :func:`battery`.
    """
    folder = runs.complete_run(run)
    about = panel.identity()
    if about != runs.read_json(folder / runs.PROVENANCE).get("about", {}).get("data"):
        raise InputError(f"{model.config.data.path}: not the panel that the run was trained on; train it again")
    precisions = runs.read_json(folder / runs.LAST).get("refit", {}).get("precisions", [])
    found = tested(model, panel, precisions)
    runs.write_json(folder / RESULT, {"panel": about, **found})
    seconds: float = found["seconds"]
    return seconds


def residuals(model: FittedModel, panel: Panel) -> Residuals:
    """Of all decisions."""
    rows = panel.free.nonzero().squeeze(1)
    pi, reward, follows = [], [], []
    assert model.refit is not None
    for i in rows.split(CHUNK):
        pi.append(model.log_policy_of(panel.state[i], panel.menu[i]).double().exp())
        reward.append(model.reward_of(panel.state[i], panel.anchor_reward[i]).double())
        follows.append(model.refit.continuation(model.basis(panel.state[i])))
    probability = torch.cat(pi)
    at = torch.arange(panel.n_actions, device=rows.device)
    chosen = (panel.action[rows].unsqueeze(1) == at).double()
    return Residuals(model, panel, rows, probability, torch.cat(reward), torch.cat(follows), chosen - probability)


def _tests(
    found: Residuals,
    rows: Transitions,
    logit: Logit,
    parameters: Parameters,
    theta: Tensor,
    penalty: Tensor,
    asked: Sequence[Alternative],
) -> list[Check]:
    """The tests that can be done; ``rows`` are the drawn transitions on which what follows was evaluated."""
    if not asked:
        return []
    model, panel, flat, own = found.model, found.panel, logit.map.flatten(0, 1), len(theta)
    directions = [a.z for a in asked if isinstance(a.z, Tensor)]
    z = torch.cat(directions, 2)
    some = torch.randperm(len(found.rows), generator=torch.Generator().manual_seed(0))[:HESSIAN_ROWS].to(z.device)
    choices = Choices(model, panel, found.rows[some], {})
    more = float(panel.weight[found.rows].double().sum()) / choices.mass
    curvature = more * logit.curvature(theta, choices) @ flat
    moved, raw = _moved(found, some, z)
    moved, raw = more * moved / logit.temperature, more * raw
    information = flat.T @ curvature
    bread = torch.linalg.inv(information + torch.diag(penalty))
    shared = flat.T @ moved  # [P, K]
    slope = bread @ shared
    errors = kernel_scores(model, panel, rows, torch.cat([curvature, moved], 1))
    scores = choice_scores(model, panel, flat / logit.temperature)
    twice = torch.cat([torch.full((d.shape[2],), a.twice) for a, d in zip(asked, directions, strict=True)]).to(z.device)
    by_cluster = _direction_scores(found, z, twice)
    refitted = scores - errors[:, :own]
    total = by_cluster.sum(0) - (scores.sum(0) - penalty * theta) @ slope
    for replica in replicas(model, panel, rows, parameters, theta, penalty, bread):
        total = total - replica.factor * _total(replica, panel, slope, twice)
    each = by_cluster - errors[:, own:] - refitted @ slope
    clusters = len(panel.cluster.unique())
    each = each - each.sum(0) / clusters
    variance = each.T @ each * (clusters / max(clusters - 1, 1)) + slope.T @ (penalty.unsqueeze(1) * slope)
    if clusters == panel.n_members and bool(twice.any()):  # else products of different members may go together too
        at = twice.nonzero()
        spread = variance[at, at.T] + products_variance(found) - by_cluster[:, twice].T @ by_cluster[:, twice]
        if bool((torch.linalg.eigvalsh(spread) > 0).all()):  # a difference of estimates need not be a variance
            variance[at, at.T] = spread
    left = (raw - (shared * slope).sum(0)) > LEFT * raw
    checks, first = [], 0
    for alternative, direction in zip(asked, directions, strict=True):
        at = torch.arange(first, first + direction.shape[2], device=z.device)
        at, first = at[left[at]], first + direction.shape[2]
        checks.append(_tested(alternative, total[at], variance[at][:, at], clusters))
    return checks


def _total(replica: Replica, panel: Panel, slope: Tensor, twice: Tensor) -> Tensor:
    """S - B'(U - L theta) [K] of a replica, B as it was."""
    found = residuals(replica.model, panel)
    z = torch.cat([a.z for a in alternatives(found) if isinstance(a.z, Tensor)], 2)
    return _direction_scores(found, z, twice).sum(0) - replica.slack @ slope


def _tested(alternative: Alternative, score: Tensor, variance: Tensor, clusters: int) -> Check:
    scale = variance.diagonal().clamp_min(1e-300).sqrt()
    correlation = variance / scale / scale.unsqueeze(1)
    rank = int(torch.linalg.matrix_rank(correlation, hermitian=True, rtol=LEFT)) if len(score) else 0
    if not rank:
        return _check(alternative, why="the reward's features span it: the data cannot tell it from the reward")
    if clusters < FEWEST * rank:
        return _check(alternative, why=f"{clusters} members (clusters) are too few: at least {FEWEST * rank}")
    standard = score / scale
    statistic = float(standard @ torch.linalg.pinv(correlation, hermitian=True, rtol=LEFT) @ standard)
    statistic *= (clusters - rank - 2) / (clusters - 1)  # V is estimated, too: the mean of Hotelling's statistic
    half = torch.tensor([rank / 2, statistic / 2], dtype=torch.float64)
    p = float(torch.special.gammaincc(half[0], half[1]))
    return replace(_check(alternative), statistic=statistic, df=rank, p=p)


def _check(alternative: Alternative, *, why: str = "") -> Check:
    about = {name: getattr(alternative, name) for name in ("name", "null", "sees", "cannot_see")}
    return Check(statistic=None, df=0, p=None, why=why, **about)


def _moved(found: Residuals, some: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Over some decisions: sum w cov_pi(e_a (x) phi, z) [A D, K], and sum w var_pi(z) [K]."""
    moved, information = [], []
    for i in some.split(CHUNK // 2):
        rows, pi = found.rows[i], found.pi[i].unsqueeze(2)
        centred = z[i] - (pi * z[i]).sum(1, keepdim=True)
        weighted = found.panel.weight[rows].double()[:, None, None] * pi * centred
        phi = found.model.basis(found.panel.state[rows]).double()
        moved.append(torch.einsum("nak,nd->adk", weighted, phi).flatten(0, 1))
        information.append((weighted * centred).sum((0, 1)))
    return torch.stack(moved).sum(0), torch.stack(information).sum(0)


def _direction_scores(found: Residuals, z: Tensor, twice: Tensor) -> Tensor:
    """sum_t sum_a (1{a} - pi) z of every cluster [G, K]."""
    panel = found.panel
    by_row = torch.einsum("na,nak->nk", found.error, z) * panel.weight[found.rows].double().unsqueeze(1)
    by_row = by_row * torch.where(twice, 0.5, 1.0)
    clusters = int(panel.cluster.max()) + 1
    return by_row.new_zeros(clusters, z.shape[2]).index_add_(0, panel.cluster[found.rows], by_row)
