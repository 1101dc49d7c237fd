"""The reference policy of the three forms of the anchor: of states by hand, off the menu, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from irl.config import Estimation, InputError
from irl.data import panel_from_frame, summary
from irl.data.column import Column
from irl.data.fit import fit_schema
from irl.data.schema import StateSchema

COLUMNS = (
    Column(name="place", kind="category", dynamics="table", labels=("in", "out"), maximum=1.0),
    Column(name="usual", kind="category", dynamics="table", labels=("annual", "none"), maximum=1.0),
    Column(name="w", kind="numeric", dynamics="learned", maximum=9.0),
)
ACTION = StateSchema(
    columns=COLUMNS, actions=("none", "monthly", "annual"), anchor=1, anchor_reward=0.0, terminal={},
    available=((1, {"place": ("out",)}),),
)  # fmt: skip
BY_STATE = replace(ACTION, anchor=None, anchor_by_state="usual")
STATE = torch.tensor([[0.0, 0, 3], [1, 1, 3], [1, 0, 0], [0, 2, -1]])


def reference(schema: StateSchema) -> list[list[float]]:
    return schema.reference(STATE, schema.menu(STATE)).tolist()


def test_an_anchor_action():
    assert reference(ACTION) == [[0, 1, 0]] * 4  # off the menu too: there is nothing to average
    assert (ACTION.base, ACTION.referred, ACTION.reference_columns) == (1, (1,), ())


def test_an_anchor_by_state():
    assert reference(BY_STATE) == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]  # the last label was never seen
    assert (BY_STATE.base, BY_STATE.referred, BY_STATE.reference_columns) == (0, (0, 2), ("usual",))


def test_weights_are_restricted_to_the_menu_and_normalised():
    schema = replace(ACTION, anchor=None, anchor_weights=(1.0, 2.0, 1.0))
    assert reference(schema) == [[0.5, 0, 0.5], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.5, 0, 0.5]]
    columns = replace(ACTION, anchor=None, anchor_weights=(0.0, 1.0, "w"))
    third = reference(columns)[1]
    assert third == [0, 0.25, 0.75] and (columns.referred, columns.reference_columns) == ((1, 2), ("w",))
    assert reference(columns)[2] == [0, 1, 0]
    assert reference(columns)[3] == [0.5, 0, 0.5]  # nothing is left: even, over the menu


def test_an_empty_menu_has_no_reference_that_is_not_a_number():
    schema = replace(ACTION, anchor=None, anchor_weights=(1.0, 2.0, 1.0))
    assert schema.reference(STATE, torch.zeros(4, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]] * 4


@pytest.mark.parametrize("schema", [ACTION, BY_STATE, replace(ACTION, anchor=None, anchor_weights=(0.0, 1.0, "w"))])
def test_it_survives_being_written(schema):
    assert StateSchema.from_json(schema.to_json()) == schema


def test_a_schema_written_before_there_were_other_anchors_is_read():
    plain = ACTION.to_json()
    del plain["anchor_by_state"], plain["anchor_weights"]
    assert StateSchema.from_json(plain) == ACTION


USUAL = {"kind": "category", "dynamics": "table"}


def with_usual(study, **changes):
    state = study().model_dump()["data"]["state"] | {"usual": USUAL}
    return study(state=state, anchor={"by_state": "usual"} | changes)


def problems(frame, config, **known) -> list[str]:
    with pytest.raises(InputError) as caught:
        panel_from_frame(frame, config, **known)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_panel_with_an_anchor_by_state(study, frame):
    frame = frame.assign(usual=["none", "none", "none", "monthly", "none", "none", "annual", "monthly"])
    panel = panel_from_frame(frame, with_usual(study))
    mu = panel.schema.reference(panel.state, panel.menu)
    assert mu.argmax(1).tolist() == [0, 0, 0, 1, 0, 0, 2, 1] and (mu.sum(1) == 1).all()
    facts = summary(panel, estimation=Estimation())  # choices: 1, 0 | 0, 2, 0
    assert facts.anchor_share == {"east": (3, pytest.approx(2 / 3)), "north": (1, 0.0), "south": (1, 0.0)}
    assert "share of the action that 'usual' names (the anchor) where there is a choice" in str(facts)


def test_an_anchor_by_state_must_be_available(study, frame):
    frame = frame.assign(usual=["none"] * 3 + ["annual"] + ["none"] * 3 + ["monthly"])
    assert problems(frame, with_usual(study)) == [
        "the anchor that column 'usual' names is not available where there is a choice (1 row; first: row 4, member 7, "
        "period 4: 'annual'). Correct the rows, or widen the `available` of the actions that it names"
    ]


def test_labels_that_are_no_actions(study, frame):
    frame = frame.assign(usual=["non"] * 2 + ["none"] * 6)
    assert problems(frame, with_usual(study)) == [
        "anchor column 'usual': 'non' is not one of the actions; did you mean 'none'? (2 rows; first: row 1, member "
        "7, period 1; row 2, member 7, period 2). Its labels name the anchor"
    ]


def test_a_missing_anchor_is_reported_once(study, frame):
    found = problems(frame.assign(usual=[None] + ["none"] * 7), with_usual(study))
    assert len(found) == 1
    assert found[0].startswith(
        "state column 'usual': missing values (1 row; first: row 1, member 7, period 1: missing)"
    )
    assert len(found := problems(frame, with_usual(study))) == 1 and "there is no column 'usual'" in found[0]


def test_an_anchor_that_was_never_named_cannot_be_answered_for(study, frame):
    config = with_usual(study)
    schema = fit_schema(frame.assign(usual="none"), config)
    strange = frame.assign(usual=["none"] * 3 + ["monthly"] + ["none"] * 4)
    expected = "state column 'usual' names an anchor that it never named (1 row; first: row 4"
    assert expected in problems(strange, config, schema=schema)[0]
    with pytest.raises(InputError, match="names an anchor that it never named"):
        schema.encode(strange)


def test_a_policy_without_an_available_action(study, frame):
    found = problems(frame, study(anchor={"policy": {"annual": 1.0}}))
    assert found == [
        "the anchor's policy gives no weight to any action that is available where there is a choice (2 rows; first: "
        "row 4, member 7, period 4; row 8, member 9, period 4). Give one of them a weight in `anchor.policy`"
    ]
    panel = panel_from_frame(frame, study(anchor={"policy": "uniform"}))
    mu = panel.schema.reference(panel.state, panel.menu)
    assert np.allclose(mu[0], 1 / 3) and mu[3].tolist() == [0.5, 0.5, 0] and mu[1].tolist() == [0, 1, 0]
    assert "mean weight of the choices in the anchor's policy" in str(summary(panel, estimation=Estimation()))


def test_weights_must_not_be_negative(study, frame):
    found = problems(frame.assign(price=[-1.0] * 4 + [0.0] * 4), study(anchor={"policy": {"none": "price"}}))
    assert found == [
        "weight column 'price' of the anchor's policy: negative values (4 rows; first: row 1, member 7, period 1: "
        "'-1'; row 2, member 7, period 2: '-1'; row 3, member 7, period 3: '-1')",
        "the anchor's policy gives no weight to any action that is available where there is a choice (3 rows; first: "
        "row 6, member 9, period 1; row 7, member 9, period 3; row 8, member 9, period 4). Give one of them a weight "
        "in `anchor.policy`",
    ]
