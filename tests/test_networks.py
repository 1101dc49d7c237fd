"""The networks: what the encoder makes of hand-written rows, menus, the anchor's column, features, round trips."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from irl import crossings as features_of
from irl.crossings import Crossings
from irl.data.schema import Column, StateSchema
from irl.networks import AnchorValueNetwork, Encoder, LinearTerms, PolicyNetwork, RewardNetwork, Trunk

ANCHOR = 1
SCHEMA = StateSchema(
    columns=(
        Column(name="region", kind="category", dynamics="static", labels=("east", "north", "south")),
        Column(name="spend", kind="numeric", dynamics="learned", centre=10.0, scale=4.0, maximum=30.0),
        Column(name="level", kind="ordinal", dynamics="learned", labels=("0", "1", "2", "3", "4")),
        Column(name="visits", kind="count", dynamics="learned", centre=2.0, scale=0.5, maximum=9.0),
        Column(name="plan", kind="category", dynamics="table", labels=("in", "out"), parents=(4,)),
    ),
    actions=("monthly", "none", "annual"),
    anchor=ANCHOR,
    anchor_reward="g",
    terminal={},
)
UNSEEN_REGION = 3.0


def states(n: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for c in SCHEMA.columns:
        if c.discrete:
            columns.append(torch.randint(0, c.levels, (n,), generator=generator).float())
        else:
            columns.append(torch.rand(n, generator=generator) * c.maximum)
    return torch.stack(columns, dim=1)


def reference(n: int) -> Tensor:
    return SCHEMA.reference(states(n), torch.ones(n, 3, dtype=torch.bool))


def untrained(kind: type, hidden: tuple[int, ...] = (8, 4)) -> torch.nn.Module:
    torch.manual_seed(0)
    network = kind(SCHEMA, hidden)
    for parameter in network.parameters():  # heads that start at zero say nothing
        torch.nn.init.normal_(parameter)
    return network


def test_encoder_on_hand_rows():
    state = torch.tensor([[0, 14.0, 4, 2, 1], [2, 10.0, 0, 3, 0], [UNSEEN_REGION, 4.0, 3, 1, 1]])
    levels = [  # region 3, level 5, plan 2
        [1, 0, 0, 0, 0, 0, 0, 1, 0, 1],
        [0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 0, 0, 1],  # a region never seen has no slot
    ]
    scalars = [[1.0, 1.0, 0.0], [0.0, -1.0, 2.0], [-1.5, 0.5, -2.0]]  # spend; level over [-1, 1]; visits
    encoder = Encoder(SCHEMA)
    assert encoder.width == 13
    torch.testing.assert_close(encoder(state), torch.cat([torch.tensor(levels).float(), torch.tensor(scalars)], dim=1))


def test_encoder_without_levels_or_without_numbers():
    number, category = SCHEMA.columns[1], SCHEMA.columns[0]
    rows = torch.tensor([[2.0], [1.0]])
    for column, expected in ((number, [[-2.0], [-2.25]]), (category, [[0, 0, 1], [0, 1, 0]])):
        schema = StateSchema(columns=(column,), actions=("a", "b"), anchor=0, anchor_reward=0.0, terminal={})
        torch.testing.assert_close(Encoder(schema)(rows), torch.tensor(expected).float())


def test_ordinals_of_two_levels_are_minus_one_and_one():
    column = Column(name="x", kind="ordinal", dynamics="learned", labels=("no", "yes"))
    schema = StateSchema(columns=(column,), actions=("a", "b"), anchor=0, anchor_reward=0.0, terminal={})
    torch.testing.assert_close(Encoder(schema)(torch.tensor([[0.0], [1.0]])), torch.tensor([[1, 0, -1], [0, 1, 1.0]]))


@pytest.mark.parametrize("hidden", [(), (6,), (8, 4)])
def test_features_start_with_the_constant(hidden: tuple[int, ...]):
    trunk = Trunk(SCHEMA, hidden)
    features = trunk.features(states(20))
    assert features.shape == (20, 1 + trunk.width) and trunk.width == (hidden[-1] if hidden else 13)
    assert (features[:, 0] == 1).all()
    torch.testing.assert_close(features[:, 1:], trunk(states(20)))


def test_rows_do_not_see_each_other():
    state, menu = states(30), torch.ones(30, 3, dtype=torch.bool)
    for network, given in (
        (untrained(PolicyNetwork), (menu,)),
        (untrained(AnchorValueNetwork), (reference(30), torch.zeros(30))),
        (untrained(RewardNetwork), (torch.zeros(30), reference(30))),
    ):
        whole = network(state, *given)
        some = torch.tensor([17, 3, 5])
        torch.testing.assert_close(network(state[some], *(g[some] for g in given)), whole[some])
        assert whole.std(0).max() > 0.01  # and it does depend on the row


def test_policy_is_a_distribution_over_the_menu():
    menu = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [False, False, False]])
    menu = menu.repeat(10, 1)
    log_pi = untrained(PolicyNetwork)(states(40), menu)
    assert log_pi.shape == (40, 3)
    assert (log_pi[~menu] == -math.inf).all() and log_pi[menu].isfinite().all()
    torch.testing.assert_close(log_pi.exp().sum(1), menu.any(1).float())
    assert (log_pi[2::4, 1] == 0).all()  # the only action on the menu is certain


def test_policy_is_the_softmax_of_its_head():
    network, state = untrained(PolicyNetwork), states(10)
    expected = network.head(network.trunk(state)).softmax(1)
    torch.testing.assert_close(network(state, torch.ones(10, 3, dtype=torch.bool)).exp(), expected)


def test_a_smaller_menu_keeps_the_odds():
    network, state = untrained(PolicyNetwork), states(40)
    full = network(state, torch.ones(40, 3, dtype=torch.bool))
    less = network(state, torch.tensor([[True, True, False]]).expand(40, 3))
    torch.testing.assert_close(less[:, 0] - less[:, 1], full[:, 0] - full[:, 1], rtol=1e-5, atol=1e-5)


def test_anchor_value_is_linear_in_its_features():
    network = untrained(AnchorValueNetwork)
    known = torch.linspace(-2, 5, 20)
    value = network(states(20), reference(20), known)
    assert value.shape == (20,)
    features = network.features(states(20))
    assert (features[:, 0] == 1).all() and torch.equal(features[:, -4:], network.trunk(states(20)))
    torch.testing.assert_close(value, known + features @ network.head[0])
    with torch.no_grad():
        network.head.zero_()[0, 0] = 3.0
    torch.testing.assert_close(network(states(20), reference(20), known), 3 + known)


def test_the_anchor_reward_is_given_and_not_learned():
    network, g = untrained(RewardNetwork), torch.linspace(-2, 5, 20)
    reward = network(states(20), g, reference(20))
    assert reward.shape == (20, 3)
    assert torch.equal(reward[:, ANCHOR], g)
    reward[:, ANCHOR].sum().backward()
    assert all((p.grad == 0).all() for p in network.parameters())
    network.zero_grad()
    network(states(20), g, reference(20)).sum().backward()
    assert (network.head.weight.grad[ANCHOR] == 0).all() and network.head.bias.grad[ANCHOR] == 0
    assert (network.head.weight.grad[[0, 2]] != 0).any(1).all()


def test_the_mean_reward_under_a_policy_is_given_and_not_learned():
    schema = replace(SCHEMA, anchor=None, anchor_weights=(1.0, 2.0, 0.0))
    network, g = untrained(RewardNetwork), torch.linspace(-2, 5, 20)
    mu = schema.reference(states(20), torch.ones(20, 3, dtype=torch.bool))
    reward = network(states(20), g, mu)
    torch.testing.assert_close((mu * reward).sum(1), g)
    assert (reward.std(0) > 0.1).all()
    difference = network.head(network.trunk(states(20))).diff(dim=1)  # which the shift leaves alone
    torch.testing.assert_close(reward.diff(dim=1), difference, rtol=1e-5, atol=1e-5)


def test_an_anchor_by_state_leaves_the_other_actions_their_utilities():
    network, g, other = untrained(RewardNetwork), torch.linspace(-2, 5, 20), torch.arange(20) % 3
    mu = torch.nn.functional.one_hot(other, 3).float()
    reward, utility = network(states(20), g, mu), network.head(network.trunk(states(20)))
    assert torch.equal(reward, torch.where(mu == 1, g.unsqueeze(1), utility))


def test_rewards_are_in_the_units_they_are_given():
    network, state, g = untrained(RewardNetwork), states(20), torch.zeros(20)
    plain = network(state, g, reference(20))
    network.centre.copy_(torch.tensor([100.0, 50.0, -7.0]))
    network.scale.copy_(torch.tensor([2.0, 50.0, 3.0]))
    expected = torch.stack([100 + 2 * plain[:, 0], g, -7 + 3 * plain[:, 2]], dim=1)
    torch.testing.assert_close(network(state, g, reference(20)), expected)


@pytest.mark.parametrize("kind", [PolicyNetwork, AnchorValueNetwork, RewardNetwork])
def test_weights_make_the_round_trip(kind: type):
    network = untrained(kind)
    if kind is RewardNetwork:
        network.centre.fill_(3.0)
        network.scale.fill_(0.5)
    other = kind(SCHEMA, (8, 4))
    state = states(20)
    given = {
        PolicyNetwork: (torch.ones(20, 3).bool(),),
        AnchorValueNetwork: (reference(20), state[:, 1]),
        RewardNetwork: (state[:, 1], reference(20)),
    }[kind]
    assert not torch.equal(other(state, *given), network(state, *given))
    other.load_state_dict(load(save({key: value.contiguous() for key, value in network.state_dict().items()})))
    assert torch.equal(other(state, *given), network(state, *given))


def test_standardisation_travels_with_the_weights():
    # An exported network takes the same columns in the same units: the encoder's constants are part of its state.
    keys = set(PolicyNetwork(SCHEMA, (4,)).state_dict())
    assert {
        f"trunk.encoder.{name}" for name in ("slot_column", "slot_code", "scalar_column", "centre", "scale")
    } <= keys


def test_crossings_on_hand_rows():
    schema = StateSchema(
        columns=(
            Column(name="region", kind="category", dynamics="static", labels=("east", "west"), maximum=1.0),
            Column(name="price", kind="numeric", dynamics="static", assigned="randomised", centre=10.0, scale=2.0,
                   minimum=8.0, maximum=12.0),
            Column(name="plan", kind="category", dynamics="table", labels=("in", "out"), parents=(2,), maximum=1.0),
            Column(name="use", kind="count", dynamics="learned", centre=1.0, scale=1.0, maximum=3.0),
            Column(name="fixed", kind="count", dynamics="static", centre=1.0, minimum=1.0, maximum=1.0),
        ),
        actions=("none", "member"), anchor=0, anchor_reward=0.0, terminal={},
    )  # fmt: skip
    crossings = Crossings(schema)
    west_cheap_in = torch.tensor([[1.0, 8.0, 0.0, 3.0, 1.0]])
    east, west, price, inside, out, use = 0.0, 1.0, -1.0, 1.0, 0.0, 2.0
    main = [east, west, price, inside, out, use]
    pairs = [east * price, east * inside, east * out, east * use, west * price, west * inside, west * out, west * use]
    pairs += [price * inside, price * out, price * use]
    triples = [r * price * p for r in (east, west) for p in (inside, out)]
    bends = [2.0 - -1.0, 2.0 - 0.0, 2.0 - 1.0]  # of use, beyond -1, 0 and 1 sd
    bends += [r * b for r in (east, west) for b in bends]  # in every region in its own way
    moving = [inside * use, out * use]
    found = crossings(west_cheap_in)[0]
    assert found.tolist() == [1.0, *main, *pairs, *triples, *bends, *moving]
    assert crossings.width == len(found) == len(crossings.groups)
    # the constant; four columns; six pairs of columns; one triple; the bends of one, and by region
    assert crossings.groups.unique().tolist() == list(range(1 + 4 + 6 + 1 + 2)) and int(crossings.groups[0]) == 0
    of_triples = crossings.groups[-15:-11]
    assert len(of_triples.unique()) == 1 and int((crossings.groups == of_triples[0]).sum()) == 4
    unseen = torch.tensor([[2.0, 8.0, 0.0, 3.0, 1.0]])
    assert crossings(unseen)[0, 1:3].tolist() == [0.0, 0.0]


def test_a_number_that_never_changes_bends_and_a_tested_price_does_not():
    about = {"kind": "numeric", "dynamics": "static", "maximum": 2.0}
    schema = StateSchema(
        columns=(Column(name="income", **about), Column(name="price", assigned="randomised", **about)),
        actions=("none", "member"), anchor=0, anchor_reward=0.0, terminal={},
    )  # fmt: skip
    found = described(Crossings(schema), torch.tensor([[0.5, 2.0]]))
    assert [found[f"income{bend}"] for bend in (">-1sd", ">+0sd", ">+1sd")] == [1.5, 0.5, 0.0]
    assert not any(name.startswith("price>") for name in found)


def described(features: Crossings | LinearTerms, row: Tensor) -> dict[str, float]:
    return dict(zip(features.names, features(row)[0].tolist(), strict=True))


MOVING = StateSchema(
    columns=(
        Column(name="video", kind="ordinal", dynamics="learned", labels=("0", "1", "2"), maximum=2.0),
        Column(name="music", kind="ordinal", dynamics="learned", labels=("0", "1", "2"), maximum=2.0),
        Column(name="job", kind="category", dynamics="learned", labels=("a", "b", "c"), maximum=2.0),
        Column(name="miles", kind="ordinal", dynamics="learned", labels=("10", "20", "40"), maximum=2.0),
        Column(name="size", kind="ordinal", dynamics="static", labels=("small", "large"), maximum=1.0),
    ),
    actions=("none", "member"), anchor=0, anchor_reward=0.0, terminal={},
)  # fmt: skip


def test_moving_ordinals_are_crossed_by_rank_and_benefits_alone_are_not():
    row = torch.tensor([[2.0, 0.0, 1.0, 1.0, 0.0]])
    found = described(Crossings(MOVING), row)
    assert found["video x music"] == -1.0  # ranks are spread over [-1, 1]
    assert found["video x job=b"] == 1.0 and found["video x job=a"] == 0.0
    alone = described(Crossings(MOVING, alone=("video", "music")), row)
    assert "video x music" not in alone and not any("video" in n and "job" in n for n in alone)
    assert "job=b x miles" in alone and "video=2 x size=small" in alone
    only = Crossings(MOVING, ("music", "size"))
    assert {f for columns in only.columns_of for f in columns} == {1, 4}


def test_what_moves_is_crossed_with_every_level_of_the_clock(monkeypatch):
    month = Column(name="month", kind="ordinal", dynamics="clock", labels=("1", "2", "3"), maximum=2.0)
    schema = StateSchema(
        columns=(*MOVING.columns, month), actions=MOVING.actions, anchor=0, anchor_reward=0.0, terminal={}
    )
    row = torch.tensor([[2.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    found = described(Crossings(schema), row)
    assert [found[f"video x month={k}"] for k in (1, 2, 3)] == [0.0, 1.0, 0.0] and "video x month" not in found
    groups = dict(zip(Crossings(schema).names, Crossings(schema).groups.tolist(), strict=True))
    assert groups["video x month=1"] == groups["video x month=3"] != groups["music x month=1"]
    alone = described(Crossings(schema, alone=("video", "music")), row)
    assert "video x month=2" in alone and "video x music" not in alone  # a benefit may have its season
    monkeypatch.setattr(features_of, "MOST_PAIRS", (20, 150))  # too many: by the rank
    assert described(Crossings(schema), row)["video x month"] == 0.0
    monkeypatch.setattr(features_of, "MOST_PAIRS", (20, 10))
    assert not any("video" in name and "music" in name for name in Crossings(schema).names)


def test_what_a_reward_has_and_the_crossings_beyond_it_span_what_all_crossings_do():
    generator = torch.Generator().manual_seed(0)
    state = torch.stack(
        [torch.randint(int(c.maximum) + 1, (400,), generator=generator).float() for c in MOVING.columns]
    )
    every = Crossings(MOVING)
    for terms in (Crossings(MOVING, alone=("video", "music")), LinearTerms(MOVING), Crossings(MOVING, ("music",))):
        beyond = Crossings(MOVING, beyond=terms.names)
        assert not set(beyond.names[1:]) & set(terms.names) and beyond.names[0] == "1"
        both = torch.cat([terms(state.T), beyond(state.T)[:, 1:]], 1).double()
        rank = torch.linalg.matrix_rank(both)
        assert rank == torch.linalg.matrix_rank(every(state.T).double())
        assert rank == torch.linalg.matrix_rank(torch.cat([both, every(state.T).double()], 1))


def test_linear_terms_are_in_declared_units():
    terms = LinearTerms(MOVING)
    assert described(terms, torch.tensor([[2.0, 0.0, 1.0, 1.0, 1.0]])) == {
        "1": 1.0, "video": 2.0, "music": 0.0, "job=b": 1.0, "job=c": 0.0, "miles": 20.0, "size": 1.0,
    }  # fmt: skip
    assert terms.groups.tolist() == [0, 1, 2, 3, 3, 4, 5]
    assert described(terms, torch.tensor([[2.0, 0.0, 3.0, 1.0, 1.0]]))["job=c"] == 0.0  # never seen: like the first
    assert terms.worth.isfinite().all()  # also where a column has fewer levels: steps with a NaN are refused
    numbers = LinearTerms(SCHEMA, tuple(c.name for c in SCHEMA.columns if not c.discrete))
    state = torch.arange(len(SCHEMA.columns)).float().unsqueeze(0)
    assert numbers(state)[0, 1:].tolist() == [
        float(f) for f, c in enumerate(SCHEMA.columns) if not c.discrete and c.minimum < c.maximum
    ]


def test_crossings_of_nothing_that_varies_are_the_constant():
    schema = StateSchema(
        columns=(Column(name="fixed", kind="count", dynamics="static"),),
        actions=("none", "member"), anchor=0, anchor_reward=0.0, terminal={},
    )  # fmt: skip
    assert torch.equal(Crossings(schema)(torch.zeros(3, 1)), torch.ones(3, 1))
