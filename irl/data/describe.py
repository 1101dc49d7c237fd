"""What a panel holds, and about how much memory a training run on it takes.

The estimate, in MB of 10^6 bytes, is the sum of

- the panel's tensors, as they are;
- the network inputs of every row and of every next row, float32: one column per level (and one for the reserved code)
  of a category or ordinal, one per number;
- the kernel, float64: a square matrix of the basis and two chunks of at most ``CHUNK`` rows of it; the basis is the
  last hidden layer and the intercept in the Q step, the interactions of the columns and all three last hidden layers,
  once per action, in the refit, which takes four such matrices;
- one batch's activations: batch size × all hidden units × 3 (values, gradients, optimiser scratch), float32.

Not counted: the interpreter and libraries (some 500 MB) and the frame while it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irl import processes
from irl.config import Estimation, Step
from irl.data.panel import Panel, tensors_of
from irl.data.schema import StateSchema

CHUNK = 16_384


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a panel. ``anchor_share`` maps a segment to (its free rows, the share of them at the anchor; of a
    reference policy, the mean weight it gives to what was chosen); ``anchor`` says which."""

    rows: int
    members: int
    periods: tuple[int, int]
    transitions: int
    gaps: int
    free: int
    forced: int
    terminal: int
    anchor: str
    anchor_share: dict[str, tuple[int, float]]
    memory_mb: float

    def __str__(self) -> str:
        counts = {
            "rows": self.rows,
            "members": self.members,
            "transitions": self.transitions,
            "gaps (transitions dropped)": self.gaps,
            "rows with a choice": self.free,
            "forced rows": self.forced,
            "terminal rows": self.terminal,
        }
        lines = [f"{name:<28}{count:>12,}" for name, count in counts.items()]
        lines.append(f"{'periods per member':<28}{f'{self.periods[0]} to {self.periods[1]}':>12}")
        lines.append(f"{'memory to train':<28}{f'{self.memory_mb:,.0f} MB':>12}  (panel, inputs, kernel, one batch)")
        lines.append(f"{self.anchor} where there is a choice")
        width = max(26, *(len(name) for name in self.anchor_share))
        for name, (rows, share) in self.anchor_share.items():
            shown = f"{share:.1%}" if rows else "no choice"
            lines.append(f"  {name:<{width}}{shown:>12}  of {rows:,} rows")
        return "\n".join(lines)


def summary(panel: Panel, *, estimation: Estimation) -> Summary:
    """Counts, the anchor's share by segment (unweighted, where there is a choice), and a memory estimate; of the whole
    panel, if this is one process's part of it, but for the memory."""
    total = float if panel.origin is None else processes.total
    schema, terminal = panel.schema, 0
    sums = torch.zeros(len(schema.segments), 2, dtype=torch.float64, device=panel.state.device)  # decisions, mu of them
    for rows in (slice(first, first + CHUNK) for first in range(0, panel.n_rows, CHUNK)):
        state, free = panel.state[rows], panel.free[rows]
        chosen = schema.reference(state, panel.menu[rows]).gather(1, panel.action[rows].unsqueeze(1)).double()
        sums.index_add_(0, panel.segment[rows], torch.cat([torch.ones_like(chosen), chosen], 1) * free.unsqueeze(1))
        terminal += int(schema.is_terminal(state).sum())
    sums = sums if panel.origin is None else processes.summed(sums)
    counts = {name: (int(n), float(mu)) for name, (n, mu) in zip(schema.segments, sums.tolist(), strict=True)}
    shares = {name: (count, mu / count if count else float("nan")) for name, (count, mu) in counts.items()}
    lengths = panel.member.bincount()
    ends = torch.stack([-lengths.min(), lengths.max()])
    shortest, longest = (ends if panel.origin is None else processes.highest(ends)).tolist()
    return Summary(
        rows=int(total(panel.n_rows)),
        members=panel.among_all[1],
        periods=(-shortest, longest),
        transitions=int(total(panel.n_transitions)),
        gaps=int(total(panel.gaps)),
        free=int(total(panel.free.sum())),
        forced=int(total((~panel.free).sum() - terminal)),
        terminal=int(total(terminal)),
        anchor=_anchor(schema),
        anchor_share=shares,
        memory_mb=_memory(panel, estimation) / 1e6,
    )


def _anchor(schema: StateSchema) -> str:
    """What ``anchor_share`` is, in words."""
    if schema.anchor is not None:
        return f"share of {schema.actions[schema.anchor]!r} (the anchor)"
    if schema.anchor_by_state is not None:
        return f"share of the action that {schema.anchor_by_state!r} names (the anchor)"
    return "mean weight of the choices in the anchor's policy"


def _memory(panel: Panel, estimation: Estimation) -> float:
    """Bytes, as the module's first lines say."""
    tensors = sum(values.numel() * values.element_size() for values in tensors_of(panel).values())
    width = sum(column.levels + 1 if column.discrete else 1 for column in panel.schema.columns)
    inputs = 2 * panel.n_rows * width * 4
    chunk = min(panel.n_rows, CHUNK)
    kernels = [((_interactions(panel) + _basis(estimation.anchor_q)) * len(panel.schema.referred), 1)]
    if estimation.refit.rounds:
        learned = sum(_basis(step) for step in (estimation.policy, estimation.anchor_q, estimation.reward))
        kernels.append(((_interactions(panel) + learned) * panel.n_actions, 4))
    kernel = max(8 * (matrices * basis**2 + 2 * chunk * basis) for basis, matrices in kernels)
    batches = [
        3 * 4 * min(step.batch_size, panel.n_rows) * (width + sum(step.hidden))
        for step in (estimation.policy, estimation.anchor_q, estimation.reward, estimation.dynamics)
    ]
    return tensors + inputs + kernel + max(batches)


def _interactions(panel: Panel) -> int:
    """About how many: every input, and each input of a static column times each of the others."""
    inputs = {kind: 0 for kind in ("static", "other")}
    for column in panel.schema.columns:
        inputs["static" if column.dynamics == "static" else "other"] += column.levels if column.discrete else 1
    return sum(inputs.values()) + inputs["static"] * inputs["other"] + inputs["static"] ** 2 // 2


def _basis(step: Step) -> int:
    return (step.hidden[-1] if step.hidden else 0) + 1
