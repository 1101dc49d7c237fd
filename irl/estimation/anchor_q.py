"""Q step: the anchor action's value, from the fixed point that knows the anchor's reward.

    Q(s,A) = g(s) + gamma^k E[Q(s',A') - alpha log pi(A'|s') | s,A]

is linear in Q(., A), so on the rows where the anchor was chosen the kernel (:mod:`irl.evaluation`) solves the last
layer exactly. The trunk under it is trained by gradient toward the fixed point's target for some epochs, then the last
layer is solved again, and so on (``solver: lstd``). ``solver: fqi`` is the paper's fitted Q iteration (FQI-I):
gradient only, the target refreshed every round.

Errors of pi would enter the target in full and be amplified by gamma/(1 - gamma). Where the next choice a' is observed,
log pi(A'|s') is therefore corrected by

    (1{a' = A'} - pi(A'|s')) / pi(A'|s') ,

whose expectation is the first-order error of log pi with its sign reversed, so that such errors cancel; pi comes from
members of the other fold, so that it does not know a' (Neyman orthogonality with cross-fitting: Chernozhukov et al.
2018). The denominator is not taken below ``FLOOR``.

Departures from the paper: the exact last layer, and this correction. Limits: the anchor's value is learned where the
anchor was chosen and extrapolated elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.config import AnchorQStep
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import AnchorValueNetwork

FLOOR = 0.01
"""The smallest probability of the anchor that the correction is divided by."""


@dataclass(frozen=True)
class AnchorRows:
    """The panel's rows where the anchor was chosen and what followed is known, N of them.

    ``target[N]`` is g(s) - gamma^k alpha log pi(A'|s'), corrected if asked, in reward units; ``discount[N]`` gamma^k, 0
    at an end; ``floored[N]`` whether pi(A'|s') is below the floor.
    """

    state: Tensor
    next_state: Tensor
    discount: Tensor
    target: Tensor
    weight: Tensor
    held_out: Tensor
    floored: Tensor

    def only(self, rows: Tensor) -> AnchorRows:
        return AnchorRows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class AnchorQReport:
    """How the Q step ended.

    ``bellman_residual`` is the root mean square of target + gamma^k Q(s') - Q(s) on held-out anchor rows, in reward
    units; it contains the spread of V(s') given s and does not go to zero. ``condition``, ``solve_residual`` and
    ``converged`` are the kernel's (None under fqi). ``floored_share`` is the share of rows whose next pi(A'|s') is
    below ``FLOOR``; ``corrected`` whether the target is the orthogonal one.
    """

    rows: int
    corrected: bool
    floored_share: float
    bellman_residual: float
    condition: float | None
    solve_residual: float | None
    converged: bool | None
    trained: Trained


class AnchorQStepModule(Fitting):
    """Squared distance to the fixed point's target under the last refresh; a batch is (row index, weight)."""

    def __init__(self, network: AnchorValueNetwork, options: AnchorQStep, fit: AnchorRows, check: AnchorRows) -> None:
        super().__init__(network, options)
        self.fit, self.check, self.rounds = fit, check, options
        self.solution: evaluation.Solution | None = None
        self.goals: list[Tensor] = []
        self.spread = fit.target.var().clamp_min(1e-6)

    def total_epochs(self) -> int:
        return self.rounds.rounds * self.rounds.max_epochs

    def on_train_epoch_start(self) -> None:
        if self.current_epoch % self.rounds.max_epochs == 0:
            self.refresh()

    def refresh(self) -> None:
        """Solve the last layer (lstd), then take the target of every row under the network as it stands."""
        network = self.network
        assert isinstance(network, AnchorValueNetwork)
        if self.rounds.solver == "lstd":
            self.solution = solve_head(network, self.fit, ridge=self.rounds.ridge)
        with torch.no_grad():
            self.goals = [r.target + r.discount * network(r.next_state) for r in (self.fit, self.check)]
            self.spread = self.goals[0].var().clamp_min(1e-6)
            if self.logger is not None:
                residual = rms(self.goals[1] - network(self.check.state))
                self.logger.log_metrics({"bellman_residual": residual}, step=self.current_epoch)

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        index, weight = batch
        rows, goal = (self.fit, self.goals[0]) if self.training else (self.check, self.goals[1])
        return (self.network(rows.state[index]) - goal[index]).square() / self.spread, weight


def anchor_rows(
    panel: Panel, log_pi: Tensor, held_out: Tensor, *, discount: float, temperature: float, corrected: bool
) -> AnchorRows:
    """Rows with a = A(s) whose next decision (or end) is known.

    Parameters
    ----------
    log_pi : [N, A], of all rows; with ``corrected``, each from members of another fold.
    held_out : bool [N], of all rows.
    """
    anchor = panel.schema.base
    rows = (panel.free & (panel.action == anchor) & (panel.next_choice >= 0)).nonzero().squeeze(1)
    following, ends = panel.next_choice[rows], panel.ends[rows]
    gamma = discount ** panel.steps[rows] * ~ends
    next_log_pi = log_pi[following, anchor].masked_fill(ends, 0.0)
    pi = next_log_pi.exp()
    floored = (pi < FLOOR) & ~ends
    if corrected:
        again = (panel.action[following] == anchor).to(pi.dtype)
        next_log_pi = next_log_pi + ((again - pi) / pi.clamp_min(FLOOR)).masked_fill(ends, 0.0)
    target = bellman.anchor_target(panel.anchor_reward[rows], 0.0, next_log_pi, gamma, temperature)
    return AnchorRows(
        panel.state[rows], panel.state[following], gamma, target, panel.weight[rows], held_out[rows], floored
    )


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def solve_head(
    network: AnchorValueNetwork, rows: AnchorRows, *, ridge: float, chunk: int = 16384
) -> evaluation.Solution:
    """Solve the network's last layer on ``rows`` by the kernel, in place."""

    @torch.no_grad()
    def chunks() -> Iterator[evaluation.Rows]:
        for i in torch.arange(len(rows.state), device=rows.state.device).split(chunk):
            yield evaluation.Rows(
                phi=network.trunk.features(rows.state[i]).double(),
                phi_next=network.trunk.features(rows.next_state[i]).double(),
                discount=rows.discount[i].double(),
                target=rows.target[i].double().unsqueeze(1),
                weight=rows.weight[i].double(),
            )

    solution = evaluation.solve(evaluation.accumulate(chunks()), ridge=ridge)
    network.head.data.copy_(solution.weights[0, :, 0])
    return solution


def fit_anchor_q(
    panel: Panel,
    log_pi: Tensor,
    held_out: Tensor,
    options: AnchorQStep,
    *,
    discount: float,
    temperature: float,
    corrected: bool,
    bench: Workbench,
) -> tuple[AnchorValueNetwork, AnchorQReport]:
    """Fit Q(s, A). Arguments as in :func:`anchor_rows`."""
    torch.manual_seed(bench.seed + 1)
    network = AnchorValueNetwork(panel.schema, options.hidden).to(bench.device)
    rows = anchor_rows(panel, log_pi, held_out, discount=discount, temperature=temperature, corrected=corrected)
    fit, check = rows.only(~rows.held_out), rows.only(rows.held_out)
    step = AnchorQStepModule(network, options, fit, check)
    index = [torch.arange(len(r.state), device=bench.device) for r in (fit, check)]
    trained = train(
        step,
        Batches((index[0], fit.weight), batch_size=options.batch_size, seed=bench.seed + 1),
        Batches((index[1], check.weight), batch_size=65536, seed=None),
        name="anchor_q",
        bench=bench,
        keep_best=False,
    )
    solution = solve_head(network, rows, ridge=options.ridge) if options.solver == "lstd" else None
    with torch.no_grad():
        residual = rms(check.target + check.discount * network(check.next_state) - network(check.state))
    bench.record("anchor_q", {"final_bellman_residual": residual})
    return network, AnchorQReport(
        rows=len(rows.state),
        corrected=corrected,
        floored_share=float(rows.floored.double().mean()) if len(rows.state) else 0.0,
        bellman_residual=residual,
        condition=solution.condition if solution else None,
        solve_residual=solution.residual if solution else None,
        converged=solution.converged if solution else None,
        trained=trained,
    )
