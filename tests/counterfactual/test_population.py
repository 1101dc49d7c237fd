"""Who is simulated: segment shares kept or given, conditions on the start, and start states that are set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl.config import InputError
from irl.counterfactual import ask
from irl.counterfactual.population import check_population, draw_starts
from irl.data.schema import Column
from irl.scenario import scenario_from
from irl.transitions import States

UP = {"name": "annual up", "periods": 3, "changes": [{"reward": {"action": "annual", "add": 0.5}}]}
OUT, IN, DEEP, LOCKED, GONE = range(5)


def rows_of(segment):
    segment = torch.tensor(segment)
    return States(torch.arange(len(segment)).float().unsqueeze(1), segment, torch.ones(len(segment)))


def test_members_are_drawn_with_segment_shares_kept(world):
    rows, index = rows_of([0] * 70 + [1] * 20 + [2] * 10), torch.arange(100)
    for members, shares in ((1000, [700, 200, 100]), (10, [7, 2, 1]), (15, [10, 3, 2]), (1, [1, 0, 0])):
        scenario = scenario_from(UP | {"members": members})
        drawn = draw_starts(rows, index, scenario, world.schema)
        counts = torch.bincount(drawn.segment, minlength=3).tolist()
        assert sum(counts) == members
        assert all(abs(c - s) <= 1 for c, s in zip(counts, shares, strict=True)), counts
        assert torch.equal(drawn.segment, rows.segment[drawn.state[:, 0].long()])  # each with its own segment
        assert torch.equal(drawn.state, draw_starts(rows, index, scenario, world.schema).state)
    many = draw_starts(rows, index, scenario_from(UP | {"members": 1000}), world.schema)
    assert len(many.state.unique()) == 100
    other = draw_starts(rows, index, scenario_from(UP | {"members": 1000, "seed": 1}), world.schema)
    assert not torch.equal(many.state, other.state)


def test_all_members_once(world):
    rows = rows_of([0, 1, 1, 0])
    drawn = draw_starts(rows, torch.tensor([1, 3]), scenario_from(UP | {"members": "all"}), world.schema)
    assert drawn.state.squeeze(1).tolist() == [1, 3] and drawn.segment.tolist() == [1, 0]


def of_world(world, places, tiers, regions):
    state = torch.tensor([places, tiers], dtype=torch.float32).T
    return States(state, torch.tensor(regions), torch.ones(len(state)))


def drawn(world, rows, population, members=1000):
    scenario = scenario_from(UP | {"members": members, "population": population})
    check_population(scenario.population, world.schema)
    return draw_starts(rows, torch.arange(len(rows.state)), scenario, world.schema)


@pytest.fixture
def rows(world):
    """60 in the north, 40 in the south; tier 1 in a quarter of each; places in turn."""
    return of_world(
        world, [OUT, IN, DEEP, LOCKED] * 25, [1, 0, 0, 0, 0, 0, 0, 1] * 12 + [1, 0, 0, 1], [0] * 60 + [1] * 40
    )


@pytest.mark.parametrize("shares", [{"north": 0.1, "south": 0.9}, {"south": 0.9}])
def test_a_segment_is_reweighted_to_its_share(world, rows, shares):
    found = drawn(world, rows, {"reweight": {"region": shares}})
    assert torch.bincount(found.segment).tolist() == [100, 900]
    assert set(found.state[found.segment == 0, 0].tolist()) == {OUT, IN, DEEP, LOCKED}
    assert found.state[:, 1].mean().item() == pytest.approx(rows.state[:, 1].mean().item(), abs=0.06)


def test_a_state_column_is_reweighted_within_segments(world, rows):
    found = drawn(world, rows, {"reweight": {"tier": {1: 0.8}}})
    assert found.state[:, 1].mean().item() == pytest.approx(0.8, abs=2e-3)
    assert torch.bincount(found.segment)[0].item() == pytest.approx(600, abs=60)


def test_only_members_where_the_condition_holds(world, rows):
    found = drawn(world, rows, {"where": {"region": "south", "place": ["in", "deep"]}}, members="all")
    assert found.segment.tolist() == [1] * 20
    assert set(found.state[:, 0].tolist()) == {IN, DEEP}
    both = drawn(world, rows, {"where": {"place": "out"}, "reweight": {"region": {"north": 1}}})
    assert (both.state[:, 0] == OUT).all() and (both.segment == 0).all()


def test_start_states_are_set_and_the_panel_s_rows_left_alone(world, rows):
    before = rows.state.clone()
    found = drawn(world, rows, {"set": {"place": "deep"}}, members="all")
    assert (found.state[:, 0] == DEEP).all()
    assert torch.equal(found.state[:, 1], rows.state[:, 1])
    assert torch.equal(rows.state, before)


def test_baseline_and_scenario_start_from_the_same_population(world, panel_and_frame):
    population = {"where": {"region": "north"}, "set": {"place": "in"}}
    table = ask(world.model, UP | {"population": population}, panel_and_frame[1]).answer().outcomes
    assert set(table["segment"]) <= {"north", "all"}
    alone = ask(world.model, UP, panel_and_frame[1]).answer().outcomes
    first = [
        t[(t["outcome"] == "share_annual") & (t["segment"] == "north") & (t["period"] == 0)] for t in (table, alone)
    ]
    assert (first[0]["baseline"].iloc[0], first[0]["scenario"].iloc[0]) != (
        first[1]["baseline"].iloc[0],
        first[1]["scenario"].iloc[0],
    )
    assert first[0]["change"].iloc[0] > 0


@pytest.mark.parametrize(
    ("population", "said"),
    [
        (
            {"where": {"regoin": "north"}},
            "population.where: unknown state or segment column 'regoin'; did you mean 'reg",
        ),
        ({"reweight": {"region": {"nort": 1}}}, "reweight.region: no segment 'nort'; did you mean 'north'?"),
        ({"reweight": {"place": {"inn": 1}}}, "reweight.place: 'inn' never occurs in the data; did you mean 'in'?"),
        ({"set": {"plaec": "in"}}, "population.set: unknown state column 'plaec'; did you mean 'place'?"),
        ({"set": {"place": "inn"}}, "population.set: 'place': 'inn' never occurs in the data; did you mean 'in'?"),
        ({"set": {"tier": 1}}, "'tier' never changes for a member; choose members by it with `where` or `reweight`"),
        ({"set": {"place": "gone"}}, "puts members where there is nothing to choose"),
        ({"where": {"place": "gone"}}, "population.where: no member starts there"),
        ({"reweight": {"place": {"gone": 0.5}}}, "population.reweight.place: nobody starts with gone"),
        (
            {"reweight": {"region": {"north": 0.3, "south": 0.3}}},
            "the shares add up to 0.6, and no other label is left",
        ),
    ],
)
def test_refusals(world, rows, population, said):
    with pytest.raises(InputError) as caught:
        drawn(world, rows, population)
    assert said in str(caught.value)


def test_a_number_has_no_shares(world):
    spend = Column(name="spend", kind="numeric", dynamics="learned")
    schema = replace(world.schema, columns=(*world.schema.columns, spend))
    population = scenario_from(UP | {"members": 5, "population": {"reweight": {"spend": {"3": 1}}}}).population
    with pytest.raises(InputError, match="'spend' has no labels"):
        check_population(population, schema)
