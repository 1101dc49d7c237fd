"""Where a simulation leaves the data: pairs of levels, and numbers by level, on rows written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl.counterfactual import ask
from irl.counterfactual.support import MOST_OUTSIDE, Tally, support
from irl.data.schema import Column

OUT, IN, DEEP = range(3)


@pytest.fixture
def observed(world):
    """Place, tier and price of four rows; the price is 8 to 10 when out, and 20 when in; the south is never in."""
    price = Column(name="price", kind="numeric", dynamics="static", minimum=8.0, maximum=20.0)
    schema = replace(world.schema, columns=(*world.schema.columns, price))
    state = torch.tensor([[OUT, 0, 8.0], [OUT, 0, 10.0], [OUT, 1, 9.0], [IN, 0, 20.0]])
    return support(schema, state, torch.tensor([0, 1, 0, 0]))


@pytest.mark.parametrize(
    "state, segment, outside",
    [
        ([OUT, 0, 9.0], 0, set()),
        ([OUT, 0, 10.00001], 0, set()),  # float32 does not say
        ([OUT, 0, 15.0], 0, {("place", "price")}),  # inside the range of all rows
        ([IN, 1, 9.5], 0, {("place", "tier"), ("place", "price"), ("tier", "price")}),
        ([IN, 0, 20.0], 1, {("place", "region"), ("region", "price")}),
        ([DEEP, 0, 9.0], 0, {("place", "place"), ("place", "tier"), ("place", "region"), ("place", "price")}),
        ([5, 0, 9.0], 0, {("place", "place"), ("place", "tier"), ("place", "region"), ("place", "price")}),  # unseen
    ],
)
def test_pairs_that_were_never_observed(observed, state, segment, outside):
    found = observed.outside(torch.tensor([state]), torch.tensor([segment]))
    assert {pair for pair, is_out in zip(observed.pairs, found[0].tolist(), strict=True) if is_out} == outside


def test_a_segment_that_the_state_says_counts_once(world):
    schema = replace(world.schema, segment_columns=("place",), segments=("out", "in"))
    state, segment = torch.tensor([[OUT, 0.0], [IN, 1.0]]), torch.tensor([0, 1])
    known = support(schema, state, segment)
    assert not known.outside(state, segment.flip(0)).any()
    assert known.pairs == [("place", "place"), ("place", "tier"), ("tier", "tier")]


def test_member_periods_are_counted_by_case(observed):
    tally = Tally(observed)
    inside, outside = torch.tensor([[OUT, 0, 9.0]]), torch.tensor([[OUT, 0, 30.0]])
    tally("baseline", inside.repeat(4, 1), torch.zeros(4, dtype=torch.long))
    for state, times in ((inside, 6), (outside, 3), (inside, 1)):
        tally("dearer", state.repeat(times, 1), torch.zeros(times, dtype=torch.long))
    assert (tally.share("baseline"), tally.share("dearer")) == (0, 0.3)
    assert tally.plain("baseline") == {"share": 0, "mostly": []}
    assert tally.warnings("baseline", "baseline") == []
    (text,) = tally.warnings("dearer", "baseline")
    assert text.startswith(
        "dearer: 30 % of the simulated member-periods (0 % in the baseline) are in states unlike any"
    )
    assert "price" in text
    assert 0.02 < MOST_OUTSIDE < 0.3


def test_an_answer_says_how_far_it_leaves_the_data(world):
    """Nobody of tier 1 was ever observed in a deep place, where a scenario puts them."""
    frame = world.panel_frame(members=200, periods=4, seed=1)
    frame = frame[~((frame["tier"] == 1) & (frame["place"] == "deep"))]
    change = {"feature": {"name": "place", "set": "deep", "where": {"place": "out"}}}
    found = ask(world.model, {"name": "deep", "periods": 3, "changes": [change]}, frame).answer()
    outside = {label: how["outside"] for label, how in found.solved.items()}
    assert outside["deep"]["share"] > outside["baseline"]["share"] + 0.1
    assert outside["deep"]["mostly"] == ["place", "tier"]
    assert any("unlike any in the data, mostly because of place and tier together" in text for text in found.warnings())
