"""What errors of the dynamics do to sums over the choices in the second order.

To the first order an error of the fitted dynamics moves such a sum as often up as down, and by as much as
:func:`irl.estimation.inference.kernel_scores` says. A test's direction z and the residuals that it is held against are
moved by the same error, though, and values bend with it; what is left in the mean falls as one over the number of
members, not over its root, so that a test of few members rejects too often. (IIA on two segments with dynamics of their
own, 500 x 24: by half a standard error, and 11.5 % rejected instead of 5.)

Where the dynamics are frequencies in cells, these are counted again with every cluster 1 + x times, x = 1 or -1 by the
toss of a coin, the draws behind the kernel are reweighted as in :mod:`irl.estimation.resampling`, and the refit takes
one more step. Tosses come with their opposites, which takes out the first order; their mean less what x = 0 gives is
the bias.

Source: Efron & Tibshirani (1993) for the bootstrap's estimate of a bias; Wu (1986) for the coins. Limits: dynamics that
are not frequencies (:func:`irl.estimation.inference.counted`) are taken as known; second-order effects of the choices
themselves are left out (they cancel in a maximum of likelihood, to this order).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl.data.panel import Panel
from irl.estimation.inference import CELL_ROWS, counted
from irl.estimation.logit import Choices
from irl.estimation.parameters import Parameters
from irl.estimation.refit import feature_sums, logit_of, store
from irl.estimation.resampling import ratios_of, shares
from irl.evaluation import solve
from irl.fitted import FittedModel
from irl.transitions import Transitions

PAIRS = 2
"""Tosses, each with its opposite. Many cells have a part in the bias, so that few tosses find it."""


@dataclass(frozen=True)
class Replica:
    """The refit under other dynamics: the model that holds it, theta[P] and what its scores are off zero [P], and how
    much it counts."""

    model: FittedModel
    theta: Tensor
    slack: Tensor
    factor: float


@torch.no_grad()
def replicas(
    model: FittedModel, panel: Panel, rows: Transitions, own: Parameters, theta: Tensor, penalty: Tensor, bread: Tensor
) -> Iterator[Replica]:
    """The sum of ``factor`` times a function of them is the function's bias; none where dynamics are not counted.

    Parameters
    ----------
    rows : the drawn transitions on which what follows was evaluated.
    theta, penalty : [P], where the refit ended, and the prior's precisions.
    bread : [P, P], the inverse of the logit's information with the prior.
    """
    drawn = any(c.dynamics in ("table", "learned") for c in model.schema.columns)
    if not drawn or not counted(model, rows, len(theta)):
        return
    generator = torch.Generator().manual_seed(model.config.seed)
    if len(rows.state) > CELL_ROWS:
        some = torch.randperm(len(rows.state), generator=generator)[:CELL_ROWS].sort().values
        rows = rows.only(some.to(rows.state.device))
    choices = Choices(model, panel, panel.free.nonzero().squeeze(1), {})
    for factor, likelier in _tosses(model, panel, rows, generator):
        sums = feature_sums(model, replace(rows, likelier=likelier), own, refitted=True)
        weights = solve(sums, ridge=rows.ridge(of=sums.rows)).weights
        logit = logit_of(model, weights, own)
        moved = theta + bread @ (logit.gradient(theta, choices) - penalty * theta)
        other = replace(model, refit=copy.deepcopy(model.refit))
        store(other, moved, weights, own)
        yield Replica(other, moved, logit.gradient(moved, choices) - penalty * moved, factor)


def _tosses(
    model: FittedModel, panel: Panel, rows: Transitions, generator: torch.Generator
) -> Iterator[tuple[float, Tensor | None]]:
    """(factor, by what each draw [N, S] counts more): as fitted, then ``PAIRS`` tosses, then their opposites."""
    yield -1.0, None
    clusters = int(panel.cluster.max()) + 1
    coin = torch.randint(2, (PAIRS, clusters), generator=generator).double().to(panel.state.device) * 2 - 1
    counts = torch.cat([1 + coin, 1 - coin])
    share = shares(rows, ratios_of(model, panel, counts), len(counts))
    assert share is not None, "a column is drawn"
    for each in share.unbind(2):
        yield 1 / len(counts), each * each.shape[1]
