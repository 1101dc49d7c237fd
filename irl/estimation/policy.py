"""P step: the choice probabilities, by maximum likelihood.

Maximises sum w log pi(a|s) over the rows where a decision was made, the softmax taken over each row's menu (Geng et al.
2020, section 4.1). Errors of log pi at rarely chosen anchors are amplified by gamma/(1-gamma) in the next step, so the
held-out likelihood decides when to stop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl.config import InputError, Step
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.estimation.training import Fitting, Trained, Workbench, train
from irl.networks import PolicyNetwork


class PolicyStep(Fitting):
    """Negative log-likelihood of the chosen action; a batch is (state, menu, action, weight)."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, menu, action, weight = batch
        return -self.network(state, menu).gather(1, action.unsqueeze(1)).squeeze(1), weight


def fit_policy(
    panel: Panel, held_out: Tensor, options: Step, *, bench: Workbench, left_out: Tensor | None = None
) -> tuple[PolicyNetwork, Trained]:
    """The policy network and how it was trained.

    Parameters
    ----------
    panel : on the device of ``bench``.
    held_out : bool [N], rows of the members who stop the training.
    left_out : bool [N], rows that are not used at all.

    Raises
    ------
    InputError
        If that leaves nobody to train on, or nobody to stop the training.
    """
    torch.manual_seed(bench.seed)
    network = PolicyNetwork(panel.schema, options.hidden).to(bench.device)
    columns = (panel.state, panel.menu, panel.action, panel.weight)
    used = panel.free if left_out is None else panel.free & ~left_out
    fit, check = (tuple(c[used & rows] for c in columns) for rows in (~held_out, held_out))
    if not len(fit[0]) or not len(check[0]):
        raise InputError(
            "the members do not suffice for the P step: none with a choice is left to train on, or none to stop the "
            "training; set `estimation.folds: 1`, or change `estimation.validation` or `seed`"
        )
    trained = train(
        PolicyStep(network, options),
        Batches(fit, batch_size=options.batch_size, seed=bench.seed),
        Batches(check, batch_size=65536, seed=None),
        name="policy",
        bench=bench,
    )
    bench.record("policy", {"held_out_log_likelihood": -trained.held_out_loss})
    return network, trained
