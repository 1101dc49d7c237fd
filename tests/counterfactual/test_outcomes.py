"""The outcomes table: its columns and types, rates by hand, who is simulated, and frames of every allowed kind."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config, InputError
from irl.counterfactual import ask, outcomes, simulate, timing
from irl.counterfactual.outcomes import COLUMNS, Answer, used_columns
from irl.data.schema import Column
from irl.scenario import Scenario

UP = {"name": "annual up", "periods": 3, "changes": [{"reward": {"action": "annual", "add": 0.5}}]}
OUTCOMES = {
    "share_none", "share_monthly", "share_annual", "membership", "join", "cancel", "switch", "renewal", "survival",
    "tenure", "surplus", "gainers", "losers",
}  # fmt: skip


def with_config(model, **data):
    """The model as if its study had these options."""
    plain = model.config.model_dump(mode="json")
    plain["data"] |= data
    return type(model)(**vars(model) | {"config": Config.model_validate(plain)})


def with_schema(model, **parts):
    return type(model)(**vars(model) | {"schema": type(model.schema)(**vars(model.schema) | parts)})


@pytest.fixture(scope="module")
def table(world, panel_and_frame):
    return simulate(world.model, UP, panel_and_frame[1])


def at(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def test_without_an_anchor_action_nobody_is_a_member(world, panel_and_frame):
    by_policy = with_schema(world.model, anchor=None, anchor_weights=(1.0, 1.0, 1.0))
    found = set(simulate(by_policy, UP, panel_and_frame[1])["outcome"])
    assert found == {"share_none", "share_monthly", "share_annual", "surplus", "gainers", "losers"}


def test_columns_types_and_cells(table):
    assert list(table.columns) == COLUMNS
    assert table["period"].dtype == "Int64"
    for name in ("baseline", "scenario", "change", "low", "high"):
        assert table[name].dtype == np.float64
    for name in ("case", "segment", "outcome"):
        assert pd.api.types.is_string_dtype(table[name].dtype)
    assert set(table["outcome"]) == OUTCOMES
    assert set(table["case"]) == {"annual up"}
    assert list(dict.fromkeys(table["segment"])) == ["north", "south", "all"]
    assert not table.duplicated(["case", "segment", "period", "outcome"]).any()
    assert table[["low", "high"]].isna().all(axis=None)
    assert isinstance(table.index, pd.RangeIndex)


def test_periods(table):
    by_outcome = table.groupby("outcome")["period"].agg(lambda p: sorted(set(p.dropna())))
    for name in ("share_none", "share_monthly", "share_annual", "membership"):
        assert by_outcome[name] == [0, 1, 2]
    for name in ("join", "cancel", "switch", "renewal"):
        assert by_outcome[name] == [1, 2]
    assert by_outcome["survival"] == [1]  # joined in period 1, one renewal later
    timeless = table[table["outcome"].isin(["tenure", "surplus", "gainers", "losers"])]
    assert timeless["period"].isna().all() and table["period"].isna().sum() == len(timeless)
    assert (timeless["baseline"][timeless["outcome"] != "tenure"] == 0).all()
    assert timeless["outcome"].value_counts().to_dict() == {"tenure": 3, "surplus": 2, "gainers": 3, "losers": 3}
    assert "all" not in set(at(table, outcome="surplus")["segment"])  # segments have units of their own


def test_relations_between_outcomes(table):
    wide = table.dropna(subset=["period"]).pivot_table(
        index=["segment", "period"], columns="outcome", values="scenario", observed=True
    )
    assert np.allclose(wide[["share_none", "share_monthly", "share_annual"]].sum(axis=1), 1)
    assert np.allclose(wide["membership"], 1 - wide["share_none"])
    later = wide.dropna(subset=["renewal"])
    assert np.allclose(later["renewal"] + later["cancel"], 1)
    assert (later["switch"] <= later["renewal"]).all()
    assert np.allclose(table["change"], table["scenario"] - table["baseline"])
    more = at(table, outcome="share_annual")["change"]
    assert (more >= 0).all() and more.mean() > 0.02
    assert (at(table, outcome="surplus")["change"] > 0).all()
    assert (at(table, outcome="gainers")["change"] == 1).all()
    assert (at(table, outcome="losers")["change"] == 0).all()


def test_all_is_everyone_and_not_the_mean_of_segments(world, panel_and_frame):
    frame = panel_and_frame[1]
    few = frame[(frame["region"] == "north") | frame["id"].isin(frame["id"][frame["region"] == "south"].unique()[:6])]
    table = at(simulate(world.model, UP, few), outcome="share_annual", period=0)
    north, south, everyone = (
        float(table["scenario"][table["segment"] == s].iloc[0]) for s in ("north", "south", "all")
    )
    n, m = (few[few["region"] == s]["id"].nunique() for s in ("north", "south"))
    assert (n, m) == (60, 6)
    assert everyone == pytest.approx((n * north + m * south) / (n + m))
    assert everyone != pytest.approx((north + south) / 2, abs=1e-3)


def test_surplus_is_the_oracle_s(world, panel_and_frame, monkeypatch):
    """The reward rises in one tier of one place: gains by the oracle's values at the start states."""
    change = {"reward": {"action": "annual", "add": 1.0, "where": {"place": "out", "tier": 1}}}
    frame = panel_and_frame[1]
    # exact, where draws are noisy
    monkeypatch.setattr(outcomes.contracts, "drawn", lambda *_, **__: world.transitions())
    table = simulate(world.model, {"name": "x", "periods": 1, "changes": [change]}, frame)
    reward = world.reward.clone()
    reward[0, 1, 2] += 1.0
    gain = tabular.solve(world.mdp(reward=reward)).value - tabular.solve(world.mdp()).value
    first = frame.drop_duplicates("id")
    state = first["place"].map({"out": 0, "in": 1, "deep": 2}) * 2 + first["tier"]
    exact = 0.1 * pd.Series(gain[state.tolist()].numpy()).groupby(first["region"].to_numpy()).mean()
    found = at(table, outcome="surplus").set_index("segment")["change"]
    assert found[["north", "south"]].tolist() == pytest.approx(exact.tolist(), rel=1e-2)


@pytest.mark.parametrize(
    "nothing",
    [
        {"feature": {"name": "tier", "set": 1, "where": {"tier": 1}}},
        {"dynamics": {"name": "place", "like": {"tier": 1}, "where": {"tier": 1}}},
        {"dynamics": {"name": "place", "shift": 0.0}},
    ],
)
def test_a_change_of_nothing_changes_nothing(moving_world, nothing):
    """Baseline and case are then drawn alike; else the noise of the draws would be taken for an effect."""
    frame = moving_world.panel_frame(members=60, periods=6, seed=1)
    if "shift" in nothing.get("dynamics", {}):
        columns = moving_world.schema.columns
        ordered = with_schema(moving_world.model, columns=(replace(columns[0], kind="ordinal"), columns[1]))
        moving_world = replace(moving_world, model=ordered)
    question = ask(moving_world.model, {"name": "x", "periods": 4, "changes": [nothing]}, frame)
    answer = question.answer()
    assert (answer.outcomes["change"] == 0).all()


def test_a_sweep_gives_a_case_for_each_value(world, panel_and_frame):
    scenario = {"name": "s", "periods": 1, "changes": [{"reward": {"action": "annual", "add": [-0.5, 0.5]}}]}
    question = ask(world.model, scenario, panel_and_frame[1])
    answer = question.answer()
    assert list(dict.fromkeys(answer.outcomes["case"])) == ["annual add -0.5", "annual add 0.5"]
    assert list(answer.solved) == ["baseline", "annual add -0.5", "annual add 0.5"]
    changes = [at(answer.outcomes, case=c, outcome="share_annual", segment="all") for c in list(answer.solved)[1:]]
    assert changes[0]["change"].iloc[0] < 0 < changes[1]["change"].iloc[0]
    assert changes[0]["baseline"].iloc[0] == changes[1]["baseline"].iloc[0]
    json.dumps(answer.solved, allow_nan=False)


def test_what_cannot_be_written_as_json_is_none(world, panel_and_frame, monkeypatch):
    real = timing.solve

    def singular(*arguments, **options):
        policy = real(*arguments, **options)
        return type(policy)(**vars(policy) | {"condition": float("inf"), "converged": False})

    monkeypatch.setattr(timing, "solve", singular)
    answer = ask(world.model, UP, panel_and_frame[1]).answer()
    assert answer.solved["annual up"]["condition"] is None
    json.dumps(answer.solved, allow_nan=False)
    assert any("annual up: the policy did not converge" in text for text in answer.warnings())
    with pytest.warns(UserWarning, match="did not converge"):
        simulate(world.model, UP, panel_and_frame[1])


def starts(frame, world, **options):
    return ask(world.model, UP | options, frame).starts


def test_start_first_and_last(world, panel_and_frame):
    panel, frame = panel_and_frame
    first, last = (starts(frame, world, start=s) for s in ("first", "last"))
    assert len(first.state) == len(last.state) == panel.n_members
    rows = frame[frame["place"] != "gone"]
    code = {name: i for i, name in enumerate(world.schema.columns[0].labels)}
    for found, edge in ((first, rows.groupby("id").first()), (last, rows.groupby("id").last())):
        assert found.state[:, 0].tolist() == edge["place"].map(code).tolist()
    assert not torch.equal(first.state, last.state)
    assert (last.state[:, 0] != 4).all()  # a terminal row is nobody's start
    assert (last.state[:, 0] == 3).any()  # a row inside a contract may be one


def test_starts_do_not_depend_on_the_order_of_rows(world, panel_and_frame):
    frame = panel_and_frame[1]
    shuffled = frame.sample(frac=1, random_state=0)
    for start in ("first", "last"):
        assert torch.equal(starts(frame, world, start=start).state, starts(shuffled, world, start=start).state)


def test_a_frame_of_states_only(world):
    frame = pd.DataFrame(
        {
            "region": ["south", "north"] * 20,
            "tier": [0, 1, 1, 0] * 10,
            "extra": 1,
            "place": ["out", "in", "deep", "gone"] * 10,
        }
    )
    question = ask(world.model, UP, frame)
    assert len(question.starts.state) == 30  # those who are gone are left out
    assert question.starts.segment.tolist()[:3] == [1, 0, 1]
    answer = question.answer()
    assert answer.members == 30
    assert set(answer.outcomes["outcome"]) == OUTCOMES


def test_a_frame_of_states_with_members(world):
    frame = pd.DataFrame({"id": [1, 2, 2], "region": "north", "tier": 0, "place": "out"})
    with pytest.raises(InputError, match="several rows, but there is no column 'month' or 'plan'"):
        ask(world.model, UP, frame)
    assert len(ask(world.model, UP, frame.iloc[:2]).starts.state) == 2


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"region": ["north"], "tier": [0]}, "no state column 'place'"),
        ({"tier": [0], "place": ["out"]}, "segment column 'region' is missing"),
        ({"region": ["west"], "tier": [0], "place": ["out"]}, "west"),
        ({"region": ["north"], "tier": [7], "place": ["out"]}, "not among its levels"),
        ({"region": ["north"], "tier": [0], "place": ["gone"]}, "nobody to simulate"),
    ],
)
def test_frames_that_cannot_be_used(world, frame, said):
    with pytest.raises(InputError, match=said):
        ask(world.model, UP, pd.DataFrame(frame))


def test_without_segments_there_is_one_called_all(world, panel_and_frame):
    model = with_config(with_schema(world.model, segment_columns=(), segments=("all",)), segment=())
    table = simulate(model, UP, panel_and_frame[1].drop(columns="region"))
    assert set(table["segment"]) == {"all"}
    assert not table.duplicated(["case", "segment", "period", "outcome"]).any()


@pytest.mark.parametrize(
    ("schema", "data", "said"),
    [
        ({"segments": ("all", "north")}, {}, "a segment is called 'all'"),
        ({"anchor_reward": "rent"}, {}, "'rent' is not a state column"),
        ({}, {"duration": "months"}, "`duration: months`"),
    ],
)
def test_studies_that_cannot_answer(world, panel_and_frame, schema, data, said):
    model = with_config(with_schema(world.model, **schema), **data)
    with pytest.raises(InputError, match=said):
        ask(model, UP, panel_and_frame[1])


def test_a_whole_menu_cannot_be_removed(world, panel_and_frame):
    change = {"remove": {"action": "monthly"}}
    with pytest.raises(InputError, match="leaves nothing to choose"):
        ask(world.model, {"name": "x", "changes": [change]}, panel_and_frame[1])


def test_used_columns(world):
    kinds = ["category", "ordinal", "count", "numeric"]
    columns = [Column(name=k, kind=k, dynamics="learned") for k in kinds]
    columns += [Column(name=f"{k}_static", kind=k, dynamics="static") for k in kinds]
    assert used_columns(with_schema(world.model, columns=tuple(columns))) == (1, 2, 3)


def test_warnings_are_given_once_and_reach_the_caller(world, panel_and_frame):
    said = Answer(pd.DataFrame(), {"a": {"warnings": ["x", "y"], "converged": True},
                                   "b": {"warnings": ["y"], "converged": True}}, 1)  # fmt: skip
    assert said.warnings() == ["x", "y"]
    nowhere = {"reward": {"action": "annual", "add": 1, "where": {"place": "locked", "tier": 0, "region": "south"}}}
    frame = panel_and_frame[1]
    frame = frame[~((frame["place"] == "locked") & (frame["tier"] == 0))]
    with pytest.warns(UserWarning, match="applies to no row") as caught:
        simulate(world.model, {"name": "x", "periods": 1, "changes": [nowhere]}, frame)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(world.model, UP, panel_and_frame[1])


def test_scenarios_are_taken_from_files_mappings_and_objects(world, panel_and_frame, tmp_path, table):
    file = tmp_path / "s.yaml"
    file.write_text(json.dumps(UP), encoding="utf-8")  # JSON is YAML
    for given in (file, str(file), Scenario.model_validate(UP)):
        assert simulate(world.model, given, panel_and_frame[1]).equals(table)


def test_the_answer_says_what_the_anchor_identifies(world, panel_and_frame):
    """A lump sum is free of the anchor's reward; a scaled reward never comes without its band."""
    changes = {"up": {"add": 0.5}, "scaled": {"scale": 1.5}}
    for name, amount in changes.items():
        scenario = {"name": name, "periods": 2, "changes": [{"reward": {"action": "annual", **amount}}]}
        found = ask(world.model, scenario, panel_and_frame[1]).answer()
        how = found.solved[name]
        assert how["identification"]["behaviour"] == (name == "up")
        assert (how["anchor_band"] is None) == (name == "up")
        said = [text for text in found.warnings() if "depend on the anchor's reward" in text]
        assert len(said) == (name == "scaled")
        json.dumps(found.solved, allow_nan=False)
    change, low, high = how["anchor_band"]["outcomes"]["share_annual"]["all"]
    assert low < change < high
    own = at(found.outcomes, outcome="share_annual", segment="all")["change"].mean()
    assert change == pytest.approx(own, abs=1e-6)
    surplus = at(found.outcomes, outcome="surplus", segment="north")["change"].iloc[0]
    assert how["anchor_band"]["outcomes"]["surplus"]["north"][0] == pytest.approx(surplus, abs=1e-6)


def test_an_added_action_is_an_outcome_of_all_cases(world, panel_and_frame):
    new = {"action": "student", "like": "monthly", "where": {"place": ["out", "in", "deep"], "region": "south"}}
    answer = ask(world.model, UP | {"name": "x", "changes": [{"add": new}]}, panel_and_frame[1]).answer()
    shares = at(answer.outcomes, outcome="share_student", segment="south")
    assert list(dict.fromkeys(shares["case"])) == ["student nest 0.0", "student nest 0.5", "student nest 0.9"]
    assert (shares["baseline"] == 0).all() and (shares["scenario"] > 0.02).all()
    assert (at(answer.outcomes, outcome="share_student", segment="north")["scenario"] == 0).all()
    total = answer.outcomes[answer.outcomes["outcome"].str.startswith("share_")]
    sums = total.groupby(["case", "segment", "period"])["scenario"].sum()
    np.testing.assert_allclose(sums, 1)
    surplus = at(answer.outcomes, outcome="surplus", segment="south")["scenario"].to_numpy()
    assert surplus[0] > surplus[1] > surplus[2] > 0  # the more of the shock is shared, the less is made out of nothing
    said = " ".join(answer.warnings())
    assert "student: that it shares 0.5 of its taste shock with monthly is assumed" in said


def test_nothing_changes_before_the_changes(world, panel_and_frame):
    much = UP | {"changes": [{"reward": {"action": "annual", "add": 5.0}}]}
    for announced in (False, True):
        late = much | {"name": "late", "timing": {"start": 2, "announced": announced}}
        found = ask(world.model, late, panel_and_frame[1]).answer().outcomes
        shares = at(found, outcome="share_annual").set_index(["segment", "period"])["change"].unstack()
        assert (shares[2] > 0.1).all()
        assert (shares[[0, 1]] != 0).any(axis=None) == announced  # who knows what comes chooses otherwise before
