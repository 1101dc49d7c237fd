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
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import RewardNetwork


class RewardStep(Fitting):
    """Squared error in units of each action's spread; a batch is (state, g, mu, action, target, weight)."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, known, reference, action, target, weight = batch
        assert isinstance(self.network, RewardNetwork)
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
    """Rows [K] with a free choice of unknown reward and a known successor, and Q(s,a) - gamma^k V(s') [K] of each;
    with inertia W(s') in the place of V(s')."""
    chosen = panel.action.unsqueeze(1)
    unknown = panel.schema.reference(panel.state, panel.menu).gather(1, chosen).squeeze(1) < 1
    rows = (panel.free & unknown & (panel.next_choice >= 0)).nonzero().squeeze(1)
    q = value[rows] + temperature * log_pi.gather(1, chosen).squeeze(1)[rows]
    if inertia is not None:
        value = bellman.ex_ante_value(value, bellman.q_from_value(value, log_pi, temperature), panel.menu, inertia)
    next_value = value[panel.next_choice[rows]].masked_fill(panel.ends[rows], 0.0)
    return rows, bellman.reward_from_q(q, next_value, discount ** panel.steps[rows] * ~panel.ends[rows])


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
    rows, target = reward_targets(panel, log_pi, value, discount=discount, temperature=temperature, inertia=inertia)
    for a in range(len(panel.schema.actions)):
        mine = target[panel.action[rows] == a]
        if processes.total(len(mine)) > 1:
            network.centre[a] = processes.mean(mine)
            network.scale[a] = processes.spread(mine, correction=1).clamp_min(1e-3)
    reference = panel.schema.reference(panel.state, panel.menu)
    given = (panel.state[rows], panel.anchor_reward[rows], reference[rows])
    columns = (*given, panel.action[rows], target, panel.weight[rows])
    fit, check = (tuple(c[keep] for c in columns) for keep in (~held_out[rows], held_out[rows]))
    trained = train(
        RewardStep(network, options),
        Batches(fit, batch_size=options.batch_size, seed=bench.seed + 2),
        Batches(check, batch_size=65536, seed=None),
        name="reward",
        bench=bench,
    )
    with torch.no_grad():
        found = network(panel.state, panel.anchor_reward, reference)
    offered = panel.menu & panel.free.unsqueeze(1)
    histograms = {f"reward/{name}": found[offered[:, a], a] for a, name in enumerate(panel.schema.actions)}
    bench.record("reward", {}, histograms)
    return network, trained
