"""The anchor's support against sums by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from irl.config import InputError
from irl.estimation.diagnostics import check_anchor, support

ANCHOR = torch.tensor([[1.0, 0.0]]).expand(6, 2)


def panel(segments=("north", "south"), mu=ANCHOR):
    return SimpleNamespace(
        n_rows=6,
        room=lambda *shape, dtype=torch.float32: torch.zeros(*shape, dtype=dtype),
        state=torch.arange(6),
        menu=torch.arange(6),
        schema=SimpleNamespace(segments=segments, reference=lambda state, menu: mu[state]),
        free=torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.bool),
        action=torch.tensor([0, 0, 1, 1, 1, 0]),
        segment=torch.tensor([0, 0, 0, 0, 1, 1]) * (len(segments) - 1),
    )


PI = torch.tensor([0.8, 0.2, 0.5, 0.005, 0.3, 0.1])


def test_figures_by_hand():
    found = support(panel(), torch.stack([PI, 1 - PI], 1).log())
    north = found["north"]
    assert north["decisions"] == 4 and north["anchor_share"] == 0.5
    assert north["effective_sample"] == pytest.approx((1.25 + 5) ** 2 / (1.25**2 + 5**2))
    assert north["smallest_probability"] == pytest.approx(0.005) and north["floored_share"] == 0.25
    assert north["probabilities"][0] == 0.25 and sum(north["probabilities"]) == 1 and north["probabilities"][1] == 0
    assert north["overlap"] == pytest.approx((0.4 + 0.4 + 1.0 + 0.01) / 4)
    south = found["south"]
    assert south["decisions"] == 1 and south["anchor_share"] == 0 and south["effective_sample"] == 0
    assert found["all"]["decisions"] == 5


def test_one_segment_is_not_shown_twice():
    assert set(support(panel(("all",)), torch.stack([PI, 1 - PI], 1).log())) == {"all"}


def test_an_anchor_chosen_alike_everywhere_has_all_it_could():
    alike = torch.full((6, 2), 0.5).log()
    north = support(panel(), alike)["north"]
    assert north["effective_sample"] == pytest.approx(2) and north["overlap"] == pytest.approx(1)


def test_an_anchor_that_depends_on_the_state():
    mu = ANCHOR.clone()
    mu[2] = torch.tensor([0.0, 1.0])  # where action 1 was chosen, at probability .5
    north = support(panel(mu=mu), torch.stack([PI, 1 - PI], 1).log())["north"]
    assert north["anchor_share"] == 0.75
    assert north["effective_sample"] == pytest.approx((1.25 + 5 + 2) ** 2 / (1.25**2 + 5**2 + 2**2))
    assert north["overlap"] is not None


def test_a_policy_counts_every_decision_by_its_weight():
    mu = torch.tensor([[0.25, 0.75]]).expand(6, 2)
    north = support(panel(mu=mu), torch.stack([PI, 1 - PI], 1).log())["north"]
    weights = torch.tensor([0.25 / 0.8, 0.25 / 0.2, 0.75 / 0.5, 0.75 / 0.995])
    assert north["anchor_share"] == pytest.approx((0.25 + 0.25 + 0.75 + 0.75) / 4)
    assert north["effective_sample"] == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()))
    assert north["smallest_probability"] == pytest.approx(0.005) and north["floored_share"] == 0.25
    assert north["overlap"] is None


NEVER = "is never chosen and followed by another row: name another anchor"


@pytest.mark.parametrize(
    ("form", "mu", "last", "said"),
    [
        ({"anchor": 0}, ANCHOR, [0, 1], f"the anchor 'none' {NEVER}.*'none' 0, 'plan' 3"),
        ({"anchor_by_state": "usual"}, ANCHOR, [0, 1], f"the anchor that 'usual' names {NEVER}"),
        ({"anchor_weights": (1.0, 0.0)}, ANCHOR, [0, 1], f"an action of the anchor's policy {NEVER}"),
        ({"anchor": 0}, ANCHOR, [2, 3, 4], "nothing but the anchor 'none' is ever chosen.*'none' 2, 'plan' 0"),
        ({"anchor": 0}, ANCHOR, [0], None),
        ({"anchor_weights": (0.5, 0.5)}, torch.full((6, 2), 0.5), [0, 1], None),
    ],
)
def test_a_panel_that_never_shows_what_follows_the_anchor_is_refused(form, mu, last, said):
    """``last``: rows that no other follows; 0 and 1 chose the first action, 2 to 4 the second."""
    found = panel(mu=mu)
    known = {"anchor": None, "anchor_by_state": None, "actions": ("none", "plan")} | form
    vars(found.schema).update(known)
    found.next_choice = torch.arange(1, 7).index_fill(0, torch.tensor(last), -1)
    if said is None:
        return check_anchor(found)
    with pytest.raises(InputError, match=said):
        check_anchor(found)
