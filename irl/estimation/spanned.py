"""The rows on which a refit evaluates what follows: from all states where these are few, else from a sample.

A sample of a panel's rows may lack the rare states on which the value of patient members depends (a bus of high mileage
at a discount of .9999), and its draws are few. Where the states are few, each is taken once, with as many more draws,
and what is reached from them is added until nothing new is reached.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from irl import processes
from irl.data.panel import Panel
from irl.draws import drawn
from irl.dynamics import TransitionModel
from irl.estimation.rowwise import parts_of
from irl.transitions import DRAWS, Programme, States, Transitions, Unchanged, free_states

FEW = 10
"""Where states are fewer than this part of the rows that may be drawn from, each is taken once, with as many times the
draws."""


def evaluation_rows(dynamics: TransitionModel, panel: Panel, *, most: int, seed: int) -> tuple[States, Transitions]:
    """A sample of the panel's states with a choice (at most so many), and the transitions on which what follows is
    evaluated: the same for the refit and for all that takes its equations up again."""
    programme, states = Unchanged(panel.schema), free_states(panel, most, seed=seed)
    every = spanned(dynamics, programme, panel, few=most // FEW, seed=seed)
    many = processes.anywhere(every is None)
    starts, draws = (states, DRAWS) if many or every is None else (every, FEW * DRAWS)
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
        states = following.reached
        used = states.place.flatten()[goes_on].unique()
        nobody = found.weight.new_zeros(len(used))
        joined = found.beside(States(states.state[used], states.segment[used], nobody)).distinct()
        closed = len(joined.state) == len(found.state)
        found = replace(joined, weight=torch.where(joined.weight > 0, joined.weight, 1.0))
        if closed:
            return found
    return None
