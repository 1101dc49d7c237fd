"""Where a policy takes members: sums over their discounted visits, as weighted sums over states.

Of members who start in group g, for any h, with D_g(s) the discounted visits,

    E[ sum_t gamma^t sum_a pi(a|s_t) h(s_t,a) | s_0 in g ] = sum_s D_g(s) sum_a pi(a|s) h(s,a) .

The kernel's value of h is linear in B(h), a sum over drawn transitions; so D_g is the start states themselves and,
behind them, weights on the draws of what follows, from the transpose of the kernel's system (evaluation.adjoint): one
solve for each group, whatever the number of h. It gives the numbers that one right-hand side for each h would give,
and with them their derivatives. Weights need not be positive: the value is projected on the basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.fitted import FittedModel
from irl.transitions import CHUNK, ROWS, Transitions, kernel_rows


@dataclass(frozen=True)
class Groups:
    """Where members start: state [N, F] of choices, and share [N, G] of each in each group; columns sum to 1."""

    state: Tensor
    share: Tensor

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(state [n, F], D [n, G]): the visits of the present choice."""
        for i in torch.arange(len(self.state), device=self.state.device).split(CHUNK):
            yield self.state[i], self.share[i]


@dataclass(frozen=True)
class Visits:
    """Drawn transitions under a policy, and the kernel's solution for right-hand sides ``of_next``.

    log_policy : state [N, F] -> log pi[N, A] of members who decide, -inf everywhere in terminal states.
    weights : [A, D, K], of the continuation of what ``of_next`` gave.
    """

    model: FittedModel
    rows: Transitions
    log_policy: Callable[[Tensor], Tensor]
    sums: evaluation.Sums
    weights: Tensor
    condition: float
    converged: bool

    def probability(self, state: Tensor) -> Tensor:
        """pi~[N, A] of what happens at state[N, F], float64."""
        return bellman.seen_policy(self.log_policy(state).double(), self.model.inertia_of(state)).exp()

    @torch.no_grad()
    def behind(self, left: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(state [n, F], D [n, K]) in chunks: all that follows, of ``left`` [A, D, K], the functionals of the
        continuation's weights whose visits are wanted (:meth:`loading` makes those of groups)."""
        dual = evaluation.adjoint(self.sums, left.flatten(0, 1), ridge=self.rows.ridge())
        dual = dual.view_as(left)
        reached = self.rows.reached
        total = left.new_zeros(len(reached.state), left.shape[2])
        for i in torch.arange(len(self.rows.state), device=left.device).split(ROWS):
            part = self.rows.only(i)
            phi = self.model.basis(part.state).double()
            amount = phi.new_zeros(len(phi), left.shape[2])
            for a in range(len(left)):
                mine = part.action == a
                amount[mine] = phi[mine] @ dual[a]
            discount = part.discount(self.model.config.discount)
            share = part.weight.double().unsqueeze(1) * discount / discount.shape[1]
            for draw, place in enumerate(part.reached.place.T):
                total.index_add_(0, place, share[:, draw].unsqueeze(1) * amount)
        yield from zip(reached.state.split(CHUNK), total.split(CHUNK), strict=True)

    @torch.no_grad()
    def loading(self, groups: Groups) -> Tensor:
        """left [A, D, G]: by how much the mean value of each group moves with the continuation's weights."""
        total: Tensor | None = None
        for state, share in groups.chunks():
            phi, pi = self.model.basis(state).double(), self.probability(state)
            part = torch.einsum("na,nd,ng->adg", pi, phi, share)
            total = part if total is None else total + part
        assert total is not None, "at least one choice"
        return total


def visits(
    model: FittedModel,
    rows: Transitions,
    log_policy: Callable[[Tensor], Tensor],
    of_next: Callable[[Tensor], Tensor],
) -> Visits:
    """The visits of a policy on drawn transitions.

    of_next : state [N, F] -> h [N, A, K], whose continuation is wanted too; 0 where not available.
    """

    def target(following: Tensor, phi: Tensor, log_pi: Tensor) -> Tensor:
        pi = bellman.seen_policy(log_pi, model.inertia_of(following)).exp()
        return torch.einsum("na,nak->nk", pi, of_next(following))

    chunks = kernel_rows(model, rows, lambda state, phi: log_policy(state), target)
    sums = evaluation.accumulate(chunks, actions=len(model.schema.actions))
    solution = evaluation.solve(sums, ridge=rows.ridge())
    return Visits(model, rows, log_policy, sums, solution.weights, solution.condition, solution.converged)
