"""Figures of few members are withheld, and those by which they could be worked out."""

from __future__ import annotations

import pytest
import torch

from irl.config import InputError
from irl.data.disclosure import members_by_segment, said, withheld

MEMBERS = {"a": 5, "b": 50, "c": 30, "d": 400}


@pytest.mark.parametrize(
    ("members", "least", "names"),
    [
        ({"a": 20, "b": 30}, 20, set()),
        (MEMBERS, 1, set()),
        (MEMBERS, 20, {"a", "c"}),  # a alone could be had by subtraction: so the smallest of the others too
        (MEMBERS, 36, {"a", "c", "b"}),  # a and c are 35 together, which is too few as well
        ({"a": 5, "b": 6, "c": 7, "d": 400}, 20, {"a", "b", "c", "d"}),  # a, b, c are 18
        ({"a": 15, "b": 16, "d": 400}, 20, {"a", "b"}),
        ({"a": 5, "b": 50}, 20, {"a", "b"}),
        ({"a": 5, "b": 6}, 20, {"a", "b", "all"}),
        ({"a": 5, "b": 0, "c": 50, "d": 60}, 20, {"a", "c"}),  # of nobody there is nothing to hide behind
        ({"all": 30}, 20, set()),
        ({"all": 7}, 20, {"all"}),
    ],
)
def test_what_is_withheld(members, least, names):
    assert set(withheld(members, least).names) == names


def test_what_can_be_subtracted_is_never_of_fewer():
    """Whatever the sizes: all less what is shown is nobody, or at least so many members of two segments."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = torch.randint(1, 60, (int(torch.randint(2, 6, (1,), generator=generator)),), generator=generator)
        members = {str(i): int(n) for i, n in enumerate(sizes)}
        hidden = withheld(members, 20)
        left = [n for name, n in members.items() if name in hidden.names]
        assert all(n >= 20 for name, n in members.items() if name not in hidden.names)
        assert not left or "all" in hidden.names or (len(left) > 1 and sum(left) >= 20)
        assert ("all" in hidden.names) == (sum(members.values()) < 20)


def test_what_is_left_of_plain_values():
    content = {
        "reward": {"monthly": {"a": {"mean": 1}, "d": {"mean": 2}, "all": {"mean": 3}}},
        "rows": [{"segment": "a", "x": 1}, {"segment": "all", "x": 2}, {"segment": "", "x": 3}],
        "notes": ["a: its prices disagree", "segment a is there late", "all is well", "d: fine"],
        "actions": {"a": 1, "another": 2},  # not by segment: one key is none
        "numbers": [1.0, None, "a"],
    }
    left = withheld(MEMBERS, 20).left(content)
    assert left == {
        "reward": {"monthly": {"d": {"mean": 2}, "all": {"mean": 3}}},
        "rows": [{"segment": "all", "x": 2}, {"segment": "", "x": 3}],
        "notes": ["all is well", "d: fine"],
        "actions": {"a": 1, "another": 2},
        "numbers": [1.0, None, "a"],
    }
    assert withheld(MEMBERS, 1).left(content) == content


def test_members_are_counted_once_in_every_segment_they_were_in():
    segment, member = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 2])
    assert members_by_segment(("a", "b", "c"), segment, member) == {"a": 1, "b": 3, "c": 0}


def test_it_is_said():
    assert said(withheld(MEMBERS, 1).plain()) == []
    (sentence,) = said(withheld(MEMBERS, 20).plain())
    assert sentence.startswith("Figures of a, c are withheld: fewer than 20 members")
    with pytest.raises(InputError, match=r"fewer than 20 members \(`data.min_cell`\)"):
        withheld({"all": 7}, 20).refuse_nothing()
    withheld(MEMBERS, 20).refuse_nothing()
