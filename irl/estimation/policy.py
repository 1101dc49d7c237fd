"""P step: the choice probabilities, by maximum likelihood.

Maximises sum w log pi(a|s) over the rows where a decision was made, the softmax taken over each row's menu (Geng et al.
2020, section 4.1); of members who do not always decide, the likelihood of what is seen
(:mod:`irl.estimation.attention`). Errors of log pi at rarely chosen anchors are amplified by gamma/(1-gamma) in the
next step, so the held-out likelihood decides when to stop and whether the weights or their moving average over an epoch
are kept, and where all rows fit, L-BFGS goes on from where stochastic gradients ended. On the simulated market (4,000 x
36, seeds 0 and 1, too many rows for L-BFGS) the average took the divergence from the true policy from .0014 and .0016
to .0013.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irl import processes
from irl.attention import AttentionLogit
from irl.config import InputError, Step
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.estimation.attention import SeenPolicy, fit_observed
from irl.estimation.rowwise import parts_of
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import PolicyNetwork


class PolicyStep(Fitting):
    """Negative log-likelihood of the chosen action; a batch is (state, menu, action, weight)."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, menu, action, weight = batch
        return -self.network(state, menu).gather(1, action.unsqueeze(1)).squeeze(1), weight


POLISH_ROWS = 100_000
"""Training rows up to which the network is polished by L-BFGS on all of them at once."""
POLISH_BLOCKS, POLISH_STEPS, POLISH_PATIENCE = 20, 10, 2
"""At most so many blocks of so many L-BFGS steps, until so many in a row did not help the held-out members."""
BINS = 10
"""Equal parts of [0, 1] in which predicted probabilities are compared with frequencies."""


@dataclass(frozen=True)
class PolicyReport:
    """How the P step ended.

    ``held_out_loss`` is the negative log-likelihood per decision of held-out members, ``polish_gain`` what L-BFGS took
    off it. On the same members: ``calibration[segment]`` lists {predicted, observed, choices} by bin of the predicted
    probability, over all actions on the menu ("all": every segment together), and ``expected_calibration_error`` is
    their mean absolute difference, weighted by choices.
    """

    held_out_loss: float
    polish_gain: float
    expected_calibration_error: float
    calibration: dict[str, list[dict[str, float]]]
    trained: Trained


def fit_policy(
    panel: Panel,
    held_out: Tensor,
    options: Step,
    *,
    bench: Workbench,
    left_out: Tensor | None = None,
    attention: AttentionLogit | None = None,
    name: str = "policy",
) -> tuple[PolicyNetwork, PolicyReport]:
    """The policy network and how it was trained.

    Parameters
    ----------
    panel : on the device of ``bench``.
    held_out : bool [N], rows of the members who stop the training.
    left_out : bool [N], rows that are not used at all.
    attention : fitted with the network, in place; as it is where rows are left out.
    name : of the step, in progress and TensorBoard.

    Raises
    ------
    InputError
        If that leaves nobody to train on, or nobody to stop the training.
    """
    torch.manual_seed(bench.seed)
    network = PolicyNetwork(panel.schema, options.hidden).to(bench.device)
    columns = (panel.state, panel.menu, panel.action, panel.weight)
    used = panel.free & panel.active
    used = used if left_out is None else used & ~left_out
    seen: nn.Module = network
    if attention is not None and panel.tells_active:
        fit_observed(attention, panel, panel.free & ~held_out)
    elif attention is not None:
        fixed = left_out is not None
        seen = SeenPolicy(network, copy.deepcopy(attention).requires_grad_(False) if fixed else attention).train()
    fit, check = used & ~held_out, used & held_out
    decisions = processes.total(fit.sum())
    if not decisions or not processes.anywhere(check.any()):
        raise InputError(
            "the members do not suffice for the P step: none with a choice is left to train on, or none to stop the "
            "training; set `estimation.folds: 1`, or change `estimation.validation` or `seed`"
        )
    batches = Batches(columns, batch_size=options.batch_size, seed=bench.seed, where=fit)
    step = PolicyStep(seen, options, memory=len(batches))
    trained = train(
        step,
        batches,
        Batches(columns, batch_size=65536, seed=None, where=check),
        name=name,
        bench=bench,
    )
    gain = 0.0
    if decisions <= POLISH_ROWS:
        gain = polish(step, tuple(c[fit] for c in columns), tuple(c[check] for c in columns))
    error, table = calibration(seen, panel, check)
    report = PolicyReport(trained.held_out_loss - gain, gain, error, table, trained)
    bench.record(name, {"held_out_log_likelihood": -report.held_out_loss, "expected_calibration_error": error})
    return network, report


def polish(step: PolicyStep, fit: tuple[Tensor, ...], check: tuple[Tensor, ...]) -> float:
    """Go on by L-BFGS on all rows at once, as long as held-out members gain; how much their loss fell, in nats.

    The network ends at its best weights, so it is never worse than before. Source: design, section 3 (small panels are
    fitted several times more accurately by a quasi-Newton method than by stochastic gradients).
    """
    network = step.network

    def mean_loss(rows: tuple[Tensor, ...]) -> Tensor:
        """The part of it that the rows of this process make."""
        losses, weight = step.losses(rows)
        return losses @ weight / processes.summed(weight.sum())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mean_loss(fit)
        loss.backward()
        processes.add_up([p.grad for p in network.parameters() if p.grad is not None])
        return processes.summed(loss.detach())

    def held_out_loss() -> float:
        with torch.no_grad():
            return processes.total(mean_loss(check))

    before = best = held_out_loss()
    weights, idle = copy.deepcopy(network.state_dict()), 0
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=POLISH_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )
    for _ in range(POLISH_BLOCKS):
        optimizer.step(closure)
        loss = held_out_loss()
        idle = 0 if loss < best else idle + 1
        if loss < best:
            best, weights = loss, copy.deepcopy(network.state_dict())
        if idle >= POLISH_PATIENCE or not math.isfinite(loss):
            break
    network.load_state_dict(weights)
    return before - best


@torch.no_grad()
def calibration(network: nn.Module, panel: Panel, rows: Tensor) -> tuple[float, dict[str, list[dict[str, float]]]]:
    """Expected calibration error on the rows[N], and the table of :class:`PolicyReport`."""
    names = [*panel.schema.segments, "all"]
    sums = torch.zeros(len(names), BINS, 3, dtype=torch.float64, device=panel.state.device)
    for i in parts_of(rows):
        menu = panel.menu[i]
        predicted = network(panel.state[i], menu).exp().double()
        chosen = torch.nn.functional.one_hot(panel.action[i], menu.shape[1]).double()
        weight = panel.weight[i].double().unsqueeze(1) * menu
        bins = (predicted * BINS).long().clamp_max(BINS - 1)
        values = torch.stack([predicted * weight, chosen * weight, weight], 2).flatten(0, 1)
        own = (panel.segment[i].unsqueeze(1) * BINS + bins).flatten()
        sums.view(-1, 3).index_add_(0, own, values)
        sums[-1].index_add_(0, bins.flatten(), values)
    table: dict[str, list[dict[str, float]]] = {}
    error = 0.0
    for name, of_bins in zip(names, processes.summed(sums).tolist(), strict=True):
        filled = [row for row in of_bins if row[2] > 0]
        table[name] = [{"predicted": p / n, "observed": c / n, "choices": n} for p, c, n in filled]
        error = sum(abs(p - c) for p, c, _ in filled) / max(sum(n for *_, n in filled), 1e-12)
    return error, table
