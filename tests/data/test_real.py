"""Readers of real data on stand-ins in each one's raw format, and their studies; hostile pickles are refused."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import runpy
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from irl.config import InputError, load_config
from irl.data import cdnow as cd
from irl.data import panel_from_frame
from irl.data.health_insurance import USED, health_insurance
from irl.data.packaged import packaged, unpickled_frame
from irl.data.rust_bus import rust_bus
from irl.data.split import fitted_rows

ROOT = Path(__file__).parents[2]


def study(name: str, frame: pd.DataFrame):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    return panel_from_frame(fitted_rows(frame, config.data), config)


def test_buses(tmp_path):
    file = tmp_path / "bus.csv"
    rows = ["1,2,8.1,1,1,4", "1,1,3.2,0,0,4", "1,3,0.4,0,0,4", "2,1,2.0,0,0,3", "2,2,3.0,0,0,3"]
    file.write_text("bus_id,period,mileage,mileage_bin,replaced,group\n" + "\n".join(rows))
    frame = rust_bus(file)
    assert frame["choice"].tolist() == ["keep", "replace", "keep", "keep", "keep"]
    assert frame["mileage"].tolist() == [0, 1, 0, 0, 0]
    panel = study("rust_bus", frame)
    assert panel.n_members == 1 and panel.n_rows == 3  # group 4 alone
    file.write_text("bus_id,period\n1,1\n")
    with pytest.raises(InputError, match="no column mileage_bin, replaced, group"):
        rust_bus(file)


def test_purchases(tmp_path):
    file = tmp_path / "cd.txt"
    lines = [
        " 00001 19970105 1 12.00",
        " 00001 19970120 1 10.00",
        " 00001 19970403 2 31.00",
        " 00001 19970403 1 5.00",  # the same day: one purchase
        " 00001 19970410 1 5.00",
        " 00002 19970214 4 45.00",
    ]
    file.write_text(" customer_id  date number_of_cds  dollar_value\n" + "\n".join(lines) + "\n")
    frame = cd.cdnow(cd.transactions(file))
    first = frame[frame["customer"] == 1].head(5)
    assert first["month"].tolist() == [2, 3, 4, 5, 6]
    assert first["choice"].tolist() == ["none", "none", "more", "none", "none"]
    assert first["purchases"].tolist() == [0, 0, 2, 0, 0] and first["spent"].tolist() == [0, 0, 41, 0, 0]
    assert first["recency"].tolist() == [1, 2, 3, 1, 2] and first["away"].tolist() == [0, 0.69, 1.1, 0, 0.69]
    assert first["frequency"].tolist() == [1, 1, 1, 2, 2]  # months, and two purchases in January are one
    assert first["last"].tolist() == ["more"] * 5  # in January as in April
    assert first["tenure"].tolist() == [1, 2, 3, 4, 5]
    other = frame[frame["customer"] == 2]
    assert len(other) == 16 and (other["last"] == "once").all() and other["recency"].max() == 16
    panel = study("cdnow", frame)
    assert panel.n_rows == 8 + 7  # up to September
    assert frame["away"].isin([float(level) for level in panel.schema.columns[0].labels]).all()  # later ones, too
    for wrong, why in (("00001 19970105\n", "4 or 5"), ("00001 1997010 1 x\n", "1 lines have no date")):
        file.write_text(wrong)
        with pytest.raises(InputError, match=why):
            cd.transactions(file)


def persons() -> pd.DataFrame:
    rows = pd.DataFrame(0.0, index=range(6), columns=list(USED)).astype({"zper": "int64", "year": "int64"})
    rows["zper"], rows["year"] = [7, 7, 7, 8, 8, 9], [1, 2, 3, 2, 4, 1]
    rows["mdvis"], rows["coins"] = [0, 3, 0, 1, 1, 1], [25.0] * 3 + [0.0] * 3
    rows["xage"], rows["income"], rows["num"] = [20.7] * 3 + [40.2] * 3, [9000.0] * 3 + [500.0] * 3, 3
    rows["hlthf"] = [1.0] * 3 + [0.0] * 3
    return rows


class Named:
    """A name in a pickle, whatever there is under it."""

    def __init__(self, module: str, name: str) -> None:
        self.line = f"{module}\n{name}\n".encode()


class Made:
    """An object in a pickle: a name called with arguments, and a state."""

    def __init__(self, module: str, name: str, arguments: tuple, state: object = None) -> None:
        self.function, self.arguments, self.state = Named(module, name), arguments, state


class Writer(pickle._Pickler):
    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def named(self, what: Named) -> None:
        self.write(pickle.GLOBAL + what.line)

    def made(self, what: Made) -> None:
        self.save(what.function)
        self.save(what.arguments)
        self.write(pickle.REDUCE)
        if what.state is not None:
            self.save(what.state)
            self.write(pickle.BUILD)

    dispatch[Named], dispatch[Made] = named, made


def as_pandas_1_wrote(frame: pd.DataFrame, *, code: str = "") -> Made:
    """What the packaged files hold: the same names and states. ``code``: another type of the numbers."""

    def buffer(values: np.ndarray) -> Made:
        kind = Made(
            "numpy", "dtype", (code or values.dtype.str[1:], False, True), (3, "<", None, None, None, -1, -1, 0)
        )
        return Made("numpy.core.numeric", "_frombuffer", (values.tobytes(), kind, values.shape, "C"))

    def index(kind: str, about: dict) -> Made:
        module = "base" if kind == "Index" else "range"
        of = Named(f"pandas.core.indexes.{module}", kind)
        return Made("pandas.core.indexes.base", "_new_Index", (of, about))

    blocks = []
    for kind in ("float64", "int64"):
        place = np.flatnonzero(frame.dtypes == kind)
        values = np.ascontiguousarray(frame.iloc[:, place].to_numpy().T)
        blocks.append(Made("pandas._libs.internals", "_unpickle_block", (buffer(values), buffer(place), 2)))
    text = Made("numpy", "dtype", ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
    names = Made(
        "numpy.core.multiarray", "_reconstruct", (Named("numpy", "ndarray"), (0,), b"b"),
        (1, (frame.shape[1],), text, False, list(frame.columns)),
    )  # fmt: skip
    axes = [index("Index", {"data": names, "name": None})]
    axes.append(index("RangeIndex", {"name": None, "start": 0, "stop": len(frame), "step": 1}))
    manager = Made("pandas.core.internals.managers", "BlockManager", (tuple(blocks), axes))
    return Made("pandas.core.frame", "DataFrame", (), {"_mgr": manager, "_typ": "dataframe"})


def pickled(content: object, file: Path) -> Path:
    stream = io.BytesIO()
    Writer(stream, protocol=4).dump(content)
    file.write_bytes(lzma.compress(stream.getvalue()))
    return file


def test_health_insurance(tmp_path):
    frame = health_insurance(pickled(as_pandas_1_wrote(persons()), tmp_path / "hie"))
    assert frame["person"].tolist() == [7, 7] and frame["year"].tolist() == [2, 3]  # 8 has a gap, 9 a single year
    assert frame["choice"].tolist() == ["visit", "none"] and frame["last_year"].tolist() == ["none", "visit"]
    assert frame["age"].tolist() == [21, 22] and frame["health"].tolist() == ["fair", "fair"]
    assert frame["income_group"].tolist() == ["high", "high"] and frame["coinsurance"].tolist() == [25, 25]
    with pytest.raises(InputError, match="no column mdvis"):
        health_insurance(pickled(as_pandas_1_wrote(persons().drop(columns="mdvis")), tmp_path / "hie"))


def test_frames_are_read_as_they_were(tmp_path):
    frame = pd.DataFrame({"a": [1.5, 2.0, np.nan], "b": [1, 2, 3], "c": [0.0, -1.0, 1e9]})
    pd.testing.assert_frame_equal(unpickled_frame(pickled(as_pandas_1_wrote(frame), tmp_path / "frame")), frame)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (Hostile(), "it names posix.mkdir"),
        (as_pandas_1_wrote(pd.DataFrame({"a": [1.5]}), code="O8"), "not little-endian"),
        (as_pandas_1_wrote(pd.DataFrame({Hostile(): [1.5]})), "it names posix.mkdir"),
        ({"a": 1}, "not a pickled data frame of numbers"),
    ],
)
def test_other_pickles_are_refused_and_nothing_in_them_runs(content, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=why):
        unpickled_frame(pickled(content, tmp_path / "frame"))
    (tmp_path / "cut").write_bytes((tmp_path / "frame").read_bytes()[:-20])
    with pytest.raises(InputError, match="not a pickled data frame of numbers"):
        unpickled_frame(tmp_path / "cut")
    assert not (tmp_path / "owned").exists()


def test_missing_packages_and_files_are_named():
    with pytest.raises(InputError, match=r"needs the package no_such_package: pip install 'anchor-irl\[bench\]'"):
        packaged("no_such_package", "x.csv", extra="bench", what="it")
    with pytest.raises(InputError, match=r"installed version of irl has no x\.csv"):
        packaged("irl", "x.csv", extra="bench", what="it")


def test_the_script_refuses_a_sample_where_there_is_none(tmp_path, monkeypatch, capsys):
    script = str(ROOT / "scripts" / "real_data.py")
    monkeypatch.setattr(sys, "argv", [script, "rust_bus", "--out", str(tmp_path / "data"), "--everyone"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(script, run_name="__main__")
    assert stopped.value.code == 2 and "--everyone is for cdnow" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
