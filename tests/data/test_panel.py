"""Which row follows which, on panels small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import InputError
from irl.data import Panel, StateSchema, panel_from_frame
from irl.data.panel import tensors_of


def same(first: Panel, second: Panel) -> bool:
    tensors = tensors_of(second)
    return (first.schema, first.gaps) == (second.schema, second.gaps) and all(
        torch.equal(v, tensors[k]) for k, v in tensors_of(first).items()
    )


def test_links_by_hand(study, frame):
    panel = panel_from_frame(frame, study())
    assert panel.member.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert panel.period.tolist() == [1, 2, 3, 4, 5, 1, 3, 4]
    assert panel.action.tolist() == [1, 1, 1, 0, 0, 0, 2, 0]  # the terminal row's missing action reads as the anchor
    assert panel.menu.int().tolist()[:5] == [[1, 1, 1], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert panel.free.tolist() == [True, False, False, True, False, True, True, True]
    assert panel.next_row.tolist() == [1, 2, 3, 4, -1, -1, 7, -1]
    assert panel.next_choice.tolist() == [3, -1, -1, 4, -1, -1, 7, -1]
    assert panel.steps.tolist() == [3, 1, 1, 1, 1, 1, 1, 1]
    assert panel.ends.tolist() == [False, False, False, True, False, False, False, False]
    assert panel.gaps == 1
    assert (panel.n_rows, panel.n_members, panel.n_actions, panel.n_transitions) == (8, 2, 3, 5)
    assert panel.schema.segments == ("east", "north", "south")
    assert panel.segment.tolist() == [1, 1, 1, 2, 2, 0, 0, 0]


def test_a_choice_before_a_gap_inside_a_contract_is_censored(study, frame):
    panel = panel_from_frame(frame.drop(index=2), study())  # month 3 of member 7 is lost
    assert panel.next_row.tolist()[:4] == [1, -1, 3, -1]
    assert panel.next_choice.tolist()[:4] == [-1, -1, 3, -1]
    assert panel.steps.tolist()[:2] == [1, 1]
    assert panel.gaps == 2


def test_a_contract_that_runs_past_the_last_row_is_censored(study, frame):
    panel = panel_from_frame(frame.iloc[[0, 1, 2, 5, 6, 7]], study(terminal={}))
    assert panel.next_choice.tolist() == [-1, -1, -1, -1, 5, -1]
    assert panel.gaps == 1


def test_rows_after_the_first_terminal_row_may_stay_terminal(study, frame):
    more = pd.concat([frame, frame.iloc[[4]].assign(month=6)])
    panel = panel_from_frame(more, study())
    assert panel.next_row.tolist()[3:6] == [4, -1, -1]
    assert panel.gaps == panel.take_members(torch.tensor([True, True])).gaps == 1


def test_nothing_is_chosen_in_a_terminal_row_with_a_menu(study, frame):
    panel = panel_from_frame(frame, study(available={}))
    assert panel.menu[4].all() and not panel.free[4]
    assert panel.next_choice.tolist() == [1, 2, 3, 4, -1, -1, 7, -1]


def test_durations_set_where_the_next_row_is_expected(study, frame):
    config = study(duration="lasts")
    lasts = [1, 1, 1, 1, np.nan, 2, 1, np.nan]  # nothing is said of last rows
    panel = panel_from_frame(frame.assign(lasts=lasts), config)
    assert panel.next_row.tolist()[5:] == [6, 7, -1]
    assert panel.steps.tolist()[5:] == [2, 1, 1]
    assert panel.gaps == 0
    gap = panel_from_frame(frame.assign(lasts=[1, 1, 1, 1, 1, 1, 1, 1]), config)
    assert gap.gaps == 1 and gap.next_row.tolist()[5] == -1


def test_row_order_does_not_matter(study, frame):
    panel = panel_from_frame(frame, study())
    for seed in range(3):
        assert same(panel, panel_from_frame(frame.sample(frac=1, random_state=seed), study()))


@pytest.mark.parametrize("ids", [["b", "a"], [2.0, 1.0], ["b", 1], pd.to_datetime(["2024-02-01", "2024-01-01"])])
def test_members_of_any_type_are_numbered_in_their_order(study, frame, ids):
    owner = pd.Series([ids[0] if m == 7 else ids[1] for m in frame["id"]])
    panel = panel_from_frame(frame.assign(id=owner), study())
    assert panel.member.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert panel.period.tolist() == [1, 3, 4, 1, 2, 3, 4, 5]


def test_member_ids_that_cannot_be_hashed_are_compared_as_text(study, frame):
    panel = panel_from_frame(frame.assign(id=[[m, 0] for m in frame["id"]]), study())
    assert panel.member.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_weights_have_mean_one_and_the_anchor_reward_may_be_a_column(study, frame):
    config = study(weight="w", anchor={"action": "none", "reward": "g"})
    panel = panel_from_frame(frame.assign(w=[1, 1, 1, 1, 3, 3, 3, 3], g=np.arange(8) / 8), config)
    assert panel.weight.tolist() == [0.5] * 4 + [1.5] * 4
    assert panel.anchor_reward.tolist() == [i / 8 for i in range(8)]
    assert panel_from_frame(frame, study(anchor={"action": "none", "reward": 2})).anchor_reward.tolist() == [2.0] * 8


def test_several_segment_columns_are_joined(study, frame):
    config = study(segment=["region", "uses"])
    panel = panel_from_frame(frame.assign(uses=[1, 1, 1, 2, 2, 1, 1, 1.0]), config)
    assert panel.schema.segments == ("east | 1", "north | 1", "south | 2")
    assert panel.segment.tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    without = panel_from_frame(frame, study(segment=[]))
    assert without.schema.segments == ("all",) and without.segment.tolist() == [0] * 8


def test_with_a_schema_new_categories_are_reserved_and_no_transition_is_needed(study, frame):
    schema = panel_from_frame(frame, study(available={})).schema
    new = frame.iloc[[0]].assign(status="paused")
    panel = panel_from_frame(new, study(available={}), schema=schema)
    assert panel.state[0, 0] == schema.columns[0].levels == 4
    assert panel.n_transitions == 0


def test_take_members_numbers_afresh(study, frame):
    panel = panel_from_frame(frame, study())
    second = panel.take_members(torch.tensor([False, True]))
    assert second.member.tolist() == [0, 0, 0] and second.period.tolist() == [1, 3, 4]
    assert second.next_row.tolist() == second.next_choice.tolist() == [-1, 2, -1]
    assert torch.equal(second.state, panel.state[5:]) and second.segment.tolist() == [0, 0, 0]
    assert second.gaps == 1
    first = panel.take_members(torch.tensor([True, False]))
    assert first.next_choice.tolist() == [3, -1, -1, 4, -1] and first.next_row.tolist() == [1, 2, 3, 4, -1]
    assert first.gaps == 0
    assert same(panel, panel.take_members(torch.tensor([True, True])))
    with pytest.raises(ValueError, match="no member"):
        panel.take_members(torch.tensor([False, False]))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("action", torch.tensor([3, 1, 1, 0, 0, 0, 2, 0]), "action is out of range"),
        ("next_row", torch.tensor([2, 2, 3, 4, -1, -1, 7, -1]), "row below"),
        ("next_row", torch.tensor([1, 2, 3, 4, 5, -1, 7, -1]), "row below"),
        ("next_choice", torch.tensor([3, -1, -1, 4, -1, -1, 7, 7]), "later row"),
        ("next_choice", torch.tensor([3, 3, -1, 4, -1, -1, 7, -1]), "not free"),
        ("period", torch.tensor([1, 2, 2, 4, 5, 1, 3, 4]), "rise"),
        ("member", torch.tensor([0, 0, 0, 0, 0, 2, 2, 2]), "in order"),
        ("weight", torch.zeros(8), "positive"),
        ("steps", torch.ones(7), r"steps is torch.float32 \(7,\)"),
        ("free", torch.ones(8, dtype=torch.bool), "fewer than two"),
        ("state", torch.full((8, 4), float("nan")), "not finite"),
    ],
)
def test_a_panel_checks_itself(study, frame, part, value, message):
    panel = panel_from_frame(frame, study())
    with pytest.raises(ValueError, match=message):
        replace(panel, **{part: value})


def test_links_agree_with_a_loop_over_rows(study):
    generator = np.random.default_rng(0)
    config = study(terminal={"status": "gone"}, segment=[])
    rows = []
    for member in range(60):
        months = np.flatnonzero(generator.random(14) < 0.8)
        statuses = generator.choice(["out", "in", "locked"], len(months)).tolist()
        if member % 3 == 0 and statuses:
            statuses[-1] = "gone"
        rows += [(member, month, status) for month, status in zip(months, statuses, strict=True)]
    frame = pd.DataFrame(rows, columns=["id", "month", "status"]).assign(plan="monthly", left=0, uses=1, price=1.0)
    panel = panel_from_frame(frame, config)
    free, stop = panel.free.tolist(), [s == "gone" for s in frame["status"]]
    for i, (member, month, _) in enumerate(rows):
        j, expected = i, -1
        while not stop[j] and j + 1 < len(rows) and rows[j + 1][0] == member and rows[j + 1][1] == rows[j][1] + 1:
            j += 1
            if free[j] or stop[j]:
                expected = j
                break
        assert panel.next_choice[i] == (expected if free[i] else -1)
        assert panel.steps[i] == (rows[expected][1] - month if free[i] and expected >= 0 else 1)
        assert panel.ends[i] == (free[i] and expected >= 0 and stop[expected])


def test_schema_of_a_panel_survives_json(study, frame):
    schema = panel_from_frame(frame, study()).schema
    assert StateSchema.from_json(schema.to_json()) == schema


def test_clusters_hold_whole_members(study, frame):
    assert torch.equal(panel_from_frame(frame, study()).cluster, panel_from_frame(frame, study()).member)
    member = frame[study().data.member]
    together = panel_from_frame(frame.assign(town="x"), study(cluster="town"))
    assert together.cluster.unique().tolist() == [0]
    with pytest.raises(InputError, match="changes within a member"):
        panel_from_frame(frame.assign(town=np.arange(len(frame))), study(cluster="town"))
    assert member.nunique() == 2
