"""R step: the reward of every action, by regression on the Bellman equation read backwards.

    r(s,a) = Q(s,a) - gamma^k E[V(s')|s,a],   Q(s,a) = V(s) + alpha log pi(a|s)

The network regresses Q(s,a) - gamma^k V(s') on the rows where a was chosen (Geng et al. 2020, equation (9)), so the
expectation over s' is taken by the regression. The anchor's reward is g(s), given, and its rows are left out. Where the
anchor is a policy mu over several actions all rows are used, and sum_a mu(a|s) r(s,a) = g(s) by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl import bellman, processes
from irl.config import Step
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.estimation.rowwise import every, forward, parts_of
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import RewardNetwork

SHOWN = 65_536
"""Decisions whose rewards are shown as a histogram, evenly spaced."""


class RewardStep(Fitting):
    """Squared error in units of each action's spread; a batch is (state, menu, g, action, target, weight)."""

    def __init__(self, network: RewardNetwork, options: Step, schema: StateSchema) -> None:
        super().__init__(network, options)
        self.schema = schema

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, menu, known, action, target, weight = batch
        assert isinstance(self.network, RewardNetwork)
        reference = self.schema.reference(state, menu)
        prediction = self.network(state, known, reference).gather(1, action.unsqueeze(1)).squeeze(1)
        return ((prediction - target) / self.network.scale[action]).square(), weight


def reward_targets(
    panel: Panel,
    log_pi: Tensor,
    value: Tensor,
    *,
    discount: float,
    temperature: float,
    inertia: bellman.Inertia | None = None,
) -> tuple[Tensor, Tensor]:
    """Where there is a free choice of unknown reward and a known successor, bool [N], and Q(s,a) - gamma^k V(s') [N]
    there (else 0); with inertia W(s') in the place of V(s')."""
    later = value
    if inertia is not None:
        later = bellman.ex_ante_value(value, bellman.q_from_value(value, log_pi, temperature), panel.menu, inertia)
    where = forward(panel, lambda i: _regressed(panel, i), dtype=torch.bool)
    target = panel.room(panel.n_rows, dtype=torch.promote_types(value.dtype, log_pi.dtype))
    for i in parts_of(where):
        q = value[i] + temperature * log_pi[i].gather(1, panel.action[i].unsqueeze(1)).squeeze(1)
        next_value = later[panel.next_choice[i]].masked_fill(panel.ends[i], 0.0)
        target[i] = bellman.reward_from_q(q, next_value, discount ** panel.steps[i] * ~panel.ends[i])
    return where, target


def _regressed(panel: Panel, i: slice) -> Tensor:
    """bool[n]: a free choice whose reward is not known, and what followed is."""
    mu = panel.schema.reference(panel.state[i], panel.menu[i]).gather(1, panel.action[i].unsqueeze(1)).squeeze(1)
    return panel.free[i] & (panel.next_choice[i] >= 0) & (mu < 1)


def _by_action(panel: Panel, where: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of where[N] by the action chosen, mean and standard deviation of their target[N], float64 [A]: two passes,
    some rows at a time."""
    rows, total, squares = torch.zeros(3, len(panel.schema.actions), dtype=torch.float64, device=target.device)
    for i in parts_of(where):
        rows.index_add_(0, panel.action[i], torch.ones_like(target[i], dtype=torch.float64))
        total.index_add_(0, panel.action[i], target[i].double())
    rows, total = processes.summed(torch.stack([rows, total]))
    centre = total / rows
    for i in parts_of(where):
        squares.index_add_(0, panel.action[i], (target[i].double() - centre[panel.action[i]]).square())
    return rows, centre, (processes.summed(squares) / (rows - 1)).sqrt()


def fit_reward(
    panel: Panel,
    log_pi: Tensor,
    value: Tensor,
    held_out: Tensor,
    options: Step,
    *,
    discount: float,
    temperature: float,
    bench: Workbench,
    inertia: bellman.Inertia | None = None,
) -> tuple[RewardNetwork, Trained]:
    """Fit r(s, a) given ``log_pi[N, A]`` of the P step (and ``inertia``) and ``value[N]``, V(s) of the Q step;
    ``held_out[N]`` stops it."""
    torch.manual_seed(bench.seed + 2)
    network = RewardNetwork(panel.schema, options.hidden).to(bench.device)
    where, target = reward_targets(panel, log_pi, value, discount=discount, temperature=temperature, inertia=inertia)
    rows, centre, scale = _by_action(panel, where, target)
    network.centre = torch.where(rows > 1, centre, network.centre).to(network.centre.dtype)
    network.scale = torch.where(rows > 1, scale.clamp_min(1e-3), network.scale).to(network.scale.dtype)
    columns = (panel.state, panel.menu, panel.anchor_reward, panel.action, target, panel.weight)
    trained = train(
        RewardStep(network, options, panel.schema),
        Batches(columns, batch_size=options.batch_size, seed=bench.seed + 2, where=where & ~held_out),
        Batches(columns, batch_size=65536, seed=None, where=where & held_out),
        name="reward",
        bench=bench,
    )
    some = every(panel.free, max(1, -(-int(panel.free.sum()) // SHOWN)))
    state, menu = panel.state[some], panel.menu[some]
    with torch.no_grad():
        found = network(state, panel.anchor_reward[some], panel.schema.reference(state, menu))
    histograms = {f"reward/{name}": found[menu[:, a], a] for a, name in enumerate(panel.schema.actions)}
    bench.record("reward", {}, histograms)
    return network, trained
