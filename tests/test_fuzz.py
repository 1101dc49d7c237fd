"""Whatever is read: a panel or a study, or one InputError. Examples are the same in every run."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irl.config import Config, InputError, load_config, validated
from irl.data.panel import Panel, panel_from_frame
from irl.scenario import Scenario, load_scenario

STEADY = settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
STUDY: dict[str, Any] = {
    "data": {
        "path": "panel.parquet",
        "member": "id",
        "period": "month",
        "action": "plan",
        "actions": ["none", "monthly", "annual"],
        "available": {"monthly": {"status": ["out", "monthly"]}},
        "terminal": {"status": ["gone"]},
        "segment": ["region"],
        "weight": "w",
        "exit": {"left": [1]},
        "state": {
            "status": {"kind": "category", "dynamics": "table", "parents": ["status"]},
            "video": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
            "visits": {"kind": "count", "dynamics": "learned"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
    },
    "anchor": {"action": "none", "reward": 0.0},
    "reward": {"benefits": ["video"]},
    "money": {"currency": "USD", "price": {"monthly": "price", "annual": {"amount": 5, "where": {"status": "out"}}}},
    "discount": 0.9,
    "seed": 0,
    "estimation": {"policy": {"hidden": [8], "max_epochs": 2}, "refit": {"rounds": 1}},
}
SCENARIO = {
    "name": "dearer",
    "periods": 4,
    "members": 100,
    "changes": [{"feature": {"name": "price", "scale": [0.9, 1.1], "where": {"region": "north"}}}],
}
CONFIG = Config.model_validate(STUDY)

GOOD: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["x", "y", "z"]),
    "month": st.integers(0, 5),
    "plan": st.sampled_from(["none", "monthly", "annual"]),
    "status": st.sampled_from(["out", "monthly", "annual"]),
    "video": st.sampled_from([0, 1, 2]),
    "visits": st.integers(0, 9),
    "price": st.sampled_from([0.8, 1.0, 1.2]),
    "region": st.sampled_from(["north", "south"]),
    "w": st.sampled_from([1.0, 2.0]),
    "left": st.sampled_from([0, 1]),
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(
        [pd.NA, pd.NaT, np.datetime64("2020-01-01"), pd.Timestamp("2020-03-01", tz="UTC"), b"x", "007", ""]
    ),
    st.sampled_from([(), [1], {"a": 1}, 1 + 2j]),
)
DTYPES = ("category", "string", "Int64", "float32", "datetime64[ns]", "bool", "object")


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Mostly a panel; then cells, types, columns and rows go wrong."""
    n = draw(st.integers(0, 12))
    frame = pd.DataFrame({name: draw(st.lists(of, min_size=n, max_size=n)) for name, of in GOOD.items()})
    if draw(st.booleans()) and n:  # one row per member and period
        frame["id"], frame["month"] = [f"m{i // 4}" for i in range(n)], [i % 4 for i in range(n)]
    for name in draw(st.lists(st.sampled_from(list(GOOD)), max_size=3)):
        values = frame[name].astype(object).tolist()
        for row in draw(st.lists(st.integers(0, max(n - 1, 0)), max_size=3 if n else 0)):
            values[row] = draw(ODD)
        frame[name] = pd.Series(values, dtype=object)
    if draw(st.booleans()):
        try:
            name = draw(st.sampled_from(list(GOOD)))
            frame[name] = frame[name].astype(draw(st.sampled_from(DTYPES)))
        except (TypeError, ValueError, OverflowError):
            pass  # no such frame
    if draw(st.integers(0, 5)) == 0:
        frame = frame.drop(columns=draw(st.sampled_from(list(GOOD))))
    if draw(st.integers(0, 5)) == 0 and n:
        frame = pd.concat([frame, frame.iloc[:2]])  # repeated rows, and index
    if draw(st.integers(0, 5)) == 0:
        frame = pd.concat([frame, frame[frame.columns[:1]]], axis=1)  # a column twice
    return frame


@STEADY
@given(frames())
def test_any_frame_is_a_panel_or_a_users_error(frame):
    try:
        assert isinstance(panel_from_frame(frame, CONFIG), Panel)
    except InputError as error:
        assert str(error).strip()


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["none", "annual", "status", "price", "1e400", "2020-01-01", "_", "data"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=5,
)


def _places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place, *(p for key, value in inner for p in _places(value, (*place, key)))]


@st.composite
def mutated(draw: st.DrawFn, content: dict[str, Any]) -> Any:
    """The content with one to three of its places replaced, removed, or given a key nobody knows."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(content)))
        if not place:
            continue
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            parent[place[-1]] = draw(JUNK)
        elif what == "remove":
            del parent[place[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5) | st.sampled_from(list(map(str, STUDY))))] = draw(JUNK)
    return content


@STEADY
@given(mutated(STUDY))
def test_any_mutation_of_a_study_is_a_study_or_a_users_error(content):
    try:
        assert isinstance(validated(Config, content, "study.yaml"), Config)
    except InputError as error:
        assert str(error).startswith("study.yaml:\n  ")


@STEADY
@given(mutated(SCENARIO))
def test_any_mutation_of_a_scenario_is_a_scenario_or_a_users_error(content):
    try:
        assert isinstance(validated(Scenario, content, "s.yaml"), Scenario)
    except InputError as error:
        assert str(error).startswith("s.yaml:\n  ")


@pytest.mark.parametrize("load", [load_config, load_scenario])
@STEADY
@given(data=st.data())
def test_any_text_is_a_study_or_a_users_error(tmp_path, load, data):
    """A file with a piece cut out and something else put in, in bytes."""
    text = yaml.safe_dump(STUDY if load is load_config else SCENARIO).encode()
    first = data.draw(st.integers(0, len(text)))
    last = min(first + data.draw(st.integers(0, 12)), len(text))
    path = tmp_path / "file.yaml"
    path.write_bytes(
        text[:first] + data.draw(st.binary(max_size=6) | st.text(max_size=6).map(str.encode)) + text[last:]
    )
    try:
        load(path)
    except InputError as error:
        assert str(path) in str(error)
