"""Whether the panel can carry the estimate: how much is known about the anchor, segment by segment.

Everything rests on the value of the anchor, which is learned where the anchor was chosen and needed everywhere. Of each
segment, over its decisions and with pi the probability of the anchor under the P step:

    decisions, anchor_share   decisions, and the share of them at the anchor
    effective_sample          (sum w)^2 / sum w^2 over decisions at the anchor, w = 1/pi: so many decisions would tell
                              as much about the anchor's value at all visited states, if it were chosen everywhere alike
    smallest_probability      of the anchor
    floored_share             share of decisions with pi below the floor of the orthogonal correction
    probabilities             shares of decisions with pi in the classes between 0, ``CLASSES`` and 1
    overlap                   E min(pi/p, (1 - pi)/(1 - p)), p the anchor's share: 1 if states at the anchor and
                              elsewhere have the same distribution, 0 if none is visited by both

The anchor is that of the state. Where it is a policy mu over several actions, the share is the mean of mu(a|s) over
decisions a, w = mu(a|s)/pi(a|s), the probabilities are the smallest of the actions that mu may take in the state, and
there is no overlap to speak of.

Sources: Kish (1965) for the effective sample; Weitzman (1970) for the overlap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irl import processes
from irl.config import InputError
from irl.data.panel import Panel
from irl.estimation.anchor_q import FLOOR
from irl.estimation.rowwise import forward

CLASSES = (0.01, 0.05, 0.2, 0.5)
"""Bounds of the classes in which the anchor's probabilities are counted; the first is the Q step's floor."""


def check_anchor(panel: Panel) -> None:
    """InputError if what follows the anchor was never seen, or nothing but the anchor was.

    With several processes, each gives its part of the panel.
    """
    schema, followed = panel.schema, panel.free & (panel.next_choice >= 0)
    mu = forward(panel, lambda i: _reference_of_chosen(panel, i))
    if not processes.anywhere((followed & (mu > 0)).any()):
        said = "{} is never chosen and followed by another row: name another anchor, which members choose"
    elif not processes.anywhere((followed & (mu < 1)).any()):
        said = "nothing but {} is ever chosen and followed by another row, so that nothing tells what another choice "
        said += "is worth: check `data.action` and `data.actions`"
    else:
        return
    name = "an action of the anchor's policy"
    if schema.anchor is not None:
        name = f"the anchor {schema.actions[schema.anchor]!r}"
    elif schema.anchor_by_state is not None:
        name = f"the anchor that {schema.anchor_by_state!r} names"
    rows = processes.summed(panel.action[followed].bincount(minlength=len(schema.actions))).tolist()
    counts = ", ".join(f"{action!r} {n:,}" for action, n in zip(schema.actions, rows, strict=True))
    raise InputError(f"{said.format(name)} (decisions that a row follows: {counts})")


def support(panel: Panel, log_pi: Tensor) -> dict[str, dict[str, Any]]:
    """{segment or "all": the figures above} given log_pi[N, A]; None where there is nothing to count."""
    figures_of = forward(panel, lambda i: _of_rows(panel, log_pi, i), 4, dtype=torch.float64)
    at_anchor, weight, least, several = figures_of.unbind(1)
    one_action = not processes.anywhere(several[panel.free].any())
    groups = [(name, panel.segment == code) for code, name in enumerate(panel.schema.segments)]
    if panel.schema.segments != ("all",):
        groups.append(("all", torch.ones_like(panel.free)))
    bounds, found = torch.tensor(CLASSES, dtype=torch.float64, device=log_pi.device), {}
    for name, mine in groups:
        rows = mine & panel.free
        decisions = int(processes.total(rows.sum()))
        figures: dict[str, Any] = {"decisions": decisions, "anchor_share": None, "effective_sample": 0.0}
        if decisions:
            share, p, w = processes.total(at_anchor[rows].sum()) / decisions, least[rows], weight[rows]
            within = min(max(share, 1e-12), 1 - 1e-12)
            classes = torch.bucketize(p, bounds, right=True).bincount(minlength=len(CLASSES) + 1)
            overlap = float(processes.mean(torch.minimum(p / within, (1 - p) / (1 - within))))
            smallest = -processes.highest(torch.cat([-p, p.new_tensor([-torch.inf])]).max())
            figures |= {
                "anchor_share": share,
                "effective_sample": processes.total(w.sum()) ** 2 / max(processes.total(w.square().sum()), 1e-300),
                "smallest_probability": float(smallest),
                "floored_share": float(processes.mean(p < FLOOR)),
                "probabilities": (processes.summed(classes) / decisions).tolist(),
                "overlap": overlap if one_action else None,
            }
        found[name] = figures
    return found


def _reference_of_chosen(panel: Panel, i: slice) -> Tensor:
    """mu[n] of what was chosen."""
    return panel.schema.reference(panel.state[i], panel.menu[i]).gather(1, panel.action[i].unsqueeze(1)).squeeze(1)


def _of_rows(panel: Panel, log_pi: Tensor, i: slice) -> Tensor:
    """[n, 4]: mu of what was chosen, the same over pi, the least pi of mu's actions, whether these are several."""
    mu = panel.schema.reference(panel.state[i], panel.menu[i]).double()
    pi, chosen = log_pi[i].double().exp(), panel.action[i].unsqueeze(1)
    at_anchor = mu.gather(1, chosen).squeeze(1)
    weight = at_anchor / pi.gather(1, chosen).squeeze(1).clamp_min(1e-12)
    least = pi.masked_fill(mu == 0, torch.inf).amin(1)
    return torch.stack([at_anchor, weight, least, (mu.amax(1) != 1).double()], 1)
