"""The dynamics step: counts by hand, clocks and statics that the panel contradicts, and recovery of known processes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from irl.config import InputError, Step
from irl.data.panel import Panel
from irl.data.schema import Column, StateSchema
from irl.dynamics import TransitionModel
from irl.estimation.dynamics import DynamicsReport, fit_dynamics
from irl.estimation.training import Workbench

BENCH = Workbench(device=torch.device("cpu"), seed=0)
QUICK = Step(hidden=(16,), learning_rate=0.02, weight_decay=0.0, batch_size=1000, max_epochs=25)


def schema_of(*columns: Column) -> StateSchema:
    return StateSchema(columns=columns, actions=("none", "plan"), anchor=0, anchor_reward=0.0, terminal={})


def panel_of(schema: StateSchema, state: Tensor, action: Tensor, weight: Tensor | None = None) -> Panel:
    """A balanced panel of state[M, T, F] and action[M, T], every row followed by the next."""
    members, periods, _ = state.shape
    n = members * periods
    row = torch.arange(n).view(members, periods)
    following = torch.cat([row[:, 1:], torch.full((members, 1), -1)], dim=1).flatten()
    return Panel(
        schema=schema,
        state=state.reshape(n, -1).float(),
        action=action.flatten().long(),
        menu=torch.ones(n, 2, dtype=torch.bool),
        free=torch.ones(n, dtype=torch.bool),
        active=torch.ones(n, dtype=torch.bool),
        member=torch.arange(members).repeat_interleave(periods),
        cluster=torch.arange(members).repeat_interleave(periods),
        period=torch.arange(periods).repeat(members),
        segment=torch.zeros(n, dtype=torch.long),
        anchor_reward=torch.zeros(n),
        weight=torch.ones(n) if weight is None else weight.flatten().float(),
        next_row=following,
        next_choice=following,
        steps=torch.ones(n),
        ends=torch.zeros(n, dtype=torch.bool),
        gaps=0,
    )


def pairs_panel(schema: StateSchema, rows: list[tuple[list[float], int, list[float], float]]) -> Panel:
    """One member of two periods for each (state, action, next state, weight)."""
    state = torch.tensor([[now, later] for now, _, later, _ in rows])
    action = torch.tensor([[a, 0] for _, a, _, _ in rows])
    return panel_of(schema, state, action, torch.tensor([[w, 1.0] for *_, w in rows]))


def fitted(panel: Panel, held_out: Tensor | None = None) -> tuple[TransitionModel, DynamicsReport]:
    held_out = panel.member % 5 == 0 if held_out is None else held_out
    return fit_dynamics(panel, held_out, QUICK, bench=BENCH)


STATUS = Column(name="status", kind="category", dynamics="table", labels=("in", "out"), parents=(0, 1))
LEFT = Column(name="left", kind="ordinal", dynamics="static", labels=("0", "1"))


def test_tables_are_weighted_frequencies():
    rows = [
        ([0, 0], 0, [0, 0], 1.0),
        ([0, 0], 0, [1, 0], 3.0),
        ([0, 0], 1, [1, 0], 2.0),
        ([0, 1], 0, [0, 1], 5.0),
        ([1, 1], 1, [1, 1], 0.5),
        ([1, 1], 1, [0, 1], 0.3),
        ([1, 1], 1, [0, 1], 0.2),
    ]
    model, report = fitted(pairs_panel(schema_of(STATUS, LEFT), rows))
    table = model.table_0.view(3, 3, 2, 2)  # status, left (the last of each: unseen), action, next status
    torch.testing.assert_close(table[0, 0], torch.tensor([[0.25, 0.75], [0, 1]]))
    torch.testing.assert_close(table[0, 1, 0], torch.tensor([1.0, 0]))
    torch.testing.assert_close(table[1, 1, 1], torch.tensor([0.5, 0.5]))
    # the held-out members are 0 and 5: P of .25 and .5
    assert report.held_out_log_prob == pytest.approx((math.log(0.25) + math.log(0.5)) / 2)
    assert report.trained is None


def test_cells_never_seen_fall_back_step_by_step():
    rows = [([0, 0], 0, [0, 0], 1.0), ([0, 1], 0, [1, 1], 3.0), ([0, 0], 1, [1, 0], 4.0)]
    table = fitted(pairs_panel(schema_of(STATUS, LEFT), rows))[0].table_0.view(3, 3, 2, 2)
    torch.testing.assert_close(table[0, 2, 0], torch.tensor([0.25, 0.75]))  # same level and action, any `left`
    torch.testing.assert_close(table[0, 1, 1], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(table[1], torch.tensor([0.0, 1.0]).expand(3, 2, 2))  # level never seen: stays
    torch.testing.assert_close(table[2], torch.tensor([0.5, 0.5]).expand(3, 2, 2))  # unknown level: nothing known
    rows = [r for r in rows if r[1] == 0]
    table = fitted(pairs_panel(schema_of(STATUS, LEFT), rows))[0].table_0.view(3, 3, 2, 2)
    torch.testing.assert_close(table[0, :, 1], torch.tensor([0.25, 0.75]).expand(3, 2))  # other actions' frequencies


def test_fallback_where_the_own_level_is_no_parent():
    moved = replace(STATUS, parents=(1,))
    rows = [([0, 0], 0, [0, 0], 1.0), ([1, 0], 0, [1, 0], 1.0), ([1, 0], 1, [1, 0], 2.0)]
    table = fitted(pairs_panel(schema_of(moved, LEFT), rows))[0].table_0
    assert table.shape == (3, 2, 2)
    torch.testing.assert_close(table[0], torch.tensor([[0.5, 0.5], [0, 1]]))
    torch.testing.assert_close(table[1:], table[:1].expand(2, 2, 2))  # by action
    table = fitted(pairs_panel(schema_of(moved, LEFT), rows[:2]))[0].table_0
    torch.testing.assert_close(table[:, 1], torch.tensor([0.5, 0.5]).expand(3, 2))  # then over all actions


def test_a_next_level_never_seen_when_the_schema_was_fitted_is_not_counted():
    rows = [([0, 0], 0, [0, 0], 1.0), ([0, 0], 0, [2, 0], 9.0), ([2, 0], 0, [1, 0], 1.0)]
    table = fitted(pairs_panel(schema_of(STATUS, LEFT), rows))[0].table_0.view(3, 3, 2, 2)
    torch.testing.assert_close(table[0, 0, 0], torch.tensor([1.0, 0]))
    torch.testing.assert_close(table[2, 0, 0], torch.tensor([0.0, 1.0]))


def test_counting_goes_on_beyond_float32():
    rows = [([0, 0], 0, [0, 0], 2.0**24), *[([0, 0], 0, [1, 0], 1.0), ([0, 0], 0, [0, 0], 1.0)] * 2]
    rows = [*rows, ([0, 0], 0, [1, 0], 2.0**24)]
    table = fitted(pairs_panel(schema_of(STATUS, LEFT), rows))[0].table_0.view(3, 3, 2, 2)
    assert table[0, 0, 0].tolist() == [0.5, 0.5]


MONTH = Column(name="month", kind="ordinal", dynamics="clock", labels=("0", "1", "2", "3"))
TENURE = Column(name="tenure", kind="ordinal", dynamics="clock", labels=("0", "1", "2"))
AGE = Column(name="age", kind="numeric", dynamics="clock", centre=30.0, scale=5.0, minimum=20.0, maximum=60.0)


def clocks_panel() -> tuple[StateSchema, Tensor]:
    """month runs in a circle, tenure stops at its last level, age rises by a half."""
    t = torch.arange(6).float()
    state = torch.stack([t % 4, t.clamp(max=2), 20 + t / 2], dim=1).repeat(5, 1, 1)
    state[:, :, 2] += torch.arange(5).unsqueeze(1) * 7
    return schema_of(MONTH, TENURE, AGE), state


def test_clocks_are_read_off_the_panel():
    schema, state = clocks_panel()
    model, report = fitted(panel_of(schema, state, torch.zeros(5, 6)))
    drawn = model.sample(torch.tensor([[3, 2, 40.0], [0, 0, 21.0]]), torch.tensor([0, 1]), torch.zeros(2, 0))
    assert drawn.tolist() == [[0, 2, 40.5], [1, 1, 21.5]]
    assert report.held_out_log_prob == 0


def test_a_phase_never_left_is_followed_by_its_successor():
    schema, state = clocks_panel()
    model, _ = fitted(panel_of(schema, state[:, :3], torch.zeros(5, 3)))  # months 2 and 3 have no successor here
    drawn = model.sample(torch.tensor([[2, 0, 0.0], [3, 0, 0.0]]), torch.tensor([0, 0]), torch.zeros(2, 0))
    assert drawn[:, 0].tolist() == [3, 0]


def test_contradicted_clocks_and_statics_are_named_and_counted_together():
    schema, state = clocks_panel()
    schema = replace(schema, columns=(*schema.columns, replace(LEFT, name="home")))
    state = torch.cat([state, torch.zeros(5, 6, 1)], dim=2)
    state[0, 3, 0] = 1  # 2 -> 1 -> 0 where 3 belongs: two transitions
    state[1, 2:, 2] += 0.1  # one
    state[:3, 4, 3] = 1  # there and back: six
    with pytest.raises(InputError) as caught:
        fitted(panel_of(schema, state, torch.zeros(5, 6)))
    message = str(caught.value)
    assert "month: `dynamics: clock`, but 2 of 25 transitions" in message
    assert "age: `dynamics: clock`, but 1 of 25 transitions" in message
    assert "home: `dynamics: static`, but it changes in 6 of 25 transitions" in message
    assert "tenure" not in message


def test_transitions_across_a_gap_do_not_count():
    schema, state = clocks_panel()
    state[0, 3:, 0] = torch.tensor([0.0, 1, 2])  # a month is missing
    panel = panel_of(schema, state, torch.zeros(5, 6))
    with pytest.raises(InputError, match="month"):
        fitted(panel)
    panel.next_row[2] = -1
    fitted(panel)


def test_huge_tables_are_refused():
    wide = Column(
        name="wide", kind="ordinal", dynamics="table", labels=tuple(str(i) for i in range(2000)), parents=(0,)
    )
    with pytest.raises(InputError, match="wide: a table"):
        fitted(panel_of(schema_of(wide), torch.zeros(5, 3, 1), torch.zeros(5, 3)))


@pytest.mark.parametrize(
    ("held_out", "which"), [(False, "no held-out member"), (True, "no other than held-out member")]
)
def test_learning_needs_transitions_on_both_sides(held_out: bool, which: str):
    learned = replace(LEFT, dynamics="learned")
    panel = panel_of(schema_of(learned), torch.zeros(5, 3, 1), torch.zeros(5, 3))
    with pytest.raises(InputError, match=which):
        fitted(panel, torch.full((15,), held_out))


# A process with everything that is learned: two benefits that move together, a count, a number, and spending that is
# often nothing. Given the state and action every law below is known.
PRICE = Column(name="price", kind="numeric", dynamics="static", centre=1.0, scale=0.2, minimum=0.8, maximum=1.2)
VIDEO = Column(name="video", kind="ordinal", dynamics="learned", labels=("0", "1", "2"))
MUSIC = Column(name="music", kind="category", dynamics="learned", labels=("no", "yes"))


def process(state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
    """s'[N, 6] of s[N, 6]: price, video, music, uses, wealth, spend."""
    n = len(state)
    price, _, _, uses, wealth, _ = state.unbind(1)

    def normal() -> Tensor:
        return torch.randn(n, generator=generator)

    def coin(p: Tensor | float) -> Tensor:
        return (torch.rand(n, generator=generator) < p).float()

    video = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]).expand(n, 3), 1, generator=generator).squeeze(1).float()
    likes = torch.where(video == 2, 0.9, torch.where(video == 1, 0.5, 0.1))  # music follows the next video
    logistic = torch.logit(torch.rand(n, generator=generator).clamp(1e-6, 1 - 1e-6))
    return torch.stack(
        [
            price,
            video,
            coin(likes),
            (6 + 0.6 * (uses - 6) + 3 * action + logistic).round().clamp(0, 30),
            50 + 0.5 * (wealth - 50) + 8 * action + (4 - 2 * action) * normal(),
            coin(0.6 - 0.3 * action) * (50 + 5 * normal()).clamp(min=1),
        ],
        dim=1,
    )


@pytest.fixture(scope="module")
def learned() -> tuple[TransitionModel, DynamicsReport]:
    generator = torch.Generator().manual_seed(0)
    members, periods = 1500, 7
    state = [process(torch.tensor([[1.0, 0, 0, 6, 50, 0]]).repeat(members, 1), torch.zeros(members), generator)]
    state[0][:, 0] = torch.tensor([0.8, 1.0, 1.2]).repeat(members // 3)
    action = (torch.rand(members, periods, generator=generator) < 0.5).float()
    for t in range(periods - 1):
        state.append(process(state[-1], action[:, t], generator))
    panel = torch.stack(state, dim=1)
    columns = [PRICE, VIDEO, MUSIC]
    for f, (name, kind) in enumerate((("uses", "count"), ("wealth", "numeric"), ("spend", "numeric")), start=3):
        x = panel[..., f].double()
        around = {
            "centre": float(x.mean()),
            "scale": float(x.std()),
            "minimum": float(x.min()),
            "maximum": float(x.max()),
        }
        columns.append(Column(name=name, kind=kind, dynamics="learned", **around))
    return fitted(panel_of(schema_of(*columns), panel, action))


START = torch.tensor([1.0, 1, 0, 8, 58, 45])
DRAWS = 40_000


def draws(model: TransitionModel, action: int) -> Tensor:
    uniform = torch.rand(DRAWS, model.n_random, generator=torch.Generator().manual_seed(9))
    return model.sample(START.expand(DRAWS, -1), torch.full((DRAWS,), action), uniform)


def truth(action: int) -> Tensor:
    return process(START.expand(DRAWS, -1), torch.full((DRAWS,), float(action)), torch.Generator().manual_seed(10))


@pytest.mark.parametrize("action", [0, 1])
def test_columns_that_move_together_do(learned: tuple[TransitionModel, DynamicsReport], action: int):
    drawn = draws(learned[0], action)
    joint = torch.bincount((drawn[:, 1] * 2 + drawn[:, 2]).long(), minlength=6) / DRAWS
    expected = torch.tensor([0.45, 0.05, 0.15, 0.15, 0.02, 0.18])
    assert (joint - expected).abs().max() < 0.03


@pytest.mark.parametrize("action", [0, 1])
def test_counts_keep_their_mean_and_spread(learned: tuple[TransitionModel, DynamicsReport], action: int):
    drawn, true = draws(learned[0], action)[:, 3], truth(action)[:, 3]
    assert torch.equal(drawn, drawn.round())
    assert abs(drawn.mean() - true.mean()) < 0.15
    assert drawn.std().item() == pytest.approx(true.std().item(), rel=0.1)


@pytest.mark.parametrize("action", [0, 1])
def test_numbers_keep_their_mean_and_spread(learned: tuple[TransitionModel, DynamicsReport], action: int):
    drawn = draws(learned[0], action)[:, 4]
    assert drawn.mean().item() == pytest.approx(54 + 8 * action, abs=0.5)
    assert drawn.std().item() == pytest.approx(4 - 2 * action, rel=0.1)


@pytest.mark.parametrize("action", [0, 1])
def test_spending_is_nothing_as_often_as_it_should(learned: tuple[TransitionModel, DynamicsReport], action: int):
    drawn = draws(learned[0], action)[:, 5]
    assert (drawn == 0).float().mean().item() == pytest.approx(0.4 + 0.3 * action, abs=0.05)
    assert drawn[drawn > 0].mean().item() == pytest.approx(50, abs=1.5)
    assert drawn[drawn > 0].std().item() == pytest.approx(5, rel=0.2)


def test_only_heaps_get_a_probability_of_their_own(learned: tuple[TransitionModel, DynamicsReport]):
    model = learned[0]
    atom = {model.schema.columns[f].name: a for f, a in zip(model.learned, model.atom.tolist(), strict=True)}
    assert atom["wealth"] == -math.inf
    assert atom["spend"] == pytest.approx(math.log(0.55 / 0.45), abs=0.1)  # half of the rows are each action's


def test_the_static_never_moves(learned: tuple[TransitionModel, DynamicsReport]):
    assert (draws(learned[0], 1)[:, 0] == 1).all()


def test_held_out_likelihood_is_near_that_of_the_truth(learned: tuple[TransitionModel, DynamicsReport]):
    model, report = learned
    video = torch.tensor([0.5, 0.3, 0.2])
    music = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    discrete = (video * video.log()).sum() + (video.unsqueeze(1) * music * music.log()).sum()
    scale = {c.name: c.scale for c in model.schema.columns}
    entropies = 0.0
    for a in (0, 1):
        p = 0.6 - 0.3 * a
        normal = 0.5 * math.log(2 * math.pi * math.e)
        wealth = normal + math.log((4 - 2 * a) / scale["wealth"])
        spend = -(p * math.log(p) + (1 - p) * math.log(1 - p)) + p * (normal + math.log(5 / scale["spend"]))
        entropies += (2.0 + wealth + spend) / 2  # a logistic's entropy is 2 nats; rounding to whole numbers keeps it
    assert report.held_out_log_prob == pytest.approx(float(discrete) - entropies, abs=0.1)
    assert report.trained is not None and report.trained.epochs > 5 and not report.undone


def test_the_same_seed_gives_the_same_model():
    generator = torch.Generator().manual_seed(3)
    state = torch.randint(0, 3, (20, 4, 1), generator=generator)
    panel = panel_of(schema_of(VIDEO), state, torch.zeros(20, 4))
    short = QUICK.model_copy(update={"max_epochs": 2})

    def weights(seed: int) -> Tensor:
        model, _ = fit_dynamics(panel, panel.member < 4, short, bench=replace(BENCH, seed=seed))
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def noise(members: int, *, seed: int = 4) -> tuple[StateSchema, Tensor, Tensor]:
    """Use of video that rises with the plan and by region, and by nothing else; region, video, and two bystanders."""
    generator = torch.Generator().manual_seed(seed)
    labels = tuple("abc")
    region = Column(name="region", kind="category", dynamics="static", labels=labels)
    bystanders = [Column(name=n, kind="category", dynamics="static", labels=labels) for n in ("hair", "shoes")]
    columns = [replace(c, maximum=2.0) for c in (region, VIDEO, *(replace(b, kind="ordinal") for b in bystanders))]
    state = torch.randint(0, 3, (members, 1, 4), generator=generator).expand(members, 2, 4).clone()
    action = torch.randint(0, 2, (members, 2), generator=generator)
    rise = (torch.rand(members, generator=generator) < RISE[state[:, 0, 0], action[:, 0]]).long()
    state[:, 1, 1] = (state[:, 0, 1] + rise).clamp_max(2)
    return schema_of(*columns), state, action


RISE = torch.tensor([[0.1, 0.4], [0.2, 0.6], [0.3, 0.9]])


def test_a_training_that_does_harm_is_undone():
    panel = panel_of(*noise(4000))
    wild = QUICK.model_copy(update={"learning_rate": 1.0, "max_epochs": 1})
    model, report = fit_dynamics(panel, panel.member % 5 == 0, wild, bench=BENCH)
    assert report.trained is not None and report.trained.held_out_loss > 0.1 - report.held_out_log_prob
    assert report.undone and float(model.heads.weight.detach().abs().max()) == 0
    up = model.start_1.view(4, 4, 2, 3)[0, :3].exp()  # own level and region (the last of each: unseen), by action
    assert (up[:, :, 1] - RISE).abs().max() < 0.1
    assert (up.sum(-1) - 1).abs().max() < 1e-3


def test_the_frequencies_borrow_from_other_regions_where_they_are_thin():
    schema, state, action = noise(20_000)
    lone = (state[:, 0, 0] == 2) & (action[:, 0] == 1)
    thin = ~lone | (lone.long().cumsum(0) <= 2)
    model, _ = fitted(panel_of(schema, state[thin], action[thin]))
    up = model.start_1.view(4, 4, 2, 3)[0, :, 1, 1].exp()  # from level 0 with the plan, by region
    assert up[:2] == pytest.approx(RISE[:2, 1], abs=0.07)
    assert 0.35 < up[2] < 0.75  # two rows of its own, five borrowed
    assert up[3] == pytest.approx(0.5, abs=0.07)  # a region never seen: what all do


def test_numbers_start_from_a_regression_by_action():
    generator = torch.Generator().manual_seed(6)
    wealth = torch.randn(20_000, generator=generator) * 10 + 50
    action = torch.randint(0, 2, (20_000, 2), generator=generator)
    later = torch.where(action[:, 0] == 0, 20 + 0.5 * wealth, wealth + 3) + 2 * torch.randn(20_000, generator=generator)
    state = torch.stack([wealth, later], 1).unsqueeze(-1)
    around = {"centre": 50.0, "scale": 10.0, "minimum": -100.0, "maximum": 200.0}
    schema = schema_of(Column(name="wealth", kind="numeric", dynamics="learned", **around))
    panel = panel_of(schema, state, action)
    wild = QUICK.model_copy(update={"learning_rate": 1.0, "max_epochs": 1})
    model, _ = fit_dynamics(panel, panel.member % 5 == 0, wild, bench=BENCH)
    expected = torch.tensor([[-0.5, -0.5, math.log(0.2)], [0.3, 0.0, math.log(0.2)]])  # in units of 10 from 50
    torch.testing.assert_close(model.start_0, expected, atol=0.02, rtol=0)
    drawn = model.sample(torch.full((9, 1), 80.0), torch.zeros(9, dtype=torch.long), torch.full((9, 1), 0.5))
    assert drawn.flatten().tolist() == pytest.approx([60.0] * 9, abs=0.5)


@pytest.mark.parametrize(("crash", "least", "most"), [(0.0, 0.0, 0.04), (0.2, 0.12, 1.0)])
def test_moves_of_two_kinds_are_told_from_normal_ones(crash, least, most):
    """A fifth of the members lose half of what they have."""
    generator = torch.Generator().manual_seed(6)
    wealth, luck = torch.randn(8000, generator=generator) * 10 + 100, torch.rand(8000, generator=generator)
    later = torch.where(luck < crash, 0.5 * wealth, wealth + 3) + 5 * torch.randn(8000, generator=generator)
    state = torch.stack([wealth, later], 1).unsqueeze(-1)
    around = {"centre": 100.0, "scale": 10.0, "minimum": -100.0, "maximum": 300.0}
    schema = schema_of(Column(name="wealth", kind="numeric", dynamics="learned", **around))
    panel = panel_of(schema, state, torch.zeros(8000, 2, dtype=torch.long))
    _, report = fit_dynamics(panel, panel.member % 5 == 0, QUICK, bench=BENCH)
    assert least <= report.misfit["wealth"] < most


MILEAGE = Column(
    name="mileage", kind="ordinal", dynamics="table", labels=("0", "1", "2", "3", "4"), parents=(0,), alike=True
)


def test_moves_that_are_alike_are_counted_over_all_levels_and_resets_as_such():
    rows = [
        ([0.0], 1, [1.0], 1.0),
        ([1.0], 1, [2.0], 2.0),
        ([2.0], 1, [2.0], 1.0),
        ([4.0], 1, [4.0], 50.0),  # might have been cut short: does not count as a move of 0
        ([2.0], 0, [0.0], 1.0),
        ([4.0], 0, [0.0], 1.0),
    ]
    model, _ = fitted(pairs_panel(schema_of(MILEAGE), rows))
    table = model.get_buffer("table_0")
    assert torch.equal(table[0, 1], torch.tensor([0.25, 0.75, 0, 0, 0]))
    assert torch.equal(table[3, 1], torch.tensor([0, 0, 0, 0.25, 0.75]))  # never seen there
    assert torch.equal(table[4, 1], torch.tensor([0, 0, 0, 0, 1.0]))  # what passes the end arrives there
    assert torch.equal(table[:5, 0], torch.tensor([[1.0, 0, 0, 0, 0]]).expand(5, 5))  # a reset, from everywhere


def test_moves_that_are_alike_may_differ_by_another_parent():
    mileage = replace(MILEAGE, parents=(1, 0))
    kind = Column(name="kind", kind="category", dynamics="static", labels=("a", "b", "c"))
    rows = [([0.0, 0.0], 1, [1.0, 0.0], 1.0), ([1.0, 1.0], 1, [3.0, 1.0], 3.0), ([1.0, 0.0], 1, [2.0, 0.0], 1.0)]
    model, _ = fitted(pairs_panel(schema_of(mileage, kind), rows))
    table = model.get_buffer("table_0").view(4, 6, 2, 5)  # kind (or unseen), own level (or unseen), action, next
    assert torch.equal(table[0, 2, 1], torch.tensor([0, 0, 0, 1.0, 0]))
    assert torch.equal(table[1, 2, 1], torch.tensor([0, 0, 0, 0, 1.0]))
    assert torch.allclose(table[2, 0, 1], torch.tensor([0, 0.4, 0.6, 0, 0]))  # a kind without rows: as in all
    assert torch.equal(table[0, 3, 0], torch.tensor([0, 0, 0, 1.0, 0]))  # an action nobody took: stays
