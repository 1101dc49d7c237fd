"""Samples of members: whole, numbered anew, and used only where the panel is not."""

from __future__ import annotations

import pandas as pd
import pytest

from irl.config import Config
from irl.data.sample import draw_sample, members_of, with_sample


def study(**data) -> Config:
    columns = {"member": "id", "period": "t", "action": "plan", "actions": ["none", "member"], "cluster": "town"}
    state = {"use": {"kind": "ordinal", "levels": 3, "dynamics": "learned"}}
    return Config.model_validate(
        {
            "data": {"path": "panel.parquet", **columns, "state": state} | data,
            "anchor": {"action": "none"},
            "discount": 0.9,
        }
    )


def panel() -> pd.DataFrame:
    """Members m0 to m9, three periods each, two to a town; ``use`` says who it is."""
    rows = [(f"m{m}", t, "none", f"town {m // 2}", m % 3, "a secret") for m in range(10) for t in range(3)]
    return pd.DataFrame(rows, columns=["id", "t", "plan", "town", "use", "name"])


def test_members_are_whole_and_nobody_can_be_told_by_name():
    found = draw_sample(panel(), study(), members=4, seed=1)
    assert list(found.columns) == ["id", "t", "plan", "use", "town"]
    assert found["id"].tolist() == [m for m in range(4) for _ in range(3)]
    assert found["t"].tolist() == [0, 1, 2] * 4
    assert pd.api.types.is_integer_dtype(found["town"]) and found.groupby("id")["town"].nunique().eq(1).all()
    other = draw_sample(panel(), study(), members=4, seed=2)
    assert found["use"].tolist() != other["use"].tolist()  # others are drawn, and not by their order
    assert len(draw_sample(panel(), study(), members=100, seed=0)) == 30


def test_what_was_not_fitted_on_is_not_sampled(tmp_path):
    panel().to_parquet(tmp_path / "panel.parquet")
    config = study(path=str(tmp_path / "panel.parquet"), until=1, held_out={"use": [0]})
    found = draw_sample(members_of(config, tmp_path)[0], config, members=100, seed=0)
    assert found["t"].max() == 1 and set(found["use"]) == {1, 2}
    assert found["id"].nunique() == 6


def test_the_sample_serves_where_the_panel_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, run = study(until=1), tmp_path / "run"
    run.mkdir()
    draw_sample(panel().query("t < 2"), config, members=4, seed=0).to_parquet(run / "sample.parquet")
    found, said = members_of(config, run)
    assert (
        len(found) == 8
        and said == f"the panel panel.parquet is not here: the members are the 4 of {run}/sample.parquet"
    )
    panel().to_parquet("panel.parquet")
    found, said = members_of(config, run)
    assert found["id"].nunique() == 10 and found["t"].max() == 1 and said is None
    assert with_sample(study(path="pan*.parquet"), run)[1] is None  # a glob


def test_without_either_the_message_is_that_of_the_panel(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        members_of(study(path=str(tmp_path / "x.parquet")), tmp_path)
