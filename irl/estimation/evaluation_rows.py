"""The rows on which a refit evaluates what follows: from all states where these are few, else from a sample."""

from __future__ import annotations

from irl import processes
from irl.data.panel import Panel
from irl.draws import FEW, drawn, spanned
from irl.dynamics import TransitionModel
from irl.estimation.rowwise import parts_of
from irl.transitions import DRAWS, States, Transitions, Unchanged, free_states


def evaluation_rows(dynamics: TransitionModel, panel: Panel, *, most: int, seed: int) -> tuple[States, Transitions]:
    """A sample of the panel's states with a choice (at most so many), and the transitions on which what follows is
    evaluated: the same for the refit and for all that takes its equations up again."""
    programme, states = Unchanged(panel.schema), free_states(panel, most, seed=seed)
    parts = (States(panel.state[i], panel.segment[i], panel.weight[i]) for i in parts_of(panel.free))
    every = spanned(dynamics, [programme], parts, few=most // FEW, seed=seed)
    many = processes.anywhere(every is None)
    starts, draws = (states, DRAWS) if many or every is None else (every, FEW * DRAWS)
    return states, drawn(dynamics, programme, starts, seed=processes.own_seed(seed), draws=draws)
