"""The transition model: probabilities that sum to one, draws that follow them, mechanics and their edges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from irl.config import InputError
from irl.data.schema import Column, StateSchema
from irl.dynamics import LARGEST_TABLE, Movement, TransitionModel, table_cell

COLUMNS = (
    Column(name="price", kind="numeric", dynamics="static", centre=1.0, scale=0.2, minimum=0.5, maximum=1.5),
    Column(name="status", kind="category", dynamics="table", labels=("in", "out"), parents=(1, 2)),
    Column(name="left", kind="ordinal", dynamics="table", labels=("0", "1", "2"), parents=(2,)),
    Column(name="level", kind="ordinal", dynamics="learned", labels=("0", "1", "2")),
    Column(name="uses", kind="count", dynamics="learned", centre=2.0, scale=1.5, minimum=1.0, maximum=5.0),
    Column(name="device", kind="category", dynamics="learned", labels=("phone", "web")),
    Column(name="month", kind="ordinal", dynamics="clock", labels=("jan", "feb", "mar")),
    Column(name="tenure", kind="count", dynamics="clock", maximum=100.0),
)
SCHEMA = StateSchema(columns=COLUMNS, actions=("none", "plan"), anchor=0, anchor_reward=0.0, terminal={})
PRICE, STATUS, LEFT, LEVEL, USES, DEVICE, MONTH, TENURE = range(8)
STATE = torch.tensor([[0.8, 1, 2, 0, 3, 1, 2, 7], [1.2, 0, 0, 2, 1, 0, 0, 0], [1.0, 0, 1, 1, 5, 1, 1, 3]])
ACTION = torch.tensor([0, 1, 1])


def random_model(schema: StateSchema = SCHEMA, *, atom: float = -0.5, seed: int = 0) -> TransitionModel:
    """Every table, head and link between columns drawn at random, large enough to matter."""
    torch.manual_seed(seed)
    model = TransitionModel(schema, (8,)).requires_grad_(False)
    for f in model.table:
        table = getattr(model, f"table_{f}")
        table.copy_(torch.rand(table.shape).pow(2) + 0.01)
        table /= table.sum(-1, keepdim=True)
    if model.learned:
        model.heads.weight.normal_()
        model.sequence.copy_(2 * torch.randn(model.sequence.shape) * model.earlier)
        model.atom.fill_(atom)
    return model


def next_states(state: Tensor) -> Tensor:
    """All next states [K, F] of one state[F] under SCHEMA; static and clock as they must be."""
    levels = [torch.arange(2), torch.arange(3), torch.arange(3), torch.arange(1, 6), torch.arange(2)]
    following = state.repeat(2 * 3 * 3 * 5 * 2, 1)
    following[:, [STATUS, LEFT, LEVEL, USES, DEVICE]] = torch.cartesian_prod(*levels).float()
    return following


def one_numeric(*, atom: float, minimum: float = 0.1, maximum: float = 4.1) -> TransitionModel:
    spend = Column(
        name="spend", kind="numeric", dynamics="learned", centre=2.0, scale=0.9, minimum=minimum, maximum=maximum
    )
    model = random_model(replace(SCHEMA, columns=(spend,)), atom=atom)
    model.heads.weight.mul_(0.3)
    return model


@pytest.mark.parametrize("atom", [-0.5, -math.inf])
@pytest.mark.parametrize("row", range(3))
def test_probabilities_of_all_next_states_sum_to_one(row: int, atom: float):
    following = next_states(STATE[row])
    n = len(following)
    log_p = random_model(atom=atom).log_prob(STATE[row].expand(n, -1), ACTION[row].expand(n), following)
    assert log_p.isfinite().all()
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert log_p.exp().std() > 1e-4  # and they are not all alike


@pytest.mark.parametrize("atom", [-0.5, -math.inf])
@pytest.mark.parametrize("row", range(3))
def test_draws_are_as_frequent_as_their_probabilities(row: int, atom: float):
    model, following, draws = random_model(atom=atom), next_states(STATE[row]), 200_000
    uniform = torch.rand(draws, model.n_random, generator=torch.Generator().manual_seed(row))
    drawn = model.sample(STATE[row].expand(draws, -1), ACTION[row].expand(draws), uniform)
    n = len(following)
    p = model.log_prob(STATE[row].expand(n, -1), ACTION[row].expand(n), following).exp()
    same = (drawn[:, [STATUS, LEFT, LEVEL, USES, DEVICE]] - torch.tensor([0, 0, 0, 1, 0])).long()
    place = same @ torch.tensor([90, 30, 10, 2, 1])
    frequency = torch.bincount(place, minlength=n) / draws
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / draws).sqrt() + 1e-5).all()
    assert (frequency - p).abs().sum() < 0.03


def test_static_stays_and_clocks_advance():
    model = random_model()
    drawn = model.sample(STATE, ACTION, torch.full((3, model.n_random), 0.3))
    assert torch.equal(drawn[:, PRICE], STATE[:, PRICE])
    assert drawn[:, MONTH].tolist() == [0, 1, 2] and drawn[:, TENURE].tolist() == [8, 1, 4]


def test_sampling_leaves_its_argument_alone_and_needs_no_gradient():
    model, state = random_model().requires_grad_(True), STATE.clone()
    drawn = model.sample(state, ACTION, torch.full((3, model.n_random), 0.9))
    assert torch.equal(state, STATE) and not drawn.requires_grad and not torch.equal(drawn, STATE)


@pytest.mark.parametrize("j", range(5))
def test_draws_rise_with_their_own_number_and_change_nothing_before(j: int):
    model = random_model()
    order = [STATUS, LEFT, LEVEL, USES, DEVICE]
    grid = torch.linspace(1e-6, 1 - 1e-6, 501)
    uniform = torch.rand(model.n_random, generator=torch.Generator().manual_seed(5)).repeat(501, 1)
    uniform[:, j] = grid
    rose = 0
    for row in range(3):
        drawn = model.sample(STATE[row].expand(501, -1), ACTION[row].expand(501), uniform)
        assert (drawn[1:, order[j]] >= drawn[:-1, order[j]]).all()
        if order[j] != DEVICE:  # whose two levels are all but certain in this random model
            assert (drawn[:, order[:j]] == drawn[0, order[:j]]).all()
        rose += int(drawn[-1, order[j]] > drawn[0, order[j]])
    assert rose


def test_later_columns_follow_earlier_ones():
    # One link alone: the next status decides the next device, through the sequence.
    model = random_model()
    model.sequence.zero_()
    status, device = model.encoding_of[model.drawn.index(STATUS)], model.parameters_of[model.learned.index(DEVICE)]
    model.sequence[status, device] = torch.tensor([[50.0, -50], [-50, 50]])
    draws = 2000
    uniform = torch.rand(draws, model.n_random, generator=torch.Generator().manual_seed(1))
    drawn = model.sample(STATE[:1].expand(draws, -1), ACTION[:1].expand(draws), uniform)
    assert 0.01 < drawn[:, STATUS].mean() < 0.99
    assert torch.equal(drawn[:, DEVICE], drawn[:, STATUS])


def test_each_column_sees_all_before_it_and_none_after_it():
    model = random_model()
    model.sequence.normal_()  # also where a weight must not be used
    base = model.learned_log_prob(STATE, ACTION, STATE)
    for i, f in enumerate(model.drawn):
        moved = STATE.clone()
        moved[:, f] = (moved[:, f] + 1) % 2 if f in (STATUS, DEVICE) else (moved[:, f] + 1) % 3
        changed = (model.learned_log_prob(STATE, ACTION, moved) != base).any(0).tolist()
        assert changed == [j + len(model.table) >= i for j in range(len(model.learned))]


def test_learned_columns_depend_on_state_and_action():
    model = random_model()
    base = model.learned_log_prob(STATE, ACTION, STATE)
    assert (model.learned_log_prob(STATE, 1 - ACTION, STATE) != base).all()
    dearer = STATE + torch.eye(8)[PRICE]
    assert (model.learned_log_prob(dearer, ACTION, STATE) != base).all()


def test_heads_of_any_size_give_finite_numbers():
    model = random_model()
    for size in (1e4, -1e4):
        model.heads.bias.copy_(size * torch.randn(len(model.heads.bias)))
        assert model.learned_log_prob(STATE, ACTION, STATE).isfinite().all()
        drawn = model.sample(STATE, ACTION, torch.full((3, model.n_random), 0.99))
        assert drawn.isfinite().all()
        likely = model.heads.bias[model.parameters_of[0]].argmax()
        assert (drawn[:, LEVEL] == likely).all()


@pytest.mark.parametrize("atom", [-math.inf, -1.0, 2.0])
@pytest.mark.parametrize("value", [0.1, 1.7, 4.1])
def test_numeric_density_and_ends_sum_to_one(value: float, atom: float):
    model = one_numeric(atom=atom)
    y = torch.linspace(0.1, 4.1, 40_001)
    y[0], y[-1] = 0.1, 4.1
    p = model.log_prob(torch.full((len(y), 1), value), torch.ones(len(y)).long(), y.unsqueeze(1)).exp().double()
    density = p[1:-1] / 0.9  # per unit of the column; the ends are probabilities
    assert (p[0] + p[-1] + density.sum() * 1e-4).item() == pytest.approx(1, abs=1e-3)
    assert p[0] > (0.2 if atom > -2 else 0)
    uniform = torch.rand(50_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = model.sample(torch.full((50_000, 1), value), torch.ones(50_000).long(), uniform).squeeze(1)
    assert (drawn == y[0]).double().mean().item() == pytest.approx(p[0].item(), abs=0.01)
    assert (drawn == y[-1]).double().mean().item() == pytest.approx(p[-1].item(), abs=0.01)
    for cut in (0.5, 1.5, 2.5, 3.5):
        below = (p[0] + density[y[1:-1] <= cut].sum() * 1e-4).item()
        assert (drawn <= cut).double().mean().item() == pytest.approx(below, abs=0.01)


def test_numeric_density_by_hand():
    # Location 1 + .5 * .9, scale .9 e^-1, at 1.9: z = .5 e, density in sd units exp(-z^2/2) e / sqrt(2 pi).
    model = one_numeric(atom=-math.inf)
    model.heads.weight.zero_()
    model.heads.bias.copy_(torch.tensor([0.5, -1.0, 0.0]))
    log_p = model.log_prob(torch.tensor([[1.0]]), torch.tensor([0]), torch.tensor([[1.9]]))
    z = 0.5 * math.e
    assert log_p.item() == pytest.approx(-z * z / 2 + 1 - 0.5 * math.log(2 * math.pi), abs=1e-5)
    assert model.sample(torch.tensor([[1.0]]), torch.tensor([0]), torch.tensor([[0.5]])).item() == pytest.approx(1.45)


def test_values_beyond_the_observed_range_count_as_its_ends():
    for model, ends in ((one_numeric(atom=-1.0), (0.1, 4.1)), (random_model(), None)):
        f = 0 if ends else USES
        state = STATE[:1, :1] if ends else STATE[:1]
        low, high = ends or (1.0, 5.0)
        for beyond, end in ((low - 1, low), (high + 3, high)):
            one, other = state.clone(), state.clone()
            one[:, f], other[:, f] = beyond, end
            first, second = (model.learned_log_prob(state, ACTION[:1], s) for s in (one, other))
            j = model.learned.index(f)
            assert torch.equal(first[:, j], second[:, j])


@pytest.mark.parametrize("kind", ["count", "numeric"])
def test_a_surprise_still_pulls(kind: str):
    # A value fifty scales away has a finite likelihood with a gradient toward it, for whole numbers too.
    column = Column(name="x", kind=kind, dynamics="learned", centre=100.0, scale=10.0, minimum=0.0, maximum=1000.0)
    model = TransitionModel(replace(SCHEMA, columns=(column,)), ())
    torch.nn.init.zeros_(model.heads.weight)
    torch.nn.init.zeros_(model.heads.bias)
    for following, sign in ((900.0, 1), (0.0, -1), (1.0, -1), (1000.0, 1)):
        model.zero_grad()
        log_p = model.log_prob(torch.tensor([[500.0]]), torch.tensor([0]), torch.tensor([[following]]))
        log_p.sum().backward()
        gradient = model.heads.bias.grad
        assert log_p.isfinite().all() and gradient is not None and gradient.isfinite().all()
        assert gradient[0] * sign > 0.5


def test_a_level_of_probability_zero_is_never_drawn():
    # Rows of float32 shares rarely sum to one exactly: no uniform number may reach the empty last level.
    status = replace(COLUMNS[STATUS], labels=tuple("abcdefghijklm"), parents=(0,))
    schema = replace(SCHEMA, columns=(status,), actions=("none", "plan"))
    model = TransitionModel(schema, ())
    for seed in range(200):
        share = torch.rand(13, generator=torch.Generator().manual_seed(seed))
        share[[0, 4, 12]] = 0
        model.table_0.copy_((share / share.sum()).expand(14, 2, 13))
        uniform = torch.tensor([0, 1e-38, 1e-7, 0.5, 1 - 1e-7, 1 - 2**-24]).unsqueeze(1)
        drawn = model.sample(torch.zeros(6, 1), torch.zeros(6).long(), uniform).squeeze(1).long()
        assert (share[drawn] > 0).all()


def test_draws_at_the_edges_of_the_uniform_stay_in_range():
    model = random_model()
    for edge in (1e-7, 1 - 1e-7):
        drawn = model.sample(STATE, ACTION, torch.full((3, model.n_random), edge))
        assert drawn.isfinite().all() and ((drawn[:, USES] >= 1) & (drawn[:, USES] <= 5)).all()


def test_an_unseen_level_moves_as_documented():
    model = random_model()
    state = STATE.clone()
    state[:, STATUS], state[:, DEVICE], state[:, MONTH] = 2, 2, 3
    drawn = model.sample(state, ACTION, torch.full((3, model.n_random), 0.5))
    assert (drawn[:, MONTH] == 3).all()  # an unseen phase stays unseen
    assert (drawn[:, STATUS] < 2).all() and (drawn[:, DEVICE] < 2).all()
    assert torch.equal(
        table_cell(SCHEMA, SCHEMA.columns[STATUS].parents, state), torch.tensor([2 * 4 + 2, 2 * 4 + 0, 2 * 4 + 1])
    )
    seen, unseen = STATE.clone(), STATE.clone()
    unseen[:, DEVICE] = 2
    terms = model.learned_log_prob(STATE, ACTION, unseen)
    assert (terms[:, -1] == 0).all()  # not scored
    unseen[:, STATUS] = 2
    lost = model.log_prob(STATE, ACTION, unseen) - model.learned_log_prob(STATE, ACTION, unseen).sum(1)
    kept = model.log_prob(STATE, ACTION, seen) - model.learned_log_prob(STATE, ACTION, seen).sum(1)
    status = model.table_1[table_cell(SCHEMA, SCHEMA.columns[STATUS].parents, STATE), ACTION].gather(
        1, seen[:, STATUS : STATUS + 1].long()
    )
    torch.testing.assert_close(kept - lost, status.squeeze(1).log())


def test_tables_give_the_row_of_state_and_action():
    model = TransitionModel(replace(SCHEMA, columns=COLUMNS[:3]), ())
    model.table_1[1 * 4 + 2, 0] = torch.tensor([0.25, 0.75])  # status out, two left; no plan
    model.table_2[2, 0] = torch.tensor([0.0, 1.0, 0.0])
    state = torch.tensor([[0.8, 1, 2]]).expand(4, 3)
    uniform = torch.tensor([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.9, 0.5]])
    drawn = model.sample(state, torch.zeros(4).long(), uniform)
    assert drawn[:, 1].tolist() == [0, 0, 1, 1] and drawn[:, 2].tolist() == [1, 1, 1, 1]
    log_p = model.log_prob(state[:1], torch.tensor([0]), torch.tensor([[0.8, 0.0, 1.0]]))
    assert log_p.item() == pytest.approx(math.log(0.25))


def test_huge_tables_are_refused_together():
    levels = tuple(str(i) for i in range(300))
    wide = [Column(name=n, kind="ordinal", dynamics="table", labels=levels, parents=(0, 1)) for n in ("one", "two")]
    small = replace(COLUMNS[STATUS], parents=(2,))
    with pytest.raises(InputError, match=r"(?s)one: a table .*54,360,600.*two: .*54,360,600.*fewer parents") as caught:
        TransitionModel(replace(SCHEMA, columns=(*wide, small)), ())
    assert "status" not in str(caught.value) and f"{LARGEST_TABLE:,}" in str(caught.value)


def test_a_model_without_learned_columns():
    schema = replace(SCHEMA, columns=(COLUMNS[PRICE], COLUMNS[MONTH]))
    model = TransitionModel(schema, (8,))
    assert model.n_random == 0 and not list(model.parameters())
    state = torch.tensor([[0.8, 2.0]])
    assert model.sample(state, torch.tensor([0]), torch.zeros(1, 1)).tolist() == [[pytest.approx(0.8), 0.0]]
    assert model.log_prob(state, torch.tensor([0]), state).item() == 0


def test_weights_make_the_round_trip():
    model = random_model()
    other = TransitionModel(SCHEMA, (8,))
    other.load_state_dict(model.state_dict())
    uniform = torch.rand(3, model.n_random, generator=torch.Generator().manual_seed(2))
    assert torch.equal(other.sample(STATE, ACTION, uniform), model.sample(STATE, ACTION, uniform))
    assert torch.equal(other.log_prob(STATE, ACTION, STATE), model.log_prob(STATE, ACTION, STATE))


EVERYONE = torch.ones(3, dtype=torch.bool)


def exact_and_drawn(model: TransitionModel, row: int, column: int, *movements: Movement) -> tuple[Tensor, Tensor]:
    """The next levels' fitted log probabilities from one row, given that all other uniform numbers are 0.4; and how
    often each is drawn under the movements, on an even grid of the column's own number."""
    n, j, levels = 20_000, [*model.table, *model.learned].index(column), len(model.schema.columns[column].labels)
    uniform = torch.full((n, model.n_random), 0.4)
    uniform[:, j] = (torch.arange(n) + 0.5) / n
    state, action = STATE[row].expand(n, -1), ACTION[row].expand(n)
    rows = [replace(m, where=m.where[row].expand(n)) for m in movements]
    drawn = model.sample(state, action, uniform, rows)[:, column]
    each = model.sample(state, action, uniform)[:levels]
    each[:, column] = torch.arange(levels)
    if column in model.table:
        table = getattr(model, f"table_{column}")
        cell = table_cell(SCHEMA, SCHEMA.columns[column].parents, state[:1])
        log_p = table[cell, action[0]].squeeze(0).log()
    else:
        j = model.learned.index(column)
        log_p = model.learned_log_prob(state[:levels], action[:levels], each)[:, j]
    return log_p.double(), torch.bincount(drawn.long(), minlength=levels) / n


@pytest.mark.parametrize("column", [LEFT, LEVEL])
@pytest.mark.parametrize("shift", [0.7, -1.5, 60.0, -300.0])
def test_a_shift_is_added_to_the_log_odds_of_neighbouring_levels(column: int, shift: float):
    model = random_model()
    model.sequence.mul_(0.3)
    moved = 0.0
    for row in range(3):
        log_p, found = exact_and_drawn(model, row, column, Movement(column, EVERYONE, shift=shift))
        tilted = (log_p + shift * torch.arange(3)).softmax(0).float()
        assert torch.allclose(found, tilted, atol=1e-3), (log_p, found, tilted)
        moved = max(moved, float((tilted - log_p.exp()).abs().max()))
    assert moved > 0.15  # else this shows nothing


def test_a_level_that_is_impossible_stays_so_whatever_the_shift():
    model = random_model()
    model.table_2.copy_(torch.tensor([0.75, 0.25, 0.0]))
    for shift, expected in ((2.0, [0.289, 0.711, 0]), (500.0, [0, 1, 0]), (-500.0, [1, 0, 0])):
        found = exact_and_drawn(model, 0, LEFT, Movement(LEFT, EVERYONE, shift=shift))[1]
        assert found.tolist() == pytest.approx(expected, abs=2e-3)


def test_movements_apply_to_their_rows_and_leave_the_others_bit_for_bit():
    model, uniform = random_model(), torch.rand(300, 5, generator=torch.Generator().manual_seed(1))
    state, action, here = STATE.repeat(100, 1), ACTION.repeat(100), torch.arange(300) % 3 == 1
    plain = model.sample(state, action, uniform)
    for column in (STATUS, LEFT, LEVEL, USES, DEVICE):
        for movement in (Movement(column, here, like=state.roll(1, 0)), Movement(column, here, shift=-2.0)):
            moved = model.sample(state, action, uniform, [movement])
            assert torch.equal(moved[~here], plain[~here])
            assert not torch.equal(moved[here, column], plain[here, column])
    nothing = [Movement(f, torch.ones(300).bool()) for f in (STATUS, LEFT, LEVEL, USES, DEVICE)]
    assert torch.equal(model.sample(state, action, uniform, nothing), plain)
    highest = [Movement(f, here, like=state.roll(1, 0), shift=40.0) for f in (LEFT, LEVEL, USES)]
    moved = model.sample(state, action, uniform, highest)[here]
    assert (moved[:, [LEFT, LEVEL]] == 2).all() and (moved[:, USES] == 5).double().mean() > 0.5


@pytest.mark.parametrize(("column", "other"), [(STATUS, LEFT), (LEVEL, PRICE), (DEVICE, STATUS)])
def test_moving_like_another_state_is_moving_from_it(column: int, other: int):
    """As another state's, but for the action and the other columns' own draws."""
    model = random_model()
    model.sequence.zero_()
    like = STATE.clone()
    like[:, other] = torch.tensor([1.0, 1.0, 0.0])
    uniform = torch.rand(3000, model.n_random, generator=torch.Generator().manual_seed(2))
    state, action, like = (x.repeat_interleave(1000, 0) for x in (STATE, ACTION, like))
    found = model.sample(state, action, uniform, [Movement(column, torch.ones(3000).bool(), like=like)])
    there, here = model.sample(like, action, uniform), model.sample(state, action, uniform)
    assert torch.equal(found[:, column], there[:, column])
    assert not torch.equal(found[:, column], here[:, column])
    rest = [f for f in range(8) if f != column]
    assert torch.equal(found[:, rest], here[:, rest])


def test_a_shift_of_a_number_moves_its_centre():
    model, n = one_numeric(atom=-1.0), 2000
    state, action = torch.full((n, 1), 2.0), torch.ones(n).long()
    uniform = ((torch.arange(n) + 0.5) / n).unsqueeze(1)
    plain = model.sample(state, action, uniform)
    moved = model.sample(state, action, uniform, [Movement(0, torch.ones(n).bool(), shift=0.3)])
    inside = (plain > 0.1) & (moved < 4.1)
    assert inside.double().mean() > 0.3
    assert torch.allclose((moved - plain)[inside], torch.tensor(0.3), atol=1e-4)
    assert moved.max() <= model.schema.columns[0].maximum
    spike = (uniform < uniform[plain == plain.min()].max() / 2) & (plain == 0.1)
    assert spike.any() and (moved[spike] == 0.1).all()  # the minimum keeps its own probability
