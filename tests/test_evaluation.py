"""The kernel: exact policy evaluation with tabular features, sums that add up, and honesty about singular systems."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from irl import evaluation
from irl.evaluation import Rows, Sums

STATES, ACTIONS = 5, 3
PHI = torch.cat([torch.ones(STATES, 1), torch.eye(STATES)[:, 1:]], dim=1).double()
"""Tabular features [S, S]: the constant, and every state but the first."""


def chances(*shape: int, seed: int) -> Tensor:
    """Random probabilities [*shape], which sum to one over the last axis."""
    weight = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2
    return weight / weight.sum(-1, keepdim=True)


GIVEN = [f for f in fields(Rows) if f.name != "place"]
"""What rows that are each followed by one state are made of."""


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TRANSITION = chances(STATES, ACTIONS, STATES, seed=0)
POLICY = chances(STATES, ACTIONS, seed=1)
VISITS = chances(STATES * ACTIONS, seed=2).view(STATES, ACTIONS)


def all_rows(discount: Tensor | float, target: Tensor, phi: Tensor = PHI) -> Rows:
    """Every (s, a, s') once, weighted by its exact probability. discount, target[S, A, K] or broadcast to it."""
    s, a, following = torch.cartesian_prod(*(torch.arange(n) for n in (STATES, ACTIONS, STATES))).unbind(1)
    discount = torch.as_tensor(discount, dtype=torch.float64).expand(STATES, ACTIONS)
    return Rows(
        phi=phi[s],
        phi_next=phi[following],
        discount=discount[s, a],
        target=target[s, a],
        weight=VISITS[s, a] * TRANSITION[s, a, following],
        action=a,
        next_policy=POLICY[following],
    )


def exact_q(discount: Tensor | float, target: Tensor) -> Tensor:
    """q[S, A, K] with q = target + discount P nu q, by linear algebra."""
    discount = torch.as_tensor(discount, dtype=torch.float64).expand(STATES, ACTIONS)
    moves = torch.einsum("sat,tb->satb", discount.unsqueeze(-1) * TRANSITION, POLICY)
    size = STATES * ACTIONS
    system = torch.eye(size, dtype=torch.float64) - moves.reshape(size, size)
    return torch.linalg.solve(system, target.reshape(size, -1)).view(target.shape)


def split(rows: Rows, size: int) -> list[Rows]:
    parts = zip(*(getattr(rows, f.name).split(size) for f in GIVEN), strict=True)
    return [Rows(*part) for part in parts]


def q_of(solution: evaluation.Solution, phi: Tensor = PHI) -> Tensor:
    """q[S, A, K]."""
    return torch.einsum("sd,adk->sak", phi, solution.weights)


def same(sums: Sums, other: Sums, **tolerance: float) -> None:
    assert sums.rows == other.rows
    for name in ("matrix", "rhs", "gram", "lowest", "highest"):
        torch.testing.assert_close(getattr(sums, name), getattr(other, name), **tolerance)


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 0.999])
def test_tabular_features_give_the_exact_values_of_several_targets(discount: float):
    target = noise(STATES, ACTIONS, 4, seed=3)
    solution = evaluation.solve(evaluation.accumulate([all_rows(discount, target)], actions=ACTIONS))
    rounding = 5e-12 / (1 - discount)  # which the condition number amplifies
    torch.testing.assert_close(q_of(solution), exact_q(discount, target), rtol=0, atol=rounding)
    assert solution.converged and solution.residual < 1e-10
    assert 1 <= solution.condition < 1e6 / (1 - discount)


def two_draws() -> Rows:
    """Rows with two draws each, the second discounted twice."""
    rows = all_rows(0.9, noise(STATES, ACTIONS, 2, seed=3))
    here = torch.arange(len(rows.phi))
    other = torch.randperm(len(here), generator=torch.Generator().manual_seed(0))
    discount = torch.stack([rows.discount, 0.5 * rows.discount[other]], 1)
    return replace(rows, place=torch.stack([here, other], 1), discount=discount)


DRAWN = two_draws()


def test_several_draws_of_what_follows_count_as_their_mean():
    parts = [
        replace(
            DRAWN, phi_next=DRAWN.phi_next[place], next_policy=DRAWN.next_policy[place], discount=discount, place=None
        )
        for place, discount in zip(DRAWN.place.T, DRAWN.discount.T, strict=True)
    ]
    single = [evaluation.add_rows(part, actions=ACTIONS) for part in parts]
    found = evaluation.add_rows(DRAWN, actions=ACTIONS)
    torch.testing.assert_close(found.matrix, (single[0].matrix + single[1].matrix) / 2, rtol=0, atol=1e-14)
    assert torch.equal(found.gram, single[0].gram) and torch.equal(found.rhs, single[0].rhs)
    state_only = [replace(rows, action=None, next_policy=None) for rows in (*parts, DRAWN)]
    one, two, mean = (evaluation.add_rows(rows).matrix for rows in state_only)
    torch.testing.assert_close(mean, (one + two) / 2, rtol=0, atol=1e-14)
    weights = noise(ACTIONS, found.gram.shape[1], 3, seed=4)
    one, two, mean = (evaluation._residuals(rows, weights) for rows in (*parts, DRAWN))
    torch.testing.assert_close(mean, (one + two) / 2, rtol=0, atol=1e-13)


def test_what_rows_earn_at_the_next_choice_is_in_their_sums():
    """The features of the next choice as targets, one by one, are what ``ahead`` says of all."""
    rows = all_rows(0.9, noise(STATES, ACTIONS, 1, seed=3))
    following = rows.next_policy.unsqueeze(2) * rows.phi_next.unsqueeze(1)
    earning = replace(rows, target=(rows.discount.view(-1, 1, 1) * following).flatten(1))
    found = evaluation.add_rows(earning, actions=ACTIONS)
    torch.testing.assert_close(found.ahead, found.rhs, rtol=0, atol=1e-14)


def test_durations_and_ends():
    steps = torch.tensor([[1, 2, 3], [1, 1, 12], [4, 1, 1], [2, 2, 2], [1, 5, 1]])
    discount = (0.97**steps).double()
    discount[2, 1] = 0  # an end: nothing follows
    target = noise(STATES, ACTIONS, 2, seed=4)
    rows = all_rows(discount, target)
    rows.phi_next[rows.discount == 0, 1:] = 1e6  # whatever stands there
    solution = evaluation.solve(evaluation.accumulate([rows], actions=ACTIONS))
    torch.testing.assert_close(q_of(solution), exact_q(discount, target), rtol=0, atol=1e-10)


@pytest.mark.parametrize("discount", [0.5, 0.999])
def test_one_block_follows_a_chain(discount: float):
    # Targets that differ by row count through their mean: y(s, s') here, as in the Q step.
    chain, target = TRANSITION[:, 0], noise(STATES, STATES, 2, seed=5)
    s, following = torch.cartesian_prod(torch.arange(STATES), torch.arange(STATES)).unbind(1)
    gamma = torch.full((len(s),), discount, dtype=torch.float64)
    weight = VISITS.sum(1)[s] * chain[s, following]
    rows = Rows(PHI[s], PHI[following], gamma, target[s, following], weight)
    solution = evaluation.solve(evaluation.accumulate([rows]))
    mean = (chain.unsqueeze(-1) * target).sum(1)
    expected = torch.linalg.solve(torch.eye(STATES) - discount * chain, mean)
    torch.testing.assert_close(PHI @ solution.weights[0], expected, rtol=0, atol=1e-10)


def test_one_action_as_a_block_is_the_one_block_form():
    target = noise(STATES, ACTIONS, 2, seed=6)
    rows = all_rows(0.9, target)
    plain = replace(rows, action=None, next_policy=None)
    blocks = replace(rows, action=torch.zeros_like(rows.action), next_policy=torch.ones(len(rows.phi), 1).double())
    same(evaluation.add_rows(plain), evaluation.add_rows(blocks, actions=1), rtol=1e-13, atol=1e-13)


def test_values_do_not_depend_on_the_basis_of_the_same_space():
    mixing = torch.eye(STATES, dtype=torch.float64)
    mixing[:, 1:] += 0.3 * noise(STATES, STATES, seed=7)[:, 1:]
    target = noise(STATES, ACTIONS, 1, seed=8)
    sums = evaluation.accumulate([all_rows(0.95, target, PHI @ mixing)], actions=ACTIONS)
    torch.testing.assert_close(q_of(evaluation.solve(sums), PHI @ mixing), exact_q(0.95, target), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_add_up_to_the_same_sums(size: int):
    rows = all_rows(0.95, noise(STATES, ACTIONS, 2, seed=9))
    whole = evaluation.add_rows(rows, actions=ACTIONS)
    assert whole.rows == STATES * ACTIONS * STATES
    same(evaluation.accumulate(iter(split(rows, size)), actions=ACTIONS), whole, rtol=1e-13, atol=1e-15)


def test_a_weight_of_two_is_the_row_twice_and_of_zero_is_no_row():
    rows = replace(all_rows(0.9, noise(STATES, ACTIONS, 1, seed=10)), weight=torch.ones(75).double())
    first = Rows(*(getattr(rows, f.name)[:20] for f in GIVEN))
    weight = torch.ones(75, dtype=torch.float64)
    weight[:20] = 2
    doubled = evaluation.add_rows(replace(rows, weight=weight), actions=ACTIONS)
    twice = evaluation.accumulate([rows, first], actions=ACTIONS)
    same(replace(doubled, rows=95), twice, rtol=1e-13, atol=1e-13)
    weight[:20] = 0
    rest = Rows(*(getattr(rows, f.name)[20:] for f in GIVEN))
    none = evaluation.add_rows(replace(rows, weight=weight), actions=ACTIONS)
    same(replace(none, rows=55), evaluation.add_rows(rest, actions=ACTIONS), rtol=1e-13, atol=1e-13)


def regression(x: Tensor, y: Tensor) -> Rows:
    """gamma = 0: the kernel is a linear regression of y[N] on x[N, D - 1]."""
    phi = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
    return Rows(phi, phi, torch.zeros_like(y), y.unsqueeze(1), torch.ones_like(y))


@pytest.mark.parametrize("units", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("weight", [1.0, 50.0])
def test_ridge_shrinks_standardised_slopes_and_never_the_intercept(units: float, weight: float):
    # y = 7 + 2 x, x = 3 -+ 1: sd 1, so ridge .25 per row shrinks the slope by 1.25; the mean of y stays 7 + 2 * 3.
    x = torch.tensor([2.0, 4.0, 2.0, 4.0], dtype=torch.float64)
    rows = regression(x.unsqueeze(1) * units, 7 + 2 * x)
    sums = evaluation.accumulate([replace(rows, weight=rows.weight * weight)])
    intercept, slope = evaluation.solve(sums, ridge=0.25).weights[0, :, 0].tolist()
    assert slope * units == pytest.approx(2 / 1.25)
    assert intercept + slope * units * 3 == pytest.approx(13)
    heavy = evaluation.solve(sums, ridge=1e12).weights[0, :, 0]
    torch.testing.assert_close(heavy * torch.tensor([1, units]), torch.tensor([13.0, 0.0]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("constant", [0.0, 0.3, -1e5])
@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_a_feature_that_does_not_vary_gets_no_weight(dtype: torch.dtype, constant: float, ridge: float):
    x = noise(3000, 2, seed=11)
    y = 1 + x[:, 0]
    x[:, 1] = constant
    solution = evaluation.solve(evaluation.accumulate([regression(x.to(dtype), y.to(dtype))]), ridge=ridge)
    torch.testing.assert_close(solution.weights[0, :, 0], torch.tensor([1.0, 1.0, 0.0]).double(), atol=1e-4, rtol=0)
    assert solution.weights[0, 2, 0] == 0 and solution.converged


@pytest.mark.parametrize(("level", "units", "weight"), [(0, 1, 1), (1e5, 1, 1e6), (-30, 1e-3, 1e-6)])
def test_level_units_and_weight_do_not_worsen_the_condition(level: float, units: float, weight: float):
    # Standardised, +-1 in equal shares is orthogonal to the constant: the matrix is the weight times the identity.
    x = units * (level + torch.tensor([-1.0, 1.0, -1.0, 1.0]).double().unsqueeze(1))
    rows = regression(x, torch.ones(4).double())
    sums = evaluation.accumulate([replace(rows, weight=weight * rows.weight)])
    assert evaluation.solve(sums).condition == pytest.approx(1, abs=1e-3)


def test_a_feature_in_small_units_is_kept():
    x = 1e-9 * noise(500, 1, seed=12)
    solution = evaluation.solve(evaluation.accumulate([regression(x, 2 + 1e9 * x[:, 0])]))
    assert solution.weights[0, 1, 0].item() == pytest.approx(1e9)


def test_an_action_without_rows_is_worth_nothing():
    # Action 2 is never chosen, though the next policy would choose it: its value is taken as 0.
    target = noise(STATES, ACTIONS, 1, seed=13)
    rows = all_rows(0.9, target)
    chosen = rows.action < 2
    kept = Rows(*(getattr(rows, f.name)[chosen] for f in GIVEN))
    solution = evaluation.solve(evaluation.accumulate([kept], actions=ACTIONS))
    assert (solution.weights[2] == 0).all() and solution.converged
    moves = 0.9 * torch.einsum("sat,tb->satb", TRANSITION[:, :2], POLICY[:, :2]).reshape(10, 10)
    expected = torch.linalg.solve(torch.eye(10).double() - moves, target[:, :2].reshape(10, 1))
    torch.testing.assert_close(q_of(solution)[:, :2].reshape(10, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("twin", [0.0, 1e-9])
def test_collinear_features_are_reported_and_ridge_cures_them(twin: float):
    x = noise(1000, 1, seed=14)
    x = torch.cat([x, x + twin * noise(1000, 1, seed=15)], dim=1)
    sums = evaluation.accumulate([regression(x, 3 + 2 * x[:, 0])])
    solution = evaluation.solve(sums)
    assert not solution.converged and solution.condition > 1e12
    assert solution.weights.isfinite().all()
    ridged = evaluation.solve(sums, ridge=1e-6)
    assert ridged.converged and ridged.condition < 1e8
    torch.testing.assert_close(ridged.weights[0, 1:, 0], torch.ones(2).double(), atol=1e-4, rtol=0)


def test_a_system_without_a_solution_is_reported():
    # A state that is left for itself for ever, undiscounted, and earns something: no finite value.
    ones = torch.ones(10, 1, dtype=torch.float64)
    solution = evaluation.solve(evaluation.accumulate([Rows(ones, ones, ones[:, 0], ones, ones[:, 0])]))
    assert not solution.converged and solution.residual == pytest.approx(1) and solution.condition == math.inf


def test_float32_features_are_summed_in_float64():
    rows = all_rows(0.9, noise(STATES, ACTIONS, 1, seed=16))
    single = Rows(*(v.float() if (v := getattr(rows, f.name)).is_floating_point() else v for f in GIVEN))
    sums = evaluation.add_rows(single, actions=ACTIONS)
    assert all(t.dtype == torch.float64 for t in (sums.matrix, sums.rhs, sums.gram))
    same(sums, evaluation.add_rows(rows, actions=ACTIONS), rtol=1e-5, atol=1e-6)
    heavy = evaluation.add_rows(replace(single, weight=torch.full((75,), 2.0**24 / 75)), actions=ACTIONS)
    light = evaluation.add_rows(single, actions=ACTIONS)
    gained = (heavy + light).gram[:, 0, 0].sum() - heavy.gram[:, 0, 0].sum()
    assert gained.item() == pytest.approx(1, abs=1e-5)  # in float32, 2^24 + 1 is 2^24
    assert evaluation.solve(sums).weights.dtype == torch.float64


def test_a_chunk_of_no_rows_adds_nothing():
    """As a process has whose share of few states is empty."""
    rows = replace(
        DRAWN, **{n: getattr(DRAWN, n)[:0] for n in ("phi", "discount", "target", "weight", "action", "place")}
    )
    nothing = evaluation.add_rows(rows, actions=ACTIONS)
    same(evaluation.add_rows(DRAWN, actions=ACTIONS) + nothing, evaluation.add_rows(DRAWN, actions=ACTIONS))


def test_no_rows_are_refused():
    empty = all_rows(0.9, noise(STATES, ACTIONS, 1, seed=17))
    for chunks in ([], split(empty, 75)[:0], [replace(empty, weight=torch.zeros(75).double())]):
        with pytest.raises(ValueError, match="at least one row"):
            evaluation.accumulate(chunks, actions=ACTIONS)


def test_the_first_feature_must_be_the_constant():
    rows = regression(noise(10, 1, seed=18), noise(10, seed=19))
    with pytest.raises(AssertionError, match="constant 1"):
        replace(rows, phi=rows.phi.flip(1))


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_the_adjoint_says_how_functionals_of_the_solution_depend_on_the_targets(ridge: float):
    sums = evaluation.accumulate([all_rows(0.9, noise(STATES, ACTIONS, 2, seed=4))], actions=ACTIONS)
    left = noise(len(sums.matrix), 3, seed=5)
    through = evaluation.adjoint(sums, left, ridge=ridge)
    solution = evaluation.solve(sums, ridge=ridge).weights.flatten(0, 1)
    assert torch.allclose(left.T @ solution, through.T @ sums.rhs)
    if not ridge:
        assert torch.allclose(sums.matrix.T @ through, left)


def test_a_small_spread_around_a_large_number_counts_as_a_feature_in_float32():
    """Its variance is lost in the rounding of float32 products; its range is not."""
    x = 10_000 + torch.rand(5000, generator=torch.Generator().manual_seed(6))
    phi = torch.stack([torch.ones_like(x), x], 1)
    zero = torch.zeros(len(x))
    rows = Rows(phi, phi, zero, x.unsqueeze(1) - 10_000, torch.ones_like(x))
    weights = evaluation.solve(evaluation.accumulate([rows]), ridge=1e-12).weights
    assert weights[0, 1, 0] != 0


def chain(members: int, gamma: float, *, useless: int, seed: int = 0) -> tuple[list[Rows], Tensor]:
    """Rows by member fold of x' = .6 x + u with y = x, of value x / (1 - .6 gamma), beside useless features; phi."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(members, 1, generator=generator, dtype=torch.float64)
    following = 0.6 * x + 0.8 * torch.randn(members, 1, generator=generator, dtype=torch.float64)

    def features(state: Tensor) -> Tensor:
        extra = torch.randn(members, useless, generator=generator, dtype=torch.float64)
        return torch.cat([torch.ones_like(state), state, extra], 1)

    phi, phi_next = features(x), features(following)
    one = torch.ones(members, dtype=torch.float64)
    rows = [Rows(phi[k::5], phi_next[k::5], gamma * one[k::5], x[k::5], one[k::5]) for k in range(5)]
    return rows, phi


def test_the_chosen_ridge_is_near_the_best():
    gamma = 0.9
    rows, phi = chain(1500, gamma, useless=150)
    choice = evaluation.chosen([lambda part=part: [part] for part in rows])
    ridge, left = choice.ridge, choice.unexplained
    total = evaluation.accumulate(rows)
    truth = phi[:, 1] / (1 - 0.6 * gamma)
    errors = {
        r: float((phi @ evaluation.solve(total, ridge=r).weights[0, :, 0] - truth).std()) for r in evaluation.RIDGES
    }
    assert 1e-3 < ridge < 1  # neither none nor all
    assert errors[ridge] < 1.1 * min(errors.values()) < errors[1e-6]
    assert errors[ridge] < 0.95 * errors[1e-6]
    assert 0 <= left < 0.2


def test_without_noise_no_ridge_is_chosen():
    rows, _ = chain(2000, 0.9, useless=0)
    choice = evaluation.chosen([lambda part=part: [part] for part in rows])
    ridge, left = choice.ridge, choice.unexplained
    assert ridge <= 1e-2 and left < 0.03


def test_the_ridge_by_action_blocks_is_that_of_the_blocks():
    rows, _ = chain(1500, 0.9, useless=40)
    alone = evaluation.chosen([lambda part=part: [part] for part in rows])
    blocks = [
        replace(
            part,
            action=torch.ones(len(part.phi), dtype=torch.int64),
            next_policy=torch.tensor([[0.0, 1.0]]).double().expand(len(part.phi), 2),
        )
        for part in rows
    ]
    together = evaluation.chosen([lambda part=part: [part] for part in blocks], actions=2)
    assert (together.ridge, together.target) == (alone.ridge, alone.target)
    assert together.unexplained == pytest.approx(alone.unexplained, rel=1e-9)
