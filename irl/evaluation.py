"""The kernel: policy evaluation by least-squares temporal differences, one streaming pass over rows.

Given rows (s, a, s') with weights w and discounts gamma^k, a next policy nu and a basis
psi(s, a) = e_a (x) phi(s), find the value q(s, a) = psi(s, a).x for every target y:

    A = sum w psi(s,a) (psi(s,a) - gamma^k sum_a' nu(a'|s') psi(s',a'))^T
    B = sum w psi(s,a) y,            (A + ridge) x = B

A and B are sums over rows, so the pass is chunked, needs constant memory, adds up over processes, and costs one matrix
product per chunk; its cost does not grow as gamma -> 1. Because psi is phi placed in the block of the chosen action,
rows are grouped by action and each group costs a product of [D, n] by [n, A D]: the zeros of the dense basis are never
touched.

The ridge is per unit of row weight, on features standardised over all rows, never on the intercept: the first feature
must be the constant 1. Sums are kept in float64; products run in the dtype of the features, and the rounding of float32
features is amplified by 1/(1 - gamma): give float64 where that matters.

Expectations over s' may be sampled: the more draws a row holds, the less noise is taken for value. Draws name the state
that they reach among the distinct ones, whose features are made once.

Source: Bradtke & Barto (1996), Lagoudakis & Parr (2003); the anchor's use of it in the Q step of Deep PQR is ours.
Limits: where A is near singular (features collinear, or an action's rows few) the solution rests on the ridge;
``Solution`` says so through ``condition`` and ``converged``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from irl import processes

BLOCK = 2048
"""Rows of one action multiplied at once on a CPU: what is made of them for the products should stay in its cache."""

BAGS = 512
"""Means over draws that a thread makes at once."""

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, *(10 ** (-k / 2) for k in range(5, -1, -1)))
"""The ridges that are tried, per unit of row weight."""
CONSTANT = 1e6
"""A ridge that leaves a constant alone."""


@dataclass(frozen=True)
class Rows:
    """A chunk of rows for the kernel.

    Attributes
    ----------
    phi : [N, D]; first column 1.
    phi_next : [U, D]; features of the states s' that follow (any finite values where ``discount`` is 0).
    discount : [N]; gamma^k, 0 where nothing follows. With S draws of s' for every row, [N, S]: the row then holds the
        mean over them, at the cost of one.
    target : [N, K]; right-hand sides, in reward units.
    weight : [N].
    action : int64 [N], the block of each row; None if the basis depends on the state alone (one block).
    next_policy : [U, A]; nu(a'|s'); None with one block.
    place : int64 [N, S], which of the U states each draw is; None: the i-th follows row i.
    """

    phi: Tensor
    phi_next: Tensor
    discount: Tensor
    target: Tensor
    weight: Tensor
    action: Tensor | None = None
    next_policy: Tensor | None = None
    place: Tensor | None = None

    def __post_init__(self) -> None:
        n, d = self.phi.shape
        assert self.phi_next.shape[1] == d and (self.place is not None or len(self.phi_next) == n), "phi_next [U, D]"
        assert self.discount.shape == ((n,) if self.place is None else self.place.shape), "discount [N] or [N, S]"
        assert self.target.ndim == 2, "target [N, K]"
        assert bool((self.phi[:, 0] == 1).all()), "the first feature must be the constant 1"
        assert (self.action is None) == (self.next_policy is None), "action and next_policy go together"


@dataclass(frozen=True)
class Sums:
    """What one pass leaves: everything the solution needs, additive over chunks and processes (float64).

    ``matrix[M, M]`` and ``rhs[M, K]`` with M = A D; ``gram[A, D, D]`` = sum w phi phi^T by action block;
    ``lowest[D]`` and ``highest[D]`` are the features' exact range over rows with weight, so that a constant can be told
    from a feature that varies; ``rounding`` is the relative rounding error of the products.
    """

    matrix: Tensor
    rhs: Tensor
    gram: Tensor
    lowest: Tensor
    highest: Tensor
    rows: int
    rounding: float

    @property
    def ahead(self) -> Tensor:
        """[M, M]: sum w psi(s,a) times the features of the next choice, as expected and discounted: the right-hand
        sides of rows that earn a feature at the next choice."""
        present: Tensor = torch.block_diag(*self.gram)
        return present - self.matrix

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.matrix + other.matrix,
            self.rhs + other.rhs,
            self.gram + other.gram,
            torch.minimum(self.lowest, other.lowest),
            torch.maximum(self.highest, other.highest),
            self.rows + other.rows,
            max(self.rounding, other.rounding),
        )

    def everywhere(self) -> Sums:
        """The sums over the rows of all processes, where these are dealt out."""
        parts = [self.matrix.clone(), self.rhs.clone(), self.gram.clone()]
        processes.add_up(parts)
        lowest, highest = processes.highest(torch.stack([-self.lowest, self.highest]))
        rows = int(processes.total(self.rows))
        return Sums(parts[0], parts[1], parts[2], -lowest, highest, rows, self.rounding)


@dataclass(frozen=True)
class Solution:
    """The value's weights and how far they can be trusted.

    Attributes
    ----------
    weights : float64 [A, D, K]; q(s, a) = phi(s).weights[a].
    residual : largest relative residual |A x - B| / |B| of the linear solve over the targets.
    condition : estimate of the condition number (1-norm) of the standardised, ridged matrix.
    converged : the residual is below 1e-6 and the condition number below 1e12.
    """

    weights: Tensor
    residual: float
    condition: float
    converged: bool


def add_rows(rows: Rows, *, actions: int = 1) -> Sums:
    """The kernel's sums over one chunk."""
    d, k, rounding = rows.phi.shape[1], rows.target.shape[1], torch.finfo(rows.phi.dtype).eps
    counted = rows.weight > 0
    seen = rows.phi if bool(counted.all()) else rows.phi[counted]
    nothing = rows.phi.new_full((d,), torch.inf)
    lowest, highest = (_f64(end) for end in (seen.aminmax(dim=0) if len(seen) else (nothing, -nothing)))
    ahead = _ahead(rows)
    if rows.action is None:
        assert actions == 1, "several action blocks need `action` and `next_policy`"
        left = (rows.phi * rows.weight.unsqueeze(-1)).T
        gram = _f64(left @ rows.phi)
        matrix = gram - _f64(left @ ahead(slice(None)))
        return Sums(matrix, _f64(left @ rows.target), gram.unsqueeze(0), lowest, highest, len(rows.phi), rounding)
    matrix = rows.phi.new_zeros(actions, d, actions, d, dtype=torch.float64)
    rhs = rows.phi.new_zeros(actions, d, k, dtype=torch.float64)
    gram = rows.phi.new_zeros(actions, d, d, dtype=torch.float64)
    order = rows.action.argsort()
    ends = torch.bincount(rows.action, minlength=actions).cumsum(0).tolist()
    block = BLOCK if rows.phi.device.type == "cpu" else max(len(order), 1)
    for a in range(actions):
        for mine in order[ends[a - 1] if a else 0 : ends[a]].split(block):
            phi = rows.phi[mine]
            left = (phi * rows.weight[mine].unsqueeze(-1)).T
            gram[a] += left @ phi
            rhs[a] += left @ rows.target[mine]
            matrix[a] -= (left @ ahead(mine)).view(d, actions, d)
        matrix[a, :, a] += gram[a]
    shape = (actions * d, actions * d)
    return Sums(matrix.view(shape), rhs.view(actions * d, k), gram, lowest, highest, len(rows.phi), rounding)


def add_targets(rhs: Tensor, phi: Tensor, weight: Tensor, action: Tensor, target: Tensor) -> None:
    """Add sum w psi(s,a) y to rhs[A, D, K], in place: of rows phi[N, D], weight, action [N], whose matrix is known, the
    right-hand sides of other targets [N, K]."""
    for a, own in enumerate(rhs):
        mine = action == a
        own += (phi[mine].double() * weight[mine].unsqueeze(1)).T @ target[mine]


def mean_over_draws(values: Tensor, place: Tensor, weight: Tensor) -> Tensor:
    """1/S sum_s weight[N, S, B] values[place[N, S]], [N, B, D], of values[U, D] at the states that are drawn."""
    n, draws, blocks = weight.shape
    place = place.unsqueeze(1).expand(n, blocks, draws).reshape(n * blocks, draws)
    weight = (weight / draws).mT.reshape(n * blocks, draws)

    def part(i: Tensor) -> Tensor:
        return nn.functional.embedding_bag(place[i], values, mode="sum", per_sample_weights=weight[i])

    every = torch.arange(n * blocks, device=place.device).split(BAGS if values.device.type == "cpu" else n * blocks)
    return torch.cat(list(processes.side_by_side(part, every, values.device))).view(n, blocks, values.shape[1])


def _ahead(rows: Rows) -> Callable[[Tensor | slice], Tensor]:
    """Of some rows [n], discount sum_a nu(a|s') psi(s', a), the mean over their draws, [n, A D]; [n, D] of one
    block."""
    discount, policy = rows.discount.unsqueeze(-1), rows.next_policy
    if rows.place is not None:
        factor = discount if policy is None else discount * policy[rows.place]
        every = mean_over_draws(rows.phi_next, rows.place, factor).flatten(1)
        return lambda mine: every[mine]
    factor = discount if policy is None else discount * policy
    return lambda mine: (factor[mine].unsqueeze(-1) * rows.phi_next[mine].unsqueeze(1)).flatten(1)


def accumulate(chunks: Iterable[Rows], *, actions: int = 1, dealt: bool = False) -> Sums:
    """The kernel's sums over all chunks, one pass, constant memory. ``dealt``: each process has some of the rows (maybe
    none: a chunk of no rows), and the sums are over all; else all have the same.

    Raises
    ------
    ValueError
        If there is no row at all, or none has weight.
    """
    total: Sums | None = None
    for chunk in chunks:
        sums = add_rows(chunk, actions=actions)
        total = sums if total is None else total + sums
    if total is not None and dealt:
        total = total.everywhere()
    if total is None or not bool(total.gram[:, 0, 0].sum() > 0):
        raise ValueError("policy evaluation needs at least one row with weight: check the filter that chose the rows")
    return total


def solve(sums: Sums, *, ridge: float = 0.0) -> Solution:
    """Solve (A + ridge) x = B for every target.

    The system is solved in standardised features (mean 0, sd 1 over all rows, the intercept untouched), to which the
    ridge applies per unit of row weight; features that do not vary, and blocks without rows, get weight 0.
    """
    actions, d, _ = sums.gram.shape
    matrix, standard = _standardised(sums, ridge)
    rhs = standard.of(sums.rhs)
    x, condition = _solved(matrix, rhs)
    residual = float(((matrix @ x - rhs).norm(dim=0) / rhs.norm(dim=0).clamp_min(1e-300)).max())
    weights = standard.back(x).view(actions, d, -1)
    return Solution(weights, residual, condition, residual < 1e-6 and condition < 1e12)


@dataclass(frozen=True)
class Choice:
    """What held-out rows choose: the ridge, the target (a column), and ``unexplained``, the share of the projected
    residual of a constant value that is left. A share near 1 says that no variation of the value was found."""

    ridge: float
    target: int
    unexplained: float


def chosen(
    folds: Sequence[Callable[[], Iterable[Rows]]],
    *,
    actions: int = 1,
    ridges: Sequence[float] = RIDGES,
    dealt: bool = False,
) -> Choice:
    """The ridge and target under which held-out folds find the least projected Bellman residual.

    Of the solution x without a fold, with residuals delta_i = y_i + gamma^k q(s'_i) - q(s_i) in it, the projected
    residual is |Pi delta|^2, Pi the projection on the basis in the fold: the squared residual itself contains the
    spread of q(s') given s, which a flat q makes small (double sampling; Baird 1995). So does the projection, in
    expectation by sum_i w_i^2 delta_i^2 psi_i G^-1 psi_i, G the fold's Gram matrix, which is therefore taken off (a
    jackknife).

    Parameters
    ----------
    folds : each yields its rows when called, and is called twice. Folds should not share members. With several targets,
        each is solved for, and the last is y, what all are judged by.
    dealt : as in :func:`accumulate`.
    """
    sums = [accumulate(fold(), actions=actions, dealt=dealt) for fold in folds]
    tried = (*ridges, CONSTANT)
    targets = sums[0].rhs.shape[1]
    residual = torch.zeros(len(tried) * targets, dtype=torch.float64, device=sums[0].matrix.device)
    for k, (fold, own) in enumerate(zip(folds, sums, strict=True)):
        rest = reduce(operator.add, sums[:k] + sums[k + 1 :])
        weights = torch.cat([solve(rest, ridge=ridge).weights for ridge in tried], 2)  # [A, D, R K]
        slope = (own.rhs[:, -1:] - own.matrix @ weights.flatten(0, 1)).view_as(weights)
        gram = own.gram.diagonal(dim1=1, dim2=2).clamp_min(1e-12 * float(own.gram.sum()) + 1e-300)
        inverse = torch.linalg.inv(own.gram + torch.diag_embed(1e-3 * gram))
        residual += (slope * (inverse @ slope)).sum((0, 1))
        spread = torch.zeros_like(residual)
        for rows in fold():
            noise = rows.weight.double().unsqueeze(1).square() * _residuals(rows, weights).square()
            for a in range(actions):
                mine = slice(None) if rows.action is None else rows.action == a
                phi = rows.phi[mine].double()
                spread += ((phi @ inverse[a]) * phi).sum(1) @ noise[mine]
        residual -= processes.summed(spread) if dealt else spread
    best, target = divmod(int(residual[: len(ridges) * targets].argmin()), targets)
    left = residual[best * targets + target].clamp_min(0) / residual[-1].clamp_min(1e-300)
    return Choice(ridges[best], target, min(float(left), 1.0))


def _residuals(rows: Rows, weights: Tensor) -> Tensor:
    """delta[N, R] of the rows by their last target, under weights[A, D, R]."""
    following = torch.einsum("ud,adr->uar", rows.phi_next.double(), weights)
    if rows.action is None or rows.next_policy is None:
        now, following = rows.phi.double() @ weights[0], following.squeeze(1)
    else:
        now = torch.einsum("nd,adr->nar", rows.phi.double(), weights)
        now = now[torch.arange(len(now), device=now.device), rows.action]
        following = (rows.next_policy.double().unsqueeze(-1) * following).sum(1)
    discount = rows.discount.double().unsqueeze(-1)
    if rows.place is None:
        following = discount * following
    else:
        following = mean_over_draws(following, rows.place, discount).squeeze(1)
    return rows.target[:, -1:].double() + following - now


def adjoint(sums: Sums, left: Tensor, *, ridge: float = 0.0) -> Tensor:
    """x[M, K] of (A + ridge)^T x = left[M, K]: how functionals left^T of the solution depend on B.

    left^T times the solution of (A + ridge) y = B equals x^T B.
    """
    matrix, standard = _standardised(sums, ridge)
    return standard.back(_solved(matrix.T, standard.of(left))[0])


@dataclass(frozen=True)
class _Standard:
    """Features in which the system is solved: of mean 0 and sd 1, the intercept as it is; those that vary only.

    mean, scale : [D], of the intercept 0 and 1; keep : [A D], the features of the blocks that are solved for.
    """

    mean: Tensor
    scale: Tensor
    keep: Tensor

    def of(self, sums: Tensor) -> Tensor:
        """[A D, K], sums of features, as those of the standardised ones [m, K]."""
        blocks = sums.view(-1, len(self.mean), sums.shape[1])
        found = (blocks - self.mean.unsqueeze(1) * blocks[:, :1]) / self.scale.unsqueeze(1)
        return found.flatten(0, 1)[self.keep]

    def back(self, weights: Tensor) -> Tensor:
        """weights[m, K] of the standardised features as those of the features, [A D, K]."""
        blocks = weights.new_zeros(len(self.keep), weights.shape[1])
        blocks[self.keep] = weights
        blocks = blocks.view(-1, len(self.mean), weights.shape[1]) / self.scale.unsqueeze(1)
        blocks[:, 0] -= (self.mean.unsqueeze(1) * blocks).sum(1)
        return blocks.flatten(0, 1)


def _standardised(sums: Sums, ridge: float) -> tuple[Tensor, _Standard]:
    """The ridged matrix [m, m] in standardised features, and these."""
    actions, d, _ = sums.gram.shape
    mass = sums.gram[:, 0, 0].sum()
    mean, square = sums.gram[:, 0].sum(0) / mass, sums.gram.sum(0).diagonal() / mass
    span = sums.highest - sums.lowest
    varies = span > 1e-6 * torch.maximum(sums.highest.abs(), sums.lowest.abs())
    variance = square - mean.square()
    sure = variance > 100 * sums.rounding * square  # else it may be rounding: large for its spread
    scale = torch.where(varies, torch.where(sure, variance.clamp_min(0).sqrt(), span / 2), torch.ones_like(span))
    mean[0], scale[0] = 0, 1
    seen = sums.gram[:, 0, 0] > 0
    keep = torch.cat([torch.cat([seen[a : a + 1], varies[1:] & seen[a]]) for a in range(actions)])
    standard = _Standard(mean, scale, keep)
    penalty = torch.ones(actions, d, dtype=mean.dtype, device=mean.device)
    penalty[:, 0] = 0
    matrix = standard.of(standard.of(sums.matrix).T).T
    return matrix + torch.diag(ridge * mass * penalty.flatten()[keep]), standard


def _solved(matrix: Tensor, rhs: Tensor) -> tuple[Tensor, float]:
    """x of matrix x = rhs and a condition number; minimum-norm least squares where the matrix is singular."""
    inverse, info = torch.linalg.inv_ex(matrix)
    condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    if int(info) != 0 or not condition < 1e14:
        return torch.linalg.pinv(matrix, rtol=1e-12) @ rhs, float("inf") if int(info) else condition
    x = inverse @ rhs
    return x + inverse @ (rhs - matrix @ x), condition


def _f64(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)
