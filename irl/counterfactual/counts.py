"""What simulated members did, as sums by segment and period: kept, added up and told apart, never a path.

Sums are counted by *cell* (segment and random part of the members) while a simulation runs, and rounded to a grid, so
that they come to the same numbers in whatever order batches are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from irl.counterfactual.timing import Policy
from irl.fitted import FittedModel

GROUPS = 16
"""Random parts of the members whose sums are kept."""
GRID = 2.0**-24
"""Step, relative to their units, to which the sums of a batch are rounded."""


@dataclass(frozen=True)
class Counts:
    """What one case's members did, summed by segment (S segments, T periods, A actions), float64.

    present : [S, T], members who chose in the period (not terminal).
    chose : [S, T, A].
    moved : [S, T, A, A], from the action of the period before (first) to this period's, members present in both.
    at_risk, stayed : [S, T], by periods since joining during the simulation: members about to choose again, and those
        of them who did not go to the anchor. Of no meaning where the anchor is not one action.
    use : [S, T, U], sums of the columns ``used`` over members present (an ordinal counts by its levels' numbers, or by
        their rank where they are not numbers).
    money : [S, T, 2], sums of what members present pay and of what serving them costs; 0 where it is not declared.
    valued : [S], members who have a choice when they learn of the changes: inside a contract no value is known.
    value : [S], sums of their soft values then; gained, lost : [S], those of them whose value is above or below the
        first case's (the baseline's) by more than ``GAIN`` per period.
    slopes : how each sum moves along each of B draws of the reward's parameters, [..., B], ``gained`` and ``lost`` by
        as many as it makes gain or lose; None without draws.
    groups : the sums of each of G random parts of the members, [G, ...], the same members in every case.
    """

    present: Tensor
    chose: Tensor
    moved: Tensor
    at_risk: Tensor
    stayed: Tensor
    use: Tensor
    money: Tensor
    valued: Tensor
    value: Tensor
    gained: Tensor
    lost: Tensor
    slopes: Counts | None = None
    groups: Counts | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, ``slopes`` and ``groups`` left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("slopes", "groups")}


class Kept(Protocol):
    """Where the sums of a simulation are kept, to go on from if it is stopped.

    ``together``: batches after which they may be; until all of them are done, threads wait for each other.
    """

    together: int

    def load(self, sums: Mapping[str, Tensor]) -> int:
        """Put what is kept into ``sums``, in place, and return the batches that are in it."""

    def save(self, sums: Mapping[str, Tensor], done: int) -> None:
        """Keep the sums of so many batches."""


def by_segment(counts: Counts) -> Counts:
    """Counts by cell as counts by segment, with those of the parts."""
    cells = {name: tensor.unflatten(0, (-1, GROUPS)) for name, tensor in counts.tensors().items()}
    groups = Counts(**{name: cell.transpose(0, 1) for name, cell in cells.items()})
    return Counts(**{name: cell.sum(1) for name, cell in cells.items()}, slopes=counts.slopes, groups=groups)


def _histogram(index: Tensor, bins: int, values: Tensor | None = None) -> Tensor:
    """How often each number is in ``index``, [bins] float64; or the sums [bins, B] of ``values[*index.shape, B]``."""
    if values is None:
        return torch.bincount(index.flatten(), minlength=bins).double()
    return values.new_zeros(bins, values.shape[-1]).index_add_(0, index.flatten(), values.flatten(0, 1))


def set_counts(counts: Counts, did: Tensor, lived: Tensor, of: Tensor, scores: Tensor | None = None) -> None:
    """Fill ``counts`` from what members of[N] (segments or cells) did[T, N] and lived[T, N]; or with sums of scores."""
    number, periods, actions = len(counts.chose), len(did), counts.chose.shape[2]
    flows, lives = number * (actions + 1) * actions, number * periods * 2
    did = torch.where(did < 0, flows, of * (actions + 1) * actions + did)
    did = did + torch.arange(periods, device=of.device).unsqueeze(1) * (flows + 1)
    lived = torch.where(lived < 0, lives, of * periods * 2 + lived)
    shape = (periods, number, actions + 1, actions)
    flow, life = _histogram(did, periods * (flows + 1), scores), _histogram(lived, lives + 1, scores)
    flow = flow.view(periods, -1, *flow.shape[1:])[:, :-1].reshape(*shape, *flow.shape[1:]).transpose(0, 1)
    counts.moved.copy_(flow[:, :, 1:])
    counts.chose.copy_(flow.sum(2))
    counts.present.copy_(counts.chose.sum(2))
    risk = life[:-1].view(number, periods, 2, *life.shape[1:])
    counts.stayed.copy_(risk[:, :, 1])
    counts.at_risk.copy_(risk.sum(2))


def add_counts(total: Counts, part: Counts, model: FittedModel, used: tuple[int, ...]) -> None:
    """Add a batch to the totals, rounded to a grid so fine that nothing is lost and so coarse that float64 adds its
    multiples exactly: in any order, so that threads and processes, however many, come to the same numbers."""
    columns = [model.schema.columns[f] for f in used]
    sizes = [max(abs(c.minimum), abs(c.maximum), abs(c.levels), 1e-30) for c in columns]
    for name, sums in part.tensors().items():
        scale = sums.new_tensor(sizes) if name == "use" else sums.new_tensor(model.config.temperature)
        unit = GRID * scale.log2().ceil().exp2()
        unit = unit.view(-1, *[1] * (sums.dim() - 3)) if name == "use" else unit
        getattr(total, name).add_((sums / unit).round() * unit)
    if total.slopes is not None and part.slopes is not None:
        add_counts(total.slopes, part.slopes, model, used)


def no_counts(model: FittedModel, policy: Policy, periods: int, used: tuple[int, ...], device: torch.device) -> Counts:
    """Zeros by cell, with slopes by segment."""
    s, a = len(model.schema.segments), len(policy.intervention.actions)

    def zeros(first: int, *last: int) -> Counts:
        def of(*shape: int) -> Tensor:
            return torch.zeros(first, *shape, *last, dtype=torch.float64, device=device)

        return Counts(
            present=of(periods),
            chose=of(periods, a),
            moved=of(periods, a, a),
            at_risk=of(periods),
            stayed=of(periods),
            use=of(periods, len(used)),
            money=of(periods, 2),
            valued=of(),
            value=of(),
            gained=of(),
            lost=of(),
        )

    counts = zeros(s * GROUPS)
    return counts if policy.draws is None else replace(counts, slopes=zeros(s, len(policy.draws)))
