"""Rows that are fitted on, and those that are not."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from irl.config import InputError
from irl.data.panel import panel_from_frame, tensors_of
from irl.data.read import read_panel
from irl.data.split import fitted_rows, held_out, later


@pytest.mark.parametrize("until, months", [(3, [1, 2, 3]), (4, [1, 2, 3, 4]), ("2", [1, 2])])
def test_rows_up_to_a_period_are_fitted_on(study, frame, until, months):
    assert sorted(fitted_rows(frame, study(until=until).data)["month"].unique()) == months


@pytest.mark.parametrize("kind", ["text", "datetime", "period", "yyyymm"])
def test_dates_are_cut_as_the_column_has_them(study, frame, kind):
    day = pd.to_datetime(frame["month"].map(lambda m: f"2024-{m:02d}-01"))
    column = {"text": day.dt.strftime("%Y-%m-%d"), "datetime": day, "period": day.dt.to_period("M"),
              "yyyymm": 202400 + frame["month"]}[kind]  # fmt: skip
    until = 202403 if kind == "yyyymm" else "2024-03-01"
    cut = later(frame.assign(month=column), study(until=until).data)
    assert (cut == (frame["month"] > 3)).all()


def test_a_member_is_held_out_whole(study, frame):
    data = study(held_out={"uses": [5]}).data  # one row of member 9
    assert (held_out(frame, data) == (frame["id"] == 9)).all()
    assert set(fitted_rows(frame, data)["id"]) == {7}
    assert not held_out(frame, study(held_out={"uses": [5], "region": "north"}).data).any()  # both must hold
    assert (held_out(frame, study(held_out={"price": {"min": 1.0}}).data) == (frame["id"] == 9)).all()


def test_what_is_held_out_leaves_no_trace(study, frame):
    """Labels, means and ranges of the columns too."""
    config = study(held_out={"arm": "treated"})
    plain = frame.assign(arm=["control"] * 5 + ["treated"] * 3)
    other = plain.copy()
    other.loc[5:, ["uses", "price", "region", "plan"]] = [77, 99.0, "west", "none"]
    one, two = (panel_from_frame(f, config) for f in (plain, other))
    assert one.schema == two.schema and one.schema.segments == ("north", "south") and one.n_rows == 5
    assert all(torch.equal(values, tensors_of(two)[name]) for name, values in tensors_of(one).items())
    everything = panel_from_frame(plain, config, schema=one.schema.__class__.from_json(one.schema.to_json() | {
        "segments": ["east", "north", "south"]}))  # fmt: skip
    assert everything.n_rows == 8  # with a schema, nothing is left out


def test_a_file_is_read_without_what_is_held_out(study, frame, tmp_path):
    path = tmp_path / "panel.csv"
    frame.assign(arm=["control"] * 5 + ["treated"] * 3).to_csv(path, index=False)
    panel = read_panel(study(path=str(path), held_out={"arm": "treated"}))
    assert panel.n_rows == 5
    assert read_panel(study(path=str(path), held_out={"arm": "treated"}), schema=panel.schema).n_rows == 5
    with pytest.raises(InputError, match=r"`data.held_out` holds for no row"):
        read_panel(study(path=str(path), held_out={"arm": "treatd"}))
    with pytest.raises(InputError, match=r"held_out.*'ar'.*did you mean 'arm'"):
        read_panel(study(path=str(path), held_out={"ar": "treated"}))


def test_nothing_left_and_no_period_are_said(study, frame):
    with pytest.raises(InputError, match="no row is left"):
        fitted_rows(frame, study(until=0).data)
    with pytest.raises(InputError, match="'spring' is not a period"):
        fitted_rows(frame, study(until="spring").data)
