"""Whatever is read: a panel or a study, or one InputError. Examples are the same in every run."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from irl.config import Config, InputError, load_config, validated
from irl.data.panel import panel_from_frame
from irl.scenario import Scenario, load_scenario

STEADY = settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
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

MEMBERS, MONTHS = 4, 3
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
def panels(draw: st.DrawFn) -> pd.DataFrame:
    """A panel: every label is there, and monthly is chosen where it may be."""
    n = MEMBERS * MONTHS
    status = [draw(st.sampled_from(["out", "monthly", "annual"])) for _ in range(n)]
    status[:4] = ["out", "monthly", "gone", "annual"]  # the first member is gone in its last month
    plans = [["none", "annual"] + ["monthly"] * (each != "annual") for each in status]
    return pd.DataFrame(
        {
            "id": np.repeat([f"m{i}" for i in range(MEMBERS)], MONTHS),
            "month": np.tile(np.arange(MONTHS), MEMBERS),
            "plan": [draw(st.sampled_from(menu)) for menu in plans],
            "status": status,
            "video": draw(st.lists(st.sampled_from([0, 1, 2]), min_size=n, max_size=n)),
            "visits": draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)),
            "price": np.repeat([draw(st.sampled_from([0.8, 1.0, 1.2])) for _ in range(MEMBERS)], MONTHS),
            "region": np.repeat(["north", "south"], n // 2),
            "w": [draw(st.sampled_from([1.0, 2.0])) for _ in range(n)],
            "left": 0,
        }
    )


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """A panel of which up to two things are changed: cells, types, columns, rows."""
    frame = draw(panels())
    for _ in range(draw(st.integers(0, 2))):
        name, n = draw(st.sampled_from(list(frame.columns))), len(frame)
        what = draw(
            st.sampled_from(["cells", "type", "other type", "no column", "column twice", "no row", "row twice"])
        )
        if what == "cells":
            values = frame[name].astype(object).tolist() if list(frame.columns).count(name) == 1 else []
            for row in draw(st.lists(st.integers(0, len(values) - 1), max_size=3)) if values else ():
                values[row] = draw(ODD)
            frame = frame.assign(**{name: pd.Series(values, dtype=object, index=frame.index)}) if values else frame
        elif what == "type":
            with suppress(TypeError, ValueError, OverflowError, KeyError):  # not every column has every type
                frame = frame.astype({name: draw(st.sampled_from(DTYPES))})
        elif what == "no column":
            frame = frame.drop(columns=name)
        elif what == "column twice":
            frame = pd.concat([frame, frame[[name]]], axis=1)
        else:
            rows = draw(st.lists(st.integers(0, n - 1), max_size=n)) if n else []
            kept = np.setdiff1d(np.arange(n), rows) if what == "no row" else np.append(np.arange(n), rows)
            frame = frame.iloc[kept.astype(int)]
    return frame


def outcomes(check: Callable[[Any], Any], examples: st.SearchStrategy[Any]) -> Counter[str]:
    """How often ``check`` took an example, and how often it refused one by a user's error."""
    found: Counter[str] = Counter()

    @STEADY
    @given(examples)
    def tried(example: Any) -> None:
        try:
            check(example)
            found["taken"] += 1
        except InputError as error:
            assert str(error).strip()
            found["refused"] += 1

    tried()
    return found


def test_any_frame_is_a_panel_or_a_users_error():
    found = outcomes(lambda frame: panel_from_frame(frame, CONFIG), frames())
    assert min(found["taken"], found["refused"]) >= 5, found


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


@pytest.mark.parametrize(("section", "content"), [(Config, STUDY), (Scenario, SCENARIO)])
def test_any_mutation_is_a_study_or_scenario_or_a_users_error(section, content):
    found = outcomes(lambda mutation: validated(section, mutation, "s.yaml"), mutated(content))
    assert min(found["taken"], found["refused"]) >= 5, found


@pytest.mark.parametrize(("load", "content"), [(load_config, STUDY), (load_scenario, SCENARIO)])
def test_any_text_is_a_study_or_scenario_or_a_users_error(tmp_path, load, content):
    """A file with a piece cut out and something else put in, in bytes."""
    text, path = yaml.safe_dump(content).encode(), tmp_path / "file.yaml"
    piece = st.binary(max_size=6) | st.text(max_size=6).map(str.encode)

    def check(cut: tuple[int, int, bytes]) -> None:
        first, length, new = cut
        path.write_bytes(text[:first] + new + text[first + length :])
        load(path)

    found = outcomes(check, st.tuples(st.integers(0, len(text)), st.integers(0, 12), piece))
    assert min(found["taken"], found["refused"]) >= 5, found
