"""From exact probabilities the Q and R steps return the true reward to 1e-8: nothing in them is an approximation, with
an anchor action, one that depends on the state, and a policy over several actions whose mean reward is known.

A panel whose rows are all transitions of a small problem, weighted by their exact probabilities, goes through the very
functions of the estimation, with tabular features and the exact policy in place of the P step. A panel holds float32:
probabilities and g(s) are multiples of 1/64 and 1/16, gamma is the float32 number nearest to the one named, and where
decisions last several periods gamma and durations are such that gamma^k is a float32 number.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from irl import bellman, tabular
from irl.data.panel import Panel
from irl.data.schema import Column, StateSchema
from irl.estimation.anchor_q import anchor_rows, solve_head
from irl.estimation.reward import reward_targets
from irl.networks import AnchorValueNetwork

STATES, ACTIONS, ANCHOR = 5, 3, 1
DISCOUNTS = (0.5, 0.95, 0.99, 0.999)
LASTING = ((0.5, 12), (61 / 64, 4), (127 / 128, 3), (1023 / 1024, 2))
"""Discounts and the longest durations whose powers are float32 numbers."""
# Four levels and the reserved code: the fifth state has no slot, so that features are [1, one-hot without the last].
STATE = Column(name="state", kind="category", dynamics="learned", labels=("0", "1", "2", "3"), maximum=4.0)
SCHEMA = StateSchema(
    columns=(STATE,), actions=("left", "anchor", "right"), anchor=ANCHOR, anchor_reward="g", terminal={}
)


class ByState(StateSchema):
    """The anchor is the last action on the menu: which one, is a matter of the state."""

    @property
    def referred(self) -> tuple[int, ...]:
        return (ANCHOR, 2)

    def reference_weights(self, state: Tensor) -> Tensor:
        return torch.ones(*state.shape[:-1], ACTIONS)

    def reference(self, state: Tensor, menu: Tensor) -> Tensor:
        last = (menu * torch.arange(ACTIONS)).argmax(-1)
        return torch.nn.functional.one_hot(last, ACTIONS).to(state.dtype)


SCHEMAS = {
    "action": SCHEMA,
    "by_state": ByState(**{f.name: getattr(SCHEMA, f.name) for f in fields(SCHEMA)} | {"anchor": None}),
    "policy": replace(SCHEMA, anchor=None, anchor_weights=(0.0, 0.5, 0.5)),
    "other policy": replace(SCHEMA, anchor=None, anchor_weights=(2.0, 2.0, 0.0)),
}


@dataclass(frozen=True)
class Problem:
    """transition[S, A, S'], reward[S, A] (the anchor's column is g), menu[S, A], steps[S, A] (durations)."""

    transition: Tensor
    reward: Tensor
    menu: Tensor
    steps: Tensor


def random_problem(seed: int, *, longest: int = 1, terminal: bool = False) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    # 64 balls in five urns, unevenly
    urns = (torch.rand(STATES, ACTIONS, 64, generator=generator) ** 2 * STATES).long()
    transition = torch.stack([(urns == s).sum(-1) for s in range(STATES)], dim=-1).double() / 64
    reward = 2 * torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64)
    reward = (16 * reward).round() / 16
    menu = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    if terminal:
        menu[2] = False
    steps = torch.randint(1, longest + 1, (STATES, ACTIONS), generator=generator)
    return Problem(transition, reward, menu, steps.float())


def panel_of(problem: Problem, schema: StateSchema) -> Panel:
    """One member for every possible (s, a, s'), who is in s, does a, and is then in s'."""
    possible = problem.menu.unsqueeze(-1) & (problem.transition > 0)
    s, a, following = possible.nonzero().unbind(1)
    members = torch.arange(len(s))
    none = torch.full_like(s, -1)

    def pairs(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], dim=1).flatten()

    state = pairs(s, following)
    menu = problem.menu[state]
    known = (schema.reference(state.double().unsqueeze(1), menu) * problem.reward[state]).sum(1)
    next_row = pairs(2 * members + 1, none)
    return Panel(
        schema=schema,
        state=torch.where(state == STATES - 1, STATE.levels, state).float().unsqueeze(1),
        action=pairs(a, torch.full_like(a, ANCHOR)),
        menu=menu,
        free=menu.any(1),
        active=torch.ones_like(menu.any(1)),
        member=pairs(members, members),
        cluster=pairs(members, members),
        period=pairs(torch.zeros_like(s), problem.steps[s, a].long()),
        segment=torch.zeros_like(state),
        anchor_reward=known.float(),
        weight=pairs(problem.transition[s, a, following], torch.ones(len(s), dtype=torch.float64)).float(),
        next_row=next_row,
        next_choice=next_row,
        steps=pairs(problem.steps[s, a], torch.ones(len(s))),
        ends=pairs(~problem.menu[following].any(1), torch.zeros_like(s, dtype=torch.bool)),
        gaps=0,
    )


def exact_solution(
    problem: Problem, discount: float, temperature: float, inertia: bellman.Inertia | None = None
) -> tabular.Solution:
    """The oracle's; a duration of k discounts what follows by gamma^(k - 1) more."""
    more = discount ** (problem.steps.double() - 1)
    expectation = tabular.dense_expectation(more.unsqueeze(-1) * problem.transition)
    mdp = tabular.FiniteMDP(problem.reward, problem.menu, expectation, discount, temperature, inertia=inertia)
    return tabular.solve(mdp, tolerance=1e-11)


def recovered_reward(
    panel: Panel, log_policy: Tensor, *, discount: float, temperature: float, inertia: bellman.Inertia | None = None
) -> tuple[Tensor, Tensor]:
    """sum_a mu Q [S], and the reward[S, A] where it is not known (NaN where it is, or never chosen)."""
    state = panel.state.squeeze(1).long()
    log_pi = log_policy[state]
    network = AnchorValueNetwork(panel.schema, ()).double()  # no hidden layer: linear in the tabular features
    keep = torch.zeros(panel.n_rows, dtype=torch.bool)
    inertia = None if inertia is None else inertia.at(state)
    rows = anchor_rows(panel, log_pi, keep, discount=discount, temperature=temperature, inertia=inertia)
    solution = solve_head(network, rows, ridge=0.0, chunk=7)
    # an action that is off the menu somewhere leaves features that its rows cannot tell apart
    assert solution.converged or (len(panel.schema.referred) > 1 and solution.residual < 1e-10)
    with torch.no_grad():
        reference = panel.schema.reference(panel.state, panel.menu).double()
        w = network(panel.state, reference, panel.anchor_reward)
    value = bellman.value_from_reference(w, bellman.reference_log_policy(log_pi, reference), temperature)
    every = torch.zeros(STATES, dtype=torch.float64).index_copy(0, state, w)
    given = {"discount": discount, "temperature": temperature, "inertia": inertia}
    index, target = reward_targets(panel, log_pi, value, **given)
    target, cell = (
        target[index],
        state[index] * ACTIONS + panel.action[index],
    )  # the tabular regression of the R step: means by (s, a)
    weight = panel.weight[index].double()
    sums = torch.bincount(cell, weight * target, STATES * ACTIONS) / torch.bincount(cell, weight, STATES * ACTIONS)
    return every, sums.view(STATES, ACTIONS)


def assert_recovered(
    problem: Problem,
    discount: float,
    temperature: float,
    form: str = "action",
    inertia: bellman.Inertia | None = None,
) -> None:
    discount = torch.tensor(discount).item()
    exact = exact_solution(problem, discount, temperature, inertia)
    assert exact.converged
    panel = panel_of(problem, SCHEMAS[form])
    decided = bellman.log_policy(exact.q, problem.menu, temperature)
    w, reward = recovered_reward(panel, decided, discount=discount, temperature=temperature, inertia=inertia)
    choice = problem.menu.any(1)
    mu = SCHEMAS[form].reference(torch.arange(STATES).double().unsqueeze(1), problem.menu)
    expected = (mu * exact.q.masked_fill(~problem.menu, 0.0)).sum(1)
    torch.testing.assert_close(w[choice], expected[choice], rtol=0, atol=1e-8)
    unknown = problem.menu & (mu < 1)
    torch.testing.assert_close(reward[unknown], problem.reward[unknown], rtol=0, atol=1e-8)
    assert reward[~unknown].isnan().all()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("form", [name for name in SCHEMAS if name != "action"])
def test_anchors_of_other_forms(form: str, discount: float, temperature: float, seed: int):
    assert_recovered(random_problem(seed), discount, temperature, form)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("form", SCHEMAS)
def test_members_who_do_not_always_decide(form: str, terminal: bool):
    attention = torch.tensor([0.3, 0.5, 0.8, 0.5, 0.2], dtype=torch.float64)
    inertia = bellman.Inertia(attention, torch.tensor([0, 2, 2, -1, 1]))  # in states 2 and 3 all is decided
    assert_recovered(random_problem(23, terminal=terminal), 0.95, 0.5, form, inertia)


@pytest.mark.parametrize("form", SCHEMAS)
def test_other_forms_where_decisions_last_and_end(form: str):
    discount, longest = LASTING[1]
    assert_recovered(random_problem(22, longest=longest, terminal=True), discount, 1.0, form)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_true_rewards_from_exact_probabilities(discount: float, temperature: float, seed: int):
    assert_recovered(random_problem(seed), discount, temperature)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("discount", "longest"), LASTING)
def test_decisions_that_last_several_periods(discount: float, longest: int, temperature: float, seed: int):
    problem = random_problem(10 + seed, longest=longest)
    assert problem.steps.max() > 1
    assert_recovered(problem, discount, temperature)


@pytest.mark.parametrize("discount", DISCOUNTS)
def test_a_terminal_state(discount: float):
    assert_recovered(random_problem(20, terminal=True), discount, 0.5)


@pytest.mark.parametrize(("discount", "longest"), LASTING)
def test_a_terminal_state_after_decisions_that_last(discount: float, longest: int):
    assert_recovered(random_problem(21, longest=longest, terminal=True), discount, 1.0)
