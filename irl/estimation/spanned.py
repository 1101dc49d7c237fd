"""The rows on which a refit evaluates what follows: from all states where these are few, else from a sample.

A sample of a panel's rows may lack the rare states on which the value of patient members depends (a bus of high mileage
at a discount of .9999), and its draws are few. Where the states are few, each is taken once, with as many more draws as
there are fewer states, and what is reached from them is added until nothing new is reached.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from irl import processes
from irl.data.panel import Panel
from irl.dynamics import TransitionModel
from irl.estimation.rowwise import parts_of
from irl.transitions import DRAWS, Programme, States, Transitions, Unchanged, drawn, free_states

FEW = 2
"""Where states are fewer than this part of the rows that may be drawn from, each is taken once."""
MORE = 10
"""There are then as many draws in all as of a sample, but no more than so many times as many from each state."""


def evaluation_rows(dynamics: TransitionModel, panel: Panel, *, most: int, seed: int) -> tuple[States, Transitions]:
    """A sample of the panel's states with a choice (at most so many), and the transitions on which what follows is
    evaluated: the same for the refit and for all that takes its equations up again."""
    programme, states = Unchanged(panel.schema), free_states(panel, most, seed=seed)
    every = spanned(dynamics, programme, panel, few=most // FEW, seed=seed)
    many = processes.anywhere(every is None)
    starts, draws = states, DRAWS
    if every is not None and not many:
        starts, draws = every, DRAWS * min(MORE, most // len(every.state))
    return states, drawn(dynamics, programme, starts, seed=processes.own_seed(seed), draws=draws)


def spanned(dynamics: TransitionModel, programme: Programme, panel: Panel, *, few: int, seed: int) -> States | None:
    """The states of the panel with a choice, each once, and what is reached from them; None if they are more than
    ``few``.

    Then nothing is left out, and the value of a rare state, on which that of patient members depends, rests on no luck.
    States that no row is in have the weight of one.
    """
    found: States | None = None
    for i in parts_of(panel.free):
        part = States(panel.state[i], panel.segment[i], panel.weight[i])
        found = (part if found is None else found.beside(part)).distinct()
        if len(found.state) > few:
            return None
    if found is None:
        return None
    while len(found.state) <= few:
        following = drawn(dynamics, programme, found, seed=seed)
        goes_on = ~following.ends.flatten()
        reached = following.next_state.flatten(0, 1)[goes_on]
        segment = following.segment.repeat_interleave(following.steps.shape[1])[goes_on]
        joined = found.beside(States(reached, segment, found.weight.new_zeros(len(reached)))).distinct()
        closed = len(joined.state) == len(found.state)
        found = replace(joined, weight=torch.where(joined.weight > 0, joined.weight, 1.0))
        if closed:
            return found
    return None
